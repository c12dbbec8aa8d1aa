"""The `shoal` command: the one place that reads the environment and the command line."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from shoal_contract.errors import ContractError
from shoal_contract.exits import Exit
from shoal_fleet import (
    cli_backup,
    cli_commands,
    cli_decode,
    cli_demo,
    cli_identity,
    cli_nodes,
    cli_registry,
)
from shoal_fleet.cli_ca import ca_app
from shoal_fleet.cli_freeze import freeze_app
from shoal_fleet.cli_keys import key_app, sign
from shoal_fleet.cli_mandates import mandate_app
from shoal_fleet.cli_output import AsJson, Target, print_json, printable, target
from shoal_fleet.cli_pipelines import pipeline_app
from shoal_fleet.cli_releases import release_app
from shoal_fleet.cli_rollouts import rollout_app
from shoal_fleet.cli_trust import trust_app
from shoal_fleet.errors import FleetError, UsageError

app = typer.Typer(
    name="shoal",
    help="Run models and drive devices on a fleet of boards.",
    epilog="Example: shoal nodes",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(cli_nodes.nodes_app, name="nodes")
app.add_typer(cli_nodes.readings_app, name="readings")
app.add_typer(ca_app, name="ca")
app.add_typer(cli_identity.token_app, name="token")
app.add_typer(freeze_app, name="freeze")
app.add_typer(key_app, name="key")
app.add_typer(mandate_app, name="mandate")
app.add_typer(pipeline_app, name="pipeline")
app.add_typer(release_app, name="release")
app.add_typer(rollout_app, name="rollout")
app.add_typer(trust_app, name="trust")
cli_identity.add_to(cli_nodes.nodes_app)
cli_registry.add_to(cli_nodes.nodes_app)
app.command(epilog="Example: shoal backup /mnt/backup/controller.tar")(cli_backup.backup)
app.command(epilog="Example: shoal restore /mnt/backup/controller.tar")(cli_backup.restore)
app.command(epilog="Example: shoal running --drift")(cli_registry.running)
app.command(epilog="Example: shoal want press-4 digits=digits@1.0.0")(cli_nodes.want)
app.command(epilog="Example: shoal send press-4 device.set device=valve channel=2 value=1")(
    cli_commands.send
)
app.command(epilog="Example: shoal cancel 6f1d2c3b4a596877")(cli_commands.cancel)
app.command(epilog="Example: shoal ops press-4")(cli_commands.ops)
app.command(epilog="Example: shoal logs press-4 -n 20")(cli_commands.logs)
app.command(epilog="Example: shoal bundle press-4 -o press-4.tar.gz")(cli_commands.bundle)
app.command(epilog="Example: shoal history press-4")(cli_commands.history)
app.command(epilog="Example: shoal sign press-4 ping --key alice.key > ping.bin")(sign)
app.command(epilog="Example: shoal decode 8202483132333435363738")(cli_decode.decode)
app.command(epilog="Example: shoal demo --nodes 5 --json")(cli_demo.demo)


@app.callback()
def everywhere(
    context: typer.Context,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="SHOAL_STATE_DIR",
            help="The controller's state directory, where its token lies.",
            show_default="~/.local/share/shoal",
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option(envvar="SHOAL_URL", help="The controller's address.")
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(envvar="SHOAL_CA_FILE", help="Who vouches for an https:// address (PEM)."),
    ] = None,
    *,
    plaintext: Annotated[
        bool, typer.Option("--plaintext", help="Send the token to another machine in the clear.")
    ] = False,
) -> None:
    """Run models and drive devices on a fleet of boards."""
    context.obj = Target(state_dir or _default_state_dir(), url, ca_file, plaintext)


@app.command(epilog="Example: shoal serve --broker 127.0.0.1:1883")
def serve(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="The configuration file (TOML).")] = None,
    host: Annotated[str | None, typer.Option(help="Listen on this address.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Listen on this port; 0: a free one.")
    ] = None,
    broker: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The broker.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Keep everything here.")] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Written once the API answers: its address and our pid.")
    ] = None,
    *,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
) -> None:
    """Run the controller until it is told to stop (Ctrl-C)."""
    # Imported here: the other commands do not need a web server.
    from shoal_fleet import serve as serving  # noqa: PLC0415

    settings = serving.settle(config, host=host, port=port, broker=broker)
    directory = state_dir
    if directory is None and settings.state_dir is not None:
        directory = Path(settings.state_dir)
    serving.serve(
        settings,
        directory or target(context).state_dir,
        ready_file=ready_file,
        verbose=verbose,
    )


@app.command(epilog="Example: shoal status")
def status(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Say how the controller itself is."""
    with target(context).connect() as client:
        found = client.get("/api/status")
    if as_json:
        print_json(found)
        return
    connected = "connected" if found["broker_connected"] else f"away ({found['broker_error']})"
    silent = ", ".join(found["nodes_silent"]) or "none"
    typer.echo(
        f"shoal {found['version']} at {client.url}\n"
        f"broker {found['broker']}: {connected}\n"
        f"nodes: {found['nodes_online']} of {found['nodes']} online, silent: {silent}\n"
        f"readings: {found['readings_stored']} since the start,"
        f" malformed messages: {sum(found['malformed'].values())}"
    )
    for alarm in found["trust_alarms"]:
        typer.echo(f"signed releases: {printable(alarm)}")


def main() -> None:
    """The console script: errors are one line, exit codes mean something."""
    # ONNX Runtime's telemetry has no place here; children inherit this.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        app()
    except (FleetError, ContractError) as exc:
        print(f"shoal: {printable(str(exc))}", file=sys.stderr)
        sys.exit(exc.exit_code if isinstance(exc, FleetError) else Exit.FAILED)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)


def _default_state_dir() -> Path:
    try:
        return Path.home() / ".local" / "share" / "shoal"
    except RuntimeError as exc:
        raise UsageError("there is no home directory: name one with --state-dir") from exc
