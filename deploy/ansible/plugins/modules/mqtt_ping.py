#!/usr/bin/python
# Copyright: The Shoal authors
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: EXE001 - Ansible asks for the first line and runs the file by itself
"""Ansible module: waits until a node is online, runs a release and serves models, by its own word.

Synchronous by nature: one connection, one subscription, one answer. Publishes nothing and changes nothing.
"""

from __future__ import annotations

import secrets
import time
import traceback

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    import paho.mqtt.client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion
    from paho.mqtt.reasoncodes import ReasonCode

    from shoal_broker.bus_errors import PlaintextError, TlsFilesError, TrustError
    from shoal_broker.loopback import check_encrypted
    from shoal_broker.tls import TlsFiles, client_context, configured
    from shoal_broker.tls_failures import explain
    from shoal_broker.tls_socket import TlsSocket
    from shoal_contract import messages
    from shoal_contract.errors import ContractError
    from shoal_contract.messages import Presence, Reported
    from shoal_contract.topics import Topics
except ImportError:
    IMPORT_ERROR: str | None = traceback.format_exc()
else:
    IMPORT_ERROR = None

DOCUMENTATION = r"""
module: mqtt_ping
short_description: Wait until a Shoal node is online, runs a release and serves
version_added: 0.1.0
description:
  - Connects to the broker and waits until the node's retained presence says that it is online, and its retained state, of the same
    run of the agent, what it runs and serves.
  - Publishes nothing and changes nothing. It is to run on the control machine.
options:
  node:
    description: The node id.
    type: str
    required: true
  root:
    description: The first level of every topic of the fleet.
    type: str
    default: shoal
  host:
    description: Name or address of the broker.
    type: str
    required: true
  port:
    description: TCP port of the broker.
    type: int
    default: 1883
  username:
    description: User name at the broker.
    type: str
  password:
    description: Password at the broker.
    type: str
  ca_file:
    description:
      - PEM file, where the module runs, with the authority of the broker's certificate. It switches TLS on.
    type: str
  cert_file:
    description: PEM file with a certificate for a broker that asks for one.
    type: str
  key_file:
    description: PEM file with the private key of that certificate.
    type: str
  plaintext:
    description:
      - Speak to a broker on another machine without O(ca_file), too. What is said there, the password included,
        goes in the clear.
    type: bool
    default: false
  timeout_s:
    description: How many seconds to wait for the broker and the node together.
    type: int
    default: 60
  not_boot:
    description:
      - A run of the agent that does not count, as returned in RV(boot) before.
      - With it the module waits for the run that follows a restart.
    type: str
  version:
    description: The version, or release tree, that the agent is to report.
    type: str
  models:
    description: Models that are to serve, or are ready to be loaded again. An empty list asks only which do.
    type: list
    elements: str
requirements:
  - paho-mqtt >= 2.1
  - shoal
attributes:
  check_mode:
    description: Changes nothing, so it does the same in check mode.
    support: full
extends_documentation_fragment: []
author:
  - The Shoal authors (@shoal)
"""

EXAMPLES = r"""
- name: Wait until the node is online
  shoal.edge.mqtt_ping:
    node: "{{ shoal_agent_node }}"
    host: broker.example.net
    port: 8883
    ca_file: /etc/ssl/certs/ca-certificates.crt
  delegate_to: localhost
"""

RETURN = r"""
boot:
  description: Tells one run of the agent from the next.
  returned: success
  type: str
  sample: 1f9a02c4
since_ms:
  description: When the node came online, in Unix milliseconds.
  returned: success
  type: int
  sample: 1795248000000
version:
  description: The release that the agent says it runs.
  returned: with O(version) or O(models)
  type: str
  sample: 0.1.0+rc.1
models:
  description: Models that serve, or are ready to be loaded again.
  returned: with O(version) or O(models)
  type: list
  elements: str
  sample: [digits]
waited_s:
  description: How long it took, in seconds.
  returned: success
  type: float
  sample: 0.12
"""

CONNECT_TIMEOUT_S = 5.0
LOOP_S = 0.2
RETRY_S = 0.5
MAX_STATE_BYTES = 64 * 1024


class NodeWatch:
    """Follows what one node says of itself over one MQTT connection.

    Attributes:
        found: presence and, where it was asked for, state that are as wanted, once they came.
        last: what is known so far, in words, for the message of a timeout.
        fatal: the broker's refusal, which no waiting will change.
    """

    def __init__(self, topics: Topics, wanted: dict) -> None:
        """Watch the node `wanted["node"]`; `not_boot`, `version` and `models` say what is waited for."""
        self.found: tuple[Presence, Reported | None] | None = None
        self.last = "the broker was not reached"
        self.fatal: str | None = None
        self._presence_topic = topics.presence(wanted["node"])
        self._state_topic = topics.state(wanted["node"])
        self._wanted = wanted
        self._presence: Presence | None = None
        self._state: Reported | None = None

    @property
    def needs_no_state(self) -> bool:
        """Whether to be online is all that is asked."""
        return self._wanted["version"] is None and self._wanted["models"] is None

    def on_broken(self, failure: OSError, tls: TlsFiles | None) -> None:
        """Note what a connection broke of; a certificate that is refused stays refused."""
        if tls is None:
            self.last = f"the broker was not reached: {failure}"
            return
        error = explain(failure, tls)
        self.last = f"the broker was not reached: {error}"
        if isinstance(error, TrustError):
            self.fatal = str(error)

    def on_connect(
        self, client: mqtt.Client, _data: object, _flags: object, reason: ReasonCode, _more: object
    ) -> None:
        """Subscribe, or note why not."""
        if reason.is_failure:
            self.fatal = f"the broker refuses the connection: {reason}"
            return
        self.last = "the node has published no presence"
        client.subscribe([(self._presence_topic, 1), (self._state_topic, 1)])

    def on_subscribe(
        self, _client: object, _data: object, _mid: int, reasons: list[ReasonCode], _more: object
    ) -> None:
        """Note a refusal."""
        for topic, reason in zip((self._presence_topic, self._state_topic), reasons, strict=False):
            if reason.is_failure:
                self.fatal = f"the broker refuses to show {topic}: {reason}"

    def on_message(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        """Look whether this is what is waited for."""
        try:
            if message.topic == self._presence_topic:
                self._presence = messages.decode_as(message.payload, Presence, max_bytes=256)
            else:
                self._state = messages.decode_as(
                    message.payload, Reported, max_bytes=MAX_STATE_BYTES
                )
        except ContractError as exc:
            what = "presence" if message.topic == self._presence_topic else "state"
            self.last = f"its {what} cannot be read: {exc}"
            return
        self._judge()

    def _judge(self) -> None:
        presence, state = self._presence, self._state
        if presence is None:
            return
        if not presence.online:
            self.last = "it is offline"
        elif presence.boot.hex() == self._wanted["not_boot"]:
            self.last = "it has not restarted yet"
        elif self.needs_no_state:
            self.found = presence, None
        elif state is None or state.boot != presence.boot:
            self.last = "it is online and has not said what it runs"
        elif self._wanted["version"] not in (None, state.version):
            self.last = f"it runs {state.version}"
        elif missing := sorted(set(self._wanted["models"] or ()) - set(serving(state))):
            self.last = f"it does not serve {', '.join(missing)}"
        else:
            self.found = presence, state


def serving(state: Reported) -> list[str]:
    """Models that answer requests: in memory, or loaded again when they are asked."""
    return sorted(one.model for one in state.models if one.residence in {"serving", "evicted"})


def wait_for(params: dict, deadline: float) -> NodeWatch:
    """Watch until the node is as wanted, the broker refuses or the deadline (monotonic) has passed.

    Raises TlsFilesError, PlaintextError.
    """
    check_encrypted(
        params["host"],
        has_tls=bool(params["ca_file"]),
        plaintext=params["plaintext"],
        say="set ca_file (TLS), or plaintext: true",
    )
    files = {key: params[key] for key in ("ca_file", "cert_file", "key_file")}
    tls = configured(server_name=None, **files)
    watch = NodeWatch(Topics(params["root"]), params)
    while not (watch.found or watch.fatal) and time.monotonic() < deadline:
        # Mosquitto as rendered takes nobody without an id, and then puts the certificate's name in its place.
        name = f"ansible-{secrets.token_hex(6)}"
        client = mqtt.Client(CallbackAPIVersion.VERSION2, name, protocol=mqtt.MQTTv5)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.on_connect = watch.on_connect
        client.on_subscribe = watch.on_subscribe
        client.on_message = watch.on_message
        sockets: list = []
        client.on_socket_open = lambda _client, _data, opened, kept=sockets: kept.append(opened)
        if tls is not None:
            context = client_context(tls)
            context.sslsocket_class = TlsSocket
            client.tls_set_context(context)
        if params["username"]:
            client.username_pw_set(params["username"], params["password"])
        try:
            client.connect(params["host"], params["port"])
            status = mqtt.MQTT_ERR_SUCCESS
            while (
                status == mqtt.MQTT_ERR_SUCCESS
                and not (watch.found or watch.fatal)
                and time.monotonic() < deadline
            ):
                status = client.loop(LOOP_S)
            client.disconnect()
            # In TLS 1.3 a certificate is refused behind the handshake, and paho keeps it to itself.
            for sock in sockets:
                if isinstance(sock, TlsSocket) and sock.failure is not None:
                    watch.on_broken(sock.failure, tls)
        except OSError as exc:
            watch.on_broken(exc, tls)
        if not (watch.found or watch.fatal):
            time.sleep(min(RETRY_S, max(0.0, deadline - time.monotonic())))
    return watch


def main() -> None:
    """Read the arguments, wait, answer."""
    module = AnsibleModule(
        argument_spec={
            "node": {"type": "str", "required": True},
            "root": {"type": "str", "default": "shoal"},
            "host": {"type": "str", "required": True},
            "port": {"type": "int", "default": 1883},
            "username": {"type": "str"},
            "password": {"type": "str", "no_log": True},
            "ca_file": {"type": "str"},
            "cert_file": {"type": "str"},
            "key_file": {"type": "str", "no_log": False},
            "plaintext": {"type": "bool", "default": False},
            "timeout_s": {"type": "int", "default": 60},
            "not_boot": {"type": "str"},
            "version": {"type": "str"},
            "models": {"type": "list", "elements": "str"},
        },
        supports_check_mode=True,
    )
    if IMPORT_ERROR:
        module.fail_json(
            msg=missing_required_lib("paho-mqtt, shoal"),
            exception=IMPORT_ERROR,
        )
    params = module.params
    if params["timeout_s"] < 1:
        module.fail_json(msg="timeout_s must be at least 1")
    started = time.monotonic()
    try:
        watch = wait_for(params, started + params["timeout_s"])
    except (ContractError, TlsFilesError, PlaintextError) as exc:
        module.fail_json(msg=str(exc))
    where = f"{params['node']} on {params['host']}:{params['port']}"
    if watch.fatal:
        module.fail_json(msg=f"{where}: {watch.fatal}")
    if watch.found is None:
        module.fail_json(
            msg=f"{where}: not {'online' if watch.needs_no_state else 'as wanted'} after {params['timeout_s']} s: {watch.last}"
        )
    presence, state = watch.found
    module.exit_json(
        changed=False,
        boot=presence.boot.hex(),
        since_ms=presence.since_ms,
        version=None if state is None else state.version,
        models=None if state is None else serving(state),
        waited_s=round(time.monotonic() - started, 3),
    )


if __name__ == "__main__":
    main()
