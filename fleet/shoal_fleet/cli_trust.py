"""`shoal trust`: the keys that say which releases are real. Everything here works on a plain directory, offline."""

import getpass
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal_contract import envelope
from shoal_fleet.cli_output import AsJson, print_json, print_table, target
from shoal_fleet.errors import FleetError, StateError, UsageError
from shoal_fleet.release_directory import read_spec
from shoal_fleet.release_manifest import manifest_of
from shoal_fleet.trust.places import metadata_dir, online_key_file

if TYPE_CHECKING:
    from shoal_fleet.trust.status import Status

trust_app = typer.Typer(
    help="The keys that say which releases are real (TUF).", no_args_is_help=True
)

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The metadata's directory.")]
Days = Annotated[float, typer.Option("--days", min=0.01, max=3650, help="Good for so long.")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(help="The passphrase is its first line; else you are asked for it."),
]
_MAX_PASSPHRASE_BYTES = 1024


@trust_app.command("key", epilog="Example: shoal trust key root-anna.key")
def key(
    file: Path,
    *,
    online: Annotated[
        bool, typer.Option("--online", help="Not sealed: for the controller, which asks nobody.")
    ] = False,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a key in a new FILE, sealed with a passphrase, and print its public half."""
    from shoal_fleet.trust import keys  # noqa: PLC0415 - tuf and cryptography only for these commands

    passphrase = None if online else _passphrase(file, passphrase_file, twice=True)
    public = envelope.key_text(keys.make(file, passphrase))
    if as_json:
        print_json({"public_key": public})
    else:
        typer.echo(public)


@trust_app.command(
    "init",
    epilog="Example: shoal trust init tuf --root a.key --root b.key --root c.key"
    " --targets targets.key --online online.key --group all=releases.key",
)
def init(
    directory: Directory,
    root: Annotated[list[str], typer.Option(help="A root key (file or public half); three times.")],
    targets: Annotated[list[str], typer.Option(help="The key that says who signs for a group.")],
    online: Annotated[str, typer.Option(help="The controller's key.")],
    group: Annotated[list[str], typer.Option(metavar="GROUP=KEY", help="Who signs its releases.")],
    *,
    threshold: Annotated[int, typer.Option(min=1, help="So many root keys must sign.")] = 2,
    days: Days = 365,
    as_json: AsJson = False,
) -> None:
    """Begin: write the first metadata, for `shoal trust sign` by everybody who holds a key."""
    from shoal_fleet.trust import ceremony, keys  # noqa: PLC0415 - as above
    from shoal_fleet.trust.repository import Repository  # noqa: PLC0415

    groups: dict[str, list[bytes]] = {}
    for text in group:
        name, equals, who = text.partition("=")
        if not equals:
            raise UsageError(f"--group {text!r}: write GROUP=KEY")
        groups.setdefault(name, []).append(keys.public_half(who))
    repository = Repository(directory)
    now = datetime.now(UTC)
    ceremony.begin(
        repository,
        roots=[keys.public_half(text) for text in root],
        threshold=threshold,
        targets=[keys.public_half(text) for text in targets],
        online=keys.public_half(online),
        groups=groups,
        expires=ceremony.in_days(days, now=now),
    )
    _print(directory, as_json=as_json)


@trust_app.command(
    "sign",
    epilog="Example: shoal trust sign tuf --key releases.key --group all --add ./digits-1.1.0",
)
def sign(
    directory: Directory,
    key_file: Annotated[Path, typer.Option("--key", help="Your key file.")],
    *,
    group: Annotated[str | None, typer.Option(help="Whose releases change.")] = None,
    add: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="A release's directory, to be listed.")
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(metavar="TARGET", help="Listed no longer: as status --json names it."),
    ] = None,
    days: Days = 90,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Sign what waits for your key; with --group the group's releases, also only for a later expiry."""
    from shoal_fleet.trust import ceremony, keys, signing  # noqa: PLC0415 - as above
    from shoal_fleet.trust.repository import Repository  # noqa: PLC0415

    if group is None and (add or remove):
        raise UsageError("--add and --remove need --group")
    repository = Repository(directory)
    sealed = keys.is_sealed(key_file)
    passphrase = _passphrase(key_file, passphrase_file) if sealed else None
    signer = keys.open_signer(key_file, passphrase)
    if group is not None:
        ceremony.list_releases(
            repository,
            group,
            add=[_release(one) for one in add or ()],
            remove=remove or (),
            expires=ceremony.in_days(days, now=datetime.now(UTC)),
        )
    signed = signing.sign(repository, signer)
    for one in signed:
        lacks = "complete" if one.is_complete else f"{len(one.signed)} of {one.threshold}"
        typer.echo(f"signed {one.role} {one.version}: {lacks}", err=True)
    _print(directory, as_json=as_json)


@trust_app.command(
    "rotate", epilog="Example: shoal trust rotate tuf online --old old.key --new new.key"
)
def rotate(
    directory: Directory,
    role: Annotated[str, typer.Argument(help="root, targets, online, or a group.")],
    *,
    old: Annotated[str | None, typer.Option(help="The key that signs no longer.")] = None,
    new: Annotated[str | None, typer.Option(help="The key that signs from now on.")] = None,
    days: Days = 365,
    as_json: AsJson = False,
) -> None:
    """Change who signs, add a group, or (without keys) write the role anew for a later expiry."""
    from shoal_fleet.trust import ceremony, keys  # noqa: PLC0415 - as above
    from shoal_fleet.trust.repository import Repository  # noqa: PLC0415

    repository = Repository(directory)
    expires = ceremony.in_days(days, now=datetime.now(UTC))
    before = None if old is None else keys.public_half(old)
    after = None if new is None else keys.public_half(new)
    if role in ceremony.ROTATED:
        ceremony.rotate(repository, role, old=before, new=after, expires=expires)
    else:
        ceremony.rotate_group(repository, role, old=before, new=after, expires=expires)
    _print(directory, as_json=as_json)


@trust_app.command("status", epilog="Example: shoal trust status tuf")
def status(
    context: typer.Context,
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Default: the controller's.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Say who signs, what waits for signatures and what runs out when; ends with 1 when somebody must act."""
    found = _print(directory or metadata_dir(target(context).state_dir), as_json=as_json)
    if found.alarms:
        raise typer.Exit(1)


@trust_app.command("install", epilog="Example: shoal trust install tuf --online-key online.key")
def install(
    context: typer.Context,
    directory: Directory,
    *,
    online_key: Annotated[
        Path | None, typer.Option(help="Given once, and after `rotate online`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring what was signed into the controller's state directory; a running one publishes it."""
    from shoal_broker.durable import write_durably  # noqa: PLC0415 - as above
    from shoal_fleet.trust import installing, keys  # noqa: PLC0415
    from shoal_fleet.trust.repository import Repository  # noqa: PLC0415

    state_dir = target(context).state_dir
    try:
        metadata_dir(state_dir).mkdir(parents=True, exist_ok=True, mode=0o700)
        if online_key is not None:
            if keys.is_sealed(online_key):
                raise UsageError(f"{online_key} is sealed; the controller has nobody to ask")
            write_durably(online_key_file(state_dir), online_key.read_bytes())
    except OSError as exc:
        raise StateError(f"{exc.filename}: {exc.strerror}") from exc
    copied = installing.install(Repository(directory), Repository(metadata_dir(state_dir)))
    if as_json:
        print_json({"installed": copied})
    else:
        typer.echo("\n".join(copied) or "nothing is new")


def _print(directory: Path, *, as_json: bool) -> "Status":
    from shoal_fleet.trust import status as looking  # noqa: PLC0415 - as above
    from shoal_fleet.trust.repository import Repository  # noqa: PLC0415

    found = looking.look(Repository(directory), now=datetime.now(UTC))
    if as_json:
        print_json(_plain(found))
        return found
    if not found.roles and not found.waiting:
        raise FleetError(f"{directory} has no metadata: begin with `shoal trust init`")
    print_table(
        "Signed",
        ("role", "version", "keys", "days left", "targets", "alarm"),
        [
            (
                role.role,
                str(role.version),
                f"{role.threshold} of {len(role.keys)}",
                f"{role.days_left:.1f}",
                str(len(role.targets)),
                role.alarm,
            )
            for role in found.roles
        ],
    )
    if found.waiting:
        print_table(
            "Waiting for signatures",
            ("role", "version", "signed", "needed", "may still sign"),
            [
                (
                    one.role,
                    str(one.version),
                    str(len(one.signed)),
                    str(one.threshold),
                    " ".join(keyid[:8] for keyid in one.unsigned),
                )
                for one in found.waiting
            ],
        )
    return found


def _plain(found: "Status") -> dict[str, Any]:
    return {
        "roles": [
            {
                "role": role.role,
                "version": role.version,
                "threshold": role.threshold,
                "keys": list(role.keys),
                "expires": role.expires.isoformat(),
                "days_left": round(role.days_left, 2),
                "targets": list(role.targets),
                "alarm": role.alarm or None,
            }
            for role in found.roles
        ],
        "waiting": [
            {
                "role": one.role,
                "version": one.version,
                "threshold": one.threshold,
                "signed": list(one.signed),
                "unsigned": list(one.unsigned),
                "complete": one.is_complete,
            }
            for one in found.waiting
        ],
        "alarms": list(found.alarms),
    }


def _release(directory: Path) -> tuple[str, bytes]:
    """The model and the manifest of a release's directory, as the controller will make it."""
    spec = read_spec(directory)
    try:
        files = {name: (directory / name).read_bytes() for name in spec.files}
    except OSError as exc:
        raise StateError(f"{exc.filename}: {exc.strerror}") from exc
    typer.echo(f"lists {spec.name}@{spec.version}", err=True)
    return spec.name, manifest_of(spec, files)


def _passphrase(key_file: Path, file: Path | None, *, twice: bool = False) -> bytes:
    """From a file or the terminal, never from the command line: others could read it there."""
    if file is not None:
        try:
            with file.open("rb") as opened:
                return opened.read(_MAX_PASSPHRASE_BYTES).split(b"\n")[0].rstrip(b"\r")
        except OSError as exc:
            raise UsageError(f"{file}: {exc.strerror}") from exc
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask for the passphrase: use --passphrase-file")
    given = getpass.getpass(f"Passphrase of {key_file.name}: ")
    if twice and getpass.getpass("Once more: ") != given:
        raise UsageError("the two are not the same")
    return os.fsencode(given)
