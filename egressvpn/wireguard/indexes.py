"""Session indexes: the 32-bit numbers by which a peer addresses one of our sessions or handshakes (whitepaper 5.4.2, W25).

    bit 31      26 25                                    0
        worker    |  random bits | slot of the session table        x
        index = x * MULTIPLIER  mod 2^32

The slot finds the session without a hash table, the worker bits steer a datagram to its owner, the random bits make a
number unlikely to be met again when its slot is reused. The slot itself is drawn at random as well. Multiplying by an odd
number only changes the names: every bit of an index looks random, as an observer must not count our sessions or workers,
and multiplying by the inverse leads back. Slot 0 is never used, so no index is 0.
"""

from array import array
from collections.abc import Callable, Iterable
from typing import Any, Final

WORKER_BITS: Final = 6
INDEX_BITS: Final = 32
WORKER_SHIFT: Final = INDEX_BITS - WORKER_BITS
MAX_SLOTS: Final = 1 << WORKER_SHIFT
INDEX_MASK: Final = (1 << INDEX_BITS) - 1
INVERSE: Final = 0x6A09E667  # 2^32 times the fraction of sqrt 2: odd, and below 2^31, so that times an index it stays below 2^63
MULTIPLIER: Final = pow(INVERSE, -1, 1 << INDEX_BITS)


def slot_of(index: Any, slots: Any) -> Any:
    """The session slot an index names, in a table of `slots` rows (a power of two)."""
    return (index * INVERSE) & (slots - 1)


def worker_of(index: Any) -> Any:
    """The worker whose session an index names."""
    return (index * INVERSE) >> WORKER_SHIFT & (1 << WORKER_BITS) - 1


def index_of(slot: int, salt: int, slots: int, worker: int = 0) -> int:
    """The index of a slot in a table of `slots` rows. Bits of the salt for which there is no room are dropped."""
    inside = (salt * slots | slot) & MAX_SLOTS - 1
    return (worker << WORKER_SHIFT | inside) * MULTIPLIER & INDEX_MASK


class SessionIndexes:
    """The indexes of one worker's sessions: one free slot each, held from `allocate` until `release`."""

    def __init__(self, slots: int, worker: int, random: Callable[[int], bytes]) -> None:
        if slots < 2 or slots & (slots - 1) or slots > MAX_SLOTS:
            raise ValueError(f"{slots} is not a power of two from 2 to {MAX_SLOTS}")
        if not 0 <= worker < 1 << WORKER_BITS:
            raise ValueError(f"worker {worker} does not fit in {WORKER_BITS} bits")
        self._slots = slots
        self._worker = worker
        self._random = random
        self._free = array("I", range(1, slots))
        self._held: set[int] = set()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, index: int) -> bool:
        return index in self._held

    def allocate(self) -> int:
        """A fresh index, or 0 when every slot is taken."""
        if not self._free:
            return 0
        drawn = int.from_bytes(self._random(8), "little")
        position = drawn % len(self._free)
        slot, self._free[position] = self._free[position], self._free[-1]
        self._free.pop()
        index = index_of(slot, drawn >> 32, self._slots, self._worker)
        self._held.add(index)
        return index

    def release(self, index: int) -> None:
        """The index is free again. One that is not held is ignored: a worker may report twice."""
        if index in self._held:
            self._held.remove(index)
            self._free.append(slot_of(index, self._slots))

    def reserve(self, index: int) -> None:
        """Hold an index that a session in the table has already: control started beside a worker that kept its tables."""
        slot = slot_of(index, self._slots)
        if index not in self._held and slot in self._free:
            self._free.remove(slot)
            self._held.add(index)

    def retain(self, indexes: Iterable[int]) -> None:
        """Release every index but these: the tables were read afresh."""
        for index in self._held.difference(indexes):
            self.release(index)
