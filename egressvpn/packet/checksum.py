"""The Internet checksum (RFC 1071): in full, and by what changed (RFC 1624, equation 3: HC' = ~(~HC + ~m + m')).

Sums are ones-complement sums of big-endian 16-bit words, folded into 16 bits. 2^16 is 1 modulo 2^16 - 1, so words of 32
bits may be added as they are and folded at the end. The sum of anything but zeros is never 0, so an adjusted checksum
equals the one computed anew, unless all it covers became zero (which only an ICMP message can: `rewrite` sees to it).
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Octets, Row, Word, kernel
from egressvpn.packet.octets import be16, put_be16

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58
LOW32: Final = 0xFFFFFFFF


@kernel
def fold(total: Word) -> Word:
    """A non-negative sum brought into 16 bits."""
    total = (total & LOW32) + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)


@kernel
def sum16(buffer: Octets, offset: Word, length: Word) -> Word:
    """The folded sum of `length` octets; an odd last octet is padded with zero.

    Added as little-endian 32-bit words, four octets at any alignment, and swapped at the end (RFC 1071 2 B).
    """
    words = buffer[offset : offset + (length & ~3)].view(np.uint32)
    total = np.int64(0)
    for word in words:
        total += np.int64(word)
    total = fold(total)
    total = ((total & 0xFF) << 8) | (total >> 8)
    tail = offset + (length & ~3)
    if length & 2:
        total += be16(buffer, tail)
        tail += 2
    if length & 1:
        total += np.int64(buffer[tail]) << 8
    return fold(total)


@kernel
def pseudo_sum(buffer: Octets, packet: Row, length: Word) -> Word:
    """The folded sum of the pseudo-header (RFC 9293 3.1, RFC 8200 8.1) of `length` octets of transport header and data."""
    if packet.version == 4:
        addresses = packet.source_lo + packet.destination_lo
    else:
        addresses = sum16(buffer, packet.start + 8, 32)
    return fold(addresses + packet.protocol + length)


@kernel
def checksum_offset(packet: Row) -> Word:
    """Where the transport checksum is; 0 for a protocol without one that we know."""
    protocol = packet.protocol
    if protocol == TCP:
        return packet.transport + 16
    if protocol == UDP:
        return packet.transport + 6
    if packet.icmp_type >= 0:
        return packet.transport + 2
    return 0


@kernel
def transport_checksum_ok(buffer: Octets, packet: Row) -> Word:
    """1 when the transport checksum is right or cannot be told: fragments, partial checksums, unknown protocols, IPv4 UDP without."""
    at = checksum_offset(packet)
    if at == 0 or packet.fragment != 0 or packet.partial != 0:
        return 1
    if packet.protocol == UDP and be16(buffer, at) == 0:
        return 1 if packet.version == 4 else 0
    return 1 if _transport_sum(buffer, packet) == 0xFFFF else 0


@kernel
def fill_transport_checksum(buffer: Octets, packet: Row) -> None:
    """Compute the transport checksum in full. The packet is no longer partial."""
    at = checksum_offset(packet)
    if at == 0 or packet.fragment != 0:
        return
    put_be16(buffer, at, 0)
    checksum = 0xFFFF ^ _transport_sum(buffer, packet)
    if checksum == 0 and packet.protocol == UDP:
        checksum = np.int64(0xFFFF)
    put_be16(buffer, at, checksum)
    packet.partial = 0


@kernel
def _transport_sum(buffer: Octets, packet: Row) -> Word:
    """The folded sum over pseudo-header, transport header and data. UDP says its length itself (RFC 9868: options may follow it)."""
    length = packet.start + packet.length - packet.transport
    if packet.protocol == UDP:
        length = be16(buffer, packet.transport + 4)
    total = sum16(buffer, packet.transport, length)
    if packet.protocol != ICMP:
        total += pseudo_sum(buffer, packet, length)
    return fold(total)


@kernel
def difference(old: Word, new: Word) -> Word:
    """~m + m' of a 64-bit word, to add to others and hand to `adjust`."""
    kept = (~old & LOW32) + ((~old >> 32) & LOW32)
    return kept + (new & LOW32) + ((new >> 32) & LOW32)


@kernel
def adjust(buffer: Octets, offset: Word, delta: Word) -> None:
    """Bring the checksum at `offset` up to date with a change of what it covers."""
    put_be16(buffer, offset, 0xFFFF ^ fold((0xFFFF ^ be16(buffer, offset)) + delta))


@kernel
def adjust_udp(buffer: Octets, offset: Word, delta: Word) -> None:
    """`adjust` for UDP, where 0 says that there is no checksum: it stays 0, and a computed 0 is sent as 0xFFFF (RFC 768)."""
    old = be16(buffer, offset)
    if old == 0:
        return
    new = 0xFFFF ^ fold((0xFFFF ^ old) + delta)
    put_be16(buffer, offset, new if new != 0 else np.int64(0xFFFF))


@kernel
def adjust_partial(buffer: Octets, offset: Word, delta: Word) -> None:
    """Bring a partial checksum, the pseudo-header's folded sum itself, up to date with a change of that header."""
    put_be16(buffer, offset, fold(be16(buffer, offset) + delta))
