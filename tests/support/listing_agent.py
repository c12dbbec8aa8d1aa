"""Runs shoal-agent; at SIGUSR1 it writes the names of its modules, one a line, beside its ready file."""

import signal
import sys
from pathlib import Path

from shoal_agent import cli


def main() -> None:
    ready = Path(sys.argv[sys.argv.index("--ready-file") + 1])

    def write_down(_number: int, _frame: object) -> None:
        part = ready.with_name("modules.part")
        part.write_text("\n".join(sorted(name for name, module in sys.modules.items() if module)))
        part.replace(ready.with_name("modules"))

    signal.signal(signal.SIGUSR1, write_down)
    cli.main()


main()
