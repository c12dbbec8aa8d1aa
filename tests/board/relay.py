"""One connection of the emulated board to one port of this machine: QEMU starts it with the connection as stdin and stdout.

    relay.py HOST PORT FOLDER

The file in FOLDER that is named after this process says how many bytes it has sent to the board.
"""

import os
import select
import socket
import sys
from pathlib import Path


def main() -> None:
    """Carry bytes both ways until either side ends."""
    count = Path(sys.argv[3]) / str(os.getpid())
    sent_bytes = 0
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10) as host:
        host.settimeout(None)
        board = socket.socket(fileno=0)
        board.setblocking(True)
        other = {board: host, host: board}
        while True:
            ready, _, _ = select.select([board, host], [], [])
            for end in ready:
                data = end.recv(65536)
                if not data:
                    return
                other[end].sendall(data)
                if end is host:
                    sent_bytes += len(data)
                    count.write_text(str(sent_bytes))


if __name__ == "__main__":
    main()
