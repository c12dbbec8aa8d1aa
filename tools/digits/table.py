"""Write the table of scanned digits from an installed scikit-learn.

Needed once, to show where the committed `optdigits.csv` comes from; nothing else in the project
needs scikit-learn (with scipy it is 164 MB). It does not train anything: see `train.py`.

    python -m venv /tmp/sk && /tmp/sk/bin/pip install scikit-learn
    /tmp/sk/bin/python tools/digits/table.py --out fleet/shoal_fleet/digits/optdigits.csv
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

ROWS = 1797
CELLS = 64
# Of the file this script writes from scikit-learn 1.9.1.
SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"


def main() -> int:
    """Write the table, or say why it is not the expected one; the exit code is 0 or 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the CSV file to write")
    options = parser.parse_args()
    try:
        text = table_text()
    except ImportError:
        print("table: scikit-learn is not installed here: pip install scikit-learn")
        return 1
    digest = hashlib.sha256(text.encode("ascii")).hexdigest()
    if digest != SHA256:
        print(f"table: this scikit-learn ships other digits: sha256 {digest}, expected {SHA256}")
        return 1
    options.out.write_text(text, encoding="ascii", newline="\n")
    print(f"{options.out}: {ROWS} rows, sha256 {digest}")
    return 0


def table_text() -> str:
    """One line a scan, in scikit-learn's order: 64 grey levels 0..16, row by row, and the label."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - absent is a message, not a traceback

    digits = load_digits()
    lines = []
    for levels, label in zip(digits.data, digits.target, strict=True):
        cells = [int(level) for level in levels]
        if len(cells) != CELLS or min(cells) < 0 or max(cells) > 16:
            raise ValueError(f"row {len(lines)} is not {CELLS} grey levels 0..16")
        lines.append(",".join(map(str, [*cells, int(label)])) + "\n")
    if len(lines) != ROWS:
        raise ValueError(f"{len(lines)} rows, expected {ROWS}")
    return "".join(lines)


if __name__ == "__main__":
    sys.exit(main())
