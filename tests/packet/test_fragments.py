"""Putting datagrams together: any split in any order comes out whole, and what contradicts itself does not. A dumb twin says which.

Scapy makes the fragments and the octets that must come out.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP, IPOption_Router_Alert, IPOption_Timestamp
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, PadN

from egressvpn.packet.fragments import (
    DATAGRAM,
    DUPLICATE,
    HEAD,
    KEPT,
    MALFORMED,
    OVERLAP,
    UNITS,
    WHOLE,
    add,
    begin,
    join,
    keep_copied_options,
    piece_header4,
)
from egressvpn.packet.headers import PACKET, header_checksum_ok, parse
from egressvpn.verdict import Verdict

DATA, IN = 4096, 256  # where the datagram's data and the fragment stand


class Bench:
    """One datagram in pieces."""

    def __init__(self) -> None:
        self.octets = (np.arange(-DATA, 70_000) * 7 & 0xFF).astype(np.uint8)  # what an earlier datagram may have left
        self.covered = np.zeros(2 * UNITS, np.uint8)
        self.row = np.zeros(1, DATAGRAM).view(np.recarray)[0]
        self.packet = np.zeros(1, PACKET).view(np.recarray)[0]
        begin(self.row)

    def add(self, octets: bytes) -> int:
        self.octets[IN : IN + len(octets)] = np.frombuffer(octets, np.uint8)
        assert parse(self.octets, IN, len(octets), self.packet) == Verdict.PASS
        assert self.packet.fragment != 0
        self.row.version = self.packet.version
        return int(add(self.octets, self.packet, self.row, self.covered, UNITS, DATA))

    def joined(self) -> bytes:
        length = int(join(self.octets, self.row, DATA))
        start = DATA - int(self.row.header)
        return self.octets[start : start + length].tobytes()


class Twin:
    """Octets by position; that is all."""

    def __init__(self) -> None:
        self.data: dict[int, int] = {}
        self.total: int | None = None
        self.over = False

    def add(self, offset: int, data: bytes, more: bool) -> int:
        end = offset + len(data)
        new = dict(enumerate(data, offset))
        units = {position // 8 for position in new}
        known = units & {position // 8 for position in self.data}
        if self.total is not None:
            contradicts = end > self.total or more == (end == self.total)
        else:
            contradicts = not more and bool(self.data) and max(self.data) + 1 >= end
        if contradicts or (known and known != units):
            return OVERLAP
        if known:
            return DUPLICATE if all(self.data.get(position) == octet for position, octet in new.items()) else OVERLAP
        self.data |= new
        if not more:
            self.total = end
        return WHOLE if len(self.data) == self.total else KEPT


def fragment4(data: bytes, offset: int, more: bool, **fields: Any) -> bytes:
    return bytes(IP(src="198.51.100.2", dst="203.0.113.1", proto=253, id=7, frag=offset // 8, flags="MF" if more else 0, **fields) / data)


def fragment6(data: bytes, offset: int, more: bool, *before: Any) -> bytes:
    packet = IPv6(src="2001:db8::2", dst="2001:db8::1")
    for header in before:
        packet /= header
    return bytes(packet / IPv6ExtHdrFragment(offset=offset // 8, m=int(more), id=7, nh=253) / data)


splits = st.lists(st.integers(1, 12), min_size=1, max_size=9)  # sizes of pieces in units of 8


@given(splits, st.integers(1, 8), st.booleans(), st.data())
def test_rfc4787_req14_any_split_in_any_order_with_duplicates_comes_out_whole(units: list[int], last: int, six: bool, data: Any) -> None:
    content = data.draw(st.binary(min_size=8 * sum(units) + last, max_size=8 * sum(units) + last))
    pieces, at = [], 0
    for size in units:
        pieces.append((at, content[at : at + 8 * size], True))
        at += 8 * size
    pieces.append((at, content[at:], False))
    order = data.draw(st.permutations(pieces))
    sent = [piece for piece in order[:-1] for _ in range(data.draw(st.integers(1, 2)))] + order[-1:]
    bench = Bench()
    make = fragment6 if six else fragment4
    outcomes = [bench.add(make(content, offset, more)) for offset, content, more in sent]
    assert outcomes[-1] == WHOLE
    assert set(outcomes[:-1]) <= {KEPT, DUPLICATE}
    whole = IPv6(src="2001:db8::2", dst="2001:db8::1", nh=253) if six else IP(src="198.51.100.2", dst="203.0.113.1", proto=253, id=7)
    assert bench.joined() == bytes(whole / content)
    assert int(bench.row.pieces) == len(pieces)
    assert int(bench.row.largest) == max(len(part) for _, part, _ in pieces)  # whatever its header


pieces_of_anything = st.tuples(st.integers(0, 6), st.integers(1, 5), st.integers(0, 7), st.booleans(), st.integers(0, 1)).filter(
    lambda piece: piece[0] or piece[3]  # else it is no fragment
)


@given(st.lists(pieces_of_anything, min_size=1, max_size=12), st.booleans())
def test_fragments_that_overlap_end_the_datagram_exactly_when_the_twin_says_so(pieces: list[tuple[int, ...]], six: bool) -> None:
    bench, twin = Bench(), Twin()
    for unit, units, odd, more, shade in pieces:
        size = 8 * units - (0 if more else odd)
        content = bytes((position * 7 + shade * (position > 30)) & 0xFF for position in range(8 * unit, 8 * unit + size))
        expected = twin.add(8 * unit, content, bool(more))
        assert bench.add((fragment6 if six else fragment4)(content, 8 * unit, bool(more))) == expected
        if expected in (OVERLAP, WHOLE):
            break
    if twin.total is not None and len(twin.data) == twin.total:
        assert bench.joined()[-twin.total :] == bytes(twin.data[position] for position in range(twin.total))


@pytest.mark.parametrize(("content", "offset", "more"), [(b"odd", 0, True), (b"x" * 12, 8, True), (b"", 8, False), (b"", 16, True)])
def test_a_fragment_that_cannot_be_one_is_malformed(content: bytes, offset: int, more: bool) -> None:
    assert Bench().add(fragment4(content, offset, more)) == MALFORMED
    assert Bench().add(fragment6(content, offset, more)) == MALFORMED


@pytest.mark.parametrize("make", [fragment4, fragment6])
def test_the_ping_of_death_is_malformed(make: Any) -> None:
    bench = Bench()
    assert bench.add(make(bytes(1480), 0, True)) == KEPT
    assert bench.add(make(bytes(64), 65_528, False)) == MALFORMED
    assert bench.add(make(bytes(1472), 64_120, False)) == MALFORMED
    assert int(bench.row.extent) == 1480


def test_the_longest_datagrams_come_out_whole() -> None:
    for make, total in ((fragment4, 65_535 - 20), (fragment6, 65_535)):
        bench, content, at = Bench(), bytes(range(251)) * 262, 0
        while at < total:
            size = min(1400, total - at)
            outcome = bench.add(make(content[at : at + size], at, at + size < total))
            at += size
        assert outcome == WHOLE
        assert bench.joined()[-total:] == content[:total]


def test_extension_headers_before_the_fragment_header_stay_and_those_behind_it_are_data() -> None:
    content = bytes(IPv6ExtHdrDestOpt(nh=17, options=[PadN(optdata=bytes(4))])) + bytes(UDP(sport=1, dport=2, len=108)) + bytes(100)
    bench = Bench()
    before = IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))])
    for offset, more in ((64, False), (0, True)):
        fragment = IPv6ExtHdrFragment(offset=offset // 8, m=int(more), id=7, nh=60)
        packet = IPv6(src="2001:db8::2", dst="2001:db8::1") / before / fragment / (content[64:] if offset else content[:64])
        outcome = bench.add(bytes(packet))
    assert outcome == WHOLE
    whole = IPv6(src="2001:db8::2", dst="2001:db8::1") / IPv6ExtHdrHopByHop(nh=60, options=[PadN(optdata=bytes(4))]) / content
    assert bench.joined() == bytes(whole)


def test_congestion_that_one_fragment_met_is_that_of_the_datagram() -> None:
    for marks, expected in (((1, 1), 1), ((2, 3), 3), ((3, 2), 3), ((0, 0), 0)):
        bench = Bench()
        bench.add(fragment4(bytes(16), 0, True, tos=marks[0]))
        bench.add(fragment4(bytes(16), 16, False, tos=marks[1]))
        assert IP(bench.joined()).tos & 3 == expected
    bench = Bench()
    bench.add(fragment4(bytes(16), 0, True, tos=0))
    bench.add(fragment4(bytes(16), 16, False, tos=3))
    assert bench.joined() == b""


def test_only_options_that_every_fragment_has_go_on_in_later_ones() -> None:
    packet = IP(options=[IPOption_Timestamp(), IPOption_Router_Alert()]) / bytes(8)
    octets = np.frombuffer(bytes(packet), np.uint8).copy()
    assert keep_copied_options(octets, 0) == 24
    piece_header4(octets, 0, 32, 16, 0)
    header = IP(octets[:24].tobytes())
    assert [type(option) for option in header.options] == [IPOption_Router_Alert]
    assert (header.ihl, header.len, header.frag) == (6, 32, 2)
    row = np.zeros(1, PACKET).view(np.recarray)[0]
    assert parse(octets, 0, 32, row) == Verdict.PASS
    assert header_checksum_ok(octets, row) == 1


def test_room_in_front_of_the_data_is_enough_for_the_longest_header() -> None:
    assert HEAD >= 192 + 8 + 10
