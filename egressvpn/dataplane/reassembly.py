"""Datagrams in pieces, until they are whole: so that one datagram is one packet for policy, translation and tracking.

It happens in memory of this process: a worker's death loses what is incomplete. Everything is bounded. There are
INSIDE_DATAGRAMS slots for what devices send, DEVICE_DATAGRAMS of them for each, and OUTSIDE_DATAGRAMS for the outside;
each holds one datagram of at most 64 KiB for at most REASSEMBLY_TIMEOUT. A new datagram for which there is no slot takes
that of the oldest incomplete one, the device's own first: the pieces of an honest datagram come close together, so it is
whole long before those that never will be push it out, and a device that sends first-less fragments harms itself alone.

A datagram whose fragments contradict each other keeps its slot, so that what follows of it is dropped too.
"""

from typing import Final

import numpy as np

from egressvpn.dataplane.bundle import Bundle
from egressvpn.dataplane.local import (
    DATAGRAMS,
    DEVICE_DATAGRAMS,
    OUTSIDE_DATAGRAMS,
    PIECES,
    PIECES_STRIDE,
    Local,
)
from egressvpn.dataplane.tables import Counter
from egressvpn.kernel import Row, Word, kernel
from egressvpn.packet.fragments import DUPLICATE, HEAD, KEPT, OVERLAP, UNIT, UNITS, add, begin, identification, join
from egressvpn.packet.fragments import WHOLE as COMPLETE
from egressvpn.packet.headers import WHOLE, header_checksum_ok, parse
from egressvpn.verdict import Verdict

REASSEMBLY_TIMEOUT: Final = 30_000_000_000  # ns; at least 2 s (RFC 6146 4), at most 60 s (RFC 8200 4.5); kernel: 30 s
COLLECTING: Final = 1
CONTRADICTED: Final = 2

PASS: Final = int(Verdict.PASS)
BAD_CHECKSUM: Final = int(Verdict.BAD_CHECKSUM)
MALFORMED_PACKET: Final = int(Verdict.MALFORMED_PACKET)
FRAGMENT_OVERLAP: Final = int(Verdict.FRAGMENT_OVERLAP)
FRAGMENT_LIMIT: Final = int(Verdict.FRAGMENT_LIMIT)
FRAGMENT_TIMEOUT: Final = int(Verdict.FRAGMENT_TIMEOUT)
DROPS: Final = int(Counter.DROPS)


@kernel
def collect(b: Bundle, owner: Word, packet: Row, now: Word) -> Word:
    """Add a fragment from a device (0: from outside) to its datagram. PASS: it waits for others. A verdict: it is dropped.

    Negative, minus the slot: `packet` is the whole datagram, in that slot until `release`.
    """
    local, octets = b.local, b.local.octets
    if header_checksum_ok(octets, packet) == 0:
        return BAD_CHECKSUM
    slot = _slot(b, owner, packet, now)
    row = local.datagrams[slot]
    if row.state == CONTRADICTED:
        return FRAGMENT_OVERLAP
    outcome = add(octets, packet, row, local.covered, slot * UNITS, _data(slot))
    if outcome == KEPT or outcome == DUPLICATE:
        return PASS
    if outcome == OVERLAP:
        _give_up(b, slot, FRAGMENT_OVERLAP)
        row.state = CONTRADICTED
        return FRAGMENT_OVERLAP
    if outcome != COMPLETE:
        if row.pieces == 0:
            release(local, slot)
        return MALFORMED_PACKET
    length = join(octets, row, _data(slot))
    if length == 0 or parse(octets, _data(slot) - row.header, length, packet) != PASS or packet.fragment != WHOLE:
        release(local, slot)
        return MALFORMED_PACKET
    return -slot


@kernel
def release(local: Local, slot: Word) -> None:
    """The slot's datagram is done with."""
    row = local.datagrams[slot]
    local.covered[slot * UNITS : slot * UNITS + (row.extent + UNIT - 1) // UNIT] = 0
    begin(row)
    row.state = 0


@kernel
def give_up_old(b: Bundle, now: Word) -> None:
    """Drop the datagrams that did not become whole in time."""
    datagrams = b.local.datagrams
    for slot in range(1, datagrams[0].number + 1):
        if datagrams[slot].state != 0 and now >= datagrams[slot].due:
            _give_up(b, slot, FRAGMENT_TIMEOUT)
    while datagrams[0].number > 0 and datagrams[datagrams[0].number].state == 0:
        datagrams[0].number -= 1


@kernel
def _data(slot: Word) -> Word:
    """Where the data of a slot's datagram stand."""
    return PIECES + slot * PIECES_STRIDE + HEAD


@kernel
def _give_up(b: Bundle, slot: Word, verdict: Word) -> None:
    """Count what a slot holds as dropped, and empty it."""
    b.work.counters[DROPS + verdict] += b.local.datagrams[slot].pieces
    release(b.local, slot)


@kernel
def _slot(b: Bundle, owner: Word, packet: Row, now: Word) -> Word:
    """The slot of a fragment's datagram, a new one when it is the first. Slot 0 knows the highest slot in use, and counts."""
    octets, datagrams = b.local.octets, b.local.datagrams
    name = identification(octets, packet)
    protocol = packet.protocol if packet.version == 4 else np.int64(0)
    for slot in range(1, datagrams[0].number + 1):
        row = datagrams[slot]
        if row.state != 0 and row.identification == name and row.owner == owner and row.version == packet.version:
            if row.protocol == protocol and row.source_lo == packet.source_lo and row.destination_lo == packet.destination_lo:
                if row.source_hi == packet.source_hi and row.destination_hi == packet.destination_hi:
                    return np.int64(slot)
    slot = _room(b, owner)
    row = datagrams[slot]
    row.owner = owner
    row.version = packet.version
    row.protocol = protocol
    row.identification = name
    row.source_hi = packet.source_hi
    row.source_lo = packet.source_lo
    row.destination_hi = packet.destination_hi
    row.destination_lo = packet.destination_lo
    datagrams[0].received += 1
    row.number = datagrams[0].received
    row.due = now + REASSEMBLY_TIMEOUT
    begin(row)
    row.state = COLLECTING
    datagrams[0].number = max(datagrams[0].number, slot)
    return slot


@kernel
def _room(b: Bundle, owner: Word) -> Word:
    """An empty slot for a datagram of `owner`, made by giving up its oldest, or the oldest of all devices, when there is none."""
    datagrams = b.local.datagrams
    low, high = (np.int64(1), np.int64(1 + OUTSIDE_DATAGRAMS)) if owner == 0 else (np.int64(1 + OUTSIDE_DATAGRAMS), np.int64(DATAGRAMS))
    empty, own, oldest, oldest_own = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for slot in range(low, high):
        row = datagrams[slot]
        if row.state == 0:
            if empty == 0:
                empty = np.int64(slot)
            continue
        if oldest == 0 or row.number < datagrams[oldest].number:
            oldest = np.int64(slot)
        if row.owner == owner:
            own += 1
            if oldest_own == 0 or row.number < datagrams[oldest_own].number:
                oldest_own = np.int64(slot)
    if owner != 0 and own >= DEVICE_DATAGRAMS:
        empty, oldest = np.int64(0), oldest_own
    if empty == 0:
        _give_up(b, oldest, FRAGMENT_LIMIT)
        return oldest
    return empty
