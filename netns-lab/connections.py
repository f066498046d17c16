"""New connections, one after the other, for a while: connections.py HOST SECONDS RATE. Each is made, echoed through, and closed.

TCP connections and UDP sockets in turns, to the echo servers of HOST, RATE a second; a datagram is sent three times if need be, as
TCP does itself with what is lost. Prints, as JSON, how many were tried, how many
succeeded, and how long they took, in milliseconds.
"""

import json
import socket
import statistics
import sys
import time

ECHO = 7
PATIENCE = 2.0  # s
TRIES = 3


def connect(host: str, kind: socket.SocketKind) -> bool:
    """Whether a new connection carried an echo."""
    tries = TRIES if kind == socket.SOCK_DGRAM else 1
    with socket.socket(socket.AF_INET, kind) as connection:
        connection.settimeout(PATIENCE / tries)
        for _ in range(tries):
            try:
                connection.connect((host, ECHO))
                connection.send(b"hello")
                return connection.recv(99) == b"hello"
            except OSError:
                continue
    return False


def main(host: str, seconds: float, rate: float) -> None:
    begun = time.monotonic()
    tried, times = 0, []
    while (at := time.monotonic()) - begun < seconds:
        tried += 1
        if connect(host, (socket.SOCK_STREAM, socket.SOCK_DGRAM)[tried % 2]):
            times.append((time.monotonic() - at) * 1000)
        time.sleep(max(0.0, begun + tried / rate - time.monotonic()))
    ordered = statistics.quantiles(times, n=100) if len(times) > 1 else [float("nan")] * 99
    print(json.dumps({"tried": tried, "succeeded": len(times), "p50": ordered[49], "p99": ordered[98]}))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
