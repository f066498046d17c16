"""Changing a parsed packet in place: addresses, ports, TTL, MSS. Checksums follow by what changed (RFC 1624), never anew.

A wrong checksum therefore stays wrong. The PACKET record is kept true to the bytes. A partial transport checksum
(virtio NEEDS_CSUM) is the pseudo-header's sum, not complemented: only addresses change it.
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Octets, Row, Word, kernel
from egressvpn.packet.checksum import adjust, adjust_partial, adjust_udp, difference, sum16
from egressvpn.packet.headers import ABSENT, ICMP, LATER_FRAGMENT, TCP, UDP, is_echo
from egressvpn.packet.octets import be16, put_be16, put_be32, put_be64

SYN: Final = 0x02
MSS_OPTION: Final = 2


@kernel
def rewrite_source(buffer: Octets, packet: Row, hi: Word, lo: Word, port: Word) -> None:
    """Give the packet another source address and port (an ICMP query: identifier; anything else has no port to change)."""
    delta = difference(packet.source_lo, lo)
    if packet.version == 4:
        put_be32(buffer, packet.start + 12, lo)
        adjust(buffer, packet.start + 10, delta)
    else:
        delta += difference(packet.source_hi, hi)
        put_be64(buffer, packet.start + 8, hi)
        put_be64(buffer, packet.start + 16, lo)
        packet.source_hi = hi
    packet.source_lo = lo
    _rewrite_transport(buffer, packet, 0, packet.source_port, port, delta)


@kernel
def rewrite_destination(buffer: Octets, packet: Row, hi: Word, lo: Word, port: Word) -> None:
    """Give the packet another destination address and port (an ICMP query: identifier)."""
    delta = difference(packet.destination_lo, lo)
    if packet.version == 4:
        put_be32(buffer, packet.start + 16, lo)
        adjust(buffer, packet.start + 10, delta)
    else:
        delta += difference(packet.destination_hi, hi)
        put_be64(buffer, packet.start + 24, hi)
        put_be64(buffer, packet.start + 32, lo)
        packet.destination_hi = hi
    packet.destination_lo = lo
    _rewrite_transport(buffer, packet, 2, packet.destination_port, port, delta)


@kernel
def _rewrite_transport(buffer: Octets, packet: Row, side: Word, old: Word, new: Word, delta: Word) -> None:
    """Port and transport checksum, after addresses changed by `delta`. `side`: 0 source, 2 destination, as offsets of TCP and UDP."""
    if packet.fragment == LATER_FRAGMENT:
        return
    offset = packet.transport
    if packet.icmp_type >= 0:
        _rewrite_icmp(buffer, packet, new, delta)
        return
    if packet.protocol == TCP:
        at = offset + 16
    elif packet.protocol == UDP:
        at = offset + 6
    else:
        return
    put_be16(buffer, offset + side, new)
    if side == 0:
        packet.source_port = new
    else:
        packet.destination_port = new
    if packet.partial == 1:
        adjust_partial(buffer, at, delta)
    elif packet.partial == ABSENT:
        return
    elif packet.protocol == TCP:
        adjust(buffer, at, delta + (0xFFFF ^ old) + new)
    else:
        adjust_udp(buffer, at, delta + (0xFFFF ^ old) + new)


@kernel
def _rewrite_icmp(buffer: Octets, packet: Row, identifier: Word, delta: Word) -> None:
    """ICMP has no pseudo-header, ICMPv6 has one (RFC 4443 2.3)."""
    at = packet.transport + 2
    if packet.protocol == ICMP:
        delta = np.int64(0)
    if packet.partial != 0:
        adjust_partial(buffer, at, delta)
    if is_echo(packet.version, packet.icmp_type):
        delta += (0xFFFF ^ packet.source_port) + identifier
        put_be16(buffer, packet.transport + 4, identifier)
        packet.source_port = identifier
        packet.destination_port = identifier
    if packet.partial == 0:
        adjust(buffer, at, delta)
        if packet.protocol == ICMP and be16(buffer, at) == 0:
            _mend_zeros(buffer, packet)


@kernel
def _mend_zeros(buffer: Octets, packet: Row) -> None:
    """An ICMP message of zeros only (an empty echo reply) is the one sum of 0 there is: its checksum is 0xFFFF, not 0."""
    if sum16(buffer, packet.transport, packet.start + packet.length - packet.transport) == 0:
        put_be16(buffer, packet.transport + 2, 0xFFFF)


@kernel
def decrement_ttl(buffer: Octets, packet: Row) -> None:
    """One hop less to live. The caller has seen that `packet.ttl` is at least 2."""
    ttl = packet.ttl - 1
    packet.ttl = ttl
    if packet.version == 6:
        buffer[packet.start + 7] = ttl
        return
    old = be16(buffer, packet.start + 8)
    put_be16(buffer, packet.start + 8, old - 0x100)
    adjust(buffer, packet.start + 10, (0xFFFF ^ old) + old - 0x100)


@kernel
def clamp_mss(buffer: Octets, packet: Row, limit4: Word, limit6: Word) -> None:
    """Lower the MSS option of a SYN (RFC 6691) to what fits the tunnel. An absent option is left absent."""
    if packet.protocol != TCP or packet.tcp_flags & SYN == 0 or packet.fragment != 0:
        return
    limit = limit4 if packet.version == 4 else limit6
    offset = packet.transport + 20
    while offset + 1 < packet.payload:
        kind = np.int64(buffer[offset])
        if kind == 0:
            return
        if kind == 1:
            offset += 1
            continue
        size = np.int64(buffer[offset + 1])
        if size < 2 or offset + size > packet.payload:
            return
        if kind == MSS_OPTION and size == 4:
            _lower(buffer, packet, offset + 2, limit)
        offset += size


@kernel
def _lower(buffer: Octets, packet: Row, offset: Word, limit: Word) -> None:
    """Bring the 16 bits at `offset` of the TCP header down to `limit`. At an odd offset they count byte-swapped in the checksum."""
    old = be16(buffer, offset)
    if old <= limit:
        return
    put_be16(buffer, offset, limit)
    if packet.partial != 0:
        return
    delta = (0xFFFF ^ old) + limit
    if (offset - packet.transport) & 1:
        delta *= 256
    adjust(buffer, packet.transport + 16, delta)
