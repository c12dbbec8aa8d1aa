"""`shoal-delta`: make a delta, apply it, look into it, measure it. Arguments in, one line or JSON out.

Exit codes: 0 ok, 1 refused or failed, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self, get_args

from shoal_delta.apply import Progress, apply, apply_file
from shoal_delta.changes import TensorChange, changes
from shoal_delta.comparison import compare, neighbours
from shoal_delta.container import DEFAULT_MAX_OUTPUT_BYTES
from shoal_delta.durable import write_whole
from shoal_delta.encode import Profile, diff
from shoal_delta.errors import DeltaError, StorageError
from shoal_delta.inspection import Info, inspect

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

_EXAMPLES = """examples:
  shoal-delta diff v1.onnx v2.onnx -o v1-v2.delta
  shoal-delta apply v1.onnx v1-v2.delta -o v2.onnx
  shoal-delta info v1-v2.delta --old v1.onnx
  shoal-delta bench releases
"""
_BAR_WIDTH = 30
_REDRAW_S = 0.1


def main(arguments: list[str] | None = None) -> None:
    """Entry point; ends the process."""
    options = _parser().parse_args(arguments)
    commands = {"diff": _diff, "apply": _apply, "info": _info, "bench": _bench}
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names need not be text.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        commands[options.command](options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"shoal-delta: interrupted{_what_is_left(options)}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except DeltaError as exc:
        _fail(options, type(exc).__name__, str(exc))
    except BrokenPipeError:
        # Who reads has had enough; nothing is left to be flushed at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(EXIT_FAILED)
    except OSError as exc:
        name = exc.filename2 or exc.filename or "standard output"
        _fail(options, "StorageError", f"{os.fsdecode(name)}: {exc.strerror or exc}")
    except MemoryError:
        _fail(options, "MemoryError", f"not enough memory to {options.command} files of this size")
    sys.exit(0)


def _what_is_left(options: argparse.Namespace) -> str:
    part = options.output.name + ".part" if options.command == "apply" else ""
    if part and options.output.with_name(part).exists():
        return f"; {part} is kept, and the same command goes on from there"
    return ""


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="shoal-delta",
        description="Small deltas between INT8 ONNX models (and any other files).",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print the result as one JSON object")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    make = commands.add_parser(
        "diff",
        parents=[shared],
        help="make the delta from OLD to NEW",
        epilog="example: shoal-delta diff v1.onnx v2.onnx -o v1-v2.delta",
    )
    make.add_argument("old", type=Path, metavar="OLD")
    make.add_argument("new", type=Path, metavar="NEW")
    make.add_argument("-o", "--output", type=Path, required=True, metavar="DELTA")
    make.add_argument(
        "--profile",
        choices=get_args(Profile),
        default="small",
        help="fast to make, to apply and to resume, or as small as can be (default: %(default)s)",
    )
    use = commands.add_parser(
        "apply",
        parents=[shared],
        help="make NEW from OLD and DELTA; OLD is never touched",
        epilog="example: shoal-delta apply v1.onnx v1-v2.delta -o v2.onnx",
    )
    use.add_argument("old", type=Path, metavar="OLD")
    use.add_argument("delta", type=Path, metavar="DELTA")
    use.add_argument("-o", "--output", type=Path, required=True, metavar="NEW")
    look = commands.add_parser(
        "info",
        parents=[shared],
        help="show what is in DELTA",
        epilog="example: shoal-delta info v1-v2.delta --old v1.onnx",
    )
    look.add_argument("delta", type=Path, metavar="DELTA")
    look.add_argument(
        "--old", type=Path, help="the old model: names the tensors, counts what moved"
    )
    measure = commands.add_parser(
        "bench",
        parents=[shared],
        help="what deltas between a directory's files cost, beside xz and zstd",
        description="Each file of a directory against the next one, in the order of their names.",
        epilog="example: shoal-delta bench releases",
    )
    measure.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    for command in (use, look):
        command.add_argument(
            "--max-size",
            type=_positive,
            default=DEFAULT_MAX_OUTPUT_BYTES,
            metavar="BYTES",
            help="refuse a delta that makes a larger file (default: %(default)s)",
        )
    return parser


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes")
    return int(text)


def _content(path: Path) -> bytes:
    # A named pipe is refused, not waited for.
    if path.exists() and not path.is_file():
        raise StorageError(f"{path} is not a file")
    return path.read_bytes()


def _diff(options: argparse.Namespace) -> None:
    old, new = _content(options.old), _content(options.new)
    output: Path = options.output
    if output.is_dir() or not output.parent.is_dir():
        raise StorageError(f"{output}: there is a directory, or none to write it in")
    if any(output.exists() and output.samefile(path) for path in (options.old, options.new)):
        raise StorageError(f"{output} is one of the two files: choose another name")
    with _Bar("packing") as bar:
        delta = diff(old, new, profile=options.profile, progress=bar.show)
    try:
        write_whole(output, delta)
    except OSError as exc:
        raise StorageError(f"{output}: {exc.strerror or exc}") from exc
    facts = {"old_size": len(old), "new_size": len(new), "delta_size": len(delta)}
    share = (
        f"{100 * len(delta) / len(new):.2f} % of the new file" if new else "the new file is empty"
    )
    _say(options, facts, f"{options.output}: {len(delta)} bytes, {share}")


def _apply(options: argparse.Namespace) -> None:
    with _Bar("applying") as bar:
        apply_file(
            options.old,
            options.delta,
            options.output,
            max_output_bytes=options.max_size,
            progress=bar.show,
        )
    size = options.output.stat().st_size
    _say(options, {"new_size": size}, f"{options.output}: {size} bytes, sha256 verified")


def _info(options: argparse.Namespace) -> None:
    old = _content(options.old) if options.old is not None else None
    delta = _content(options.delta)
    info = inspect(delta, old, max_output_bytes=options.max_size)
    changed: tuple[TensorChange, ...] = ()
    if old is not None:
        changed = changes(old, apply(old, delta, max_output_bytes=options.max_size))
    facts = dataclasses.asdict(info) | {"changes": [dataclasses.asdict(one) for one in changed]}
    _say(options, facts, "\n".join([*_table(info), *_changes(changed)]))


def _bench(options: argparse.Namespace) -> None:
    found = []
    for folder in options.folders:
        for old, new in neighbours(folder):
            with _Bar(f"{old.name} -> {new.name}") as bar:
                found.append(compare(old, new, bar.show))
    if not found:
        raise DeltaError("there are no two files to compare in what was given")
    lines = [f"{'delta':>12} {'best other':>12} {'ratio':>6} {'diff s':>7} {'apply s':>7}  files"]
    lines += [
        f"{one.delta_size:>12} {one.best_other_size:>12} "
        f"{one.delta_size / one.best_other_size:>6.3f} {one.diff_s:>7.2f} {one.apply_s:>7.3f}  "
        f"{one.old} -> {one.new}"
        for one in sorted(found, key=lambda one: -one.delta_size / one.best_other_size)
    ]
    _say(options, {"pairs": [dataclasses.asdict(one) for one in found]}, "\n".join(lines))


def _table(info: Info) -> list[str]:
    lines = [
        f"delta   {info.size} bytes, {info.layout}, {len(info.segments)} segments",
        f"header  {info.header_size} bytes, global block {info.global_coded_size}",
        f"old     {info.old_size} bytes, sha256 {info.old_digest}...",
        f"new     {info.new_size} bytes, sha256 {info.new_digest}...",
    ]
    if info.tensors:
        lines.append(f"{'bytes':>12} {'coded':>10} {'share':>6}  how, what")
    for tensor in sorted(info.tensors, key=lambda tensor: -tensor.coded_size):
        share = 100 * tensor.coded_size / info.size
        lines.append(
            f"{tensor.size:>12} {tensor.coded_size:>10.1f} {share:>5.1f}%  "
            f"{'+'.join(tensor.modes)}  {tensor.name or '(no tensor of the old model)'}"
        )
    return lines


def _changes(changed: Sequence[TensorChange]) -> list[str]:
    """What moved, the tensor of most moves first."""
    if not changed:
        return []
    lines = [
        "",
        f"{'elements':>12} {'moved':>10} {'share':>6} {'mean':>9} {'largest':>9}  what moved",
    ]
    for one in sorted(changed, key=lambda one: -one.moved):
        share = 100 * one.moved / max(one.elements, 1)
        how_far = (
            f"{'new':>19}" if one.is_new else f"{one.mean_move:>9.3g} {one.largest_move:>9.3g}"
        )
        lines.append(f"{one.elements:>12} {one.moved:>10} {share:>5.1f}% {how_far}  {one.name}")
    return lines


def _say(options: argparse.Namespace, facts: Mapping[str, object], line: str) -> None:
    print(json.dumps(facts) if options.json else line)


def _fail(options: argparse.Namespace, kind: str, message: str) -> None:
    line = " ".join(message.splitlines())
    print(f"shoal-delta: {line}", file=sys.stderr)
    if options.json:
        try:
            print(json.dumps({"error": kind, "message": message}), flush=True)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(EXIT_FAILED)


class _Bar:
    """A progress bar on standard error, at a terminal only."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._is_shown = sys.stderr.isatty()
        self._drawn_at_s = 0.0
        self.show: Progress = self._draw

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._is_shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _draw(self, done: int, total: int) -> None:
        now_s = time.monotonic()
        if not self._is_shown or now_s - self._drawn_at_s < _REDRAW_S:
            return
        self._drawn_at_s = now_s
        filled = _BAR_WIDTH * done // max(total, 1)
        bar = "#" * filled + "." * (_BAR_WIDTH - filled)
        print(f"\r{self._label} [{bar}] {done}/{total}", end="", file=sys.stderr, flush=True)
