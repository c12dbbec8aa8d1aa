#!/usr/bin/python
# Copyright: The Shoal authors
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: EXE001 - Ansible asks for the first line and runs the file by itself
"""Ansible module: waits until a node's retained presence says that it is online.

Synchronous by nature: one connection, one subscription, one answer. Publishes nothing and changes nothing.
"""

from __future__ import annotations

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
    from shoal_contract.messages import Presence
    from shoal_contract.topics import Topics
except ImportError:
    IMPORT_ERROR: str | None = traceback.format_exc()
else:
    IMPORT_ERROR = None

DOCUMENTATION = r"""
module: mqtt_ping
short_description: Wait until a Shoal node is online on the broker
version_added: 0.1.0
description:
  - Connects to the broker and waits until the node's retained presence says that it is online.
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
waited_s:
  description: How long it took, in seconds.
  returned: success
  type: float
  sample: 0.12
"""

CONNECT_TIMEOUT_S = 5.0
LOOP_S = 0.2
RETRY_S = 0.5


class PresenceWatch:
    """Follows one node's presence over one MQTT connection.

    Attributes:
        found: the presence that was waited for, once it came.
        last: what is known so far, in words, for the message of a timeout.
        fatal: the broker's refusal, which no waiting will change.
    """

    def __init__(self, topic: str, not_boot: str | None) -> None:
        """Watch `topic`; `not_boot` is the run that does not count."""
        self.found: Presence | None = None
        self.last = "the broker was not reached"
        self.fatal: str | None = None
        self._topic = topic
        self._not_boot = not_boot

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
        client.subscribe(self._topic, qos=1)

    def on_subscribe(
        self, _client: object, _data: object, _mid: int, reasons: list[ReasonCode], _more: object
    ) -> None:
        """Note a refusal."""
        if reasons and reasons[0].is_failure:
            self.fatal = f"the broker refuses to show {self._topic}: {reasons[0]}"

    def on_message(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        """Look whether this is what is waited for."""
        try:
            presence = messages.decode_as(message.payload, Presence, max_bytes=256)
        except ContractError as exc:
            self.last = f"its presence cannot be read: {exc}"
            return
        if not presence.online:
            self.last = "it is offline"
        elif presence.boot.hex() == self._not_boot:
            self.last = "it has not restarted yet"
        else:
            self.found = presence


def wait_online(params: dict, deadline: float) -> PresenceWatch:
    """Watch until the node is online, the broker refuses or the deadline (monotonic) has passed.

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
    watch = PresenceWatch(Topics(params["root"]).presence(params["node"]), params["not_boot"])
    while not (watch.found or watch.fatal) and time.monotonic() < deadline:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
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
        watch = wait_online(params, started + params["timeout_s"])
    except (ContractError, TlsFilesError, PlaintextError) as exc:
        module.fail_json(msg=str(exc))
    where = f"{params['node']} on {params['host']}:{params['port']}"
    if watch.fatal:
        module.fail_json(msg=f"{where}: {watch.fatal}")
    if watch.found is None:
        module.fail_json(msg=f"{where}: not online after {params['timeout_s']} s: {watch.last}")
    module.exit_json(
        changed=False,
        boot=watch.found.boot.hex(),
        since_ms=watch.found.since_ms,
        waited_s=round(time.monotonic() - started, 3),
    )


if __name__ == "__main__":
    main()
