import pytest

from shoal_firmware_bridge import config
from shoal_firmware_bridge.errors import ConfigError

SERIAL = """
socket_dir = "/run/shoal/devices"
[[device]]
name = "meter"
link = "serial"
path = "/dev/ttyUSB0"
"""
TCP = """
[[device]]
name = "pump"
link = "tcp"
host = "127.0.0.1"
port = 7000
"""


def load(tmp_path, text):
    path = tmp_path / "bridge.toml"
    path.write_text(text)
    return config.load(path)


def test_both_kinds_of_line_are_read(tmp_path):
    read = load(tmp_path, SERIAL + "baud = 9600\n" + TCP)
    meter, pump = read.device
    assert (meter.path, meter.baud) == ("/dev/ttyUSB0", 9600)
    assert (pump.host, pump.port) == ("127.0.0.1", 7000)
    assert str(read.socket(pump)) == "/run/shoal/devices/pump.sock"


@pytest.mark.parametrize("host", ["192.168.7.30", "pump.local", "fd00::7"])
def test_a_line_to_another_machine_is_opened_where_that_is_allowed(tmp_path, host):
    text = SERIAL + TCP.replace("127.0.0.1", host) + "allow_unauthenticated = true"
    assert load(tmp_path, text).device[1].host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_a_line_within_this_machine_needs_no_permission(tmp_path, host):
    assert load(tmp_path, SERIAL + TCP.replace("127.0.0.1", host)).device[1].host == host


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "missing key `socket_dir`"),
        ('socket_dir = "/x"', "missing key `device`"),
        ('socket_dir = "/x"\ndevice = []', "no [[device]]"),
        (SERIAL + "speed = 9600", "[device[0]] unknown key `speed`"),
        ("colour = 1\n" + SERIAL, "unknown key `colour`"),
        (SERIAL + "baud = 1", "[device[0].baud]"),
        (SERIAL + 'baud = "fast"', "[device[0].baud]"),
        (SERIAL + "port = 7000", 'for link = "tcp"'),
        (SERIAL + 'host = "x"', 'for link = "tcp"'),
        (SERIAL + "allow_unauthenticated = true", 'for link = "tcp"'),
        (SERIAL + TCP.replace("127.0.0.1", "192.168.7.30"), "allow_unauthenticated = true"),
        (SERIAL + TCP.replace("127.0.0.1", "pump.local"), "is another machine"),
        (SERIAL.replace("serial", "can"), "[device[0].link]"),
        (SERIAL.replace("/dev/ttyUSB0", "socket://127.0.0.1:1"), "needs path, an absolute one"),
        (SERIAL.replace("/dev/ttyUSB0", "/dev/tty\\u0000"), "needs path, an absolute one"),
        (SERIAL.replace('path = "/dev/ttyUSB0"', ""), "needs path, an absolute one"),
        (SERIAL.replace("/run/shoal/devices", ""), "socket_dir"),
        (SERIAL.replace("/run/shoal/devices", "/" + "d" * 100), "socket_dir makes a path"),
        (SERIAL.replace("meter", "../meter"), "name"),
        (SERIAL + SERIAL.partition("devices")[2][1:], "distinct"),
        (SERIAL + TCP.replace("port = 7000", ""), "needs host and port"),
        (SERIAL + TCP.replace("7000", "70000"), "[device[1].port]"),
        (SERIAL + TCP + "baud = 9600", 'for link = "serial"'),
        (SERIAL + TCP.replace("127.0.0.1", ""), "needs host and port"),
        ("socket_dir = ", "not TOML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_that_names_file_and_key(tmp_path, text, says):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "bridge.toml"))
    assert says in message
    assert "\n" not in message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"bridge\.toml: No such file"):
        config.load(tmp_path / "bridge.toml")
