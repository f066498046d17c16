"""Making ICMP errors about a packet (RFC 792, RFC 1812 4.3.2, RFC 4443), and when none may be made.

An error quotes as much of the packet as fits 576 octets (IPv4) or 1280 (IPv6) in all.
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Octets, Row, Word, kernel
from egressvpn.packet.checksum import sum16
from egressvpn.packet.headers import ICMP, ICMPV6, LATER_FRAGMENT
from egressvpn.packet.octets import put_be16, put_be32, put_be64

MAX_ERROR4: Final = 576  # octets, RFC 1812 4.3.2.3
MAX_ERROR6: Final = 1280  # octets, RFC 4443 2.4 (c)
PACKET_TOO_BIG6: Final = 2
REDIRECT6: Final = 137
HOPS: Final = 64
DONT_FRAGMENT: Final = 0x4000  # makes the packet atomic, so its identification may be 0 (RFC 6864)
INTERNETWORK_CONTROL: Final = 0xC0  # RFC 1812 4.3.2.5


@kernel
def build_error(
    out: Octets,
    out_start: Word,
    buffer: Octets,
    packet: Row,
    icmp_type: Word,
    code: Word,
    info: Word,
    source_hi: Word,
    source_lo: Word,
) -> Word:
    """Write an ICMP error about `packet` to its sender at `out_start`; returns its length, or 0 when none may be sent.

    `info` is the 32 bits behind the checksum (a next-hop MTU, a pointer).
    """
    if packet.icmp_error != 0 or packet.fragment == LATER_FRAGMENT:
        return 0
    if packet.version == 4:
        if not _may_answer4(packet):
            return 0
        return _build4(out, out_start, buffer, packet, icmp_type, code, info, source_lo)
    if not _may_answer6(packet, icmp_type):
        return 0
    return _build6(out, out_start, buffer, packet, icmp_type, code, info, source_hi, source_lo)


@kernel
def _may_answer4(packet: Row) -> bool:
    """RFC 1812 4.3.2.7: the source is a single host, and the packet was not for many."""
    source, destination = packet.source_lo, packet.destination_lo
    if source >> 24 == 0 or source >> 24 == 127 or source >> 28 >= 14:
        return False
    return not (destination >> 28 == 14 or destination == 0xFFFFFFFF)


@kernel
def _may_answer6(packet: Row, icmp_type: Word) -> bool:
    """RFC 4443 2.4 (e): not about a redirect, nor to a multicast or unspecified source; multicast destinations hear of their MTU only."""
    if packet.icmp_type == REDIRECT6:
        return False
    if packet.source_hi == 0 and packet.source_lo >> 1 == 0:
        return False
    if (packet.source_hi >> 56) & 0xFF == 0xFF:
        return False
    return (packet.destination_hi >> 56) & 0xFF != 0xFF or icmp_type == PACKET_TOO_BIG6


@kernel
def _build4(out: Octets, at: Word, buffer: Octets, packet: Row, icmp_type: Word, code: Word, info: Word, source: Word) -> Word:
    quote = min(packet.length, MAX_ERROR4 - 28)
    put_be16(out, at, 0x4500 | INTERNETWORK_CONTROL)
    put_be16(out, at + 2, 28 + quote)
    put_be16(out, at + 4, 0)
    put_be16(out, at + 6, DONT_FRAGMENT)
    put_be16(out, at + 8, HOPS << 8 | ICMP)
    put_be16(out, at + 10, 0)
    put_be32(out, at + 12, source)
    put_be32(out, at + 16, packet.source_lo)
    put_be16(out, at + 10, 0xFFFF ^ sum16(out, at, 20))
    _message(out, at + 20, icmp_type, code, info)
    for position in range(quote):  # no slice copy: it would allocate when both are one buffer
        out[at + 28 + position] = buffer[packet.start + position]
    put_be16(out, at + 22, 0xFFFF ^ sum16(out, at + 20, 8 + quote))
    return 28 + quote


@kernel
def _build6(
    out: Octets,
    at: Word,
    buffer: Octets,
    packet: Row,
    icmp_type: Word,
    code: Word,
    info: Word,
    source_hi: Word,
    source_lo: Word,
) -> Word:
    quote = min(packet.length, MAX_ERROR6 - 48)
    length = 8 + quote
    _message(out, at + 40, icmp_type, code, info)
    for position in range(quote):
        out[at + 48 + position] = buffer[packet.start + position]
    put_be64(out, at + 8, source_hi)
    put_be64(out, at + 16, source_lo)
    put_be64(out, at + 24, packet.source_hi)
    put_be64(out, at + 32, packet.source_lo)
    # the pseudo-header: length and protocol stand where the rest of the header goes afterwards
    put_be32(out, at, length)
    put_be32(out, at + 4, ICMPV6)
    put_be16(out, at + 42, 0xFFFF ^ sum16(out, at, 48 + quote))
    put_be32(out, at, 0x60000000)
    put_be16(out, at + 4, length)
    put_be16(out, at + 6, ICMPV6 << 8 | HOPS)
    return 48 + quote


@kernel
def _message(out: Octets, at: Word, icmp_type: Word, code: Word, info: Word) -> None:
    put_be16(out, at, np.int64(icmp_type) << 8 | code)
    put_be16(out, at + 2, 0)
    put_be32(out, at + 4, info)
