"""What a person says of a release before it is built: release.toml without what the builder finds out.

name, version, description, [input] and [output], as docs/rollouts.md has them.
"""

import json
from pathlib import Path

from shoal_contract import toml
from shoal_contract.errors import ContractError
from shoal_contract.release import InputTable, OutputTable
from shoal_fleet.errors import ReleaseBuildError


class BuildSpec(toml.Table, frozen=True, kw_only=True):
    """The whole of the file."""

    name: str
    version: str
    description: str = ""
    input: InputTable
    output: OutputTable


def read_build_spec(path: Path) -> BuildSpec:
    """The file's content.

    Raises:
        ReleaseBuildError: naming the file and the key.
    """
    try:
        return toml.decode(path.read_bytes(), BuildSpec, source=str(path))
    except OSError as exc:
        raise ReleaseBuildError(f"{path}: {exc.strerror}") from exc
    except ContractError as exc:
        raise ReleaseBuildError(str(exc)) from exc


def release_toml(
    spec: BuildSpec,
    *,
    model_file: str,
    golden_file: str,
    tolerance: float,
    metric: str,
    value: float,
    evaluated_on: str,
) -> str:
    """release.toml as text."""
    given, wanted = spec.input, spec.output
    return f"""\
name = {_text(spec.name)}
version = {_text(spec.version)}
description = {_text(spec.description)}

[model]
file = {_text(model_file)}

[input]
name = {_text(given.name)}
dtype = {_text(given.dtype)}
shape = {json.dumps(given.shape)}
encoding = {_text(given.encoding)}
scale = {float(given.scale)!r}
offset = {float(given.offset)!r}
units = {_text(given.units)}

[output]
name = {_text(wanted.name)}
dtype = {_text(wanted.dtype)}
shape = {json.dumps(wanted.shape)}
decode = {_text(wanted.decode)}
labels = [{", ".join(map(_text, wanted.labels))}]
units = {_text(wanted.units)}

[golden]
file = {_text(golden_file)}
tolerance = {float(tolerance)!r}

[quality]
metric = {_text(metric)}
value = {float(value)!r}
evaluated_on = {_text(evaluated_on)}
"""


def _text(value: str) -> str:
    """A TOML basic string; JSON's escapes are TOML's, with every control character escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
