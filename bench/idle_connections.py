"""`idle_connections.py PORT COUNT SUBSCRIBE`: connections that say nothing; started by broker.py.

It connects when a line comes in on stdin, prints one when all are connected, and keeps them until stdin ends.
SUBSCRIBE is 1 or 0: one subscription each, or none.
"""

from __future__ import annotations

import socket
import sys

import mqtt_bytes
from mqtt_bytes import CONNACK, MQTT_5, SUBACK, Cutter

# As many as wait for their answers together: less than any broker's backlog.
AT_ONCE = 50
TIMEOUT_S = 30.0


def main(port: int, count: int, *, subscribes: bool) -> None:
    """Connect, tell, and wait."""
    sys.stdin.readline()
    connections: list[socket.socket] = []
    for first in range(0, count, AT_ONCE):
        batch = range(first, min(first + AT_ONCE, count))
        for number in batch:
            connection = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
            packets = mqtt_bytes.connect(MQTT_5, f"idle-{number:05}")
            if subscribes:
                packets += mqtt_bytes.subscribe(MQTT_5, f"idle/n/{number:05}/c", 1)
            connection.sendall(packets)
            connections.append(connection)
        for connection in connections[first:]:
            wait_for(connection, {CONNACK, SUBACK} if subscribes else {CONNACK})
    sys.stdout.write(f"{len(connections)}\n")
    sys.stdout.flush()
    sys.stdin.readline()


def wait_for(connection: socket.socket, kinds: set[int]) -> None:
    """Read until packets of all these kinds have come."""
    cutter = Cutter(MQTT_5)
    while kinds:
        received = connection.recv(4096)
        if not received:
            raise ConnectionResetError("the broker closed an idle connection")
        kinds -= {came.kind for came in cutter.feed(received)}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), subscribes=sys.argv[3] == "1")
