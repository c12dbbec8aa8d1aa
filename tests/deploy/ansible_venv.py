"""What the tests do with .venv-ansible (see tools/setup-ansible): Ansible is not installed beside Shoal."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
COLLECTION = REPOSITORY / "deploy/ansible"
BIN = REPOSITORY / ".venv-ansible/bin"

needs_ansible = pytest.mark.skipif(
    not (BIN / ".." / ".ready").exists(), reason="no .venv-ansible: run tools/setup-ansible"
)

_RENDER = """
import importlib.util, json, sys, jinja2
from ansible.plugins.filter.core import FilterModule
given = json.load(sys.stdin)
environment = jinja2.Environment(
    trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
)
filters = FilterModule().filters()
environment.filters.update({name: filters[name] for name in ("bool", "to_json")})
spec = importlib.util.spec_from_file_location("to_toml", given["to_toml"])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
environment.filters["shoal.edge.to_toml"] = module.to_toml
print(environment.from_string(given["template"]).render(given["variables"]), end="")
"""

_LOAD = """
import json, sys, yaml
print(json.dumps({path: yaml.safe_load(open(path)) for path in sys.argv[1:]}))
"""


def environment(home: Path) -> dict[str, str]:
    """Of an Ansible command that finds the collection installed below `home` and writes only there."""
    return {
        **os.environ,
        "ANSIBLE_CONFIG": str(COLLECTION / "ansible.cfg"),
        "ANSIBLE_COLLECTIONS_PATH": str(home / "collections"),
        "ANSIBLE_HOME": str(home / "ansible-home"),
        "ANSIBLE_LOCAL_TEMP": str(home / "ansible-tmp"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }


def run(
    *command: object, home: Path, timeout_s: float = 60, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a program of .venv-ansible."""
    program, *arguments = command
    return subprocess.run(
        [str(BIN / str(program)), *(str(word) for word in arguments)],
        env={**environment(home), **more},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def install_collection(home: Path) -> None:
    """Build the collection as it is in the checkout and install it below `home`."""
    where = ("--collections-path", home / "collections")
    done = run(
        "ansible-galaxy", "collection", "install", "--offline", COLLECTION, *where, home=home
    )
    assert done.returncode == 0, done.stdout + done.stderr


def render(template: Path, variables: dict[str, object]) -> str:
    """A template as Ansible renders it."""
    return _python(
        _RENDER,
        given=json.dumps(
            {
                "template": template.read_text(),
                "variables": variables,
                "to_toml": str(COLLECTION / "plugins/filter/to_toml.py"),
            }
        ),
    )


def load_yaml(*paths: Path) -> dict[Path, Any]:
    """What stands in YAML files."""
    loaded = json.loads(_python(_LOAD, *map(str, paths)))
    return {Path(path): content for path, content in loaded.items()}


def _python(program: str, *arguments: str, given: str = "") -> str:
    done = subprocess.run(
        [BIN / "python", "-c", program, *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
