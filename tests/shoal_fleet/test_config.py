import pytest

from shoal_fleet.config import FleetConfig, load
from shoal_fleet.errors import ConfigError, UsageError
from shoal_fleet.serve import settle


def write(tmp_path, text):
    path = tmp_path / "shoal.toml"
    path.write_text(text)
    return path


def test_an_empty_file_is_the_defaults(tmp_path):
    assert load(write(tmp_path, "")) == FleetConfig()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("colour = 1", "unknown key `colour`"),
        ("[broker]\nprot = 1", "[broker] unknown key `prot`"),
        ("[broker]\nport = 0", "[broker.port]"),
        ("[broker]\ncert_file = 'c'\nkey_file = 'k'", "[broker] cert_file needs ca_file"),
        ("[broker]\nca_file = 'a'\ncert_file = 'c'", "[broker] cert_file needs key_file"),
        ("silent_after_s = -1", "[silent_after_s]"),
        ("root = 'a b'", "[root]"),
        ("webhook_url = 'ftp://x'", "[webhook_url]"),
        ("webhook_url = 'http://[::1'", "[webhook_url]"),
        ("= 3", "not TOML"),
        ("[[door]]\nuser = 'ha'", "missing key `nodes`"),
        ("[[door]]\nuser = 'ha'\nnodes = ''\nop = []", "unknown key `op`"),
        ("[[door]]\nuser = 'a/b'\nnodes = ''", "[[door]] 'a/b'"),
        ("[[door]]\nuser = '+'\nnodes = ''", "[[door]] '+'"),
        ("[[door]]\nuser = 'ha'\nnodes = 'site=a b'", "[[door]] 'ha'"),
        ("[[door]]\nuser = 'ha'\nnodes = ''\nops = ['dev*']", "'dev*' in ops"),
        ("[[door]]\nuser = 'ha'\nnodes = ''\nops = ['']", "'' in ops"),
        ("[[door]]\nuser='ha'\nnodes=''\n[[door]]\nuser='ha'\nnodes=''", "distinct"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(tmp_path, text, complaint):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert complaint in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.toml")


def test_the_command_line_wins_over_the_file(tmp_path):
    path = write(tmp_path, "[broker]\nhost = 'localhost'\nusername = 'u'\n[listen]\nport = 1")
    config = settle(path, host=None, port=2, broker="[::1]:1884")
    assert (config.broker.host, config.broker.port) == ("::1", 1884)
    assert config.broker.username == "u"
    assert config.listen.port == 2


def test_a_broker_on_another_machine_needs_tls_or_a_word(tmp_path):
    with pytest.raises(ConfigError, match="the broker b is another machine"):
        load(write(tmp_path, "[broker]\nhost = 'b'"))
    with pytest.raises(ConfigError, match="the broker b is another machine"):
        settle(None, host=None, port=None, broker="b:1883")
    assert load(write(tmp_path, "[broker]\nhost = 'b'\nplaintext = true")).broker.plaintext


@pytest.mark.parametrize("broker", ["host", ":1", "host:", "host:x", "host:70000"])
def test_a_broker_that_is_no_address_is_a_usage_error(broker):
    with pytest.raises(UsageError):
        settle(None, host=None, port=None, broker=broker)
