"""Put what a benchmark printed into its page, between the two markers there.

make bench-delta ARGS='--seed 1' | tee build/printed.txt
.venv/bin/python tools/quote_bench.py docs/benchmarks/delta.md build/printed.txt
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

BEGIN, END = "<!-- printed by the bench: begin -->", "<!-- printed by the bench: end -->"
# What says where the machine keeps its files is nobody's business.
PRIVATE = re.compile(r"^(disk( fsync)?|rounds): .*\n", re.MULTILINE)
DATE = re.compile(r"^date: (\d{4}-\d{2}-\d{2})", re.MULTILINE)


def main() -> int:
    """PAGE PRINTED: 0 done, 1 there is no place for it or nothing to put there, 2 usage."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    page, printed = Path(sys.argv[1]), Path(sys.argv[2]).read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    dated = DATE.search(printed)
    if text.count(BEGIN) != 1 or text.count(END) != 1 or dated is None:
        print(f"{page} has no markers, or nothing was printed", file=sys.stderr)
        return 1
    page.write_text(quoted(text, printed[dated.start() :], dated[1]), encoding="utf-8")
    return 0


def quoted(text: str, printed: str, date: str) -> str:
    """The page with its quote replaced."""
    lines = [line.rstrip() for line in PRIVATE.sub("", printed).strip().splitlines()]
    quote = "\n".join([BEGIN, "", f"Printed on {date}:", "", "```", *lines, "```", "", END])
    before, rest = text.split(BEGIN)
    return before + quote + rest.split(END)[1]


if __name__ == "__main__":
    sys.exit(main())
