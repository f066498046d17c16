"""From the clients' datagrams to the TUN: receive a batch, open, check, translate, coalesce (whitepaper 5.4.6, 6; design 1).

The order of checks is W16: index known, age, counter limit, AEAD, replay, endpoint, source owner. Nothing changes state
before the AEAD has proved who sent it. Every segment of a GRO batch looks up its own receiver index.
"""

from typing import Final

import numpy as np

from egressvpn.dataplane.aead import HEADER, TAG_BYTES, open_message
from egressvpn.dataplane.bundle import Bundle
from egressvpn.dataplane.channel import Event
from egressvpn.dataplane.coalesce import emit, flush_all
from egressvpn.dataplane.door import knock
from egressvpn.dataplane.egress import maybe_ours
from egressvpn.dataplane.forward import forward, put_off
from egressvpn.dataplane.identification import identify
from egressvpn.dataplane.local import (
    CONTROL_STRIDE,
    CONTROLS,
    DATAGRAM_BYTES,
    LOCAL_STRIDE,
    LOCALS,
    MESSAGE_WORDS,
    MESSAGES,
    NAME_STRIDE,
    NAMES,
    RING,
    RING_STRIDE,
    UDP_FDS,
    WAITING,
)
from egressvpn.dataplane.syscalls import MSG_DONTWAIT, copy, recvmmsg
from egressvpn.dataplane.tables import BATCH_BUCKETS, GATEWAY, Counter
from egressvpn.dataplane.transmit import NONE, flush_run, flush_staged, report, report_freed, report_wanted
from egressvpn.kernel import Octets, Row, Word, inlined, kernel, spliced
from egressvpn.nat.translate import outbound
from egressvpn.packet.ecn import decapsulate
from egressvpn.packet.fragments import DONT_FRAGMENT
from egressvpn.packet.headers import parse
from egressvpn.packet.octets import be16, le32, le64
from egressvpn.packet.rewrite import clamp_mss, decrement_ttl
from egressvpn.prefixes import lookup4, lookup6
from egressvpn.verdict import Verdict
from egressvpn.wireguard.keypairs import promote_next, slot_of
from egressvpn.wireguard.replay import accept, counter_usable
from egressvpn.wireguard.tables import ENABLED
from egressvpn.wireguard.timers import (
    on_authenticated_received,
    on_data_received,
    on_handshake_complete,
    rekey_wanted_on_receive,
    session_usable_to_receive,
)

PASS: Final = int(Verdict.PASS)
MALFORMED_MESSAGE: Final = int(Verdict.MALFORMED_MESSAGE)
UNKNOWN_INDEX: Final = int(Verdict.UNKNOWN_INDEX)
EXPIRED_SESSION: Final = int(Verdict.EXPIRED_SESSION)
AUTHENTICATION_FAILED: Final = int(Verdict.AUTHENTICATION_FAILED)
COUNTER_EXHAUSTED: Final = int(Verdict.COUNTER_EXHAUSTED)
REPLAYED: Final = int(Verdict.REPLAYED)
TRUNCATED_DATAGRAM: Final = int(Verdict.TRUNCATED_DATAGRAM)
SOURCE_MISMATCH: Final = int(Verdict.SOURCE_MISMATCH)
DEVICE_DISABLED: Final = int(Verdict.DEVICE_DISABLED)
NOT_CONFIGURED: Final = int(Verdict.NOT_CONFIGURED)
TTL_EXCEEDED: Final = int(Verdict.TTL_EXCEEDED)
PUT_OFF: Final = -1  # to be judged when the datagram is done with

DATA: Final = 4
HANDSHAKE_SIZES: Final = (0, 148, 92, 64)  # by message type
MSG_TRUNC: Final = 0x20
SOL_UDP, UDP_GRO = 17, 104
IPPROTO_IP, IP_TOS, IP_PKTINFO = 0, 1, 8
IPPROTO_IPV6, IPV6_PKTINFO, IPV6_TCLASS = 41, 50, 67
LARGE: Final = 8192  # a datagram from here on is a GRO batch: receive few at a time, to stay in cache

RX_DATAGRAMS: Final = int(Counter.RX_DATAGRAMS)
RX_PACKETS: Final = int(Counter.RX_PACKETS)
RX_BYTES: Final = int(Counter.RX_BYTES)
RX_KEEPALIVES: Final = int(Counter.RX_KEEPALIVES)
BATCHES: Final = int(Counter.BATCHES)
DROPS: Final = int(Counter.DROPS)
CONFIRMED: Final = np.int64(Event.CONFIRMED)


@spliced
def receive(b: Bundle, socket: Word, limit: Word, now: Word) -> Word:
    """Take up to `limit` datagrams from UDP socket number `socket` through to the TUN. Returns how many there were."""
    words = b.local.words
    for slot in range(limit):
        message = MESSAGES + slot * MESSAGE_WORDS
        words[message + 1] = NAME_STRIDE
        words[message + 5] = CONTROL_STRIDE
        words[message + 6] = 0
    address = words.ctypes.data + 8 * MESSAGES
    count = np.int64(recvmmsg(b.local.fds[UDP_FDS + socket], address, limit, MSG_DONTWAIT, 0))
    if count <= 0:
        return 0
    counters = b.work.counters
    counters[RX_DATAGRAMS] += count
    bucket = 0
    while bucket < BATCH_BUCKETS - 1 and count >> (bucket + 1) > 0:
        bucket += 1
    counters[BATCHES + bucket] += 1
    for slot in range(count):
        _datagram(b, socket, slot, now)
        for position in range(words[WAITING]):
            forward(b, np.int64(position), now)
        words[WAITING] = 0
    flush_all(b.local, counters)
    if b.local.run[0].count > 0:
        flush_run(b)  # hairpinned packets
    return count


@kernel
def last_size(words: Octets) -> Word:
    """Octets of the first datagram of the last batch."""
    return words[MESSAGES + 7] & 0xFFFFFFFF


@spliced
def _datagram(b: Bundle, socket: Word, slot: Word, now: Word) -> None:
    """One received datagram: a message, or a GRO batch of messages of one size (the last may be shorter)."""
    words = b.local.words
    message = MESSAGES + slot * MESSAGE_WORDS
    length = words[message + 7] & 0xFFFFFFFF
    start = RING + slot * RING_STRIDE
    if words[message + 6] & MSG_TRUNC or length > DATAGRAM_BYTES:
        b.work.counters[DROPS + TRUNCATED_DATAGRAM] += 1
        return
    segment = _read_control(b.local.octets, slot, words[message + 5])
    if segment <= 0:
        segment = length
    if length == 0:
        b.work.counters[DROPS + MALFORMED_MESSAGE] += 1
    heard = np.int64(0)  # the device whose endpoint this datagram already moved
    offset = np.int64(0)
    while offset < length:
        size = min(segment, length - offset)
        device = _message(b, socket, slot, start + offset, size, heard, now)
        if device > 0:
            heard = device
        offset += size


@kernel
def _read_control(octets: Octets, slot: Word, available: Word) -> Word:
    """Read the control messages: returns the GRO segment size or 0, and leaves in LOCALS the PKTINFO to answer with.

    Its length comes first, then one octet with the ECN field; the message itself is at LOCALS + 8.
    """
    start = CONTROLS + slot * CONTROL_STRIDE
    local = LOCALS + slot * LOCAL_STRIDE
    octets[local : local + LOCAL_STRIDE] = 0
    end = start + min(available, CONTROL_STRIDE)
    segment = np.int64(0)
    at = np.int64(start)
    while at + 16 <= end:
        size = le64(octets, at)
        if size < 16 or at + size > end:
            break
        level, kind = le32(octets, at + 8), le32(octets, at + 12)
        if level == SOL_UDP and kind == UDP_GRO and size >= 20:
            segment = le32(octets, at + 16)
        elif level == IPPROTO_IP and kind == IP_PKTINFO and size >= 28:
            octets[local] = 32
            copy(octets, local + 8, octets, at, 16)
            copy(octets, local + 28, octets, at + 20, 4)  # ipi_spec_dst; interface 0: let routing decide
            copy(octets, local + 36, octets, at + 16, 4)  # in the padding, for control: the interface
        elif level == IPPROTO_IPV6 and kind == IPV6_PKTINFO and size >= 36:
            octets[local] = 40
            copy(octets, local + 8, octets, at, 32)
            if octets[at + 16] == 0xFE and octets[at + 17] & 0xC0 == 0x80:
                copy(octets, local + 40, octets, at + 32, 4)  # link-local needs its interface
        elif size >= 17 and ((level == IPPROTO_IP and kind == IP_TOS) or (level == IPPROTO_IPV6 and kind == IPV6_TCLASS)):
            octets[local + 1] = octets[at + 16] & 3
        at += (size + 7) & ~7
    return segment


@spliced
def _message(b: Bundle, socket: Word, slot: Word, offset: Word, size: Word, heard: Word, now: Word) -> Word:
    """One message. Returns the device it authenticated, or 0; whatever is not let through is counted here."""
    octets, counters = b.local.octets, b.work.counters
    kind = le32(octets, offset) if size >= 4 else np.int64(0)
    if kind != DATA:
        if 1 <= kind <= 3 and size == HANDSHAKE_SIZES[kind]:
            knock(b, socket, slot, offset, size, now)
        else:
            counters[DROPS + MALFORMED_MESSAGE] += 1
        return 0
    if size < HEADER + TAG_BYTES:
        counters[DROPS + MALFORMED_MESSAGE] += 1
        return 0
    session_slot = _open(b, offset, size, now)
    if session_slot < 0:
        counters[DROPS - session_slot] += 1
        return 0
    number = b.wg.sessions[session_slot].owner
    device = b.wg.devices[number]
    device.received_bytes += size
    if number != heard:
        _move_endpoint(b, socket, slot, device)
    on_authenticated_received(device, now)
    if device.next == session_slot:
        _promote(b, number, session_slot, now)
    if device.current != 0 and rekey_wanted_on_receive(b.wg.sessions[device.current], now):
        report_wanted(b, number, now)
    text = size - HEADER - TAG_BYTES
    if text == 0:
        counters[RX_KEEPALIVES] += 1
        return number
    on_data_received(device, now)
    verdict = _inner(b, number, offset + HEADER, text, np.int64(octets[LOCALS + slot * LOCAL_STRIDE + 1]), now)
    if verdict != PASS:
        counters[DROPS + verdict] += 1
    return number


@spliced
def _open(b: Bundle, offset: Word, size: Word, now: Word) -> Word:
    """The session slot that authenticated the data message, or minus the verdict."""
    octets = b.local.octets
    index = le32(octets, offset + 4)
    slot = slot_of(index, np.int64(b.wg.sessions.size))
    session = b.wg.sessions[slot]
    if index == 0 or session.index != index:
        return -UNKNOWN_INDEX
    if not session_usable_to_receive(session, now):
        return -EXPIRED_SESSION
    counter = le64(octets, offset + 8)
    if counter_usable(counter) == 0:
        return -COUNTER_EXHAUSTED
    if open_message(b.local.contexts, b.local.words, b.wg.sessions, slot, octets, offset, size, counter) != 1:
        return -AUTHENTICATION_FAILED
    if accept(session, counter) != 1:
        return -REPLAYED
    return slot


@kernel
def _move_endpoint(b: Bundle, socket: Word, slot: Word, device: Row) -> None:
    """The device was heard from this path: answer there (roaming, W19)."""
    octets = b.local.octets
    name, local = NAMES + slot * NAME_STRIDE, LOCALS + slot * LOCAL_STRIDE
    length = b.local.words[MESSAGES + slot * MESSAGE_WORDS + 1] & 0xFFFFFFFF
    if octets[name + 2] == 0 and octets[name + 3] == 0:
        return  # port 0: nothing can be sent there
    same = device.remote_length == length and device.socket == socket
    if same:
        for at in range(0, length, 4):
            if le32(device.remote, at) != le32(octets, name + at):
                same = False
                break
    if not same:
        device.remote_length = 0  # in between there is no endpoint, rather than half of each
        copy(device.remote, 0, octets, name, 32)
        device.remote_length = length
        device.socket = socket
        device.plain_sends = 0
    copy(device.local, 0, octets, local + 8, 40)
    device.local_length = np.int64(octets[local])


@kernel
def _promote(b: Bundle, number: Word, session_slot: Word, now: Word) -> None:
    """First authenticated message on the responder's new session: it becomes the current one, staged packets go out."""
    report_freed(b, number, promote_next(b.wg, number, b.local.freed))
    device = b.wg.devices[number]
    on_handshake_complete(device, now)
    device.last_handshake_wall = device.next_wall
    report(b, CONFIRMED, number, NONE, NONE)
    flush_staged(b, number, now)


@spliced
def _inner(b: Bundle, number: Word, start: Word, available: Word, ecn: Word, now: Word) -> Word:
    """The decrypted packet: check, translate, send on. Returns the verdict."""
    octets, packet, worker = b.local.octets, b.local.packet[0], b.work.worker[0]
    if worker.open == 0:
        return NOT_CONFIGURED
    verdict = parse(octets, start, available, packet)
    if verdict != PASS:
        return verdict
    device = b.wg.devices[number]
    if device.state != ENABLED:
        return DEVICE_DISABLED
    if _owner(b, device, number, packet) != number:
        return SOURCE_MISMATCH
    packet.owner = number
    if ecn != 0:
        decapsulate(octets, packet, ecn)
    b.work.counters[RX_PACKETS] += 1
    b.work.counters[RX_BYTES] += packet.length
    if worker.mode == GATEWAY:
        verdict = _translate(b, number, packet, now)
        if verdict != PASS:
            return PASS if verdict == PUT_OFF else verdict
    clamp_mss(octets, packet, worker.mtu - 40, worker.mtu - 60)
    emit(b.local, b.work.counters, packet, worker.uso)
    return PASS


@inlined
def _owner(b: Bundle, device: Row, number: Word, packet: Row) -> Word:
    """Whose source address it is. A device's own first address is a host route, so nothing is more specific."""
    if packet.version == 4:
        if packet.source_lo == device.internal4:
            return number
        return lookup4(b.prefixes, packet.source_lo)
    if packet.source_lo == device.internal6_lo and packet.source_hi == device.internal6_hi and packet.source_hi != 0:
        return number
    return lookup6(b.prefixes, packet.source_hi, packet.source_lo)


@spliced
def _translate(b: Bundle, number: Word, packet: Row, now: Word) -> Word:
    """The common case, a whole packet of a known flow to the outside; all else is put off for `forward`."""
    octets, worker = b.local.octets, b.work.worker[0]
    verdict = np.int64(TTL_EXCEEDED)
    if packet.ttl > 1:
        verdict = np.int64(outbound(b.nat, number, packet, octets, now))
    if verdict != PASS or maybe_ours(worker, packet.version, packet.destination_hi, packet.destination_lo):
        put_off(b.local.words, number, packet, verdict)
        return PUT_OFF
    decrement_ttl(octets, packet)
    if packet.version == 4 and be16(octets, packet.start + 6) & DONT_FRAGMENT == 0:
        identify(b.work.identifications, b.nat.settings[0], octets, packet)
    return PASS
