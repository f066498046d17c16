"""Rewriting against scapy: what comes out is, octet for octet, the packet scapy would have built with the other endpoint."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from egressvpn.packet.checksum import fill_transport_checksum, pseudo_sum
from egressvpn.packet.headers import parse
from egressvpn.packet.octets import be16, put_be16
from egressvpn.packet.rewrite import clamp_mss, decrement_ttl, rewrite_destination, rewrite_source
from tests.packet.support import (
    START,
    addresses4,
    addresses6,
    as_words,
    network,
    packets,
    parsed,
    ports,
    raw,
    record,
    taken,
    with_endpoint,
)

REWRITE = {"s": rewrite_source, "d": rewrite_destination}


@given(packets(), st.sampled_from("sd"), ports, st.data())
@settings(max_examples=150)
def test_a_new_endpoint_gives_the_packet_scapy_would_build_and_going_back_the_old_one(packet: Any, side: str, port: int, data: Any) -> None:
    version = network(packet).version
    host = data.draw(addresses4 if version == 4 else addresses6)
    original = raw(packet)
    buffer, row = parsed(original)
    old = (row.source_hi, row.source_lo, row.source_port) if side == "s" else (row.destination_hi, row.destination_lo, row.destination_port)

    REWRITE[side](buffer, row, *as_words(host), port)
    assert taken(buffer, row) == raw(with_endpoint(packet, side, host, port))
    assert_record_is_true(buffer, row)

    REWRITE[side](buffer, row, *old)
    assert taken(buffer, row) == original


@pytest.mark.parametrize("identifier", [0, 7, 0xFFFF])
def test_a_reply_that_becomes_all_zeros_has_the_checksum_of_zeros(identifier: int) -> None:
    packet = IP(src="192.0.2.1", dst="198.51.100.2") / ICMP(type=0, id=identifier, seq=0) / Raw(bytes(9))
    buffer, row = parsed(raw(packet))
    rewrite_destination(buffer, row, *as_words("100.64.0.9"), 0)
    octets = taken(buffer, row)
    assert octets == raw(with_endpoint(packet, "d", "100.64.0.9", 0))
    assert octets[20:24] == b"\0\0\xff\xff"


@given(packets(("tcp", "udp")), st.sampled_from("sd"), ports, st.data())
@settings(max_examples=60)
def test_a_partial_checksum_follows_the_addresses_and_completes_to_the_right_one(packet: Any, side: str, port: int, data: Any) -> None:
    version = network(packet).version
    host = data.draw(addresses4 if version == 4 else addresses6)
    packet = packet.copy()
    if UDP in packet:
        packet[UDP].chksum = None
    expected = raw(with_endpoint(packet, side, host, port))
    buffer, row = parsed(raw(packet))
    field = row.transport + (16 if row.protocol == 6 else 6)
    length = row.start + row.length - row.transport
    row.partial = 1
    put_be16(buffer, field, pseudo_sum(buffer, row, length))

    REWRITE[side](buffer, row, *as_words(host), port)
    assert be16(buffer, field) % 0xFFFF == pseudo_sum(buffer, row, length) % 0xFFFF
    assert row.partial == 1
    fill_transport_checksum(buffer, row)
    assert taken(buffer, row) == expected


@given(packets())
@settings(max_examples=60)
def test_one_hop_less_is_what_scapy_says(packet: Any) -> None:
    buffer, row = parsed(raw(packet))
    decrement_ttl(buffer, row)
    expected = packet.copy()
    if IP in expected:
        expected[IP].ttl -= 1
    else:
        expected[IPv6].hlim -= 1
    assert taken(buffer, row) == raw(expected)
    assert_record_is_true(buffer, row)


@given(st.integers(0, 65535), st.integers(500, 9000), st.integers(0, 3), st.booleans(), st.sampled_from([4, 6]))
@settings(max_examples=60)
def test_the_mss_of_a_syn_is_lowered_to_the_limit_at_any_alignment(mss: int, limit: int, before: int, partial: bool, version: int) -> None:
    ip: Any = IP(src="192.0.2.1", dst="198.51.100.2") if version == 4 else IPv6(src="2001:db8::1", dst="2001:db8::2")
    segment = TCP(sport=1, dport=2, flags="S", options=[("NOP", None)] * before + [("MSS", mss), ("WScale", 7), ("EOL", None)])
    buffer, row = parsed(raw(ip / segment))
    expected = ip / TCP(
        sport=1, dport=2, flags="S", options=[("NOP", None)] * before + [("MSS", min(mss, limit)), ("WScale", 7), ("EOL", None)]
    )
    if partial:
        row.partial = 1
        put_be16(buffer, row.transport + 16, pseudo_sum(buffer, row, row.start + row.length - row.transport))
    clamp_mss(buffer, row, *((limit, 0) if version == 4 else (0, limit)))
    if partial:
        fill_transport_checksum(buffer, row)
    assert taken(buffer, row) == raw(expected)


@pytest.mark.parametrize("flags", ["A", "PA", "F", "R"])
def test_the_mss_of_anything_but_a_syn_is_left_alone(flags: str) -> None:
    octets = raw(IP(src="192.0.2.1", dst="198.51.100.2") / TCP(flags=flags, options=[("MSS", 9000)]))
    buffer, row = parsed(octets)
    clamp_mss(buffer, row, 1380, 1360)
    assert taken(buffer, row) == octets


@given(st.binary(max_size=40))
def test_any_tcp_options_end_the_search_for_the_mss(options: bytes) -> None:
    options += bytes(-len(options) % 4)
    header = bytearray(raw(TCP(flags="S")))
    header[12] = (5 + len(options) // 4) << 4
    buffer, row = parsed(raw(IP(src="192.0.2.1", dst="198.51.100.2", proto=6) / Raw(bytes(header) + options + b"payload")))
    clamp_mss(buffer, row, 1380, 1360)
    assert taken(buffer, row)[40 + len(options) :] == b"payload"


@given(packets(("udp",)), st.data())
@settings(max_examples=30)
def test_a_wrong_checksum_stays_wrong(packet: Any, data: Any) -> None:
    packet = packet.copy()
    packet[UDP].chksum = None
    octets = bytearray(raw(packet))
    octets[-1] ^= 0x10  # the last octet of the datagram: payload, or its checksum
    buffer, row = parsed(bytes(octets))
    rewrite_source(buffer, row, *as_words("203.0.113.9" if row.version == 4 else "2001:db8:113::9"), 4242)
    wrong = taken(buffer, row)
    fill_transport_checksum(buffer, row)
    assert taken(buffer, row) != wrong


def test_a_later_fragment_changes_its_addresses_only() -> None:
    packet = IP(src="192.0.2.1", dst="198.51.100.2", proto=17, frag=9) / Raw(b"\x12\x34\x56\x78 in the middle of a datagram")
    buffer, row = parsed(raw(packet))
    rewrite_source(buffer, row, *as_words("203.0.113.9"), 4242)
    packet.src = "203.0.113.9"
    assert taken(buffer, row) == raw(packet)


def test_an_unknown_protocol_changes_its_addresses_only() -> None:
    packet = IP(src="192.0.2.1", dst="198.51.100.2", proto=47) / Raw(b"\x12\x34\x56\x78")
    buffer, row = parsed(raw(packet))
    rewrite_destination(buffer, row, *as_words("100.64.0.9"), 4242)
    packet.dst = "100.64.0.9"
    assert taken(buffer, row) == raw(packet)


def test_an_icmp_message_without_identifier_keeps_its_octets() -> None:
    packet = IP(src="192.0.2.1", dst="198.51.100.2") / ICMP(type=11) / Raw(b"whatever is quoted here")
    buffer, row = parsed(raw(packet))
    rewrite_source(buffer, row, *as_words("203.0.113.9"), 4242)
    packet.src = "203.0.113.9"
    assert taken(buffer, row) == raw(packet)


def assert_record_is_true(buffer: Any, row: Any) -> None:
    """The record says what a fresh parse of the packet would."""
    fresh = record()
    parse(buffer, START, row.length, fresh)
    assert [fresh[name] for name in fresh.dtype.names] == [row[name] for name in row.dtype.names]
