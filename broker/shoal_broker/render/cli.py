"""The `render` command of `shoal-broker`: arguments to a plan, files to a folder, words to people."""

from __future__ import annotations

import argparse
import json
from pathlib import Path, PurePosixPath

from shoal_broker.errors import BrokerError, ConfigError
from shoal_broker.render import emqx, mosquitto
from shoal_broker.render.files import Written, write_all
from shoal_broker.render.plan import Plan, Rendering, Site, Upstream
from shoal_contract.access import Role
from shoal_contract.errors import TopicError
from shoal_contract.exits import Exit
from shoal_contract.topics import Topics

BROKERS = {"mosquitto": mosquitto, "emqx": emqx}
DEFAULT_CONTROLLER = "shoal-controller"
DEFAULT_UPSTREAM_PORT = 8883
EXAMPLES = """\
examples:
  shoal-broker render mosquitto --out mosquitto/
  shoal-broker render mosquitto --out site/ --upstream broker.example.net:8883
  shoal-broker render mosquitto --out central/ --site site-berlin --operator alice
  shoal-broker render emqx --out emqx/ --observer grafana --door homeassistant
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `render` command; its `func` takes the parsed arguments and returns the exit code."""
    parser = subparsers.add_parser(
        "render",
        help="write the configuration and access rules of a production broker",
        description="Write configuration and access rules for Mosquitto or EMQX from the table of "
        "topics. Names are the CN of client certificates; whoever has a certificate and is not "
        "named here is a node.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("broker", choices=sorted(BROKERS))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    parser.add_argument("--root", default=Topics().root, help="topic root (default: %(default)s)")
    parser.add_argument("--bind", default="", metavar="ADDRESS", help="listen there only")
    parser.add_argument("--port", type=int, default=8883, help="TLS port (default: %(default)s)")
    for role, extra in (
        ("controller", f" (default: {DEFAULT_CONTROLLER})"),
        ("operator", ": commands and reads"),
        ("observer", ": reads"),
        ("door", ": commands and reads in JSON, through the controller"),
    ):
        parser.add_argument(
            f"--{role}",
            dest=f"{role}s",
            action="append",
            default=[],
            metavar="NAME",
            help=f"a client {_as_what(role)}{extra}; may be repeated",
        )
    parser.add_argument(
        "--site",
        dest="sites",
        action="append",
        default=[],
        metavar="NAME[=NODE,..]",
        help="a bridged broker that speaks for these nodes, or for all; may be repeated",
    )
    parser.add_argument(
        "--upstream", metavar="HOST[:PORT]", help="mosquitto: bridge to this broker"
    )
    parser.add_argument(
        "--nodes", metavar="NODE,..", help="with --upstream: the nodes behind (default: all)"
    )
    parser.add_argument(
        "--save-every-s",
        type=int,
        metavar="N",
        help="mosquitto: save every N seconds (default: at every change)",
    )
    parser.add_argument(
        "--install-dir",
        type=PurePosixPath,
        metavar="DIR",
        help="where the files will stand on the broker's machine (default: /etc/mosquitto, /etc/emqx)",
    )
    parser.add_argument(
        "--certs-dir",
        type=PurePosixPath,
        metavar="DIR",
        help="where ca.crt, broker.crt and broker.key will stand (default: INSTALL-DIR/certs)",
    )
    parser.add_argument(
        "--data-dir",
        type=PurePosixPath,
        metavar="DIR",
        help="mosquitto: where its database will stand (default: /var/lib/mosquitto)",
    )
    parser.add_argument("--force", action="store_true", help="replace files that are different")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Render, write, and say what to do next; the exit code.

    Raises BrokerError for the command line to tell, but with --json tells it itself.
    """
    try:
        rendering = BROKERS[arguments.broker].render(_plan(arguments))
        written = write_all(arguments.out, rendering.files, force=arguments.force)
    except BrokerError as exc:
        if not arguments.json:
            raise
        print(json.dumps({"ok": False, "error": str(exc), "files": [], "next": []}))
        return Exit.USAGE if isinstance(exc, ConfigError) else Exit.FAILED
    _tell(rendering, written, arguments.out, as_json=arguments.json)
    return Exit.OK


def _as_what(role: str) -> str:
    if role == Role.DOOR:
        return "of the JSON door"
    return f"that is {'an' if role[0] == 'o' else 'a'} {role}"


def _plan(arguments: argparse.Namespace) -> Plan:
    broker = BROKERS[arguments.broker]
    install_dir = arguments.install_dir or PurePosixPath(broker.DEFAULT_INSTALL_DIR)
    try:
        topics = Topics(arguments.root)
    except TopicError as exc:
        raise ConfigError(f"--root: {exc}") from exc
    return Plan(
        topics=topics,
        bind=arguments.bind,
        port=arguments.port,
        controllers=tuple(arguments.controllers) or (DEFAULT_CONTROLLER,),
        operators=tuple(arguments.operators),
        observers=tuple(arguments.observers),
        doors=tuple(arguments.doors),
        sites=tuple(_site(text) for text in arguments.sites),
        upstream=_upstream(arguments.upstream, arguments.nodes),
        install_dir=install_dir,
        certs_dir=arguments.certs_dir or install_dir / "certs",
        data_dir=arguments.data_dir or PurePosixPath(broker.DEFAULT_DATA_DIR),
        save_every_s=arguments.save_every_s,
    )


def _site(text: str) -> Site:
    name, equals, nodes = text.partition("=")
    if equals and not nodes:
        raise ConfigError(f"--site {text!r}: no node after '='; leave it away for every node")
    return Site(name, _listed(nodes))


def _upstream(address: str | None, nodes: str | None) -> Upstream | None:
    if address is None:
        if nodes is not None:
            raise ConfigError("--nodes goes with --upstream")
        return None
    host, colon, port = address.partition(":")
    if colon and not (port.isascii() and port.isdigit() and len(port) <= len("65535")):
        raise ConfigError(f"--upstream {address!r}: HOST:PORT, with a host name or an IPv4 address")
    return Upstream(host, int(port) if colon else DEFAULT_UPSTREAM_PORT, _listed(nodes or ""))


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _tell(rendering: Rendering, written: list[Written], out: Path, *, as_json: bool) -> None:
    if as_json:
        files = [{"path": str(one.path), "state": one.outcome.value} for one in written]
        print(json.dumps({"ok": True, "files": files, "next": list(rendering.next_steps)}))
        return
    for one in written:
        print(f"{one.outcome:<9} {one.path}")
    print(f"next, in {out}:")
    for number, step in enumerate(rendering.next_steps, start=1):
        print(f"  {number}. {step}")
