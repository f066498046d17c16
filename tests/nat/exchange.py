"""Packets of the requirement tests: one device's endpoint, a few remote ones, and what comes back, as a name and a few numbers."""

from typing import Any, Final

import numpy as np
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Raw

from egressvpn.nat.syns import build_answer, next_due
from egressvpn.verdict import Verdict
from tests.nat.support import Gateway, ns

INSIDE: Final = "100.64.0.5"
REMOTE, OTHER, STRANGER, ROUTER = "198.51.100.7", "198.51.100.8", "198.51.100.99", "192.0.2.99"
PORT, SERVICE = 4000, 443
PASS: Final = Verdict.PASS
OPTIONS: Any = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)]  # of any system's SYN


def out(
    kind: str, *, remote: str = REMOTE, rport: int = SERVICE, port: int = PORT, source: str = INSIDE, flags: str = "S", **tcp: Any
) -> Any:
    """From inside: "tcp", "udp", or "icmp" (an echo request whose identifier is `port`)."""
    header = IP(src=source, dst=remote)
    if kind == "icmp":
        return header / ICMP(type=8, id=port)
    return header / (TCP(sport=port, dport=rport, flags=flags, **tcp) if kind == "tcp" else UDP(sport=port, dport=rport) / Raw(b"hello"))


def back(kind: str, external: tuple[str, int], *, remote: str = REMOTE, rport: int = SERVICE, flags: str = "SA", **tcp: Any) -> Any:
    """From outside to an external endpoint."""
    header = IP(src=remote, dst=external[0])
    if kind == "icmp":
        return header / ICMP(type=0, id=external[1])
    return header / (TCP(sport=rport, dport=external[1], flags=flags, **tcp) if kind == "tcp" else UDP(sport=rport, dport=external[1]))


def about(sent: bytes, *, kind: int = 3, code: int = 1, router: str = ROUTER, **fields: Any) -> Any:
    """An ICMP error of a router outside about a packet that left."""
    return IP(src=router, dst=IP(sent).src) / ICMP(type=kind, code=code, **fields) / Raw(sent)


def passes(gateway: Gateway, packet: Any, now: float | None = None) -> bool:
    """Whether a packet from outside comes through."""
    return bool(gateway.receive(packet, now)[0] == PASS)


def connect(gateway: Gateway, device: int = 1, now: float | None = None, **end: Any) -> tuple[str, int]:
    """A TCP connection from inside: the client's next number is 1001, the server's 5001. Returns the external endpoint."""
    external = gateway.external(device, out("tcp", seq=1000, **end), now)
    remote = {name: end[name] for name in ("remote", "rport") if name in end}
    assert passes(gateway, back("tcp", external, seq=5000, ack=1001, **remote))
    assert gateway.send(device, out("tcp", flags="A", seq=1001, ack=5001, **end))[0] == PASS
    return external


def with_mapping() -> tuple[Gateway, tuple[str, int]]:
    """A gateway with one connection attempt at second 0, and the external endpoint of it."""
    gateway = Gateway()
    return gateway, gateway.external(1, out("tcp"))


def syn(external: tuple[str, int], *, sport: int = 5555, flags: str = "S", options: Any = OPTIONS) -> Any:
    return IP(src=STRANGER, dst=external[0]) / TCP(sport=sport, dport=external[1], flags=flags, options=options)


def answers(gateway: Gateway, now: float) -> list[bytes]:
    """What would be sent at this moment."""
    out, sent = np.zeros(300, np.uint8), []
    while (index := next_due(gateway.nat, ns(now))) >= 0:
        length = build_answer(gateway.nat, index, out, 100)
        sent.append(out[100 : 100 + length].tobytes())
    return sent
