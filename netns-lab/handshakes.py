"""Full handshakes, one per device, so many under way at a time: handshakes.py HOST PORT PUBLIC_KEY KEYS COUNT AT_ONCE PAUSE.

KEYS is a file with a private key (base64) per line. The initiations are made before the clock starts; each response is verified and
confirmed with a keepalive, so that the gateway's session is complete. PAUSE (s) between two handshakes measures an idle gateway's
answer. Prints what was seen, as JSON; times are in milliseconds.
"""

import base64
import json
import secrets
import socket
import statistics
import struct
import sys
import time
from pathlib import Path as File

sys.path.insert(0, str(File(__file__).resolve().parent.parent))

from egressvpn.addresses import Path, pack_sockaddr
from egressvpn.wireguard.indexes import SessionIndexes
from egressvpn.wireguard.interface import Install, Interface, Transmit
from egressvpn.wireguard.noise import seal

PATIENCE = 2.0  # s without any answer
DATA = struct.Struct("<IIQ")


def initiation(private_key: bytes, gateway: bytes, path: Path) -> tuple[Interface, bytes]:
    """A device and its first datagram."""
    interface = Interface(private_key, SessionIndexes(2, 0, secrets.token_bytes), secrets.token_bytes)
    interface.add_peer(1, gateway, path=path)
    interface.on_session_wanted(1, time.monotonic_ns(), time.time_ns())
    return interface, next(output.datagram for output in interface.poll() if isinstance(output, Transmit))


def keepalive(interface: Interface, response: bytes, path: Path) -> bytes:
    """What confirms the session that a response brought; raises StopIteration when the response is not accepted."""
    interface.receive(response, path, time.monotonic_ns(), time.time_ns())
    session = next(output for output in interface.poll() if isinstance(output, Install))
    return DATA.pack(4, session.remote_index, 0) + seal(session.send_key, 0, b"")


def run(wire: socket.socket, path: Path, devices: list[tuple[Interface, bytes]], at_once: int, pause: float) -> dict[str, float]:
    """Complete the handshakes of all devices."""
    waiting = {datagram[4:8]: (interface, datagram) for interface, datagram in devices}
    unsent = list(waiting)
    sent_at: dict[bytes, float] = {}
    times = []
    begun = time.monotonic()
    while waiting:
        while unsent and len(sent_at) < at_once:
            index = unsent.pop()
            sent_at[index] = time.monotonic()
            wire.send(waiting[index][1])
        try:
            answer = wire.recv(2048)
        except TimeoutError:
            break
        index = answer[8:12]
        if answer[0] == 2 and index in sent_at:
            times.append((time.monotonic() - sent_at.pop(index)) * 1000)
            wire.send(keepalive(waiting.pop(index)[0], answer, path))
            time.sleep(pause)
    seconds = time.monotonic() - begun
    ordered = statistics.quantiles(times, n=100) if len(times) > 1 else [float("nan")] * 99
    return {"handshakes": len(times), "lost": len(waiting), "seconds": seconds, "p50": ordered[49], "p99": ordered[98]}


def main(host: str, port: str, public_key: str, keys: str, count: str, at_once: str, pause: str) -> None:
    path = Path(pack_sockaddr(host, int(port)))
    gateway = base64.b64decode(public_key)
    lines = File(keys).read_text().split()[: int(count)]
    devices = [initiation(base64.b64decode(line), gateway, path) for line in lines]
    wire = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    wire.settimeout(PATIENCE)
    wire.connect((host, int(port)))
    print(json.dumps(run(wire, path, devices, int(at_once), float(pause))))


if __name__ == "__main__":
    main(*sys.argv[1:])
