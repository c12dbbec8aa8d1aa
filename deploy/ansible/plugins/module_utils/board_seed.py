# Copyright: The Shoal authors
# SPDX-License-Identifier: Apache-2.0
"""What a board finds beside its system at the first boot: cloud-init's files and Shoal's own. Pure.

The token in it is good once, and is removed from the board when it was used; a Wi-Fi password is the only secret that lasts.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from ansible_collections.shoal.edge.plugins.module_utils.board_table import Board

# Where cloud-init and our own script find the seed: a partition of its own, or the board's boot partition.
FORMS = {"cidata": "/run/shoal-seed", "bootfs": "/boot/firmware"}

# What a console key cannot be part of, and what TOML cannot hold in a basic string.
_CONTROL = {chr(number) for number in range(32)} | {"\x7f"}


class SeedError(Exception):
    """The seed cannot be made from these settings; the message says which."""


@dataclass(frozen=True)
class Settings:
    """What all boards of a run have in common.

    `form` is a key of FORMS; `keys` are lines of authorized_keys for `user`; `ca_pin` is what `shoal ca init` printed.
    """

    form: str
    user: str
    keys: tuple[str, ...]
    broker_host: str
    broker_port: int
    enrol_url: str
    ca_pin: str
    root: str = "shoal"
    wifi_ssid: str = ""
    wifi_password: str = ""
    wifi_country: str = ""


def files(board: Board, settings: Settings) -> dict[str, bytes]:
    """Every file of a board's seed but the release tree, by its name. Raises SeedError."""
    _check(settings)
    agent = _agent_toml(board, settings)
    found = {
        "user-data": "#cloud-config\n" + _json(_user_data(board, settings)),
        "shoal/first-boot.sh": FIRST_BOOT,
        "shoal/agent.toml": agent,
        "shoal/shoal-agent.service": UNIT,
        "shoal/token": board.token + "\n",
    }
    network = _network(board, settings)
    if network:
        found["network-config"] = _json(network)
    # Another seed is another instance: cloud-init takes it whole. The token says nothing in there.
    whole = hashlib.sha256("\0".join(f"{k}\0{v}" for k, v in sorted(found.items())).encode())
    instance = f"{board.node}-{whole.hexdigest()[:12]}"
    found["meta-data"] = _json({"instance-id": instance, "local-hostname": board.node})
    return {name: text.encode() for name, text in found.items()}


def _check(settings: Settings) -> None:
    if settings.form not in FORMS:
        raise SeedError(f"form {settings.form!r} is none of {', '.join(FORMS)}")
    for key in settings.keys:
        if len(key.split()) < 2 or _CONTROL & set(key):  # noqa: PLR2004 - a type and a key
            raise SeedError(f"{key[:40]!r} is no line of authorized_keys")
    for name in (
        "broker_host",
        "enrol_url",
        "ca_pin",
        "root",
        "user",
        "wifi_ssid",
        "wifi_password",
    ):
        if _CONTROL & set(getattr(settings, name)):
            raise SeedError(f"{name} has a control character in it")
    if not settings.enrol_url.startswith("https://"):
        raise SeedError("enrol_url is not https://host:port")
    if not settings.ca_pin:
        raise SeedError("ca_pin is empty: the board would not know the fleet's authority")
    if settings.wifi_ssid and not settings.wifi_password:
        raise SeedError("wifi_ssid needs wifi_password")


def _user_data(board: Board, settings: Settings) -> dict[str, object]:
    seed = FORMS[settings.form]
    found = "true"
    if settings.form == "cidata":
        found = f"mkdir -p {seed} && (mountpoint -q {seed} || mount -o ro,umask=077 /dev/disk/by-label/CIDATA {seed})"
    # At every boot until it is done: a board may lose its power in the middle, and cloud-init runs `runcmd` once.
    start = (
        "test -e /opt/shoal/seeded || systemd-run --no-block --quiet --unit=shoal-first-boot"
        f" /bin/sh -c '{found} && exec /bin/sh {seed}/shoal/first-boot.sh {seed}'"
    )
    data: dict[str, object] = {
        "hostname": board.node,
        "manage_etc_hosts": True,
        # Makes the first boot of a small board shorter by the minute that an RSA key takes.
        "ssh_genkeytypes": ["ed25519"],
        "ssh_pwauth": False,
        "bootcmd": [["/bin/sh", "-c", start]],
    }
    if settings.keys:
        data["users"] = [
            {
                "name": settings.user,
                "shell": "/bin/bash",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "lock_passwd": True,
                "ssh_authorized_keys": list(settings.keys),
            }
        ]
    if settings.form == "bootfs":
        data["enable_ssh"] = True  # Raspberry Pi OS leaves its SSH server off without it
    return data


def _network(board: Board, settings: Settings) -> dict[str, object]:
    """Empty where DHCP on a wire does: every image does that by itself."""
    link: dict[str, object] = {"dhcp4": True}
    if board.address:
        link = {"dhcp4": False, "addresses": [board.address]}
        if board.gateway:
            link["routes"] = [{"to": "default", "via": board.gateway}]
        if board.dns:
            link["nameservers"] = {"addresses": list(board.dns)}
    if settings.wifi_ssid:
        point: dict[str, object] = {"password": settings.wifi_password}
        wifi = {**link, "access-points": {settings.wifi_ssid: point}, "optional": True}
        if settings.wifi_country:
            wifi["regulatory-domain"] = settings.wifi_country
        return {"version": 2, "wifis": {"wlan0": wifi}}
    if board.address:
        return {"version": 2, "ethernets": {"wired": {"match": {"name": "e*"}, **link}}}
    return {}


def _agent_toml(board: Board, settings: Settings) -> str:
    return f"""# Written when this board was flashed; the Ansible role `agent` replaces it.
node = {_toml(board.node)}
root = {_toml(settings.root)}
state_dir = "/var/lib/shoal"

[broker]
host = {_toml(settings.broker_host)}
port = {settings.broker_port}
transport = "codec"

[enrolment]
url = {_toml(settings.enrol_url)}
ca_pin = {_toml(settings.ca_pin)}
token_file = "/var/lib/shoal/token"
"""


def _toml(text: str) -> str:
    # Without control characters a JSON string is a basic string of TOML.
    return json.dumps(text, ensure_ascii=False)


def _json(value: dict[str, object]) -> str:
    # Every JSON document is YAML, and nothing in it can be taken for something else.
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


FIRST_BOOT = r"""#!/bin/sh
# Installs the release tree that lies beside this file, once; the agent then enrols this board by itself.
# May be interrupted anywhere: it is started at every boot until its last line has run.
set -eu
umask 022
seed=$1
home=/opt/shoal
mkdir -p "$home/releases"
getent passwd shoal >/dev/null || useradd --system --user-group --home-dir /var/lib/shoal --no-create-home --shell /usr/sbin/nologin shoal

incoming=$home/releases/.incoming
rm -rf "$incoming"
mkdir "$incoming"
tar -xzf "$seed/shoal/release.tar.gz" -C "$incoming" --no-same-owner
version=$(ls "$incoming")
install -d "$incoming/$version/etc"
install -o root -g shoal -m 0640 "$seed/shoal/agent.toml" "$incoming/$version/etc/agent.toml"
sync -f "$home/releases"
if [ ! -e "$home/releases/$version" ]; then mv "$incoming/$version" "$home/releases/$version"; fi
rm -rf "$incoming"
ln -sfn "releases/$version" "$home/.current"
mv -T "$home/.current" "$home/current"

install -d -o shoal -g shoal -m 0700 /var/lib/shoal
if [ -e "$seed/shoal/token" ]; then
    install -o shoal -g shoal -m 0600 "$seed/shoal/token" /var/lib/shoal/token
fi
install -m 0644 "$seed/shoal/shoal-agent.service" /etc/systemd/system/shoal-agent.service
sync -f "$home"
systemctl daemon-reload
systemctl enable --quiet --now shoal-agent.service

# The board has it now; what lies on a removable card is read first by a thief.
if mountpoint -q "$seed" && ! touch "$seed/shoal/.writable" 2>/dev/null; then mount -o remount,rw "$seed"; fi
rm -f "$seed/shoal/token" "$seed/shoal/.writable"
touch "$home/seeded"
sync
# Lazily: the shell still has this very file open.
if [ "$seed" = /run/shoal-seed ]; then umount --lazy "$seed"; fi
"""

UNIT = """# Written when this board was flashed; the Ansible role `agent` replaces it.
[Unit]
Description=Shoal agent: models and device commands on this board
After=network.target time-sync.target
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart=/opt/shoal/current/bin/shoal-agent --config /opt/shoal/current/etc/agent.toml --log-format json
Restart=always
RestartSec=2
TimeoutStopSec=20
KillMode=mixed
OOMPolicy=continue
User=shoal
Group=shoal
StateDirectory=shoal
StateDirectoryMode=0700
WorkingDirectory=/var/lib/shoal
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
PrivateDevices=yes
PrivateTmp=yes
ProtectSystem=strict
ProtectHome=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX
LimitCORE=0

[Install]
WantedBy=multi-user.target
"""
