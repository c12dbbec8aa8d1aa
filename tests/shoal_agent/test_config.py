import pytest

from shoal_agent.config import load
from shoal_agent.errors import ConfigError
from shoal_contract import envelope

GOOD = """
node = "board-1"
state_dir = "/var/lib/shoal"
[broker]
host = "localhost"
[[device]]
name = "meter"
socket = "/run/shoal/devices/meter.sock"
[[pipeline]]
stream = "digits"
device = "meter"
channel = 1
model = "digits"
[pipeline.command]
channel = 2
"""


def write(tmp_path, text):
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return path


def test_a_broker_on_another_machine_needs_tls_or_a_word(tmp_path):
    path = tmp_path / "agent.toml"

    def loaded(broker: str):
        path.write_text(f"node = 'n'\nstate_dir = '{tmp_path}'\n[broker]\n{broker}")
        return load(path)

    with pytest.raises(ConfigError, match="the broker b is another machine"):
        loaded("host = 'b'")
    assert loaded("host = 'b'\nplaintext = true").broker.plaintext
    assert loaded("host = 'b'\nca_file = 'ca.crt'").broker.tls() is not None
    (tmp_path / "identity").mkdir()
    assert loaded("host = 'b'"), "enrolment gave the board a certificate"


def test_a_good_file_is_read(tmp_path):
    config = load(write(tmp_path, GOOD))
    assert config.broker.port == 1883
    assert config.pipeline[0].command.channel == 2


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            'host = "localhost"',
            'hots = "x"',
            r"\[broker\] .*`hots`|\[broker\] missing key `host`",
        ),
        ('host = "localhost"', 'host = "localhost"\nport = 99999', r"\[broker.port\]"),
        (
            'host = "localhost"',
            'host = "x"\ncert_file = "c"\nkey_file = "k"',
            r"\[broker\] cert_file needs ca_file",
        ),
        ('node = "board-1"', 'node = "Board 1"', "not a node id"),
        ('node = "board-1"', "", "missing key `node`"),
        ('state_dir = "/var', 'colour = 1\nstate_dir = "/var', "unknown key `colour`"),
        ('device = "meter"', 'device = "metre"', "'metre' is not a"),
        ('stream = "digits"', 'stream = "a/b"', "is not a name"),
        ("[broker]", '[peers]\nupstream = "nowhere"\n[broker]', "must be host:port"),
        (
            "[broker]",
            '[trust]\ncommand_keys = ["AAAA"]\n[broker]',
            r"\[trust\] command_keys: 3 bytes",
        ),
        ("[broker]", '[trust]\ncommand_keys = "AAAA"\n[broker]', r"\[trust.command_keys\]"),
        ("[broker]", "[broker", "not TOML"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_file_and_key(tmp_path, old, new, says):
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=says) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keys_are_read_as_bytes(tmp_path):
    keys = f'[trust]\ncommand_keys = ["{envelope.key_text(b"k" * 32)}"]\n[broker]'
    assert load(write(tmp_path, GOOD.replace("[broker]", keys))).command_keys == (b"k" * 32,)
    assert load(write(tmp_path, GOOD)).command_keys == ()


def test_two_pipelines_may_not_read_one_channel(tmp_path):
    double = GOOD[GOOD.index("[[pipeline]]") :]
    with pytest.raises(ConfigError, match="same device and channel"):
        load(write(tmp_path, GOOD + double))


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.toml")


TOPIC = """
[[pipeline]]
stream = "climate"
model = "climate"
[pipeline.topic]
filter = "zigbee2mqtt/+"
values = ["$.temperature", "$.axes[0]"]
[pipeline.command]
device = "meter"
channel = 3
[pipeline.publish]
topic = "verdict/{1}"
[pipeline.file]
path = "/var/log/verdicts"
"""


def test_a_pipeline_may_read_a_topic(tmp_path):
    pipeline = load(write(tmp_path, GOOD + TOPIC)).pipeline[1]
    assert pipeline.topic.values == ("$.temperature", "$.axes[0]")
    assert (pipeline.device, pipeline.command.device) == (None, "meter")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('filter = "zigbee2mqtt/+"', 'filter = "a/#/b"', "'#' stands alone and at the end"),
        ('"$.temperature"', '"temperature"', "'temperature' is no path"),
        ('values = ["$.temperature", "$.axes[0]"]', "", "json needs values"),
        ("filter =", 'format = "raw"\nfilter =', "raw has no values"),
        (
            'device = "meter"\nchannel',
            "channel",
            r"\[pipeline.command\] of climate: name the device",
        ),
        ('device = "meter"', 'device = "fan"', "device 'fan' is not a"),
        ('topic = "verdict/{1}"', 'topic = "verdict/#"', "no wildcards"),
        ('topic = "verdict/{1}"', 'topic = "zigbee2mqtt/{1}"', "come back to its own pipeline"),
        ('model = "climate"', 'model = "climate"\ndevice = "meter"', "either a device or"),
        ('model = "climate"', 'model = "climate"\nchannel = 1', "only a device has a channel"),
    ],
)
def test_a_wrong_source_or_sink_says_which_key(tmp_path, old, new, says):
    assert old in TOPIC
    with pytest.raises(ConfigError, match=says):
        load(write(tmp_path, GOOD + TOPIC.replace(old, new)))


def test_a_device_needs_its_channel(tmp_path):
    with pytest.raises(ConfigError, match="digits: a device needs its channel"):
        load(write(tmp_path, GOOD.replace("channel = 1\n", "")))
