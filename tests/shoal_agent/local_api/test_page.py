"""docs/local-api.md, every command and program of it, on a real agent with a real model."""

import asyncio
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from tests.support.board import NODE, Board, short_folder
from tests.support.hub import Hub, Release

from shoal_broker.server import Broker, BrokerConfig
from shoal_fleet import digits

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/local-api.md"
# Made by tools/setup-serving-peers.
TRITON_PYTHON = ROOT / ".venv-serving-peers/bin/python"
EXAMPLE = re.compile(
    r"^```(sh|python)\n(.*?)^```\n\n```(json|text)\n(.*?)^```", re.MULTILINE | re.DOTALL
)


async def run(language: str, program: str, port: int, folder: Path) -> str:
    program = program.replace("127.0.0.1:9751", f"127.0.0.1:{port}")
    needs_triton = "tritonclient" in program
    if needs_triton and not TRITON_PYTHON.exists():
        return ""  # test_triton_client says that it is missing
    python = str(TRITON_PYTHON) if needs_triton else sys.executable
    command = ("sh", "-e") if language == "sh" else (python, "-")
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env=os.environ | {"NO_PROXY": "127.0.0.1"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(30):
        said, _ = await process.communicate(program.encode())
    assert process.returncode == 0, said.decode()
    return said.decode()


def alike(given: object, expected: object) -> bool:
    """The same, with numbers as far as every processor has them alike."""
    match given, expected:
        case float(), float():
            return math.isclose(given, expected, abs_tol=0.05)
        case list(), list():
            return len(given) == len(expected) and all(map(alike, given, expected))
        case dict(), dict():
            return given.keys() == expected.keys() and all(
                alike(value, expected[key]) for key, value in given.items()
            )
    return given == expected


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_every_example_of_the_page_gives_what_stands_below_it():
    with short_folder() as folder:
        board = Board(folder)
        async with (
            Broker.open(BrokerConfig(host="127.0.0.1", port=0)) as broker,
            Hub.open(broker.port, NODE) as hub,
            board.agent(broker.port, more="[local_api]\nport = 0", transport="codec") as agent,
        ):
            v1 = Release(digits.release_dir(1))
            await hub.want(v1)
            await hub.until(lambda: hub.serving() == v1.id)
            lines = map(json.loads, agent.log.splitlines())
            port = next(line["port"] for line in lines if line["event"] == "local API listens")
            examples = EXAMPLE.findall(PAGE.read_text())
            assert len(examples) >= 7
            for language, program, form, expected in examples:
                given = await run(language, program, port, folder)
                if form == "json":
                    assert alike(json.loads(given), json.loads(expected)), given
                elif given:
                    assert given == expected
