import pytest
import structlog.testing
from tests.support.certificates import Registry

from shoal_broker.broker_table import BrokerTable
from shoal_broker.bus_errors import BrokerTableError, PlaintextError
from shoal_broker.link import KEEPALIVE_S
from shoal_broker.session import Session


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


def test_nothing_leaves_this_machine_in_the_clear_unless_the_table_says_so(tmp_path):
    (tmp_path / "secret").write_text("s3cret\n")
    refused = (
        r"\[broker\] the broker 192.0.2.1 is another machine.*: set ca_file \(TLS\), or plaintext"
    )
    with pytest.raises(BrokerTableError, match=refused):
        BrokerTable(host="192.0.2.1").check_encrypted()
    for good in (
        BrokerTable(host="192.0.2.1", plaintext=True),
        BrokerTable(host="192.0.2.1", ca_file="ca.crt"),
        BrokerTable(host="127.0.0.2"),
        BrokerTable(host="::1"),
        BrokerTable(host="LocalHost"),
    ):
        good.check_encrypted()


async def test_a_session_refuses_to_speak_to_another_machine_in_the_clear():
    with pytest.raises(PlaintextError, match="nothing would be encrypted"):
        async with Session.open(BrokerTable(host="192.0.2.1").session("n1")):
            pass


def test_that_it_is_spoken_in_the_clear_is_said_aloud():
    with structlog.testing.capture_logs() as logs:
        assert BrokerTable(host="192.0.2.1", plaintext=True).session("n1").plaintext
        BrokerTable(host="127.0.0.1").session("n1")
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("broker is spoken to in the clear", "warning")


def test_the_certificate_must_be_that_of_who_asks_for_it(tmp_path):
    registry = Registry(tmp_path)
    certificate, key = registry.certify("node-2")
    table = BrokerTable(
        host="broker", ca_file=str(registry.ca_file), cert_file=certificate, key_file=key
    )
    assert table.session("node-2", named="node-2").tls is not None
    assert table.session("whoever").tls is not None
    with pytest.raises(BrokerTableError, match=r"\[broker\] cert_file .* of 'node-2', and we are"):
        table.session("node-1", named="node-1")
