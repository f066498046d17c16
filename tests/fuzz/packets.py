"""Targets of the packet layer and of the NAT: IP packets from anybody, and ICMP errors that quote them."""

import struct
from functools import cache
from typing import Any

import numpy as np

from egressvpn.packet.checksum import fill_transport_checksum, transport_checksum_ok
from egressvpn.packet.headers import LATER_FRAGMENT, PACKET, header_checksum_ok, is_echo, parse, parse_quote
from egressvpn.packet.icmp import build_error
from egressvpn.packet.rewrite import clamp_mss, decrement_ttl, rewrite_destination, rewrite_source
from egressvpn.verdict import Verdict
from tests.fuzz.harness import Reader, target
from tests.fuzz.twins import checksum, pseudo_header, with_header_checksum
from tests.nat.support import Gateway, assert_consistent, loaded

START = 13  # an odd offset, between other octets
FILLS = (0x00, 0xFF)
ICMP, TCP, UDP = 1, 6, 17


@target
def headers(octets: bytes) -> None:
    """Parse; then whatever is done to a packet that was let through."""
    padding, octets = (octets[0] & 15 if octets else 0), octets[1:]
    verdict, buffer, packet = _parsed_alike(parse, octets, padding)
    if verdict != Verdict.PASS:
        return
    assert packet.length <= len(octets) + padding
    end = START + packet.length
    assert packet.version in (4, 6)
    assert START < packet.transport <= packet.payload <= end
    assert 0 <= packet.source_port <= 0xFFFF
    assert 0 <= packet.destination_port <= 0xFFFF
    if packet.fragment == LATER_FRAGMENT:
        assert (packet.source_port, packet.destination_port, packet.icmp_type) == (0, 0, -1)
    _change(buffer, packet)


def _change(buffer: Any, packet: Any) -> None:
    """Every change keeps the checksums right, as a full computation finds, and stays inside the packet."""
    octets = with_header_checksum(_octets(buffer, packet))
    buffer[START : START + packet.length] = np.frombuffer(octets, np.uint8)
    around = (bytes(buffer[:START]), bytes(buffer[START + packet.length :]))
    if packet.fragment == 0:
        fill_transport_checksum(buffer, packet)
    clamp_mss(buffer, packet, 1380, 1360)
    if packet.ttl > 1:
        decrement_ttl(buffer, packet)
    if packet.fragment == 0 and (packet.protocol in (TCP, UDP) or is_echo(packet.version, packet.icmp_type)):
        hi, lo = (0, 0xCB007105) if packet.version == 4 else (0x20010DB801130000, -5)
        rewrite_source(buffer, packet, hi, lo, 0xFFFF)
        rewrite_destination(buffer, packet, hi, lo, 0)
        same = _reparsed(_octets(buffer, packet))
        for name in PACKET.names or ():
            assert name == "ttl" or packet[name] == same[name], name
    if packet.fragment == 0:
        assert transport_checksum_ok(buffer, packet) == 1
        _assert_as_computed_anew(buffer, packet)
    assert header_checksum_ok(buffer, packet) == 1
    assert around == (bytes(buffer[:START]), bytes(buffer[START + packet.length :]))


def _assert_as_computed_anew(buffer: Any, packet: Any) -> None:
    before = _octets(buffer, packet)
    fill_transport_checksum(buffer, packet)
    assert _octets(buffer, packet) == before


def _reparsed(octets: bytes) -> Any:
    verdict, _, packet = _parsed_alike(parse, octets, 0)
    assert verdict == Verdict.PASS
    return packet


@target
def quotes(octets: bytes) -> None:
    """Parse the beginning of a packet that an ICMP error quotes."""
    verdict, buffer, quote = _parsed_alike(parse_quote, octets, 0)
    if verdict != Verdict.PASS:
        return
    assert quote.fragment != LATER_FRAGMENT
    assert START < quote.transport <= quote.transport + 8 <= buffer.size
    if quote.protocol == TCP and quote.partial == 0:
        assert quote.transport + 18 <= buffer.size


@target
def icmp_errors_made(octets: bytes) -> None:
    """Make an ICMP error about any packet: well-formed, short enough, to the packet's source, and never about another error."""
    reader = Reader(octets)
    kind, code, info = reader.number(), reader.number(), reader.number(4)
    verdict, buffer, packet = _parsed_alike(parse, reader.rest(), 0)
    if verdict != Verdict.PASS:
        return
    out = np.full(2048, 0xEE, np.uint8)
    hi, lo = (0, 0xCB007105) if packet.version == 4 else (0x20010DB801130000, 5)
    length = int(build_error(out, 64, buffer, packet, kind, code, info, hi, lo))
    assert (out[:64] == 0xEE).all()
    assert (out[64 + length :] == 0xEE).all() or length == 0
    if length == 0:
        return
    assert packet.icmp_error == 0
    assert length <= (576 if packet.version == 4 else 1280)  # RFC 1812 4.3.2.3, RFC 4443 2.4 (c)
    made = bytes(out[64 : 64 + length])
    _, again, error = _parsed_alike(parse, made, 0)
    assert (error.version, error.length, error.icmp_type) == (packet.version, length, kind)
    assert (error.destination_hi, error.destination_lo) == (packet.source_hi, packet.source_lo)
    assert header_checksum_ok(again, error) == 1
    assert transport_checksum_ok(again, error) == 1
    quoted = made[int(error.payload) - START :]
    assert _octets(buffer, packet).startswith(quoted)


class _Translator:
    """A NAT with flows of every kind, put back as it was before each input."""

    def __init__(self) -> None:
        self.gateway = Gateway(max_flows=16)
        self.sent: list[bytes] = []  # one packet of each flow, as it left
        for packet in _first_packets():
            verdict, _, octets = self.gateway.send(1, packet, 0)
            assert verdict == Verdict.PASS
            self.sent.append(octets)
        self.tables = {name: table.copy() for name, table in self.gateway.nat._asdict().items()}

    def reset(self) -> None:
        for name, table in self.tables.items():
            getattr(self.gateway.nat, name)[...] = table


def _first_packets() -> list[bytes]:
    inside4, remote4 = bytes([100, 64, 0, 5]), bytes([198, 51, 100, 7])
    inside6, remote6 = bytes.fromhex("fd640000000000000000000000000005"), bytes.fromhex("20010db8005100000000000000000007")
    ports = struct.pack("!HH", 4000, 80)
    tcp = ports + struct.pack("!IIBBHHH", 7, 0, 0x50, 2, 1024, 0, 0)
    udp = ports + struct.pack("!HH", 16, 0) + b"question"
    made = []
    for protocol, transport in ((TCP, tcp), (UDP, udp), (ICMP, b"\x08\0\0\0" + ports), (58, b"\x80\0\0\0" + ports)):
        if protocol != 58:
            made.append(_filled(ip4(protocol, inside4, remote4, transport)))
        if protocol != ICMP:
            made.append(_filled(ip6(protocol, inside6, remote6, transport)))
    return made


def ip4(protocol: int, source: bytes, destination: bytes, transport: bytes) -> bytes:
    return with_header_checksum(
        struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(transport), 1, 0, 64, protocol, 0) + source + destination + transport
    )


def ip6(protocol: int, source: bytes, destination: bytes, transport: bytes) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(transport), protocol, 64) + source + destination + transport


def _filled(octets: bytes) -> bytes:
    """With the right transport checksum."""
    buffer, packet = loaded(octets)
    fill_transport_checksum(buffer, packet)
    return _octets(buffer, packet)


@cache
def translator() -> _Translator:
    return _Translator()


ROUTER4, ROUTER6 = bytes([192, 0, 2, 99]), bytes.fromhex("20010db8009900000000000000000001")


@target
def nat_errors(octets: bytes) -> None:
    """ICMP errors through the NAT, from outside and from a device: about nothing, or about a flow, damaged anywhere."""
    reader = Reader(octets)
    choice, kind, code, info, outward = (
        reader.number(),
        reader.number(),
        reader.number(),
        reader.take(4).ljust(4, b"\0"),
        reader.number() & 1,
    )
    quote = bytearray(translator().sent[choice % len(translator().sent)]) if choice < 128 else bytearray(reader.block(600))
    for _ in range(reader.number() & 7):  # a few octets of it changed
        at, value = reader.number(), reader.number()
        if at < len(quote):
            quote[at] = value
    if choice & 64:
        quote = bytearray(with_header_checksum(bytes(quote)))
    _translate_error(bytes(quote) + reader.rest(600), kind, code, info, bool(outward))


def _translate_error(quote: bytes, kind: int, code: int, info: bytes, outward: bool) -> None:
    six = bool(quote) and quote[0] >> 4 == 6
    message = bytes([kind, code, 0, 0]) + info + quote
    if six:
        own = quote[8:24].ljust(16, b"\0")
        source, destination = (bytes.fromhex("fd640000000000000000000000000005"), own) if outward else (ROUTER6, own)
        total = checksum(pseudo_header(source, destination, 58, len(message)) + message)
        packet = ip6(58, source, destination, message[:2] + struct.pack("!H", total) + message[4:])
    else:
        own = quote[12:16].ljust(4, b"\0")
        source, destination = (bytes([100, 64, 0, 5]), own) if outward else (ROUTER4, own)
        packet = ip4(ICMP, source, destination, message[:2] + struct.pack("!H", checksum(message)) + message[4:])
    _through(packet, outward)


@target
def nat(octets: bytes) -> None:
    """Any packets through the NAT, in either direction, one after the other."""
    reader = Reader(octets)
    translator().reset()
    now = 1.0
    while reader:
        flags = reader.number()
        packet = reader.block()
        now += flags >> 1 & 63
        if _parsed_alike(parse, packet, 7)[0] == Verdict.PASS:
            _through(packet, bool(flags & 1), now, reset=False)
    assert_consistent(translator().gateway.nat)


def _through(packet: bytes, outward: bool, now: float = 1.0, reset: bool = True) -> None:
    """Translate; what comes out has right checksums when what went in had them, and an error changes no table."""
    gateway = translator().gateway
    if reset:
        translator().reset()
    verdict, _, before = _parsed_alike(parse, packet, 7)
    if verdict != Verdict.PASS:
        return
    packet = packet[: before.length]
    buffer, row = loaded(packet)
    right = transport_checksum_ok(buffer, row) == 1 and header_checksum_ok(buffer, row) == 1
    gateway.expire(now)
    tables = gateway.octets() if before.icmp_error else b""
    verdict, row, octets = gateway.send(1, packet, now) if outward else gateway.receive(packet, now)
    if before.icmp_error:
        assert gateway.octets() == tables
    if verdict != Verdict.PASS:
        return
    assert len(octets) == before.length
    buffer, again = loaded(octets)
    if right:
        assert header_checksum_ok(buffer, again) == 1
        assert transport_checksum_ok(buffer, again) == 1
    if not outward:
        assert row.owner == 1
        assert (row.destination_hi, row.destination_lo) != (before.destination_hi, before.destination_lo)


def _parsed_alike(rules: Any, octets: bytes, padding: int) -> tuple[int, Any, Any]:
    """Verdict, buffer and record; the same whatever stands around the packet, and nothing was written."""
    results = []
    for fill in FILLS:
        buffer = np.full(START + len(octets) + padding + 64, fill, np.uint8)
        buffer[START : START + len(octets)] = np.frombuffer(octets, np.uint8)
        buffer[START + len(octets) : START + len(octets) + padding] = 0
        before = buffer.copy()
        packet = np.zeros(1, PACKET).view(np.recarray)[0]
        verdict = int(rules(buffer, START, len(octets) + padding, packet))
        assert (buffer == before).all()
        results.append((verdict, buffer, packet))
    first, second = results
    assert first[0] == second[0]
    assert first[2] == second[2]
    return first


def _octets(buffer: Any, packet: Any) -> bytes:
    return bytes(buffer[packet.start : packet.start + packet.length])
