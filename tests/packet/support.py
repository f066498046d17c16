"""Packets for tests: built by scapy with everything the wire allows, and put somewhere odd in a buffer."""

from typing import Any

import numpy as np
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.packet import Raw

from egressvpn.addresses import from_words, words
from egressvpn.packet.headers import PACKET, parse
from egressvpn.verdict import Verdict

START = 13  # packets sit at an odd offset, between other octets
FILL = 0xEE


def place(octets: bytes, padding: int = 7) -> Any:
    """A buffer with the packet at START and something else around it."""
    buffer = np.full(START + len(octets) + padding, FILL, np.uint8)
    buffer[START : START + len(octets)] = np.frombuffer(octets, np.uint8)
    return buffer


def record() -> Any:
    return np.zeros(2, PACKET).view(np.recarray)[1]


def parsed(octets: bytes, padding: int = 7) -> tuple[Any, Any]:
    """Buffer and PACKET record of a packet that must be valid."""
    buffer, packet = place(octets, padding), record()
    assert parse(buffer, START, len(octets) + padding, packet) == Verdict.PASS
    return buffer, packet


def taken(buffer: Any, packet: Any) -> bytes:
    """The packet as it is in the buffer now; nothing around it was touched."""
    end = packet.start + packet.length
    assert (buffer[:START] == FILL).all()
    assert (buffer[end:] == FILL).all()
    return buffer[packet.start : end].tobytes()


def raw(packet: Any) -> bytes:
    return bytes(packet)


def address(version: int, hi: int, lo: int) -> str:
    return str(from_words(version, int(hi), int(lo)))


def as_words(text: str) -> tuple[int, int]:
    import ipaddress

    return words(ipaddress.ip_address(text))


ports = st.integers(0, 65535) | st.sampled_from([0, 1, 65535])
payloads = st.binary(max_size=80)
addresses4 = st.integers(1 << 24, (224 << 24) - 1).filter(lambda n: n >> 24 != 127).map(lambda n: address(4, 0, n))
addresses6 = st.tuples(st.integers(0x20 << 56, 0x3F << 56), st.integers(-(1 << 63), (1 << 63) - 1)).map(lambda w: address(6, *w))

_options4 = st.sampled_from(
    [[], [IPOption(b"\x94\x04\x00\x00")], [IPOption(b"\x01")] * 4, [IPOption(b"\x07\x0b\x04" + bytes(8)), IPOption(b"\x00")]]
)
_mss = st.tuples(st.just("MSS"), st.integers(0, 65535))
_option = st.one_of(
    _mss,
    st.tuples(st.just("NOP"), st.none()),
    st.tuples(st.just("WScale"), st.integers(0, 14)),
    st.tuples(st.just("Timestamp"), st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))),
    st.just(("SAckOK", b"")),
)
tcp_options = st.lists(_option, max_size=3)


@st.composite
def networks(draw: Any, version: int, source: str | None = None, destination: str | None = None) -> Any:
    """A scapy network header, IPv4 with options or IPv6 with extension headers."""
    addresses = addresses4 if version == 4 else addresses6
    source = source or draw(addresses)
    destination = destination or draw(addresses)
    if version == 4:
        return IP(
            src=source,
            dst=destination,
            tos=draw(st.integers(0, 255)),
            id=draw(st.integers(0, 65535)),
            ttl=draw(st.integers(2, 255)),
            flags=draw(st.sampled_from(["", "DF"])),
            options=draw(_options4),
        )
    header = IPv6(
        src=source, dst=destination, tc=draw(st.integers(0, 255)), fl=draw(st.integers(0, 0xFFFFF)), hlim=draw(st.integers(2, 255))
    )
    if draw(st.booleans()):
        header = header / IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(draw(st.sampled_from([4, 12]))))])
    if draw(st.booleans()):
        header = header / IPv6ExtHdrRouting(type=2, segleft=0, addresses=[draw(addresses6)])
    if draw(st.booleans()):
        header = header / IPv6ExtHdrFragment(id=draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        header = header / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))])
    return header


@st.composite
def transports(draw: Any, version: int, kinds: tuple[str, ...] = ("tcp", "udp", "request", "reply")) -> Any:
    """A scapy transport header with payload."""
    kind, data = draw(st.sampled_from(kinds)), draw(payloads)
    if kind == "tcp":
        return TCP(
            sport=draw(ports),
            dport=draw(ports),
            seq=draw(st.integers(0, 2**32 - 1)),
            ack=draw(st.integers(0, 2**32 - 1)),
            flags=draw(st.sampled_from(["S", "SA", "A", "PA", "FA", "UA"])),
            window=draw(st.integers(0, 65535)),
            options=draw(tcp_options),
        ) / Raw(data)
    if kind == "udp":
        without = version == 4 and draw(st.booleans())
        return UDP(sport=draw(ports), dport=draw(ports), **({"chksum": 0} if without else {})) / Raw(data)
    if version == 4:
        return ICMP(type=8 if kind == "request" else 0, id=draw(ports), seq=draw(ports)) / Raw(data)
    return (ICMPv6EchoRequest if kind == "request" else ICMPv6EchoReply)(id=draw(ports), seq=draw(ports), data=data)


@st.composite
def packets(draw: Any, kinds: tuple[str, ...] = ("tcp", "udp", "request", "reply")) -> Any:
    """Any valid packet, as a scapy object whose checksums and lengths scapy computes."""
    version = draw(st.sampled_from([4, 6]))
    return draw(networks(version)) / draw(transports(version, kinds))


def transport(packet: Any) -> Any:
    """The scapy transport layer."""
    for layer in (TCP, UDP, ICMP, ICMPv6EchoRequest, ICMPv6EchoReply):
        if layer in packet:
            return packet[layer]
    raise AssertionError("no transport")


def network(packet: Any) -> Any:
    return packet[IP] if IP in packet else packet[IPv6]


def with_endpoint(packet: Any, side: str, host: str, port: int) -> Any:
    """What scapy makes of the packet with another source ("s") or destination ("d")."""
    changed = packet.copy()
    setattr(network(changed), "src" if side == "s" else "dst", host)
    inner = transport(changed)
    if hasattr(inner, "sport") and not isinstance(inner, ICMP):
        setattr(inner, "sport" if side == "s" else "dport", port)
    else:
        inner.id = port
    return changed
