"""Debians that boot with systemd as PID 1 beside the tests: systemd-nspawn on a network of their own.

For the deployment tests only. The guests' root is a shared folder that stays untouched (their changes go
to memory and are gone with them); their network is they and this host, with no route further. Needs root.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BOOT_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0

# systemd in the guest wants the unified cgroup tree. Where the host mounts another one, this process
# and its children alone get it: everything mounted here ends with the mount namespace.
_LAUNCH = """
if [ "$(stat --file-system --format=%T /sys/fs/cgroup)" != cgroup2fs ]; then
  umount --recursive /sys/fs/cgroup
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
mkdir "/sys/fs/cgroup/$NAME"
echo $$ > "/sys/fs/cgroup/$NAME/cgroup.procs"
mkdir -p /run/systemd/nspawn
mount -t tmpfs tmpfs /run/systemd/nspawn
exec "$@"
"""

# Without the last line networkd probes a link-local address for seven seconds before it uses it.
_NETWORK = """[Match]
Name=host0
[Network]
LinkLocalAddressing=no
ConfigureWithoutCarrier=yes
[Address]
Address={address}/28
DuplicateAddressDetection=none
"""


class GuestError(Exception):
    """The guest did not boot or stop, or a command in it failed."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A running guest, to be reached as root over SSH at `address`; `host_address` is ours."""

    name: str
    address: str
    host_address: str
    key: Path
    known_hosts: Path

    @property
    def ssh_options(self) -> list[str]:
        """What OpenSSH needs to reach it: the throw-away key, and the host key checked."""
        return [
            *("-i", str(self.key)),
            *("-o", "IdentitiesOnly=yes"),
            *("-o", f"UserKnownHostsFile={self.known_hosts}"),
            *("-o", "StrictHostKeyChecking=yes"),
            *("-o", "BatchMode=yes"),
            *("-o", "ConnectTimeout=10"),
        ]

    def run(self, command: str, *, timeout_s: float = 30.0) -> str:
        """The output of a shell command in the guest.

        Raises:
            GuestError: it ended with another status than 0.
        """
        done = subprocess.run(
            ["ssh", "-F", "none", *self.ssh_options, f"root@{self.address}", command],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise GuestError(f"{command!r} -> {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout


def why_no_guest() -> str | None:
    """Why no guest can be booted here, or None."""
    if os.geteuid():
        return "needs root"
    needed = ["systemd-nspawn", "mmdebstrap", "unshare", "ip", "ssh", "ssh-keygen"]
    missing = [program for program in needed if shutil.which(program) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (systemd-container, mmdebstrap, iproute2, ...)"
    if "cgroup2" not in Path("/proc/filesystems").read_text():
        return "this kernel has no cgroup2"
    return None


def debian_root() -> Path:
    """The folder that tools/nspawn-root makes once and keeps."""
    done = subprocess.run(
        [Path(__file__).resolve().parents[2] / "tools/nspawn-root"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    if done.returncode:
        raise GuestError(done.stdout + done.stderr)
    return Path(done.stdout.strip())


@dataclass(frozen=True, slots=True)
class Network:
    """A bridge on this host that guests are plugged into."""

    bridge: str
    block: int

    def address(self, number: int) -> str:
        """Of this host (0) and of the guests (1 to 13)."""
        value = self.block + 1 + number
        return f"169.254.{value >> 8}.{value & 255}"


@contextmanager
def network() -> Iterator[Network]:
    """A link-local /28 and a name of our own, so that runs beside each other do not meet."""
    found = Network(f"shoal{os.getpid()}", (os.getpid() % 4032) * 16 + 256)
    _do("ip", "link", "add", found.bridge, "type", "bridge")
    try:
        _do("ip", "address", "add", f"{found.address(0)}/28", "dev", found.bridge)
        _do("ip", "link", "set", found.bridge, "up")
        yield found
    finally:
        _do("ip", "link", "delete", found.bridge)


@contextmanager
def booted(root: Path, scratch: Path, link: Network, number: int) -> Iterator[Guest]:
    """Boot `root` (see tools/nspawn-root); the guest has ended, and left nothing, when this returns.

    Args:
        root: a folder with a Debian that has openssh-server and enables systemd-networkd.
        scratch: an empty folder for the key and the console log.
        link: what it is plugged into.
        number: which of its addresses it has.

    Raises:
        GuestError: it did not come up; the message carries the end of its console.
    """
    address = link.address(number)
    name = f"shoal{os.getpid()}-{number}"
    key = scratch / "key"
    _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    known_hosts = scratch / "known_hosts"
    host_key = (root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
    known_hosts.write_text(f"{address} {host_key}")
    settings = scratch / "host0.network"
    settings.write_text(_NETWORK.format(address=address))
    console = scratch / "console.log"

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, console.open("wb") as log:
        ready.bind(f"\0{name}")
        process = subprocess.Popen(
            [
                *("unshare", "--mount", "--propagation", "private"),
                *("sh", "-euc", _LAUNCH, "sh"),
                *("systemd-nspawn", "--boot", "--quiet"),
                *(f"--directory={root}", f"--machine={name}"),
                *("--volatile=overlay", "--register=no", "--keep-unit", "--notify-ready=yes"),
                *(f"--network-bridge={link.bridge}", "--console=read-only", "--link-journal=no"),
                *("--resolv-conf=off", f"--hostname={name}"),
                f"--bind-ro={key}.pub:/root/.ssh/authorized_keys",
                f"--bind-ro={settings}:/etc/systemd/network/10-shoal-test.network",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "NAME": name, "NOTIFY_SOCKET": f"@{name}"},
        )
        try:
            _await(ready, b"READY=1", process, console)
            _await_ssh(address)
            yield Guest(name, address, link.address(0), key, known_hosts)
        finally:
            _stop(process)
            _remove_cgroup(name)


def _await(
    ready: socket.socket, state: bytes, process: subprocess.Popen[bytes], console: Path
) -> None:
    """Until nspawn reports this (sd_notify): READY=1 is the guest's own PID 1 at the end of its boot."""
    ready.settimeout(BOOT_TIMEOUT_S)
    try:
        while not any(line.startswith(state) for line in ready.recv(4096).split(b"\n")):
            pass
    except TimeoutError as exc:
        status = process.poll()
        how = "still booting" if status is None else f"ended with status {status}"
        tail = console.read_text(errors="replace")[-2000:]
        raise GuestError(f"no guest after {BOOT_TIMEOUT_S:.0f} s, {how}: {tail}") from exc


def _await_ssh(address: str) -> None:
    """Until port 22 answers: the address of the guest may come a moment after its boot is complete."""
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while True:
        try:
            with socket.create_connection((address, 22), timeout=1.0) as connection:
                connection.recv(1)
                return
        except OSError as exc:
            if time.monotonic() > deadline:
                raise GuestError(f"the guest has booted, {address}:22 does not answer") from exc
            time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM lets the guest shut down in order; the second one ends it at once."""
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            continue
        return
    raise GuestError(f"systemd-nspawn (pid {process.pid}) does not end")


def _remove_cgroup(name: str) -> None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            top = Path(where) / name
            folders = [Path(folder) for folder, _, _ in os.walk(top, topdown=False)]
            for folder in folders:
                folder.rmdir()
            return


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise GuestError(f"{' '.join(command)}: {done.stderr.strip()}")
