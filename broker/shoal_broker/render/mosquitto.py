"""A plan as files for Mosquitto, 2.0.11 (Debian 12) and later. Text only.

Sources: mosquitto.conf(5) of 2.0.11. That a client is granted nothing else is tested with
deliveries, in tests/system: a SUBACK of Mosquitto says "granted" for topics it never delivers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from shoal_broker.render.plan import (
    MAX_IN_FLIGHT,
    MAX_PACKET_BYTES,
    MAX_QUEUED_BYTES,
    MAX_QUEUED_MESSAGES,
    Plan,
    RenderedFile,
    Rendering,
    Upstream,
)
from shoal_contract.access import Access, Grant, Role, grants
from shoal_contract.messages import MAX_MESSAGE_BYTES

CONFIG_NAME: Final = "mosquitto.conf"
ACL_NAME: Final = "shoal.acl"
DEFAULT_INSTALL_DIR: Final = "/etc/mosquitto"
DEFAULT_DATA_DIR: Final = "/var/lib/mosquitto"
# No node can be called so: a node id has no dot.
BRIDGE_USER: Final = "shoal.bridge"

_WORDS: Final = {Access.READ: "read", Access.WRITE: "write", Access.BOTH: "readwrite"}


def render(plan: Plan) -> Rendering:
    """The files and the next steps."""
    return Rendering(
        files=(
            RenderedFile(CONFIG_NAME, _config(plan)),
            RenderedFile(ACL_NAME, _acl(plan)),
        ),
        next_steps=_next_steps(plan),
    )


def _config(plan: Plan) -> str:
    listener = f"listener {plan.port} {plan.bind}".rstrip()
    text = f"""\
# Mosquitto for Shoal, made by `shoal-broker render mosquitto`. It is the whole configuration: it
# stands in for {plan.install_dir}/{CONFIG_NAME}, not beside it in conf.d.

# --- who may connect, and as whom
# One rule for every listener; nobody without a name.
per_listener_settings false
allow_anonymous false
acl_file {plan.install_dir}/{ACL_NAME}

{listener}
cafile {plan.certs_dir}/ca.crt
certfile {plan.certs_dir}/broker.crt
keyfile {plan.certs_dir}/broker.key
# crlfile {plan.certs_dir}/revoked.pem
tls_version tlsv1.3
require_certificate true
# The certificate's CN is the user. It is the client id too: else a node with a good certificate
# could connect under another one's client id, end its session and take what waits in it.
use_identity_as_username true
use_username_as_clientid true

# --- latency
# Without it a QoS 1 round trip waits for Nagle and the delayed ACK: 40 ms and more.
set_tcp_nodelay true

# --- limits
# The largest message of Shoal ({MAX_MESSAGE_BYTES} bytes) with the packet around it. Clients are told; who
# sends more is disconnected. Not message_size_limit: that answers with a reason code which MQTT 5
# does not allow in a PUBACK, and clients built on paho break on it.
max_packet_size {MAX_PACKET_BYTES}
max_inflight_messages {MAX_IN_FLIGHT}
# For one client that is away or slow; what is beyond is dropped in silence. The chunks of a whole
# model must fit, because they all come at once to a node that subscribes.
max_queued_messages {MAX_QUEUED_MESSAGES}
max_queued_bytes {MAX_QUEUED_BYTES}
allow_zero_length_clientid false

# --- what survives
{_persistence(plan)}
# --- log: to the journal
log_dest stderr
log_type error
log_type warning
log_type notice
log_type information
"""
    return text + (_bridge(plan, plan.upstream) if plan.upstream else "")


def _persistence(plan: Plan) -> str:
    if plan.save_every_s is None:
        how = """\
# Save at every change: what was acknowledged is on the disk a moment later, and a crash loses what
# came within that moment (Debian's defaults: up to 30 minutes). It is no more than that: the PUBACK
# leaves before the save, so a PUBACK alone promises nothing that must not be lost.
# The cost: each save writes the whole database, retained chunks included, while clients wait, and
# nearly every QoS 1 message is a change. Measured with 23 MiB retained: 28 ms and 23 MiB written
# a message; publishing those 23 MiB wrote 4.2 GiB. Thousands of nodes, large models or flash: render
# with --save-every-s N instead.
autosave_on_changes true
autosave_interval 1
"""
    else:
        how = f"""\
# Save every {plan.save_every_s} s: a crash loses up to that much of what was acknowledged, and
# retained messages are as old as the last save.
# The cost: the whole database is written each time, whether something has changed or not.
autosave_on_changes false
autosave_interval {plan.save_every_s}
"""
    return f"""\
persistence true
persistence_location {plan.data_dir}/
{how}"""


def _bridge(plan: Plan, upstream: Upstream) -> str:
    lines = [
        line
        for level in upstream.levels
        for grant in _behind(plan, level)
        for line in _bridge_topics(grant)
    ]
    topics = "\n".join(dict.fromkeys(lines))
    return f"""
# --- the upstream broker
# Each topic goes one way, what nodes write out and what they read in, so nothing can come back and
# go round. The upstream knows this broker by the CN of bridge.crt: render it with --site CN.
connection shoal-upstream
address {upstream.host}:{upstream.port}
bridge_protocol_version mqttv50
bridge_cafile {plan.certs_dir}/ca.crt
bridge_certfile {plan.certs_dir}/bridge.crt
bridge_keyfile {plan.certs_dir}/bridge.key
bridge_tls_version tlsv1.3
bridge_insecure false
# Whose rights hold for what comes in. 2.0.11 lets bridges do everything; where one is checked,
# its rights stand under this name.
local_username {BRIDGE_USER}
# Both ends keep what could not be sent while the line was cut.
cleansession false
local_cleansession false
keepalive_interval 30
restart_timeout 1 60
start_type automatic
notifications false
{topics}
"""


def _behind(plan: Plan, level: str) -> list[Grant]:
    return grants(Role.NODE, plan.topics, node=level)


def _bridge_topics(grant: Grant) -> Iterator[str]:
    if Access.WRITE in grant.access:
        yield f"topic {grant.topic_filter} out 1"
    if Access.READ in grant.access:
        yield f"topic {grant.topic_filter} in 1"


def _acl(plan: Plan) -> str:
    blocks = [
        """\
# Access rules of Shoal for Mosquitto, made by `shoal-broker render mosquitto`: change the topic
# table or the arguments, not this file. What is not granted here is denied. Mosquitto warns of the
# patterns without %u; they are meant: every node may read these topics.
"""
    ]
    for role, name in plan.people_and_programs():
        # The rules for nodes are for every user: without this line a client that is no node
        # could play one of its own name. Who may read less than a node is denied that, too.
        own = [f"topic deny {grant.topic_filter}" for grant in _not_theirs(plan, role, name)]
        rules = [
            f"topic {_WORDS[g.access]} {g.topic_filter}"
            for g in grants(role, plan.topics, user=name)
        ]
        blocks.append(_block(f"# {role}", f"user {name}", own + rules))
    for site in plan.sites:
        own = [f"topic deny {grant.topic_filter}" for grant in _not_theirs(plan, None, site.name)]
        blocks.append(
            _block(
                "# the broker of a site, for the nodes behind it",
                f"user {site.name}",
                (own if site.nodes and site.name not in site.nodes else [])
                + [_topic(grant) for level in site.levels for grant in _behind(plan, level)],
            )
        )
    if plan.upstream is not None:
        mirrored = [
            Grant(grant.family, grant.topic_filter, Access.BOTH ^ grant.access)
            for level in plan.upstream.levels
            for grant in _behind(plan, level)
        ]
        blocks.append(
            _block(
                "# what comes over the bridge",
                f"user {BRIDGE_USER}",
                [_topic(grant) for grant in mirrored],
            )
        )
    node = [
        f"pattern {_WORDS[grant.access]} {grant.topic_filter}"
        for grant in grants(Role.NODE, plan.topics, node="%u")
    ]
    blocks.append(_block("# every node, for itself: %u is the CN of its certificate", None, node))
    return "\n".join(blocks)


def _not_theirs(plan: Plan, role: Role | None, name: str) -> list[Grant]:
    """What the rules for nodes would let a client of this name do, and its role does not."""
    return [
        grant
        for grant in grants(Role.NODE, plan.topics, node=name)
        if Access.WRITE in grant.access or role is Role.DOOR
    ]


def _topic(grant: Grant) -> str:
    return f"topic {_WORDS[grant.access]} {grant.topic_filter}"


def _block(comment: str, user: str | None, rules: Iterable[str]) -> str:
    lines = [comment, *([user] if user else []), *dict.fromkeys(rules)]
    return "\n".join(lines) + "\n"


def _next_steps(plan: Plan) -> tuple[str, ...]:
    needed = "ca.crt, broker.crt, broker.key"
    if plan.upstream is not None:
        needed += ", bridge.crt, bridge.key"
    controller = plan.controllers[0]
    steps = [
        f"certificates into {plan.certs_dir}: {needed}; the keys readable by the user mosquitto only",
        f"sudo install -o root -g mosquitto -m 0640 {CONFIG_NAME} {plan.install_dir}/",
        f"sudo install -o mosquitto -g mosquitto -m 0640 {ACL_NAME} {plan.install_dir}/",
        "sudo systemctl restart mosquitto && journalctl -u mosquitto -n 20",
        f"every client gets a certificate of that CA with its name as CN: {controller}, and each node its node id",
    ]
    if plan.upstream is not None:
        steps.append(
            f"on {plan.upstream.host}: render with --site NAME, NAME being the CN of bridge.crt"
        )
    return tuple(steps)
