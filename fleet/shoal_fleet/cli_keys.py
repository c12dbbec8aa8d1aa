"""`shoal key`: the key with which the controller signs what it says to nodes."""

import typer

from shoal_contract import envelope
from shoal_fleet.cli_output import AsJson, print_json, target

key_app = typer.Typer(help="The key that signs commands.", no_args_is_help=True)


@key_app.command("show", epilog="Example: shoal key show")
def show(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Print the public key for [trust] command_keys of the agents. Reads the state directory."""
    # Imported here: no other command needs PyNaCl.
    from shoal_fleet.issuer import read_signer  # noqa: PLC0415 - see above

    public_key = read_signer(target(context).state_dir).public_key
    if as_json:
        print_json(
            {
                "command_key": envelope.key_text(public_key),
                "key_id": envelope.key_id(public_key).hex(),
            }
        )
    else:
        typer.echo(envelope.key_text(public_key))
