"""Datagrams in pieces: what a fragment says of itself, putting a datagram together, and the headers of new pieces.

RFC 791 3.2, RFC 8200 4.5, RFC 5722, RFC 6864, RFC 1858, RFC 3168 5.3. The data of a datagram are put where they belong,
behind its header, so that it stands whole without another copy. A fragment that brings again what is there, octet by
octet, is a duplicate; one that contradicts what is there, overlaps it in part, or ends elsewhere ends the datagram.

The first fragment gives the header. In IPv6 it is the part before the fragment header, which is taken out.
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Octets, Row, Word, kernel
from egressvpn.packet.checksum import sum16
from egressvpn.packet.ecn import CE, ecn_of
from egressvpn.packet.headers import AUTHENTICATION, FRAGMENT_HEADER, MAX_EXTENSIONS
from egressvpn.packet.octets import be16, be32, put_be16, put_be32

HEAD: Final = 256  # octets in front of the data, for the header
MAX_HEADER: Final = 192  # with a fragment header and a virtio header in front it fits HEAD
MAX_DATAGRAM: Final = 65_535
UNIT: Final = 8  # fragments begin at multiples
UNITS: Final = 65_536 // UNIT
DONT_FRAGMENT: Final = 0x4000
MORE: Final = 0x2000
COPIED: Final = 0x80  # of the type of an IPv4 option: every fragment has it

# What became of a fragment.
KEPT: Final = 0
WHOLE: Final = 1  # it was the last that missed
DUPLICATE: Final = 2
OVERLAP: Final = 3
MALFORMED: Final = 4

DATAGRAM = np.dtype(
    [
        ("state", "i8"),  # 0: the slot is free
        ("owner", "i8"),  # the device that sends it, 0: outside
        ("version", "i8"),
        ("protocol", "i8"),  # IPv4 only, where it tells datagrams apart
        ("identification", "i8"),
        ("source_hi", "i8"),
        ("source_lo", "i8"),
        ("destination_hi", "i8"),
        ("destination_lo", "i8"),
        ("number", "i8"),  # in the order they came
        ("due", "i8"),  # when it is given up, ns
        ("pieces", "i8"),  # fragments kept
        ("largest", "i8"),  # octets of data of the longest fragment
        ("received", "i8"),  # octets of data
        ("extent", "i8"),  # end of the data that came, and of
        ("total", "i8"),  # all of them; -1: not known yet
        ("header", "i8"),  # octets of the header
        ("link", "i8"),  # IPv6: offset in the header of the field that named the fragment header
        ("following", "i8"),  # IPv6: what the fragment header named
        ("ecns", "i8"),  # a bit for each ECN field seen
    ],
    align=True,
)


@kernel
def identification(buffer: Octets, packet: Row) -> Word:
    """What fragments of one datagram have in common."""
    if packet.version == 4:
        return be16(buffer, packet.start + 4)
    return be32(buffer, packet.start + _link_and_header(buffer, packet)[1] + 4)


@kernel
def begin(row: Row) -> None:
    """Nothing of the datagram came yet."""
    row.pieces = 0
    row.largest = 0
    row.received = 0
    row.extent = 0
    row.total = -1
    row.header = 0
    row.ecns = 0


@kernel
def add(buffer: Octets, packet: Row, row: Row, covered: Octets, first_unit: Word, data: Word) -> Word:
    """Put a parsed fragment into its datagram, whose data stand at `data` and whose part of `covered` begins at `first_unit`."""
    start = packet.start
    header, from_data = (np.int64(buffer[start]) & 0x0F) * 4, np.int64(0)
    link, fragment = np.int64(0), np.int64(0)
    if packet.version == 4:
        word = be16(buffer, start + 6)
        offset, more = (word & 0x1FFF) * UNIT, (word >> 13) & 1
        from_data = start + header
    else:
        link, header = _link_and_header(buffer, packet)
        fragment = start + header
        word = be16(buffer, fragment + 2)
        offset, more = word & 0xFFF8, word & 1
        from_data = fragment + 8
    size = start + packet.length - from_data
    end = offset + size
    if size <= 0 or (more == 1 and size % UNIT != 0) or header > MAX_HEADER:
        return MALFORMED
    if end + (header if packet.version == 4 else header - 40) > MAX_DATAGRAM:
        return MALFORMED
    verdict = _fits(buffer, row, covered, first_unit, data, from_data, offset, size, more)
    if verdict != KEPT:
        return verdict
    covered[first_unit + offset // UNIT : first_unit + (end + UNIT - 1) // UNIT] = 1
    _copy(buffer, data + offset, from_data, size)
    if offset == 0:
        _copy(buffer, data - header, start, header)
        row.header = header
        row.link = link
        row.following = np.int64(buffer[fragment]) if packet.version == 6 else np.int64(0)
    if more == 0:
        row.total = end
    row.extent = max(row.extent, end)
    row.received += size
    row.pieces += 1
    row.largest = max(row.largest, size)
    row.ecns |= np.int64(1) << ecn_of(buffer, start)
    return WHOLE if row.received == row.total else KEPT


@kernel
def _fits(
    buffer: Octets, row: Row, covered: Octets, first_unit: Word, data: Word, source: Word, offset: Word, size: Word, more: Word
) -> Word:
    """KEPT: the fragment's data are new and agree with what is known of the datagram's end. Else DUPLICATE or OVERLAP."""
    end = offset + size
    if row.total >= 0:
        if end > row.total or (more == 0) != (end == row.total):
            return OVERLAP
    elif more == 0 and row.extent >= end:
        return OVERLAP
    low, high = first_unit + offset // UNIT, first_unit + (end + UNIT - 1) // UNIT
    there = np.int64(0)
    for unit in range(low, high):
        there += np.int64(covered[unit])
    if there == 0:
        return KEPT
    if there < high - low:
        return OVERLAP
    for position in range(size):
        if buffer[data + offset + position] != buffer[source + position]:
            return OVERLAP
    return DUPLICATE


@kernel
def join(buffer: Octets, row: Row, data: Word) -> Word:
    """Make the header that of the whole datagram: its length, or 0 when it cannot be one."""
    start = data - row.header
    length = row.header + row.total
    ecn = np.int64(-1)
    if row.ecns >> CE & 1:
        if row.ecns & 1:
            return 0  # RFC 3168 5.3: congestion was met, and its sender does not know the mark
        ecn = np.int64(CE)
    if row.version == 4:
        if length > MAX_DATAGRAM:
            return 0
        if ecn >= 0:
            buffer[start + 1] |= CE
        put_be16(buffer, start + 2, length)
        put_be16(buffer, start + 6, be16(buffer, start + 6) & DONT_FRAGMENT)
        put_be16(buffer, start + 10, 0)
        put_be16(buffer, start + 10, 0xFFFF ^ sum16(buffer, start, row.header))
        return length
    if length - 40 > MAX_DATAGRAM:
        return 0
    if ecn >= 0:
        buffer[start + 1] |= CE << 4
    put_be16(buffer, start + 4, length - 40)
    buffer[start + row.link] = row.following
    return length


@kernel
def piece_header4(buffer: Octets, at: Word, length: Word, offset: Word, more: Word) -> None:
    """Bring the copy of a datagram's IPv4 header at `at` up to date for the piece of `length` octets whose data begin at `offset`."""
    header = (np.int64(buffer[at]) & 0x0F) * 4
    put_be16(buffer, at + 2, length)
    put_be16(buffer, at + 6, (be16(buffer, at + 6) & DONT_FRAGMENT) | (more * MORE) | offset // UNIT)
    put_be16(buffer, at + 10, 0)
    put_be16(buffer, at + 10, 0xFFFF ^ sum16(buffer, at, header))


@kernel
def piece_header6(buffer: Octets, at: Word, row: Row, length: Word, offset: Word, more: Word) -> None:
    """The same in IPv6: the fragment header comes behind the header's `row.header` octets."""
    put_be16(buffer, at + 4, length - 40)
    buffer[at + row.link] = FRAGMENT_HEADER
    fragment = at + row.header
    buffer[fragment] = row.following
    buffer[fragment + 1] = 0
    put_be16(buffer, fragment + 2, offset | more)
    put_be32(buffer, fragment + 4, row.identification)


@kernel
def keep_copied_options(buffer: Octets, at: Word) -> Word:
    """Leave in an IPv4 header only the options that every fragment has (RFC 791 3.1). Its length then."""
    end = at + (np.int64(buffer[at]) & 0x0F) * 4
    source, target = at + 20, at + 20
    while source < end and buffer[source] != 0:
        size = np.int64(1)
        if buffer[source] != 1:
            if source + 1 >= end or buffer[source + 1] < 2 or source + np.int64(buffer[source + 1]) > end:
                break
            size = np.int64(buffer[source + 1])
            if buffer[source] & COPIED:
                _copy(buffer, target, source, size)
                target += size
        source += size
    while (target - at) % 4 != 0:
        buffer[target] = 0
        target += 1
    buffer[at] = 0x40 | (target - at) // 4
    return target - at


@kernel
def _link_and_header(buffer: Octets, packet: Row) -> tuple[Word, Word]:
    """Offsets, from the start of a parsed IPv6 packet, of the field that names the fragment header and of that header."""
    start = packet.start
    link, at = np.int64(6), np.int64(40)
    for _ in range(MAX_EXTENSIONS):
        kind = np.int64(buffer[start + link])
        if kind == FRAGMENT_HEADER:
            break
        link = at
        if kind == AUTHENTICATION:
            at += (np.int64(buffer[start + at + 1]) + 2) * 4
        else:
            at += (np.int64(buffer[start + at + 1]) + 1) * 8
    return link, at


@kernel
def _copy(buffer: Octets, target: Word, source: Word, size: Word) -> None:
    """Towards the front, or between regions that do not overlap. No slice copy: it would allocate."""
    for position in range(size):
        buffer[target + position] = buffer[source + position]
