"""A plan as files for EMQX 5.7 and later: access rules as Erlang terms, settings as HOCON. Text only.

Sources: the comment in EMQX's own etc/acl.conf, and the pages "MQTT Configuration", "Listener
Configuration", "Use ACL File" and "Configure and Manage Durable Sessions" of its documentation.
The project's tests check the form of what is written; they start no EMQX.
"""

from __future__ import annotations

from typing import Final

from shoal_broker.errors import ConfigError
from shoal_broker.render.plan import (
    MAX_IN_FLIGHT,
    MAX_PACKET_BYTES,
    MAX_QUEUED_MESSAGES,
    NODE_ID_PATTERN,
    SESSION_EXPIRY_DAYS,
    Plan,
    RenderedFile,
    Rendering,
)
from shoal_contract.access import Access, Grant, Role, grants
from shoal_contract.messages import MAX_MESSAGE_BYTES

CONFIG_NAME: Final = "emqx-shoal.conf"
ACL_NAME: Final = "acl.conf"
DEFAULT_INSTALL_DIR: Final = "/etc/emqx"
DEFAULT_DATA_DIR: Final = "/var/lib/emqx"


def render(plan: Plan) -> Rendering:
    """The files and the next steps. Raises ConfigError for what is rendered for Mosquitto only."""
    if plan.upstream is not None:
        raise ConfigError(
            "bridges are rendered for Mosquitto only; EMQX wants a connector of its own"
        )
    if plan.save_every_s is not None:
        raise ConfigError(
            "--save-every-s is for Mosquitto; EMQX writes durable sessions as it goes"
        )
    return Rendering(
        files=(RenderedFile(CONFIG_NAME, _config(plan)), RenderedFile(ACL_NAME, _acl(plan))),
        next_steps=(
            f"certificates into {plan.certs_dir}: ca.crt, broker.crt, broker.key; the key readable by the user emqx only",
            f"sudo install -o emqx -g emqx -m 0640 {ACL_NAME} {plan.install_dir}/",
            f"append {CONFIG_NAME} to {plan.install_dir}/emqx.conf on every machine of the cluster",
            "restart EMQX and read its log: this configuration was not started by the tests of Shoal",
            f"every client gets a certificate of that CA with its name as CN: {plan.controllers[0]}, and each node its node id",
        ),
    )


def _config(plan: Plan) -> str:
    return f"""\
# EMQX 5.7 and later for Shoal, made by `shoal-broker render emqx`: append it to emqx.conf.

# Only the listener with client certificates.
listeners.tcp.default.enable = false
listeners.ws.default.enable = false
listeners.wss.default.enable = false
listeners.ssl.default {{
  enable = true
  bind = "{_address(plan)}"
  # The certificate has said who it is; no password is asked for.
  enable_authn = false
  tcp_options.nodelay = true
  ssl_options {{
    cacertfile = "{plan.certs_dir}/ca.crt"
    certfile = "{plan.certs_dir}/broker.crt"
    keyfile = "{plan.certs_dir}/broker.key"
    versions = ["tlsv1.3"]
    verify = verify_peer
    fail_if_no_peer_cert = true
  }}
}}

mqtt {{
  # The certificate's CN is user and client id: nobody ends another one's session.
  peer_cert_as_username = cn
  peer_cert_as_clientid = cn
  max_packet_size = {_kib(MAX_PACKET_BYTES)}
  max_inflight = {MAX_IN_FLIGHT}
  max_mqueue_len = {MAX_QUEUED_MESSAGES}
  mqueue_store_qos0 = false
  retain_available = true
  wildcard_subscription = true
  shared_subscription = true
  # For MQTT 3.1.1; sessions of Shoal say themselves how long they last.
  session_expiry_interval = {SESSION_EXPIRY_DAYS}d
}}

# Presence, state, wanted state and the chunks of models; on disk, and never expired by EMQX.
retainer {{
  enable = true
  msg_expiry_interval = 0s
  max_payload_size = {_kib(MAX_MESSAGE_BYTES)}
  backend {{
    type = built_in_database
    storage_type = disc
    max_retained_messages = 0
  }}
}}

# Sessions and what waits in them on disk: without it they end with the machine they are on.
durable_sessions.enable = true

authorization {{
  no_match = deny
  deny_action = ignore
  sources = [
    {{ type = file, enable = true, path = "{plan.install_dir}/{ACL_NAME}" }}
  ]
}}
"""


def _address(plan: Plan) -> str:
    host = plan.bind or "0.0.0.0"
    return f"[{host}]:{plan.port}" if ":" in host else f"{host}:{plan.port}"


def _kib(size_bytes: int) -> str:
    kib, rest = divmod(size_bytes, 1024)
    if rest:
        raise ValueError(f"{size_bytes} is no whole number of KiB")
    return f"{kib}KB"


def _acl(plan: Plan) -> str:
    lines = [
        "%% Access rules of Shoal for EMQX, made by `shoal-broker render emqx`: change the topic",
        "%% table or the arguments, not this file. The first rule that fits decides.",
    ]
    for role, name in plan.people_and_programs():
        lines += ["", f"%% {role}"]
        lines += _rules(f'{{username, "{name}"}}', grants(role, plan.topics, user=name))
        lines.append(f'{{deny, {{username, "{name}"}}, all, ["#"]}}.')
    for site in plan.sites:
        lines += ["", "%% the broker of a site, for the nodes behind it"]
        behind = [
            grant for level in site.levels for grant in grants(Role.NODE, plan.topics, node=level)
        ]
        lines += _rules(f'{{username, "{site.name}"}}', behind)
        lines.append(f'{{deny, {{username, "{site.name}"}}, all, ["#"]}}.')
    lines += ["", "%% every node, for itself; a CN that is no node id gets nothing"]
    who = f'{{username, {{re, "{NODE_ID_PATTERN}"}}}}'
    lines += _rules(who, grants(Role.NODE, plan.topics, node="${username}"))
    lines += ["", "{deny, all}."]
    return "\n".join(lines) + "\n"


def _rules(who: str, granted: list[Grant]) -> list[str]:
    rules = []
    for action, needed in (("subscribe", Access.READ), ("publish", Access.WRITE)):
        filters = dict.fromkeys(g.topic_filter for g in granted if needed in g.access)
        if filters:
            quoted = ", ".join(f'"{topic_filter}"' for topic_filter in filters)
            rules.append(f"{{allow, {who}, {action}, [{quoted}]}}.")
    return rules
