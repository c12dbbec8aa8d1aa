"""`shoal-agent enrol`: gets this board its certificate by hand. It runs the same attempts as the agent itself."""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shoal_agent import hardware
from shoal_agent.config import load
from shoal_agent.errors import ConfigError, IdentityError
from shoal_agent.identity import schedule
from shoal_agent.identity.attempt import attempt
from shoal_agent.identity.config import EnrolmentTable, check
from shoal_agent.identity.task import Outcome, Task
from shoal_contract.errors import ContractError
from shoal_contract.exits import Exit
from shoal_contract.topics import check_node_id

_EXITS: Final = {
    "issued": Exit.OK,
    "pending": Exit.TIMED_OUT,
    "unreachable": Exit.UNREACHABLE,
}


def main(arguments: Sequence[str]) -> Exit:
    """Enrol, or say why not in a line."""
    options = _parser().parse_args(arguments)
    try:
        task = _task(options)
        outcome = asyncio.run(_enrol(task, options.wait))
    except ConfigError as exc:
        print(f"shoal-agent: {exc}", file=sys.stderr)
        return Exit.USAGE
    except IdentityError as exc:
        print(f"shoal-agent: {exc}", file=sys.stderr)
        return Exit.FAILED
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    if options.json:
        print(json.dumps({name: getattr(outcome, name) for name in outcome.__struct_fields__}))
    elif outcome.kind == "issued":
        until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(outcome.not_after_ms / 1000))
        print(f"{task.node}: enrolled until {until}, key {outcome.key}")
    else:
        key = f", key {outcome.key}" if outcome.key else ""
        print(f"shoal-agent: {outcome.kind}: {outcome.reason}{key}", file=sys.stderr)
    return _EXITS.get(outcome.kind, Exit.FAILED)


async def _enrol(task: Task, wait_s: float) -> Outcome:
    """Attempts until one succeeds, or the time is over. Raises IdentityError: the child died."""
    ends_s = time.monotonic() + wait_s
    failures = 0
    told = ""
    while True:
        outcome = await attempt(task)
        failures += 1
        pause_s = schedule.wait_s(outcome, failures, random.random())  # noqa: S311 - jitter
        if outcome.kind in {"issued", "unusable"} or time.monotonic() + pause_s > ends_s:
            return outcome
        if outcome.reason != told:
            told = outcome.reason
            print(f"shoal-agent: {outcome.kind}: {told} {outcome.key}", file=sys.stderr)
        await asyncio.sleep(pause_s)


def _task(options: argparse.Namespace) -> Task:
    """What the options and the configuration file say together. Raises ConfigError."""
    config = None if options.config is None else load(options.config)
    table = None if config is None else config.enrolment
    node = options.node_id or (config and config.node)
    state_dir = options.state_dir or (config and Path(config.state_dir))
    url = options.url or (table and table.url)
    if not node or not state_dir or not url:
        raise ConfigError(
            "enrol needs --node-id, --state-dir and --url, or a --config that has them"
        )
    try:
        check_node_id(node)
    except ContractError as exc:
        raise ConfigError(f"--node-id: {exc}") from exc
    wanted = EnrolmentTable(
        url=url,
        ca_pin=options.ca_pin or (table.ca_pin if table else None),
        ca_file=options.ca_file or (table.ca_file if table else None),
        token_file=options.token_file or (table.token_file if table else None),
    )
    check(wanted)
    if options.token_file is not None and not Path(options.token_file).is_file():
        raise ConfigError(f"--token-file {options.token_file}: there is no such file")
    board = hardware.read(state_dir)
    return Task(
        state_dir=str(state_dir),
        node=node,
        url=wanted.url,
        now_ms=time.time_ns() // 1_000_000,
        ca_pin=wanted.ca_pin,
        ca_file=wanted.ca_file,
        token_file=wanted.token_file,
        hardware=f"{board.model}, {board.os}, {board.machine}",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shoal-agent enrol",
        description="Gets this board its certificate from the controller's enrolment door.",
        epilog="example: shoal-agent enrol --config /opt/shoal/current/agent.toml --token-file token",
    )
    parser.add_argument("--config", type=Path, help="the agent's configuration file")
    parser.add_argument("--url", help="the enrolment door: https://controller.example.net:8884")
    parser.add_argument("--ca-pin", help="the sha256 of the authority, as shoal ca init printed it")
    parser.add_argument("--ca-file", help="or the authority's certificate itself")
    parser.add_argument("--token-file", help="its first line admits this board; removed when used")
    parser.add_argument("--node-id", help="who this board is to be")
    parser.add_argument("--state-dir", type=Path, help="the agent's state directory")
    parser.add_argument(
        "--wait", type=float, default=0.0, metavar="S", help="try for so many seconds, not once"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    return parser
