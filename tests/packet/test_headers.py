"""Parsing against scapy, at every wrong length, and on octets that are no packet."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import (
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.packet import Raw

from egressvpn.packet.headers import FIRST_FRAGMENT, LATER_FRAGMENT, WHOLE, parse, parse_quote
from egressvpn.verdict import Verdict
from tests.packet.support import START, address, network, packets, parsed, place, raw, record, transport

MALFORMED = Verdict.MALFORMED_PACKET


@given(packets())
@settings(max_examples=80)
def test_every_field_is_what_scapy_says(packet: Any) -> None:
    octets = raw(packet)
    _, row = parsed(octets)
    layer, ip = transport(packet), network(packet)
    assert (row.start, row.length, row.version) == (START, len(octets), ip.version)
    assert address(row.version, row.source_hi, row.source_lo) == ip.src
    assert address(row.version, row.destination_hi, row.destination_lo) == ip.dst
    assert row.ttl == (ip.ttl if ip.version == 4 else ip.hlim)
    assert row.transport == START + len(octets) - len(raw(layer))
    assert row.fragment == WHOLE
    if isinstance(layer, TCP):
        assert row.protocol == 6
        assert row.tcp_flags == int(layer.flags)
        assert row.payload == START + len(octets) - len(layer.payload)
    if isinstance(layer, TCP | UDP):
        assert (row.source_port, row.destination_port, row.icmp_type) == (layer.sport, layer.dport, -1)
    else:
        assert (row.source_port, row.destination_port, row.icmp_type) == (layer.id, layer.id, layer.type)
        assert row.icmp_error == 0
    assert (row.owner, row.flow, row.partial, row.segments) == (0, 0, 0, 1)


@given(packets())
@settings(max_examples=25)
def test_a_packet_cut_anywhere_is_malformed(packet: Any) -> None:
    octets = raw(packet)
    buffer, row = place(octets), record()
    for available in range(len(octets)):
        assert parse(buffer, START, available, row) == MALFORMED


@given(packets(("tcp", "udp", "request")), st.data())
@settings(max_examples=40)
def test_a_total_length_that_cuts_a_header_is_malformed(packet: Any, data: Any) -> None:
    octets = bytearray(raw(packet))
    _, row = parsed(bytes(octets))
    needed = row.payload - START
    short = data.draw(st.integers(0, needed - 1))
    if row.version == 4:
        octets[2:4] = short.to_bytes(2, "big")
    else:
        octets[4:6] = max(short - 40, 0).to_bytes(2, "big")
    assert parse(place(bytes(octets)), START, len(octets), row) == MALFORMED


@given(st.binary(max_size=120), st.sampled_from([b"", b"\x45", b"\x46\x00\x00\x30", b"\x60\x00\x00\x00", b"\x60\x00\x00\x00\x00\x40\x00"]))
@settings(max_examples=300)
def test_arbitrary_octets_never_crash_and_what_passes_lies_inside(octets: bytes, beginning: bytes) -> None:
    octets = beginning + octets
    buffer, row = place(octets, padding=0), record()
    before = buffer.copy()
    verdict = parse(buffer, START, len(octets), row)
    assert verdict in (Verdict.PASS, MALFORMED)
    if verdict == Verdict.PASS:
        end = START + len(octets)
        assert START + 20 <= row.transport <= row.payload <= row.start + row.length <= end
    assert parse_quote(buffer, START, len(octets), row) in (Verdict.PASS, MALFORMED)
    assert (buffer == before).all()


@given(packets(), st.data())
@settings(max_examples=60)
def test_a_packet_with_any_octet_changed_never_crashes(packet: Any, data: Any) -> None:
    octets = bytearray(raw(packet))
    for _ in range(3):
        octets[data.draw(st.integers(0, min(len(octets), 80) - 1))] = data.draw(st.integers(0, 255))
    buffer, row = place(bytes(octets), padding=0), record()
    if parse(buffer, START, len(octets), row) == Verdict.PASS:
        assert START + 20 <= row.transport <= row.payload <= row.start + row.length <= START + len(octets)


def test_a_window_that_leaves_the_buffer_is_malformed() -> None:
    octets = raw(IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=1, dport=2))
    buffer, row = place(octets, padding=0), record()
    assert parse(buffer, START, len(octets) + 1, row) == MALFORMED
    assert parse(buffer, -1, len(octets), row) == MALFORMED


@pytest.mark.parametrize(("flags", "offset", "expected"), [("MF", 0, FIRST_FRAGMENT), ("MF", 3, LATER_FRAGMENT), ("", 3, LATER_FRAGMENT)])
def test_ipv4_fragments_are_told_apart(flags: str, offset: int, expected: int) -> None:
    octets = raw(
        IP(src="192.0.2.1", dst="192.0.2.2", proto=17, flags=flags, frag=offset) / Raw(raw(UDP(sport=7, dport=9, len=2000)) + bytes(64))
    )
    _, row = parsed(octets)
    assert row.fragment == expected
    assert (row.source_port, row.destination_port) == ((7, 9) if expected == FIRST_FRAGMENT else (0, 0))


@pytest.mark.parametrize(
    ("more", "offset", "expected"), [(1, 0, FIRST_FRAGMENT), (1, 3, LATER_FRAGMENT), (0, 3, LATER_FRAGMENT), (0, 0, WHOLE)]
)
def test_ipv6_fragments_are_told_apart(more: int, offset: int, expected: int) -> None:
    header = IPv6(src="2001:db8::1", dst="2001:db8::2") / IPv6ExtHdrFragment(nh=17, m=more, offset=offset)
    _, row = parsed(raw(header / Raw(raw(UDP(sport=7, dport=9, len=72 if expected == WHOLE else 2000)) + bytes(64))))
    assert row.fragment == expected
    assert row.protocol == 17
    assert row.source_port == (0 if expected == LATER_FRAGMENT else 7)


def test_a_first_fragment_without_its_whole_transport_header_is_malformed() -> None:
    octets = raw(IP(src="192.0.2.1", dst="192.0.2.2", proto=6, flags="MF") / Raw(raw(TCP())[:16]))
    assert parse(place(octets), START, len(octets), record()) == MALFORMED


@pytest.mark.parametrize("kind", [131, 137])
def test_ipv4_source_routes_are_refused(kind: int) -> None:
    option = IPOption(bytes([kind, 7, 4, 10, 0, 0, 1]))
    octets = raw(IP(src="192.0.2.1", dst="192.0.2.2", options=[IPOption(b"\x01"), option]) / UDP(sport=1, dport=2))
    assert parse(place(octets), START, len(octets), record()) == MALFORMED


def test_an_ipv6_routing_header_with_segments_left_is_refused() -> None:
    routing = IPv6ExtHdrRouting(type=0, segleft=1, addresses=["fd00::1"])
    octets = raw(IPv6(src="2001:db8::1", dst="2001:db8::2") / routing / UDP(sport=1, dport=2))
    assert parse(place(octets), START, len(octets), record()) == MALFORMED


def test_the_walk_over_extension_headers_is_bounded() -> None:
    def stacked(count: int) -> bytes:
        packet: Any = IPv6(src="2001:db8::1", dst="2001:db8::2")
        for _ in range(count):
            packet = packet / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))])
        return raw(packet / UDP(sport=5, dport=6))

    _, row = parsed(stacked(8))
    assert row.source_port == 5
    assert parse(place(stacked(9)), START, len(stacked(9)), record()) == MALFORMED


def test_an_unknown_protocol_has_no_ports() -> None:
    _, row = parsed(raw(IP(src="192.0.2.1", dst="192.0.2.2", proto=47) / Raw(b"\x12\x34\x56\x78")))
    assert (row.protocol, row.source_port, row.destination_port, row.icmp_type) == (47, 0, 0, -1)


def test_icmpv6_inside_ipv4_is_not_icmp() -> None:
    _, row = parsed(raw(IP(src="192.0.2.1", dst="192.0.2.2", proto=58) / Raw(b"\x80\x00\x00\x00\x12\x34\x56\x78")))
    assert (row.icmp_type, row.source_port) == (-1, 0)


def test_icmp_errors_are_marked_and_their_quote_found() -> None:
    quoted = IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=1, dport=2)
    _, row = parsed(raw(IP(src="192.0.2.9", dst="192.0.2.1") / ICMP(type=3, code=4) / quoted))
    assert (row.icmp_error, row.icmp_type, row.payload, row.source_port) == (1, 3, START + 28, 0)
    quoted6 = IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(sport=1, dport=2)
    _, row = parsed(raw(IPv6(src="2001:db8::9", dst="2001:db8::1") / ICMPv6PacketTooBig(mtu=1280) / quoted6))
    assert (row.icmp_error, row.icmp_type, row.payload, row.source_port) == (1, 2, START + 48, 0)


def test_octets_behind_the_packet_are_padding() -> None:
    octets = raw(IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=1, dport=2) / Raw(b"abc"))
    _, row = parsed(octets, padding=40)
    assert row.length == len(octets)


def test_the_longest_packet_is_accepted() -> None:
    octets = raw(IP(src="192.0.2.1", dst="192.0.2.2", len=65535) / TCP(sport=1, dport=2, chksum=0)) + bytes(65535 - 40)
    buffer = np.frombuffer(octets, np.uint8)
    row = record()
    assert parse(buffer, 0, len(octets), row) == Verdict.PASS
    assert row.length == 65535
