"""TAI64N timestamps, the initiator's proof of freshness (whitepaper 5.1, 5.4.2).

Whitened to 2^24 ns, as the kernel does, so that they tell nobody our clock's fine structure. One clock serves all peers of an
interface: it never runs backwards, even when the wall clock does, and no peer is sent the same timestamp twice. (It is not
advanced for every message over all peers: a gateway of many peers would run away from the true time.)

Nor does it run backwards over a restart, after which a peer would refuse every initiation. A *mark* is kept on disk, and no
timestamp above the mark is sent: the clock begins behind it. The mark runs KEPT_AHEAD before the time, so that it is
written now and then and not with every initiation.
"""

from typing import Final

from egressvpn.wireguard.constants import SECOND

TIMESTAMP_BYTES: Final = 12
NO_TIMESTAMP: Final = bytes(TIMESTAMP_BYTES)  # older than any
WHITENING_NS: Final = 1 << 24
TAI64_EPOCH: Final = (1 << 62) + 10  # label of 1970-01-01 00:00:00 UTC
LABELS: Final = 1 << 63  # TAI64 has no more
KEPT_AHEAD: Final = 60  # s


class TimestampClock:
    """Makes timestamps that only grow. They compare as byte strings. `kept` is the mark of the time before, if there was one."""

    def __init__(self, kept: bytes = NO_TIMESTAMP) -> None:
        label, nanoseconds = _unpack(kept)
        if len(kept) != TIMESTAMP_BYTES or label >= LABELS or nanoseconds >= SECOND:
            raise ValueError("not a TAI64N timestamp")
        self._kept = kept
        self._newest = _successor(kept)

    def next(self, wall_ns: int, previous: bytes) -> bytes:
        """The timestamp for a wall time in nanoseconds since 1970, later than the `previous` one sent to the same peer."""
        stamp = max(_pack(*divmod(wall_ns, SECOND)), self._newest)
        if stamp <= previous:
            stamp = _successor(previous)
        self._newest = stamp
        return stamp

    def mark_for(self, stamp: bytes) -> bytes | None:
        """The mark to be kept before `stamp` is sent, None when what is kept covers it."""
        if stamp <= self._kept:
            return None
        label, nanoseconds = _unpack(stamp)
        self._kept = (label + KEPT_AHEAD).to_bytes(8, "big") + nanoseconds.to_bytes(4, "big")
        return self._kept


def _pack(seconds: int, nanoseconds: int) -> bytes:
    whitened = nanoseconds - nanoseconds % WHITENING_NS
    return (TAI64_EPOCH + seconds).to_bytes(8, "big") + whitened.to_bytes(4, "big")


def _unpack(stamp: bytes) -> tuple[int, int]:
    return int.from_bytes(stamp[:8], "big"), int.from_bytes(stamp[8:], "big")


def _successor(stamp: bytes) -> bytes:
    label, nanoseconds = _unpack(stamp)
    nanoseconds += WHITENING_NS - nanoseconds % WHITENING_NS
    if nanoseconds >= SECOND:
        label, nanoseconds = label + 1, 0
    return label.to_bytes(8, "big") + nanoseconds.to_bytes(4, "big")
