"""`shoal key`, `shoal sign`: the keys that sign commands, the controller's and other people's."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from shoal_contract import envelope, messages
from shoal_contract.errors import ContractError
from shoal_contract.messages import Command
from shoal_contract.topics import Topics
from shoal_fleet.cli_output import AsJson, parse_pairs, parse_value, print_json, target
from shoal_fleet.clock import now_ms
from shoal_fleet.errors import UsageError

key_app = typer.Typer(help="The keys that sign commands.", no_args_is_help=True)


@key_app.command("show", epilog="Example: shoal key show")
def show(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Print the public key for [trust] command_keys of the agents. Reads the state directory."""
    # Imported here: no other command needs PyNaCl.
    from shoal_fleet.issuer import read_signer  # noqa: PLC0415 - see above

    _print(read_signer(target(context).state_dir).public_key, as_json=as_json)


@key_app.command("new", epilog="Example: shoal key new alice.key")
def new(file: Path, *, as_json: AsJson = False) -> None:
    """Make a key of your own in a new FILE (mode 0600), and print its public half: give that away."""
    from shoal_fleet.issuer import make_signer  # noqa: PLC0415 - as above

    _print(make_signer(file).public_key, as_json=as_json)


def sign(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[NODE] OP [KEY=VALUE…]",
            help="The node (not with --group), the operation, its arguments.",
        ),
    ],
    key: Annotated[Path, typer.Option(help="The file of the key, from `shoal key new`.")],
    *,
    group: Annotated[str | None, typer.Option(help="Instead of NODE: one group.")] = None,
    root: Annotated[str, typer.Option(help="The first level of the topics.")] = "shoal",
    expires_s: Annotated[
        float,
        typer.Option("--expires", min=0.001, max=30 * 86400, help="Valid for so many seconds."),
    ] = 60.0,
    priority: Annotated[int, typer.Option(min=0, max=9)] = 4,
    as_json: AsJson = False,
) -> None:
    """Write a signed command that any MQTT client may publish. No controller takes part.

    The envelope goes to standard output, unless that is a terminal; the topic, and the id with which the
    answers come, to standard error.
    """
    from shoal_fleet.issuer import read_key  # noqa: PLC0415 - as above

    if group is None and len(words) < 2:  # noqa: PLR2004 - NODE and OP
        raise UsageError("a command needs a node, or --group, and an operation")
    topics = Topics(root)
    topic = topics.group_commands(group) if group is not None else topics.commands(words[0])
    op, *pairs = words if group is not None else words[1:]
    issued_ms = now_ms()
    command = Command(
        os.urandom(8),
        op,
        {name: parse_value(value) for name, value in parse_pairs(pairs).items()},
        issued_ms,
        issued_ms + round(expires_s * 1000),
        priority,
    )
    try:
        # What a node would refuse is refused here, where the person is.
        messages.decode_as(payload := messages.encode(command), Command)
        data = read_key(key).sign(payload, topic=topic)
    except ContractError as exc:
        raise UsageError(f"{op}: {exc}") from exc
    if as_json:
        print_json({"id": command.id.hex(), "topic": topic, "payload": data.hex()})
        return
    typer.echo(f"{topic} {command.id.hex()}", err=True)
    if sys.stdout.isatty():
        typer.echo(data.hex())
    else:
        sys.stdout.buffer.write(data)


def _print(public_key: bytes, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "command_key": envelope.key_text(public_key),
                "key_id": envelope.key_id(public_key).hex(),
            }
        )
    else:
        typer.echo(envelope.key_text(public_key))
