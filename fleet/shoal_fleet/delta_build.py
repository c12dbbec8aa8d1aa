"""`python -m shoal_fleet.delta_build OLD NEW OUT`: one delta, in a process of its own.

Building one takes seconds to minutes of processor time; the controller goes on meanwhile.
"""

import os
import sys
from pathlib import Path
from typing import Final

import shoal_delta

_ARGUMENTS: Final = 4
_NICENESS: Final = 10


def main(argv: list[str]) -> int:
    """Write the delta from OLD to NEW to OUT; 1 and one line on stderr when there is none."""
    if len(argv) != _ARGUMENTS:
        sys.stderr.write("usage: python -m shoal_fleet.delta_build OLD NEW OUT\n")
        return 2
    old, new, out = (Path(name) for name in argv[1:])
    os.nice(_NICENESS)
    try:
        out.write_bytes(shoal_delta.diff(old.read_bytes(), new.read_bytes()))
    except (shoal_delta.DeltaError, OSError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
