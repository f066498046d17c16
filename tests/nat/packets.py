"""Packets of one device and what comes back from outside, as scapy builds them."""

from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from tests.packet.support import network

INSIDE, REMOTE, OTHER = "100.64.0.5", "198.51.100.7", "198.51.100.8"
INSIDE6, REMOTE6 = "fd64::5", "2001:db8:51::7"


def out(kind: str, port: int = 4000, remote: str = REMOTE, rport: int = 80) -> Any:
    """A packet from inside; a TCP one is a SYN."""
    inner = {"tcp": TCP(sport=port, dport=rport, flags="S"), "udp": UDP(sport=port, dport=rport), "icmp": ICMP(type=8, id=port)}[kind]
    return IP(src=INSIDE, dst=remote) / inner


def packet(version: int, port: int) -> Any:
    return (IP(src=INSIDE, dst=REMOTE) if version == 4 else IPv6(src=INSIDE6, dst=REMOTE6)) / UDP(sport=port)


def tcp(flags: str, remote: str = REMOTE, **fields: int) -> Any:
    """A segment of the connection that `out("tcp")` opens."""
    return IP(src=INSIDE, dst=remote) / TCP(sport=4000, dport=80, flags=flags, **fields)


def into(
    kind: str, external: tuple[str, int], remote: str = REMOTE, rport: int = 80, flags: str = "A", size: int = 0, **fields: int
) -> Any:
    """A packet from outside to an external endpoint; an answer acknowledges the SYN of `out`."""
    host, port = external
    fields = {"ack": 1} | fields
    inner = {
        "tcp": TCP(sport=rport, dport=port, flags=flags, **fields),
        "udp": UDP(sport=rport, dport=port),
        "icmp": ICMP(type=0, id=port),
    }[kind]
    return network(IP(src=remote, dst=host)) / inner / Raw(bytes(range(256)) * (size // 256) + bytes(size % 256))
