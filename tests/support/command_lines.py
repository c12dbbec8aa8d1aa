"""Checks a command line that a page shows against what the program's own --help knows.

It knows words and options, not their values, and runs nothing but --help, in this process.
"""

import contextlib
import functools
import importlib
import io
import os
import re
import shlex
import sys
from pathlib import Path
from unittest import mock

ENTRY_POINTS = {
    "shoal": "shoal_fleet.cli",
    "shoal-agent": "shoal_agent.cli",
    "shoal-bridge": "shoal_firmware_bridge.cli",
    "shoal-broker": "shoal_broker.cli",
    "shoal-delta": "shoal_delta.cli",
    "simulated_mcu": "shoal_firmware_bridge.simulated_mcu",
}
OPTION = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")
PLACEHOLDERS = re.compile(r"[\[\]…]")


def commands_in(line: str) -> list[list[str]]:
    """The calls of our programs in a line of shell, each as words that begin with the program's name.

    A line with `\\|` between words (a table's way to say "or") stands for one call a word.
    """
    calls = []
    text = PLACEHOLDERS.sub(" ", line.removeprefix("$ ").replace("\\|", "\N{BROKEN BAR}"))
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, "|"]:
        if set(word) <= set("|&;<>"):
            calls += _ours(words)
            words = []
        else:
            words.append(word)
    return calls


AGENT_COMMANDS = frozenset({"bench", "enrol"})
"""What the agent does beside running, which has no word of its own."""


def complaint(call: list[str]) -> str | None:
    """What --help does not know of this call; None when it knows everything."""
    program, *rest = call
    path: tuple[str, ...] = ()
    if program == "shoal-broker" and (not rest or rest[0].startswith("-")):
        path = ("run",)
    if program == "shoal-agent" and rest and rest[0] in AGENT_COMMANDS:
        path, rest = (rest[0],), rest[1:]
    known = help_of(program, path)
    descending = True
    for word in rest:
        if word.startswith("-"):
            option = word.partition("=")[0]
            if option not in OPTION.findall(known) and option not in {"-h", "--help", "--version"}:
                return f"{program} {' '.join(path)} has no {option}"
            continue
        if descending and "COMMAND" in _usage(known):
            deeper = help_of(program, (*path, word))
            if not _usage(deeper).startswith(" ".join((program, *path, word))):
                return f"{program} {' '.join(path)} has no command {word}"
            path, known = (*path, word), deeper
        else:
            descending = False
    return None


@functools.cache
def help_of(program: str, path: tuple[str, ...]) -> str:
    """What the program prints for `program path... --help`; empty when it refuses."""
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [program, *path, "--help"]),
        mock.patch.dict(os.environ, {"COLUMNS": "300", "NO_COLOR": "1", "TERMINAL_WIDTH": "300"}),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.suppress(SystemExit),
    ):
        importlib.import_module(ENTRY_POINTS[program]).main()
    return printed.getvalue()


def _usage(text: str) -> str:
    """The usage without the word and without the wrapping."""
    match = re.search(
        r"usage: (?:python -m \S*\.)?(.+?)(?:\n\s*\n|$)", text, re.IGNORECASE | re.DOTALL
    )
    return " ".join(match[1].split()) if match else ""


def _ours(words: list[str]) -> list[list[str]]:
    words = [word for word in words if word != "sudo"]
    if not words:
        return []
    name = Path(words[0]).name
    if name.startswith("python") and words[1:2] == ["-m"] and len(words) > 2:
        name, words = words[2].rpartition(".")[2], words[2:]
    if name not in ENTRY_POINTS:
        return []
    return [[name, *rest] for rest in _alternatives(words[1:])]


def _alternatives(words: list[str]) -> list[list[str]]:
    for index, word in enumerate(words):
        if "\N{BROKEN BAR}" in word:
            return [
                [*words[:index], one, *words[index + 1 :]] for one in word.split("\N{BROKEN BAR}")
            ]
    return [words]
