"""The checksum against a sum in plain Python and against scapy's."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from egressvpn.packet.checksum import (
    adjust,
    adjust_udp,
    difference,
    fill_transport_checksum,
    fold,
    sum16,
    transport_checksum_ok,
)
from egressvpn.packet.headers import header_checksum_ok
from tests.packet.support import START, packets, parsed, place, raw, taken


@given(st.binary(max_size=200), st.integers(0, 9))
def test_the_sum_is_that_of_big_endian_words_at_any_offset_and_length(octets: bytes, offset: int) -> None:
    buffer = np.frombuffer(bytes(offset) + octets + b"\xff" * 5, np.uint8).copy()
    assert sum16(buffer, offset, len(octets)) == plain_sum(octets)


def test_the_sum_of_the_longest_packet_does_not_overflow() -> None:
    assert sum16(np.full(65535, 0xFF, np.uint8), 0, 65535) == plain_sum(b"\xff" * 65535)


@given(st.integers(0, (1 << 63) - 1))
def test_folding_keeps_the_value_modulo_65535_and_only_zero_becomes_zero(total: int) -> None:
    folded = fold(np.int64(total))
    assert 0 <= folded <= 0xFFFF
    assert folded % 0xFFFF == total % 0xFFFF
    assert (folded == 0) == (total == 0)


@given(packets())
@settings(max_examples=60)
def test_scapys_checksums_are_right(packet: Any) -> None:
    buffer, row = parsed(raw(packet))
    assert transport_checksum_ok(buffer, row) == 1
    assert header_checksum_ok(buffer, row) == 1


@given(packets(("tcp", "request")), st.data())
@settings(max_examples=60)
def test_any_flipped_bit_makes_a_checksum_wrong(packet: Any, data: Any) -> None:
    buffer, row = parsed(raw(packet))
    at = data.draw(st.integers(row.transport, row.start + row.length - 1))
    buffer[at] ^= 1 << data.draw(st.integers(0, 7))
    assert transport_checksum_ok(buffer, row) == 0


def test_a_flipped_bit_in_the_ipv4_header_makes_its_checksum_wrong() -> None:
    buffer, row = parsed(raw(IP(src="192.0.2.1", dst="198.51.100.2") / UDP(sport=1, dport=2)))
    buffer[START + 8] ^= 1
    assert header_checksum_ok(buffer, row) == 0


@given(packets())
@settings(max_examples=60)
def test_a_checksum_filled_in_is_scapys(packet: Any) -> None:
    expected = raw(packet)
    buffer, row = parsed(expected)
    if row.protocol == 17 and buffer[row.transport + 6] == 0 and buffer[row.transport + 7] == 0:
        return  # without a checksum on purpose
    offset = {6: 16, 17: 6}.get(int(row.protocol), 2)
    buffer[row.transport + offset : row.transport + offset + 2] = 0x5A
    row.partial = 1
    fill_transport_checksum(buffer, row)
    assert taken(buffer, row) == expected
    assert row.partial == 0


def test_udp_over_ipv6_must_have_a_checksum_and_over_ipv4_need_not() -> None:
    buffer, row = parsed(raw(IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(sport=1, dport=2, chksum=0)))
    assert transport_checksum_ok(buffer, row) == 0
    buffer, row = parsed(raw(IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=1, dport=2, chksum=0)))
    assert transport_checksum_ok(buffer, row) == 1


def test_a_udp_checksum_that_computes_to_zero_is_sent_as_all_ones() -> None:
    # the payload makes the sum all ones: what is left of 0xFFFF after a first packet with payload 0
    first = bytes(IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=1, dport=2) / Raw(bytes(2)))
    buffer, row = parsed(first)
    buffer[row.payload : row.payload + 2] = buffer[row.transport + 6 : row.transport + 8]
    fill_transport_checksum(buffer, row)
    assert buffer[row.transport + 6 : row.transport + 8].tobytes() == b"\xff\xff"
    assert transport_checksum_ok(buffer, row) == 1


@given(st.binary(min_size=12, max_size=40).filter(any), st.integers(0, 3), st.binary(min_size=8, max_size=8))
def test_an_adjusted_checksum_equals_one_computed_anew(octets: bytes, word: int, new: bytes) -> None:
    """RFC 1624 3 and 4: also where equation 2 of RFC 1141 goes wrong."""
    octets = octets[: len(octets) & ~3]
    at = min(word * 4, len(octets) - 8) & ~1
    changed = octets[:at] + new + octets[at + 8 :]
    if not any(changed):
        return
    buffer = place((0xFFFF ^ plain_sum(octets)).to_bytes(2, "big"))
    old_word, new_word = (np.int64(int.from_bytes(part, "big", signed=True)) for part in (octets[at : at + 8], new))
    adjust(buffer, START, difference(old_word, new_word))
    assert int.from_bytes(buffer[START : START + 2].tobytes(), "big") == 0xFFFF ^ plain_sum(changed)


def test_a_udp_checksum_of_zero_stays_zero_and_a_result_of_zero_is_all_ones() -> None:
    buffer = place(b"\x00\x00")
    adjust_udp(buffer, START, difference(np.int64(1), np.int64(2)))
    assert buffer[START : START + 2].tobytes() == b"\x00\x00"
    buffer = place(b"\x00\x01")
    adjust_udp(buffer, START, difference(np.int64(1), np.int64(2)))
    assert buffer[START : START + 2].tobytes() == b"\xff\xff"


def plain_sum(octets: bytes) -> int:
    octets += bytes(len(octets) % 2)
    total = sum(int.from_bytes(octets[i : i + 2], "big") for i in range(0, len(octets), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total
