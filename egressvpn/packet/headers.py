"""One IP packet, checked once: after `parse` says PASS every offset in its PACKET record is inside the buffer and can be trusted."""

from typing import Final

import numpy as np

from egressvpn.kernel import Octets, Row, Word, kernel
from egressvpn.packet.checksum import sum16
from egressvpn.packet.octets import be16, be32, be64
from egressvpn.packet.record import PACKET as PACKET
from egressvpn.verdict import Verdict

MALFORMED_PACKET: Final = int(Verdict.MALFORMED_PACKET)
PASS: Final = int(Verdict.PASS)

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58

WHOLE: Final = 0
FIRST_FRAGMENT: Final = 1
LATER_FRAGMENT: Final = 2

ABSENT: Final = 2  # value of `partial`

HOP_BY_HOP: Final = 0
ROUTING: Final = 43
FRAGMENT_HEADER: Final = 44
AUTHENTICATION: Final = 51
DESTINATION_OPTIONS: Final = 60
MAX_EXTENSIONS: Final = 8  # headers walked; a sender has no use for more (RFC 8504 5.3 allows a limit)

ECHO_REPLY: Final = 0
ECHO_REQUEST: Final = 8
ECHO_REQUEST6: Final = 128
ECHO_REPLY6: Final = 129


@kernel
def parse(buffer: Octets, start: Word, available: Word, packet: Row) -> Word:
    """Check the packet in `available` octets from `start` and describe it in `packet`. PASS or MALFORMED_PACKET.

    Octets behind the packet are padding. A protocol that is not known here has ports 0. Source routing is refused
    (RFC 5095, RFC 7126): what a packet says of its destination must be where it goes.
    """
    _clear(packet, start)
    if start < 0 or available < 20 or start + available > buffer.size:
        return MALFORMED_PACKET
    version = np.int64(buffer[start]) >> 4
    packet.version = version
    if version == 4:
        verdict = _parse4(buffer, start, available, packet)
    elif version == 6:
        verdict = _parse6(buffer, start, available, packet)
    else:
        return MALFORMED_PACKET
    if verdict != PASS:
        return verdict
    if packet.length > available:
        return MALFORMED_PACKET
    if packet.fragment == LATER_FRAGMENT:
        return PASS
    return _parse_transport(buffer, packet)


@kernel
def parse_quote(buffer: Octets, start: Word, available: Word, quote: Row) -> Word:
    """Describe the beginning of a packet that an ICMP error quotes; only what is needed to tell its flow must be there.

    `partial` is ABSENT when the quote ends before the transport checksum. Its later fragments say nothing of a flow.
    """
    _clear(quote, start)
    if start < 0 or available < 28 or start + available > buffer.size:
        return MALFORMED_PACKET
    version = np.int64(buffer[start]) >> 4
    quote.version = version
    if version == 4:
        verdict = _parse4(buffer, start, available, quote)
    elif version == 6:
        verdict = _parse6(buffer, start, available, quote)
    else:
        return MALFORMED_PACKET
    offset = quote.transport
    if verdict != PASS or quote.fragment == LATER_FRAGMENT or offset + 8 > start + available:
        return MALFORMED_PACKET
    if (quote.protocol == ICMP and version == 4) or (quote.protocol == ICMPV6 and version == 6):
        return _parse_icmp(buffer, quote, 8)
    if quote.protocol != TCP and quote.protocol != UDP:
        return MALFORMED_PACKET
    quote.source_port = be16(buffer, offset)
    quote.destination_port = be16(buffer, offset + 2)
    if quote.protocol == TCP and offset + 18 > start + available:
        quote.partial = ABSENT
    return PASS


@kernel
def _clear(packet: Row, start: Word) -> None:
    packet.start = start
    packet.fragment = WHOLE
    packet.source_port = 0
    packet.destination_port = 0
    packet.tcp_flags = 0
    packet.icmp_type = -1
    packet.icmp_error = 0
    packet.partial = 0
    packet.segments = 1
    packet.owner = 0
    packet.flow = 0


@kernel
def header_checksum_ok(buffer: Octets, packet: Row) -> Word:
    """1 when the IPv4 header checksum is right, or there is none because it is IPv6."""
    if packet.version == 6:
        return 1
    header = (np.int64(buffer[packet.start]) & 0x0F) * 4
    return 1 if sum16(buffer, packet.start, header) == 0xFFFF else 0


@kernel
def _parse4(buffer: Octets, start: Word, available: Word, packet: Row) -> Word:
    header = (np.int64(buffer[start]) & 0x0F) * 4
    length = be16(buffer, start + 2)
    if header < 20 or length < header or header > available:
        return MALFORMED_PACKET
    if header > 20 and _source_routed(buffer, start + 20, start + header):
        return MALFORMED_PACKET
    fragment = be16(buffer, start + 6)
    if fragment & 0x1FFF:
        packet.fragment = LATER_FRAGMENT
    elif fragment & 0x2000:
        packet.fragment = FIRST_FRAGMENT
    packet.length = length
    packet.ttl = np.int64(buffer[start + 8])
    packet.protocol = np.int64(buffer[start + 9])
    packet.source_hi = 0
    packet.source_lo = be32(buffer, start + 12)
    packet.destination_hi = 0
    packet.destination_lo = be32(buffer, start + 16)
    packet.transport = start + header
    packet.payload = start + header
    return PASS


@kernel
def _source_routed(buffer: Octets, offset: Word, end: Word) -> bool:
    """Among the IPv4 options is a loose (131) or strict (137) source route. Broken options end the search."""
    while offset < end:
        kind = np.int64(buffer[offset])
        if kind == 131 or kind == 137:
            return True
        if kind == 0:
            return False
        if kind == 1:
            offset += 1
            continue
        if offset + 1 >= end or buffer[offset + 1] < 2:
            return False
        offset += np.int64(buffer[offset + 1])
    return False


@kernel
def _parse6(buffer: Octets, start: Word, available: Word, packet: Row) -> Word:
    if available < 40:
        return MALFORMED_PACKET
    length = 40 + be16(buffer, start + 4)
    packet.length = length
    packet.ttl = np.int64(buffer[start + 7])
    packet.source_hi = be64(buffer, start + 8)
    packet.source_lo = be64(buffer, start + 16)
    packet.destination_hi = be64(buffer, start + 24)
    packet.destination_lo = be64(buffer, start + 32)
    protocol = np.int64(buffer[start + 6])
    packet.protocol = protocol
    packet.transport = start + 40
    packet.payload = start + 40
    if protocol == TCP or protocol == UDP or protocol == ICMPV6:
        return PASS
    return _walk_extensions(buffer, start + 40, start + min(length, available), packet)


@kernel
def _walk_extensions(buffer: Octets, offset: Word, end: Word, packet: Row) -> Word:
    """Find the transport header behind IPv6 extension headers (RFC 8200 4)."""
    for _ in range(MAX_EXTENSIONS + 1):
        protocol = packet.protocol
        packet.transport = offset
        packet.payload = offset
        if not _is_extension(protocol) or packet.fragment == LATER_FRAGMENT:
            return PASS
        if offset + 8 > end:
            return MALFORMED_PACKET
        size = (np.int64(buffer[offset + 1]) + 1) * 8
        if protocol == ROUTING and buffer[offset + 3] != 0:
            return MALFORMED_PACKET
        if protocol == AUTHENTICATION:
            size = (np.int64(buffer[offset + 1]) + 2) * 4
        elif protocol == FRAGMENT_HEADER:
            size = np.int64(8)
            fragment = be16(buffer, offset + 2)
            if fragment & 0xFFF8:
                packet.fragment = LATER_FRAGMENT
            elif fragment & 1:
                packet.fragment = FIRST_FRAGMENT
        if offset + size > end:
            return MALFORMED_PACKET
        packet.protocol = np.int64(buffer[offset])
        offset += size
    return MALFORMED_PACKET


@kernel
def _is_extension(protocol: Word) -> bool:
    if protocol == HOP_BY_HOP or protocol == ROUTING or protocol == FRAGMENT_HEADER:
        return True
    return protocol == AUTHENTICATION or protocol == DESTINATION_OPTIONS


@kernel
def _parse_transport(buffer: Octets, packet: Row) -> Word:
    """Ports and what else the rules ask for; the whole transport header must be there, in a first fragment too (RFC 1858)."""
    protocol, offset = packet.protocol, packet.transport
    remaining = packet.start + packet.length - offset
    if protocol == TCP:
        if remaining < 20:
            return MALFORMED_PACKET
        header = (np.int64(buffer[offset + 12]) >> 4) * 4
        if header < 20 or header > remaining:
            return MALFORMED_PACKET
        packet.tcp_flags = np.int64(buffer[offset + 13])
    elif protocol == UDP:
        header = np.int64(8)
        if remaining < 8:
            return MALFORMED_PACKET
        length = be16(buffer, offset + 4)
        if length < 8 or (length > remaining and packet.fragment == WHOLE):
            return MALFORMED_PACKET
    elif (protocol == ICMP and packet.version == 4) or (protocol == ICMPV6 and packet.version == 6):
        return _parse_icmp(buffer, packet, remaining)
    else:
        return PASS
    packet.source_port = be16(buffer, offset)
    packet.destination_port = be16(buffer, offset + 2)
    packet.payload = offset + header
    return PASS


@kernel
def _parse_icmp(buffer: Octets, packet: Row, remaining: Word) -> Word:
    if remaining < 8:
        return MALFORMED_PACKET
    offset = packet.transport
    kind = np.int64(buffer[offset])
    packet.icmp_type = kind
    packet.icmp_error = 1 if is_icmp_error(packet.version, kind) else 0
    packet.payload = offset + 8
    if is_echo(packet.version, kind):
        packet.source_port = be16(buffer, offset + 4)
        packet.destination_port = packet.source_port
    return PASS


@kernel
def is_icmp_error(version: Word, kind: Word) -> bool:
    """The message quotes a packet: unreachable, quench, redirect, time exceeded, parameter problem; in IPv6 every type below 128."""
    if version == 6:
        return kind < 128
    return kind == 3 or kind == 4 or kind == 5 or kind == 11 or kind == 12


@kernel
def is_echo(version: Word, kind: Word) -> bool:
    """An echo request or reply: the only queries with an identifier that are translated."""
    if version == 6:
        return kind == ECHO_REQUEST6 or kind == ECHO_REPLY6
    return kind == ECHO_REQUEST or kind == ECHO_REPLY
