"""Send UDP datagrams of one flow as fast as a pace allows, bounded in time: blaster.py HOST PORT SIZE SECONDS PACKETS_PER_SECOND.

Each call hands the kernel a train of datagrams (UDP_SEGMENT), which it cuts before or inside the tunnel: what travels inside is
single datagrams. Prints what was sent, as JSON. A pace of 0 means none.
"""

import json
import socket
import sys
import time

UDP_SEGMENT = 103  # linux/udp.h
TRAIN = 40  # datagrams a call, of at most 64 and 65 507 bytes


def main(host: str, port: int, size: int, seconds: float, pace: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sender = socket.socket(family, socket.SOCK_DGRAM)
    sender.setsockopt(socket.SOL_UDP, UDP_SEGMENT, size)
    sender.connect((host, port))
    train = min(TRAIN, 60_000 // size)
    payload = bytes(size * train)
    sent = 0
    begun = time.monotonic()
    while (elapsed := time.monotonic() - begun) < seconds:
        if pace and sent > elapsed * pace:
            time.sleep(0.0005)
            continue
        sender.send(payload)
        sent += train
    print(json.dumps({"sent": sent, "seconds": elapsed}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
