"""Which addresses outside are our own: pool addresses (IPv4) and the networks that external IPv6 addresses come from.

A packet to one of them is for a device of ours and must not leave (forward.py); a packet from one of them that comes from
outside is forged. Every packet is asked, so `maybe_ours` looks at one bit of the worker's record: a bit for each /24 (IPv6:
/32) that has such addresses. Only when it is set `ours` looks the address up. Bits are never taken back: a false one costs
a look-up.

An address that goes is ended in steps, between packets, and what is to be ended is in the arena: a successor goes on.
"""

from typing import Final

import numpy as np

from egressvpn.dataplane.bundle import Bundle
from egressvpn.dataplane.channel import Event
from egressvpn.dataplane.transmit import NONE, report
from egressvpn.kernel import Row, Word, kernel
from egressvpn.nat.expiry import end_address
from egressvpn.nat.ports import pool_slot
from egressvpn.prefixes import lookup6

POOL_REMOVED: Final = np.int64(Event.POOL_REMOVED)
ENDING_BUDGET: Final = 1000  # flows ended in a step: less than 1 ms
_SPREAD: Final = 0x4F1BBCD9  # 2^31 divided by the golden ratio


@kernel
def maybe_ours(worker: Row, version: Word, hi: Word, lo: Word) -> bool:
    """False for nearly every address that is not ours, true for all that are."""
    if version == 4:
        return (worker.egress4 >> _bit(lo >> 8)) & 1 != 0
    return (worker.egress6 >> _bit((hi >> 32) & 0xFFFFFFFF)) & 1 != 0


@kernel
def ours(b: Bundle, version: Word, hi: Word, lo: Word) -> bool:
    """Whether an address that may be ours is."""
    if version == 4:
        return pool_slot(b.nat, lo) != 0
    return lookup6(b.egress, hi, lo) != 0


@kernel
def note_egress(b: Bundle, version: Word, word: Word) -> None:
    """Set the bit of an IPv4 address, or of an IPv6 network of at least 32 bits with this first word."""
    worker = b.work.worker[0]
    if version == 4:
        worker.egress4 |= np.int64(1) << _bit(word >> 8)
    else:
        worker.egress6 |= np.int64(1) << _bit((word >> 32) & 0xFFFFFFFF)


@kernel
def begin_ending(b: Bundle, slot: Word, now: Word) -> None:
    """Nothing may leave from this pool address any more."""
    if b.work.endings[slot] == 0:
        b.work.endings[slot] = 1
        b.work.worker[0].endings += 1
    end_some(b, now)


@kernel
def end_some(b: Bundle, now: Word) -> Word:
    """One step for each pool address that is being ended. How many are left."""
    worker, endings = b.work.worker[0], b.work.endings
    if worker.endings == 0:
        return 0
    left = np.int64(0)
    for slot in range(1, endings.size):
        if endings[slot] == 0:
            continue
        if end_address(b.nat, slot, ENDING_BUDGET, now) == 1 and report(b, POOL_REMOVED, NONE, NONE, np.int64(slot)) == 1:
            endings[slot] = 0
        else:
            left += 1
    worker.endings = left
    return left


@kernel
def _bit(word: Word) -> Word:
    """One of 64 for a word of 32 bits."""
    return (word * _SPREAD >> 25) & 63
