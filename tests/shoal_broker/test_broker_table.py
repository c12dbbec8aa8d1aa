import pytest

from shoal_broker.broker_table import BrokerTable
from shoal_broker.bus_errors import BrokerTableError
from shoal_broker.link import KEEPALIVE_S


def test_the_password_is_the_first_line_of_its_file(tmp_path):
    (tmp_path / "secret").write_text("s3cret\r\nnote\n")
    table = BrokerTable(host="broker", username="u", password_file=f"{tmp_path}/secret")
    session = table.session("n1")
    assert (session.client_id, session.username, session.password) == ("n1", "u", "s3cret")
    assert session.tls is None
    assert "s3cret" not in repr(session)


def test_the_keepalive_of_the_table_is_the_sessions():
    assert BrokerTable(host="broker", keepalive_s=20).session("n1").keepalive_s == 20
    assert BrokerTable(host="broker").session("n1").keepalive_s == KEEPALIVE_S


def test_without_a_password_file_there_is_no_password():
    assert BrokerTable(host="broker").session("n1").password is None


def test_a_password_file_that_cannot_be_used_is_named_with_its_key(tmp_path):
    with pytest.raises(
        BrokerTableError, match=r"\[broker\] password_file \S+/none cannot be read: No"
    ):
        BrokerTable(host="broker", password_file=f"{tmp_path}/none").session("n1")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(BrokerTableError, match=r"password_file \S+/binary is not UTF-8 text"):
        BrokerTable(host="broker", password_file=f"{tmp_path}/binary").session("n1")


def test_a_file_for_tls_that_cannot_be_used_is_named_with_its_key(tmp_path):
    table = BrokerTable(host="broker", ca_file=f"{tmp_path}/ca.crt")
    assert table.tls() is not None, "looking at the keys reads nothing"
    with pytest.raises(
        BrokerTableError, match=r"\[broker\] ca_file \S+/ca.crt cannot be read: No such"
    ):
        table.session("n1")


def test_a_key_that_needs_another_one_is_told_without_reading():
    with pytest.raises(BrokerTableError, match=r"\[broker\] cert_file needs ca_file"):
        BrokerTable(host="broker", cert_file="c").tls()
