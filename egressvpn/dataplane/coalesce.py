"""From tunnel to TUN: consecutive packets of one flow leave as one super-packet (TCP: TSO, UDP: USO).

Receivers see the same octets in the same packets: TCP merges only what is next in sequence with equal headers apart
from sequence number, PSH, length and checksum, in segments of one size but the last; UDP only datagrams of one size but
the last; and both only after the checksums were verified, because the kernel will compute it anew. PSH ends a
super-packet, as in the kernel's GRO. Packets of one flow keep their order; different flows may pass each other.

Nothing is copied: a super-packet is a list of pieces of the receive buffers, gathered by one writev. It therefore ends
at the latest with its batch.
"""

from typing import Final

from egressvpn.dataplane.local import MAX_SEGMENTS, SUPER_VECTOR_WORDS, SUPER_VECTORS, SUPERS, TUN_FD, VNET_BYTES, Local
from egressvpn.dataplane.syscalls import write, writev
from egressvpn.dataplane.tables import Counter
from egressvpn.kernel import Octets, Row, Word, kernel
from egressvpn.packet.checksum import fold, sum16, transport_checksum_ok
from egressvpn.packet.headers import header_checksum_ok
from egressvpn.packet.octets import be16, be32, be64, put_be16, put_le16
from egressvpn.verdict import Verdict

TCP: Final = 6
UDP: Final = 17
ACK: Final = 0x10
PSH: Final = 0x08
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5
NEEDS_CSUM: Final = 1
MAX_TOTAL: Final = 65_000  # below 65535 with room for any header

_TUN_WRITES: Final = int(Counter.TUN_WRITES)
_TUN_SUPERS: Final = int(Counter.TUN_SUPERS)
_TUN_WRITE_FAILED: Final = int(Counter.DROPS + Verdict.TUN_WRITE_FAILED)


@kernel
def emit(local: Local, counters: Octets, packet: Row, uso: Word) -> None:
    """Send `packet`, now or as part of a super-packet that `flush_all` sends at the latest."""
    octets = local.octets
    ports = (packet.source_port << 16) | packet.destination_port
    for slot in range(SUPERS):
        held = local.supers[slot]
        if held.active == 1 and held.ports == ports and _same_flow(octets, held, packet):
            if _appendable(octets, held, packet) == 1:
                _append(local, slot, packet)
                return
            _flush(local, counters, slot)
            break
    if _coalescible(octets, packet, uso) == 1:
        _begin(local, counters, packet, ports)
    else:
        write_packet(local, counters, packet.start, packet.length)


@kernel
def flush_all(local: Local, counters: Octets) -> None:
    """Send every open super-packet."""
    for slot in range(SUPERS):
        if local.supers[slot].active == 1:
            _flush(local, counters, slot)


@kernel
def _same_flow(octets: Octets, held: Row, packet: Row) -> bool:
    if held.version != packet.version or held.protocol != packet.protocol:
        return False
    if packet.version == 4:
        return be64(octets, held.start + 12) == be64(octets, packet.start + 12)
    for offset in range(8, 40, 8):
        if be64(octets, held.start + offset) != be64(octets, packet.start + offset):
            return False
    return True


@kernel
def _coalescible(octets: Octets, packet: Row, uso: Word) -> Word:
    """1 when other packets may join this one."""
    if packet.fragment != 0 or packet.payload >= packet.start + packet.length:
        return 0
    if packet.version == 6 and packet.transport != packet.start + 40:
        return 0  # extension headers: left alone
    if packet.protocol == TCP:
        if packet.tcp_flags != ACK and packet.tcp_flags != ACK | PSH:
            return 0
    elif packet.protocol == UDP:
        if uso == 0 or be16(octets, packet.transport + 6) == 0:
            return 0
        if be16(octets, packet.transport + 4) != packet.start + packet.length - packet.transport:
            return 0
    else:
        return 0
    return 1 if header_checksum_ok(octets, packet) and transport_checksum_ok(octets, packet) else 0


@kernel
def _appendable(octets: Octets, held: Row, packet: Row) -> Word:
    """1 when `packet`, of the same flow, continues the super-packet."""
    size = packet.start + packet.length - packet.payload
    headers = packet.payload - packet.start
    if held.closed == 1 or size <= 0 or size > held.segment or headers != held.headers:
        return 0
    if packet.transport - packet.start != held.transport or held.total + size > MAX_TOTAL or packet.fragment != 0:
        return 0
    if packet.protocol == TCP:
        if packet.tcp_flags != ACK and packet.tcp_flags != ACK | PSH:
            return 0
        if be32(octets, packet.transport + 4) != held.next_sequence:
            return 0
    elif be16(octets, packet.transport + 6) == 0 or be16(octets, packet.transport + 4) != size + 8:
        return 0
    if not _headers_alike(octets, held, packet):
        return 0
    return 1 if header_checksum_ok(octets, packet) and transport_checksum_ok(octets, packet) else 0


@kernel
def _headers_alike(octets: Octets, held: Row, packet: Row) -> bool:
    """Equal headers apart from what segmentation makes anew. Addresses and ports were compared before."""
    mine, other = held.start, packet.start
    if packet.version == 4:
        if octets[mine] != octets[other] or octets[mine + 1] != octets[other + 1] or octets[mine + 8] != octets[other + 8]:
            return False
        if be16(octets, mine + 6) != be16(octets, other + 6):
            return False
        if be16(octets, mine + 6) & 0x4000 == 0 and be16(octets, other + 4) != (be16(octets, mine + 4) + held.segments) & 0xFFFF:
            return False  # may be fragmented later: identifications must come out as they came in
        for offset in range(20, held.transport, 4):
            if be32(octets, mine + offset) != be32(octets, other + offset):
                return False
    elif be32(octets, mine) != be32(octets, other) or octets[mine + 7] != octets[other + 7]:
        return False
    return packet.protocol != TCP or _tcp_alike(octets, held, packet)


@kernel
def _tcp_alike(octets: Octets, held: Row, packet: Row) -> bool:
    """Acknowledgment, header length, window, urgent pointer and options."""
    mine, other = held.start + held.transport, packet.transport
    if be32(octets, mine + 8) != be32(octets, other + 8) or octets[mine + 12] != octets[other + 12]:
        return False
    if be16(octets, mine + 14) != be16(octets, other + 14) or be16(octets, mine + 18) != be16(octets, other + 18):
        return False
    for offset in range(20, held.headers - held.transport, 4):
        if be32(octets, mine + offset) != be32(octets, other + offset):
            return False
    return True


@kernel
def _begin(local: Local, counters: Octets, packet: Row, ports: Word) -> None:
    """Open a super-packet with `packet`; the slot its ports choose is flushed when another flow holds every one."""
    slot = -1
    for candidate in range(SUPERS):
        if local.supers[candidate].active == 0:
            slot = candidate
            break
    if slot < 0:
        slot = (ports ^ (ports >> 16)) & (SUPERS - 1)
        _flush(local, counters, slot)
    held = local.supers[slot]
    held.active = 1
    held.version = packet.version
    held.protocol = packet.protocol
    held.start = packet.start
    held.headers = packet.payload - packet.start
    held.transport = packet.transport - packet.start
    held.ports = ports
    held.segment = packet.start + packet.length - packet.payload
    held.total = packet.length
    held.segments = 1
    held.closed = 0
    held.next_sequence = 0
    if packet.protocol == TCP:
        held.next_sequence = (be32(local.octets, packet.transport + 4) + held.segment) & 0xFFFFFFFF
        held.closed = 1 if packet.tcp_flags & PSH else 0
    vector = SUPER_VECTORS + slot * SUPER_VECTOR_WORDS
    local.words[vector] = local.octets.ctypes.data + packet.start - VNET_BYTES
    local.words[vector + 1] = packet.length + VNET_BYTES


@kernel
def _append(local: Local, slot: Word, packet: Row) -> None:
    held = local.supers[slot]
    size = packet.start + packet.length - packet.payload
    vector = SUPER_VECTORS + slot * SUPER_VECTOR_WORDS + 2 * held.segments
    local.words[vector] = local.octets.ctypes.data + packet.payload
    local.words[vector + 1] = size
    held.segments += 1
    held.total += size
    if size < held.segment or held.segments == MAX_SEGMENTS:
        held.closed = 1
    if packet.protocol == TCP:
        held.next_sequence = (held.next_sequence + size) & 0xFFFFFFFF
        if packet.tcp_flags & PSH:
            local.octets[held.start + held.transport + 13] |= PSH
            held.closed = 1


@kernel
def _flush(local: Local, counters: Octets, slot: Word) -> None:
    held = local.supers[slot]
    held.active = 0
    octets = local.octets
    header = held.start - VNET_BYTES
    octets[header : header + VNET_BYTES] = 0
    if held.segments > 1:
        _finish_headers(octets, held)
        counters[_TUN_SUPERS] += 1
    vectors = local.words.ctypes.data + 8 * (SUPER_VECTORS + slot * SUPER_VECTOR_WORDS)
    counters[_TUN_WRITES] += 1
    if writev(local.fds[TUN_FD], vectors, held.segments) < 0:
        counters[_TUN_WRITE_FAILED] += held.segments


@kernel
def _finish_headers(octets: Octets, held: Row) -> None:
    """Make the first packet's headers those of the super-packet, and write its virtio header in front of it."""
    start, transport = held.start, held.start + held.transport
    header = start - VNET_BYTES
    size = held.total - held.transport
    if held.version == 4:
        put_be16(octets, start + 2, held.total)
        put_be16(octets, start + 10, 0)
        put_be16(octets, start + 10, 0xFFFF ^ sum16(octets, start, held.transport))
        addresses = sum16(octets, start + 12, 8)
    else:
        put_be16(octets, start + 4, held.total - 40)
        addresses = sum16(octets, start + 8, 32)
    pseudo = fold(addresses + held.protocol + size)
    octets[header] = NEEDS_CSUM
    put_le16(octets, header + 2, held.headers)
    put_le16(octets, header + 4, held.segment)
    put_le16(octets, header + 6, held.transport)
    if held.protocol == TCP:
        octets[header + 1] = GSO_TCPV4 if held.version == 4 else GSO_TCPV6
        put_le16(octets, header + 8, 16)
        put_be16(octets, transport + 16, pseudo)
    else:
        octets[header + 1] = GSO_UDP_L4
        put_le16(octets, header + 8, 6)
        put_be16(octets, transport + 4, size)
        put_be16(octets, transport + 6, pseudo)


@kernel
def write_packet(local: Local, counters: Octets, start: Word, length: Word) -> None:
    """Send the packet at `start` now, by itself."""
    header = start - VNET_BYTES
    local.octets[header : header + VNET_BYTES] = 0
    counters[_TUN_WRITES] += 1
    if write(local.fds[TUN_FD], local.octets.ctypes.data + header, length + VNET_BYTES) < 0:
        counters[_TUN_WRITE_FAILED] += 1
