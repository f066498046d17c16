"""From the TUN, first half: one packet or super-packet, translated back and cut into packets of the size its sender meant.

A virtio header in front says what the kernel left to do: NEEDS_CSUM (the transport checksum field holds only the
pseudo-header's sum) and the segment size of TCP (TSO) and UDP (USO) super-packets. What comes out is what the kernel's
own segmentation would have made: sequence numbers, identifications, flags, lengths and checksums anew.
"""

from typing import Final

import numpy as np

from egressvpn.dataplane.aead import HEADER
from egressvpn.dataplane.bundle import Bundle
from egressvpn.dataplane.coalesce import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, emit
from egressvpn.dataplane.local import ICMP, OUT, TUN_BYTES, TUN_FD, TUN_IN, VNET_BYTES
from egressvpn.dataplane.syscalls import copy, read
from egressvpn.dataplane.tables import GATEWAY, Counter
from egressvpn.dataplane.transmit import NO_ENDPOINT, PASS, flush_run, reserve, seal, sealing_session, stage, transmit
from egressvpn.kernel import Octets, Row, Word, kernel
from egressvpn.nat.tables import ENDPOINT_INDEPENDENT
from egressvpn.nat.translate import inbound
from egressvpn.packet.checksum import fill_transport_checksum, fold, sum16
from egressvpn.packet.ecn import encapsulate
from egressvpn.packet.headers import parse
from egressvpn.packet.icmp import build_error
from egressvpn.packet.octets import be16, be32, le16, put_be16, put_be32
from egressvpn.packet.rewrite import clamp_mss, rewrite_destination
from egressvpn.policy.deny import denied_source
from egressvpn.prefixes import lookup4, lookup6
from egressvpn.verdict import Verdict
from egressvpn.wireguard.tables import ENABLED

MALFORMED_PACKET: Final = int(Verdict.MALFORMED_PACKET)
POLICY_DENIED: Final = int(Verdict.POLICY_DENIED)
NO_ROUTE: Final = int(Verdict.NO_ROUTE)
ICMP_ERRORS: Final = int(Counter.ICMP_ERRORS)
ICMP_SUPPRESSED: Final = int(Counter.ICMP_SUPPRESSED)
NOT_CONFIGURED: Final = int(Verdict.NOT_CONFIGURED)
PACKET_TOO_BIG: Final = int(Verdict.PACKET_TOO_BIG)
DROPS: Final = int(Counter.DROPS)
TUN_READS: Final = int(Counter.TUN_READS)
TCP: Final = 6
UDP: Final = 17
FIN, PSH, CWR = 0x01, 0x08, 0x80


@kernel
def read_tun(b: Bundle, now: Word) -> Word:
    """Take one packet from the TUN to its device. Returns 1, or 0 when there was none."""
    octets = b.local.octets
    size = np.int64(read(b.local.fds[TUN_FD], octets.ctypes.data + TUN_IN, TUN_BYTES))
    if size <= 0:
        return 0
    b.work.counters[TUN_READS] += 1
    verdict = handle_tun(b, size, now)
    if verdict != PASS:
        b.work.counters[DROPS + verdict] += 1
    if verdict == NO_ROUTE or verdict == NO_ENDPOINT:
        _answer_unreachable(b, b.local.packet[0])
    return 1


@kernel
def handle_tun(b: Bundle, size: Word, now: Word) -> Word:
    """The packet of `size` octets, virtio header included, at TUN_IN. Returns the verdict."""
    octets, packet, worker = b.local.octets, b.local.packet[0], b.work.worker[0]
    if worker.open == 0:
        return NOT_CONFIGURED
    if size <= VNET_BYTES:
        return MALFORMED_PACKET
    verdict = parse(octets, TUN_IN + VNET_BYTES, size - VNET_BYTES, packet)
    if verdict != PASS:
        return verdict
    kind = np.int64(octets[TUN_IN + 1]) & 0x7F
    segment = le16(octets, TUN_IN + 4)
    packet.partial = np.int64(octets[TUN_IN]) & NEEDS_CSUM
    if kind != 0:
        if not _segmentable(packet, kind, segment):
            return MALFORMED_PACKET
        packet.segments = (packet.start + packet.length - packet.payload + segment - 1) // segment
    verdict = _translate(b, packet, now) if worker.mode == GATEWAY else _route(b, packet)
    if verdict != PASS:
        return verdict
    clamp_mss(octets, packet, worker.mtu - 40, worker.mtu - 60)
    if kind == 0 or packet.segments <= 1:
        if packet.partial == 1:
            fill_transport_checksum(octets, packet)
        if packet.length > worker.mtu:
            return PACKET_TOO_BIG
        return transmit(b, packet.owner, packet.start, packet.length, now)
    return _segments(b, packet, segment, now)


@kernel
def _segmentable(packet: Row, kind: Word, segment: Word) -> bool:
    """The virtio header fits the packet it stands before."""
    if segment <= 0 or packet.partial == 0 or packet.fragment != 0:
        return False
    if kind == GSO_TCPV4 or kind == GSO_TCPV6:
        return packet.protocol == TCP
    return kind == GSO_UDP_L4 and packet.protocol == UDP


@kernel
def _translate(b: Bundle, packet: Row, now: Word) -> Word:
    """Whose the packet is by its flow. What cannot be sent to its device stands as it came."""
    if b.nat.settings[0].filtering == ENDPOINT_INDEPENDENT and packet.icmp_error == 0 and denied_source(b.denied, packet) != PASS:
        return POLICY_DENIED  # its flow would let the device answer where it may not go
    high, low, port = packet.destination_hi, packet.destination_lo, packet.destination_port
    verdict = inbound(b.nat, packet, b.local.octets, now)
    if verdict != PASS:
        return verdict
    device = b.wg.devices[packet.owner]
    if device.state == ENABLED and device.remote_length == 0:
        rewrite_destination(b.local.octets, packet, high, low, port)
        return NO_ENDPOINT
    return PASS


@kernel
def _route(b: Bundle, packet: Row) -> Word:
    """Crypto routing: whose allowed IPs hold the destination."""
    if packet.version == 4:
        packet.owner = lookup4(b.prefixes, packet.destination_lo)
    else:
        packet.owner = lookup6(b.prefixes, packet.destination_hi, packet.destination_lo)
    return PASS if packet.owner != 0 else NO_ROUTE


@kernel
def _answer_unreachable(b: Bundle, packet: Row) -> None:
    """Tell the sender of what came by the TUN that its destination is not there (W20), within the rate of such errors.

    The error comes from that destination: from an address of this machine the kernel would take it for a forgery.
    """
    worker = b.work.worker[0]
    if worker.icmp_tokens <= 0:
        b.work.counters[ICMP_SUPPRESSED] += 1
        return
    kind, code = (3, 1) if packet.version == 4 else (1, 3)  # host unreachable, address unreachable
    length = build_error(b.local.octets, ICMP, b.local.octets, packet, kind, code, 0, packet.destination_hi, packet.destination_lo)
    if length == 0:
        return
    worker.icmp_tokens -= 1
    b.work.counters[ICMP_ERRORS] += 1
    parse(b.local.octets, ICMP, length, packet)
    emit(b.local, b.work.counters, packet, 0)


@kernel
def _segments(b: Bundle, packet: Row, segment: Word, now: Word) -> Word:
    """Cut a super-packet; each piece gets its own headers and is sealed, or staged, in order."""
    octets = b.local.octets
    headers = packet.payload - packet.start
    if headers + segment > b.work.worker[0].mtu:
        return PACKET_TOO_BIG
    end = packet.start + packet.length
    slot = sealing_session(b, packet.owner, now)
    if slot < 0:
        return -slot
    if slot == 0:
        flush_run(b)  # pieces to be staged are made where sealed messages collect
    ecn = encapsulate(octets, packet.start)
    number = np.int64(0)
    at = packet.payload
    while at < end:
        size = min(segment, end - at)
        target = reserve(b, packet.owner, headers + size, ecn, now) if slot > 0 else OUT
        text = target + HEADER
        copy(octets, text, octets, packet.start, headers)
        copy(octets, text + headers, octets, at, size)
        _finish(octets, packet, text, number, at - packet.payload, size, at + size >= end)
        if slot > 0:
            seal(b, packet.owner, slot, target, headers + size, now)
        else:
            stage(b, packet.owner, text, headers + size, now)
        at += size
        number += 1
    return PASS


@kernel
def _finish(octets: Octets, packet: Row, text: Word, number: Word, done: Word, size: Word, last: bool) -> None:
    """Headers of segment `number`, standing at `text`, with `size` octets of payload after `done` octets before it."""
    network = packet.transport - packet.start
    transport = text + network
    length = packet.payload - packet.transport + size
    if packet.version == 4:
        put_be16(octets, text + 2, network + length)
        put_be16(octets, text + 4, (be16(octets, text + 4) + number) & 0xFFFF)
        put_be16(octets, text + 10, 0)
        put_be16(octets, text + 10, 0xFFFF ^ sum16(octets, text, network))
        addresses = sum16(octets, text + 12, 8)
    else:
        put_be16(octets, text + 4, network - 40 + length)
        addresses = sum16(octets, text + 8, 32)
    field = transport + 16
    if packet.protocol == TCP:
        put_be32(octets, transport + 4, (be32(octets, transport + 4) + done) & 0xFFFFFFFF)
        if not last:
            octets[transport + 13] &= 0xFF ^ (FIN | PSH)
        if number > 0:
            octets[transport + 13] &= 0xFF ^ CWR
    else:
        put_be16(octets, transport + 4, length)
        field = transport + 6
    put_be16(octets, field, 0)
    checksum = 0xFFFF ^ fold(addresses + packet.protocol + length + sum16(octets, transport, length))
    if checksum == 0 and packet.protocol == UDP:
        checksum = 0xFFFF
    put_be16(octets, field, checksum)
