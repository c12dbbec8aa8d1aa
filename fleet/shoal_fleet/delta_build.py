"""`python -m shoal_fleet.delta_build [--estimate] NEW OUT BASE=BOARDS...`: deltas, in a process of its own.

Building one takes seconds to minutes of processor time; the controller goes on meanwhile. Every base is
a file; its name is what the results call it. OUT is a directory: each delta that pays goes there under its
base's name, and a line of JSON for each base into OUT/settled as soon as it is settled.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

import shoal_delta

SETTLED_FILE: Final = "settled"
ESTIMATE: Final = "--estimate"
_NICENESS: Final = 10
_USAGE: Final = "usage: python -m shoal_fleet.delta_build [--estimate] NEW OUT BASE=BOARDS...\n"


def main(argv: list[str]) -> int:
    """Settle every base; 1 and one line on stderr when a file cannot be used."""
    is_dry = ESTIMATE in argv[1:2]
    words = argv[2 if is_dry else 1 :]
    bases, counts = {}, {}
    try:
        new, out, *named = words
        for word in named:
            path, _, boards = word.rpartition("=")
            name = Path(path).name.encode()
            bases[name], counts[name] = Path(path), int(boards)
    except ValueError:
        sys.stderr.write(_USAGE)
        return 2
    os.nice(_NICENESS)
    try:
        with (Path(out) / SETTLED_FILE).open("w", encoding="utf-8") as lines:

            def settled(update: shoal_delta.Update) -> None:
                if update.delta is not None:
                    (Path(out) / update.base.decode()).write_bytes(update.delta)
                lines.write(json.dumps(_facts(update)) + "\n")
                lines.flush()

            shoal_delta.plan_updates(Path(new), bases, counts, is_dry=is_dry, settled=settled)
    except (shoal_delta.DeltaError, OSError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


def _facts(update: shoal_delta.Update) -> dict[str, Any]:
    return {
        "base": update.base.decode(),
        "way": update.way,
        "board_bytes": update.board_bytes,
        "delta_bytes": update.delta_bytes,
        "make_s": update.make_s,
        "reason": update.reason,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv))
