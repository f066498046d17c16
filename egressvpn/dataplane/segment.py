"""From the TUN, first half: one packet or super-packet, translated back and cut into packets of the size its sender meant.

A virtio header in front says what the kernel left to do: NEEDS_CSUM (the transport checksum field holds only the
pseudo-header's sum) and the segment size of TCP (TSO) and UDP (USO) super-packets. What comes out is what the kernel's
own segmentation would have made: sequence numbers, identifications, flags, lengths and checksums anew.
"""

from typing import Final

import numpy as np

from egressvpn.dataplane.aead import HEADER
from egressvpn.dataplane.answers import note_unreachable, send_error
from egressvpn.dataplane.bundle import Bundle
from egressvpn.dataplane.coalesce import GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM
from egressvpn.dataplane.egress import maybe_ours, ours
from egressvpn.dataplane.forward import deliver
from egressvpn.dataplane.local import ERROR_LENGTH, OUT, TUN_BYTES, TUN_FD, TUN_IN, VNET_BYTES
from egressvpn.dataplane.reassembly import collect, release
from egressvpn.dataplane.syscalls import copy, read
from egressvpn.dataplane.tables import GATEWAY, Counter
from egressvpn.dataplane.transmit import NO_ENDPOINT, PASS, flush_run, reserve, seal, sealing_session, stage, transmit
from egressvpn.kernel import Octets, Row, Word, kernel
from egressvpn.nat.ports import pool_slot
from egressvpn.nat.tables import ENDPOINT_INDEPENDENT
from egressvpn.nat.translate import inbound
from egressvpn.packet.checksum import fill_transport_checksum, fold, sum16
from egressvpn.packet.ecn import encapsulate
from egressvpn.packet.headers import WHOLE, parse
from egressvpn.packet.octets import be16, be32, le16, put_be16, put_be32
from egressvpn.packet.rewrite import clamp_mss, rewrite_destination
from egressvpn.policy.deny import denied_source, exempt
from egressvpn.policy.martians import from_nowhere
from egressvpn.prefixes import lookup4, lookup6
from egressvpn.verdict import Verdict

MALFORMED_PACKET: Final = int(Verdict.MALFORMED_PACKET)
POLICY_DENIED: Final = int(Verdict.POLICY_DENIED)
NO_ROUTE: Final = int(Verdict.NO_ROUTE)
MARTIAN: Final = int(Verdict.MARTIAN)
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
    octets, packet = b.local.octets, b.local.packet[0]
    size = np.int64(read(b.local.fds[TUN_FD], octets.ctypes.data + TUN_IN, TUN_BYTES))
    if size <= 0:
        return 0
    b.work.counters[TUN_READS] += 1
    verdict = handle_tun(b, size, now)
    if verdict != PASS:
        b.work.counters[DROPS + verdict] += 1
        if verdict == NO_ROUTE or verdict == NO_ENDPOINT:
            note_unreachable(b, np.int64(0), packet, now)
        if b.local.words[ERROR_LENGTH] > 0:
            send_error(b, now)
    return 1


@kernel
def handle_tun(b: Bundle, size: Word, now: Word) -> Word:
    """The packet of `size` octets, virtio header included, at TUN_IN. Returns the verdict.

    One whose device nobody knows how to reach stands as it came.
    """
    octets, packet, worker, slot = b.local.octets, b.local.packet[0], b.work.worker[0], np.int64(0)
    if worker.open == 0:
        return NOT_CONFIGURED
    verdict = np.int64(_parse_frame(octets, size, packet))
    if verdict != PASS:
        return verdict
    if packet.fragment != WHOLE and worker.mode == GATEWAY:
        slot = np.int64(-collect(b, np.int64(0), packet, now))
        if slot <= 0:
            return -slot
    high, low, port = packet.destination_hi, packet.destination_lo, packet.destination_port
    verdict = np.int64(_translate(b, packet, now) if worker.mode == GATEWAY else _route(b, packet))
    if verdict == PASS:
        clamp_mss(octets, packet, worker.mtu - 40, worker.mtu - 60)
        if packet.partial == 1 and packet.segments == 1:
            fill_transport_checksum(octets, packet)
        if packet.segments > 1:
            verdict = np.int64(_segments(b, packet, le16(octets, TUN_IN + 4), now))
        elif slot == 0 and packet.length <= worker.mtu:
            verdict = np.int64(transmit(b, packet.owner, packet.start, packet.length, now))
        else:
            verdict = np.int64(deliver(b, np.int64(0), packet, slot, high, low, port, now))
        if verdict == NO_ENDPOINT:
            rewrite_destination(octets, packet, high, low, port)
    if slot > 0:
        release(b.local, slot)
    return verdict


@kernel
def _parse_frame(octets: Octets, size: Word, packet: Row) -> Word:
    """Check the frame at TUN_IN and describe its packet. PASS or MALFORMED_PACKET."""
    if size <= VNET_BYTES:
        return MALFORMED_PACKET
    verdict = parse(octets, TUN_IN + VNET_BYTES, size - VNET_BYTES, packet)
    if verdict != PASS:
        return verdict
    kind = np.int64(octets[TUN_IN + 1]) & 0x7F
    packet.partial = np.int64(octets[TUN_IN]) & NEEDS_CSUM
    if kind != 0:
        segment = le16(octets, TUN_IN + 4)
        if not _segmentable(packet, kind, segment):
            return MALFORMED_PACKET
        packet.segments = max((packet.start + packet.length - packet.payload + segment - 1) // segment, 1)
    return PASS


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
    """Whose the packet is: by its flow, or by its destination when it comes from where nothing is translated."""
    if _forged(b, packet):
        return MARTIAN
    if b.nat.settings[0].filtering == ENDPOINT_INDEPENDENT and packet.icmp_error == 0 and denied_source(b.denied, packet) != PASS:
        return POLICY_DENIED  # its flow would let the device answer where it may not go
    verdict = inbound(b.nat, packet, b.local.octets, now)
    if verdict != PASS and exempt(b.exempt, b.denied, packet.version, packet.source_hi, packet.source_lo) and _route(b, packet) == PASS:
        return PASS
    return verdict


@kernel
def _forged(b: Bundle, packet: Row) -> bool:
    """From outside nothing comes from nobody's address, nor from an endpoint of our own: those packets never leave (forward.py).

    An IPv4 address of ours may be that of other gateways too, by other ports.
    """
    hi, lo = packet.source_hi, packet.source_lo
    if from_nowhere(packet.version, hi, lo):
        return True
    if not maybe_ours(b.work.worker[0], packet.version, hi, lo) or not ours(b, packet.version, hi, lo):
        return False
    if packet.version == 6:
        return True
    address = b.nat.pool[pool_slot(b.nat, lo)]
    return address.port_low <= packet.source_port <= address.port_high


@kernel
def _route(b: Bundle, packet: Row) -> Word:
    """Crypto routing: whose allowed IPs hold the destination."""
    if packet.version == 4:
        packet.owner = lookup4(b.prefixes, packet.destination_lo)
    else:
        packet.owner = lookup6(b.prefixes, packet.destination_hi, packet.destination_lo)
    return PASS if packet.owner != 0 else NO_ROUTE


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
