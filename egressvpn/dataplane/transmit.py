"""From the TUN to the clients: read, translate back, segment, seal, send runs of equal messages with one UDP_SEGMENT call.

Sealed messages collect in OUT. Consecutive messages of one size for one device form a run; a shorter one ends it. A run
leaves as one send. When the kernel refuses UDP_SEGMENT (EMSGSIZE below the route's MTU, EIO without checksum offload)
the run's messages go one by one, and so does all that follows for that endpoint or for good: nothing is lost.
"""

from typing import Final

import numpy as np

from egressvpn.dataplane.aead import HEADER, TAG_BYTES, forget, seal_message
from egressvpn.dataplane.bundle import Bundle
from egressvpn.dataplane.channel import EVENT, Event
from egressvpn.dataplane.datagrams import send_to_device
from egressvpn.dataplane.local import CHANNEL_FD, ERRNO, MAX_SEGMENTS, MAX_SEND, OUT
from egressvpn.dataplane.syscalls import EINVAL, EIO, EMSGSIZE, MSG_DONTWAIT, copy, errno, send
from egressvpn.dataplane.tables import MAX_STAGED, STAGED_SLOTS, Counter
from egressvpn.kernel import Word, kernel
from egressvpn.packet.ecn import encapsulate
from egressvpn.packet.octets import put_le32, put_le64
from egressvpn.verdict import Verdict
from egressvpn.wireguard.keypairs import slot_of
from egressvpn.wireguard.tables import ENABLED
from egressvpn.wireguard.timers import (
    ask_for_session,
    on_authenticated_sent,
    on_data_sent,
    rekey_wanted_on_send,
    session_usable_to_send,
)

PASS: Final = int(Verdict.PASS)
NO_SESSION: Final = int(Verdict.NO_SESSION)
NO_ENDPOINT: Final = int(Verdict.NO_ENDPOINT)
DEVICE_DISABLED: Final = int(Verdict.DEVICE_DISABLED)
PACKET_TOO_BIG: Final = int(Verdict.PACKET_TOO_BIG)
STAGED_OVERFLOW: Final = int(Counter.DROPS + Verdict.STAGED_OVERFLOW)
SEND_FAILED: Final = int(Counter.DROPS + Verdict.SEND_FAILED)
CHANNEL_FULL: Final = int(Counter.DROPS + Verdict.CHANNEL_FULL)

DROPS: Final = int(Counter.DROPS)
TX_PACKETS: Final = int(Counter.TX_PACKETS)
TX_BYTES: Final = int(Counter.TX_BYTES)
TX_KEEPALIVES: Final = int(Counter.TX_KEEPALIVES)
GSO_REFUSED: Final = int(Counter.GSO_REFUSED)
EVENTS: Final = int(Counter.EVENTS)
EVENTS_LOST: Final = int(Counter.EVENTS_LOST)
NONE: Final = np.int64(0)  # what is no literal: numba compiles a kernel anew for each of those
HANDSHAKE: Final = np.int64(Event.HANDSHAKE)
WANTED: Final = np.int64(Event.WANTED)
FREED: Final = np.int64(Event.FREED)
EVENT_SIZE: Final = EVENT.itemsize


@kernel
def report(b: Bundle, kind: Word, device: Word, index: Word, first: Word) -> Word:
    """Send an event to control: 1. A full channel loses it, which is counted: 0."""
    event = b.local.events[0]
    event.kind = kind
    event.owner = device
    event.index = index
    event.first = first
    if np.int64(send(b.local.fds[CHANNEL_FD], b.local.events.ctypes.data, EVENT_SIZE, MSG_DONTWAIT)) == EVENT_SIZE:
        b.work.counters[EVENTS] += 1
        return 1
    if kind == HANDSHAKE:
        b.work.counters[CHANNEL_FULL] += 1
    else:
        b.work.counters[EVENTS_LOST] += 1
    return 0


@kernel
def report_wanted(b: Bundle, number: Word, now: Word) -> None:
    """Ask control for a new session, at most once per REKEY_TIMEOUT."""
    if ask_for_session(b.wg.devices[number], now) == 1 and report(b, WANTED, number, NONE, NONE) == 0:
        b.wg.devices[number].handshake_asked = 0


@kernel
def report_freed(b: Bundle, number: Word, count: Word) -> None:
    """Tell control which session indexes were given up: the first `count` of `freed`. Their cipher contexts go with them."""
    for position in range(count):
        index = b.local.freed[position]
        forget(b.local.contexts, slot_of(index, np.int64(b.wg.sessions.size)))
        report(b, FREED, number, index, NONE)


@kernel
def transmit(b: Bundle, number: Word, start: Word, length: Word, now: Word) -> Word:
    """Seal the inner packet of `length` octets at `start` for a device, or stage it until there is a session. Returns the verdict."""
    slot = sealing_session(b, number, now)
    if slot < 0:
        return -slot
    if slot == 0:
        return stage(b, number, start, length, now)
    octets = b.local.octets
    target = reserve(b, number, length, encapsulate(octets, start), now)
    copy(octets, target + HEADER, octets, start, length)
    seal(b, number, slot, target, length, now)
    return PASS


@kernel
def sealing_session(b: Bundle, number: Word, now: Word) -> Word:
    """The session to seal with; 0 when one must be made first; minus the verdict when the device cannot be sent to."""
    device = b.wg.devices[number]
    if device.state != ENABLED:
        return -DEVICE_DISABLED
    if device.remote_length == 0:
        return -NO_ENDPOINT
    slot = device.current
    if slot == 0 or not session_usable_to_send(b.wg.sessions[slot], now):
        return 0
    if rekey_wanted_on_send(b.wg.sessions[slot], now):
        report_wanted(b, number, now)
    return slot


@kernel
def reserve(b: Bundle, number: Word, length: Word, ecn: Word, now: Word) -> Word:
    """Where the next message of a device goes in OUT: a run is sent first when this message cannot join it."""
    run = b.local.run[0]
    size = _padded(b, length) + HEADER + TAG_BYTES
    joins = run.count > 0 and run.owner == number and run.closed == 0 and run.ecn == ecn and size <= run.segment
    if run.count > 0 and (not joins or run.count >= MAX_SEGMENTS or run.total + size > MAX_SEND):
        flush_run(b)
    if run.count == 0:
        run.owner = number
        run.start = OUT
        run.segment = size
        run.total = 0
        run.closed = 0
        run.ecn = ecn
    return run.start + run.total


@kernel
def seal(b: Bundle, number: Word, slot: Word, target: Word, length: Word, now: Word) -> None:
    """Seal the text already at target + HEADER and add the message to the run. The counter advances first: no nonce is used twice."""
    octets, run = b.local.octets, b.local.run[0]
    session, device = b.wg.sessions[slot], b.wg.devices[number]
    padded = _padded(b, length)
    octets[target + HEADER + length : target + HEADER + padded] = 0
    counter = session.send_counter
    session.send_counter = counter + 1
    put_le32(octets, target, 4)
    put_le32(octets, target + 4, session.remote_index)
    put_le64(octets, target + 8, counter)
    if seal_message(b.local.contexts, b.local.words, b.wg.sessions, slot, octets, target, padded, counter) != 1:
        b.work.counters[SEND_FAILED] += 1
        return
    size = padded + HEADER + TAG_BYTES
    run.total += size
    run.count += 1
    if size < run.segment:
        run.closed = 1
    device.sent_bytes += size
    on_authenticated_sent(device, now)
    if length > 0:
        on_data_sent(device, now)
        b.work.counters[TX_PACKETS] += 1
        b.work.counters[TX_BYTES] += length
    else:
        b.work.counters[TX_KEEPALIVES] += 1


@kernel
def _padded(b: Bundle, length: Word) -> Word:
    """Zero-padded to a multiple of 16, but not beyond the tunnel's MTU (kernel: calculate_skb_padding)."""
    return max(length, min((length + 15) & ~15, b.work.worker[0].mtu))


@kernel
def answer(b: Bundle, number: Word, start: Word, length: Word, now: Word) -> None:
    """Send a packet made here to a device; without a session it is not worth one."""
    slot = sealing_session(b, number, now)
    if slot > 0:
        octets = b.local.octets
        target = reserve(b, number, length, encapsulate(octets, start), now)
        copy(octets, target + HEADER, octets, start, length)
        seal(b, number, slot, target, length, now)
        flush_run(b)


@kernel
def keepalive(b: Bundle, number: Word, now: Word) -> None:
    """Send what is staged for the device or, with nothing staged, an empty message."""
    if b.wg.devices[number].staged > 0:
        flush_staged(b, number, now)
        return
    slot = sealing_session(b, number, now)
    if slot > 0:
        seal(b, number, slot, reserve(b, number, NONE, NONE, now), NONE, now)
        flush_run(b)
    elif slot == 0:
        report_wanted(b, number, now)


@kernel
def stage(b: Bundle, number: Word, start: Word, length: Word, now: Word) -> Word:
    """Keep a packet until its device has a session (design decision 6). Returns PASS: the packet is not lost yet."""
    worker, octets = b.work.worker[0], b.local.octets
    stride = b.work.staged_octets.size // STAGED_SLOTS
    if length > stride:
        return PACKET_TOO_BIG
    if b.wg.devices[number].staged >= MAX_STAGED:
        _drop_oldest(b, number)
    slot = worker.staged_tail % STAGED_SLOTS
    if b.work.staged[slot].owner != 0:
        b.wg.devices[b.work.staged[slot].owner].staged -= 1
        b.work.counters[STAGED_OVERFLOW] += 1
    copy(b.work.staged_octets, slot * stride, octets, start, length)
    b.work.staged[slot].length = length
    b.work.staged[slot].owner = number
    worker.staged_tail += 1
    b.wg.devices[number].staged += 1
    report_wanted(b, number, now)
    return PASS


@kernel
def _drop_oldest(b: Bundle, number: Word) -> None:
    tail = b.work.worker[0].staged_tail
    for sequence in range(max(0, tail - STAGED_SLOTS), tail):
        entry = b.work.staged[sequence % STAGED_SLOTS]
        if entry.owner == number:
            entry.owner = 0
            b.wg.devices[number].staged -= 1
            b.work.counters[STAGED_OVERFLOW] += 1
            return


@kernel
def flush_staged(b: Bundle, number: Word, now: Word) -> None:
    """Seal and send all that waits for a device, oldest first."""
    if b.wg.devices[number].staged == 0:
        return
    slot = sealing_session(b, number, now)
    if slot <= 0:
        return
    octets, staged = b.local.octets, b.work.staged_octets
    stride = staged.size // STAGED_SLOTS
    tail = b.work.worker[0].staged_tail
    for sequence in range(max(0, tail - STAGED_SLOTS), tail):
        entry = b.work.staged[sequence % STAGED_SLOTS]
        if entry.owner == number:
            base = (sequence % STAGED_SLOTS) * stride
            length = entry.length
            target = reserve(b, number, length, encapsulate(staged, base), now)
            copy(octets, target + HEADER, staged, base, length)
            entry.owner = 0
            seal(b, number, slot, target, length, now)
    b.wg.devices[number].staged = 0
    flush_run(b)


@kernel
def drop_staged(b: Bundle, number: Word) -> None:
    """Nobody answers: give the waiting packets up, counted."""
    for slot in range(STAGED_SLOTS):
        if b.work.staged[slot].owner == number:
            b.work.staged[slot].owner = 0
            b.work.counters[DROPS + NO_SESSION] += 1
    b.wg.devices[number].staged = 0


@kernel
def flush_run(b: Bundle) -> None:
    """Send the collected run."""
    run = b.local.run[0]
    count = run.count
    run.count = 0
    if count == 0:
        return
    device = b.wg.devices[run.owner]
    if count > 1 and b.work.worker[0].gso == 1 and device.plain_sends == 0:
        if send_to_device(b, device, run.start, run.total, run.segment, run.ecn) >= 0:
            return
        failure = errno(b.local.octets, ERRNO)
        if failure == EIO:
            b.work.worker[0].gso = 0  # no checksum offload: it will never work here
        elif failure == EMSGSIZE or failure == EINVAL:
            device.plain_sends = 1
        else:
            b.work.counters[SEND_FAILED] += count
            return
        b.work.counters[GSO_REFUSED] += 1
    at = run.start
    end = run.start + run.total
    while at < end:
        size = min(run.segment, end - at)
        if send_to_device(b, device, at, size, NONE, run.ecn) < 0:
            b.work.counters[SEND_FAILED] += 1
        at += size
