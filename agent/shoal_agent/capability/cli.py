"""`shoal-agent bench MODEL`: how quick a model is on this board, by batch size; kept in the capability document."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from shoal_agent import hardware
from shoal_agent.capability import document
from shoal_agent.capability.measure import Measured, measure, name_of
from shoal_agent.config import load
from shoal_agent.errors import ConfigError
from shoal_agent.inference.measuring import Timing
from shoal_agent.inference.model_errors import ModelError
from shoal_agent.inference.settings import WorkerSettings
from shoal_contract.exits import Exit

_MIB = 1 << 20


def main(arguments: Sequence[str]) -> int:
    """Measure; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        config = load(options.config) if options.config is not None else None
    except ConfigError as exc:
        return _complain(str(exc), Exit.USAGE)
    settings = config.worker if config is not None else WorkerSettings()
    state_dir = Path(config.state_dir) if config is not None else None
    max_batch = options.max_batch or (config.inference.max_batch if config is not None else 32)
    try:
        if settings.cpus:
            os.sched_setaffinity(0, settings.cpus)
        model, directories = _find(options.model, state_dir)
        measured = {
            directory: _measure(directory, settings, max_batch, options)
            for directory in directories
        }
        releases = [_plain(directory, found) for directory, found in measured.items()]
        if options.json:
            sys.stdout.write(msgspec.json.encode({"model": model, "releases": releases}).decode())
            sys.stdout.write("\n")
        else:
            _compare(list(measured.values()))
        if state_dir is not None:
            kept = document.with_model(
                document.read(state_dir), hardware.read(state_dir), model, list(releases)
            )
            print(f"written to {document.write(state_dir, kept)}", file=sys.stderr)
    except ModelError as exc:
        return _complain(str(exc), Exit.FAILED)
    except OSError as exc:
        return _complain(f"{exc.filename or options.model[0]}: {exc.strerror}", Exit.FAILED)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    return Exit.OK


def _find(wanted: Sequence[str], state_dir: Path | None) -> tuple[str, list[Path]]:
    """The model's name, and the release directories that are meant.

    Raises:
        ModelError: there are none, or they are of more than one model.
    """
    directories: list[Path] = []
    for one in wanted:
        if Path(one).is_dir():
            directories.append(Path(one))
        elif state_dir is None:
            raise ModelError(f"{one} is no release directory; a model's name needs --config")
        else:
            here = [path for path in sorted(state_dir.glob("releases/*")) if _is(path, one)]
            if not here:
                raise ModelError(f"no release of {one!r} is on this board")
            directories += here
    names = {name_of(directory) for directory in directories}
    if len(names) > 1:
        raise ModelError(f"these are releases of several models: {', '.join(sorted(names))}")
    return names.pop(), list(dict.fromkeys(directories))


def _is(directory: Path, model: str) -> bool:
    try:
        return name_of(directory) == model
    except ModelError:
        return False


def _measure(
    directory: Path, settings: WorkerSettings, max_batch: int, options: argparse.Namespace
) -> Measured:
    # The rows are the progress: each comes when it is measured.
    def tell(timing: Timing) -> None:
        if not options.json:
            print(
                f"{timing.rows:>6} {timing.p50_us:>10,} {timing.p95_us:>10,}"
                f" {timing.rows_per_s:>12,.0f} {timing.cpu_us_per_row:>12,.1f}",
                flush=True,
            )

    if not options.json:
        print(f"{directory}\n  rows     p50 us     p95 us       rows/s   CPU us/row", flush=True)
    measured = measure(
        directory, settings, max_batch=max_batch, seconds_each=options.seconds, on_timing=tell
    )
    if not options.json:
        print(
            f"  {measured.version}, {measured.precision}, {measured.file_bytes / _MIB:.1f} MiB,"
            f" {measured.runtime}, {measured.providers[0]}, {measured.threads} threads\n"
        )
    return measured


def _compare(measured: Sequence[Measured]) -> None:
    """INT8 against floats, where both were measured."""
    by_precision = {found.precision: found for found in measured}
    if len(by_precision) == 1:
        return
    small, large = by_precision["int8"], by_precision["float"]
    print(
        f"int8 {small.version} / float {large.version}:"
        f" size {small.file_bytes / large.file_bytes:.2f} x,"
        f" p50 of one row {small.timings[0].p50_us / max(1, large.timings[0].p50_us):.2f} x,"
        f" CPU a row {small.best.cpu_us_per_row / max(0.1, large.best.cpu_us_per_row):.2f} x,"
        f" rows/s {small.best.rows_per_s / max(0.1, large.best.rows_per_s):.2f} x"
    )


def _plain(directory: Path, measured: Measured) -> Mapping[str, Any]:
    return {"release": directory.name, **asdict(measured)}


def _complain(reason: str, code: Exit) -> int:
    print(f"shoal-agent bench: {reason}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shoal-agent bench",
        description="Measures a model on this board by batch size, as the worker would run it.",
        epilog="example: shoal-agent bench --config /opt/shoal/current/agent.toml digits",
    )
    parser.add_argument(
        "model",
        nargs="+",
        help="release directories of one model, or with --config its name: every release that is on this board",
    )
    parser.add_argument(
        "--config",
        type=Path,
        help="the agent's configuration: threads, cores, providers, and where the result is kept",
    )
    parser.add_argument("--max-batch", type=int, choices=range(1, 257), metavar="ROWS")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each batch size")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser
