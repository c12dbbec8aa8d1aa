"""`shoal release golden`: the golden file of a release of texts, of what its own model makes of them."""

from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from shoal_broker.durable import write_durably
from shoal_contract.release import SPEC_FILE, parse_spec
from shoal_fleet.cli_output import AsJson, print_json
from shoal_fleet.errors import UsageError

MAX_TEXTS: Final = 256
MAX_TEXTS_BYTES: Final = 1 << 20


def golden(
    directory: Annotated[Path, typer.Argument(metavar="DIR")],
    texts: Annotated[Path, typer.Argument(metavar="FILE.txt", help="One text a line, in UTF-8.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Write the golden file of a release that takes texts.

    DIR has release.toml, the model and its tokenizer. Boards and the controller will want the same outputs again.
    """
    # numpy and ONNX Runtime: no other command of this file's app waits for them.
    import numpy as np  # noqa: PLC0415

    from shoal_fleet.release_check import load_session  # noqa: PLC0415
    from shoal_fleet.text_check import rows_of  # noqa: PLC0415

    try:
        spec = parse_spec((directory / SPEC_FILE).read_bytes())
        lines = _lines(texts)
        text = spec.text
        if text is None:
            raise UsageError(f"{directory / SPEC_FILE} has no [text]: the release takes no texts")
        session = load_session(spec, directory)
        found = list(rows_of(spec, text, directory, session, lines))
    except OSError as exc:
        raise UsageError(f"{exc.filename}: {exc.strerror}") from exc
    arrays: dict[str, Any] = {f"inputs.{text.name}": np.array(lines)}
    for table in spec.outputs:
        arrays[f"outputs.{table.name}"] = np.array([rows[table.name] for rows in found])
    content = BytesIO()
    np.savez(content, **arrays)
    write_durably(directory / spec.golden.file, content.getvalue())
    written = directory / spec.golden.file
    if as_json:
        print_json({"file": str(written), "texts": len(lines)})
        return
    typer.echo(f"{written}: {len(lines)} golden texts")


def _lines(path: Path) -> list[str]:
    if path.stat().st_size > MAX_TEXTS_BYTES:
        raise UsageError(f"{path} has more than {MAX_TEXTS_BYTES} bytes")
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path} is not UTF-8") from exc
    if not 1 <= len(lines) <= MAX_TEXTS:
        raise UsageError(f"{path} has {len(lines)} texts; 1 to {MAX_TEXTS} are wanted")
    return lines
