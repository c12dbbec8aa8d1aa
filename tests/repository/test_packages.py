"""Each of the eight packages stands in production code, where docs/packages.md says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMPORT_NAMES = {"paho-mqtt": "paho"}
ROW = re.compile(r"^\| ([a-z0-9-]+) \| `([^`]+\.py)` \|", re.MULTILINE)
TABLE = dict(ROW.findall((ROOT / "docs/packages.md").read_text()))


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and _loads_when_wanted(node):
            names.add(ast.literal_eval(node.args[0]).split(".")[0])
    return names


def _loads_when_wanted(call: ast.Call) -> bool:
    functions = {"importlib.import_module", "_module"}
    literal = bool(call.args) and isinstance(call.args[0], ast.Constant)
    return literal and ast.unparse(call.func) in functions


def test_the_table_names_all_eight():
    assert set(TABLE) == {
        "aiomqtt", "paho-mqtt", "onnxruntime", "optimum", "cbor2", "zeroconf", "tenacity", "structlog",
    }  # fmt: skip


@pytest.mark.parametrize("package", TABLE)
def test_the_module_that_is_named_imports_the_package(package):
    assert IMPORT_NAMES.get(package, package) in imports_of(ROOT / TABLE[package])
