"""How many handshakes a source may begin while we are under load: 20 in a second, 5 at once (kernel: ratelimiter.c).

A bucket holds time: 250 ms at most, and each handshake takes 50. The source is an IPv4 address or an IPv6 /64, and is
known to own its address, because it came back with a cookie. Buckets are rows in hashed chains; the hash is keyed,
for sources choose their addresses. Sources that were silent for a second are forgotten. A full table refuses new sources.

A network (IPv4 /16, IPv6 /32) has a share of one a second that needs no cookie. Networks whose hashes meet have one together.
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Octets, Row, Word, kernel
from egressvpn.packet.octets import be16, be32, put_le64
from egressvpn.wireguard.blake2s import Scratch, finish, resume
from egressvpn.wireguard.constants import MILLISECOND, SECOND
from egressvpn.wireguard.tables import WireGuardTables

HANDSHAKES_PER_SECOND: Final = 20  # kernel: PACKETS_PER_SECOND
BURST: Final = 5  # kernel: PACKETS_BURSTABLE
COST: Final = SECOND // HANDSHAKES_PER_SECOND
TOKENS_MAX: Final = COST * BURST
IDLE: Final = 1000 * MILLISECOND  # a bucket is full again long before
SHARE_INTERVAL: Final = SECOND
SHARE_BURST: Final = 2
AF_INET: Final = 2
COLLECTIONS_PER_SECOND: Final = 10  # calls of `collect` in which every row is looked at once


@kernel
def allow(wg: WireGuardTables, s: Scratch, version: Word, source: Word, now: Word) -> Word:
    """1 when the source may go on with a handshake, which is counted then; else 0."""
    chain = _chain(wg, s, version, source)
    slot = wg.limiter_heads[chain].first
    while slot != 0:
        row = wg.limiter[slot]
        if row.source == source and row.version == version:
            return _spend(row, now)
        slot = row.after
    slot = _take(wg)
    if slot == 0:
        return 0
    row = wg.limiter[slot]
    row.version = version
    row.source = source
    row.tokens = TOKENS_MAX - COST
    row.seen = now
    row.chain = chain
    row.after = wg.limiter_heads[chain].first
    wg.limiter_heads[chain].first = slot
    return 1


@kernel
def share(wg: WireGuardTables, s: Scratch, remote: Octets, at: Word, now: Word) -> Word:
    """1 when the network of the socket address at remote[at:] may have a handshake without a cookie, which is counted then; else 0."""
    if np.int64(remote[at]) == AF_INET:
        bucket = wg.shares[_hash(wg, s, np.int64(4), be16(remote, at + 4)) & (wg.shares.size - 1)]
    else:
        bucket = wg.shares[_hash(wg, s, np.int64(6), be32(remote, at + 8)) & (wg.shares.size - 1)]
    if bucket.spent_until > now + (SHARE_BURST - 1) * SHARE_INTERVAL:
        return 0
    bucket.spent_until = max(bucket.spent_until, now) + SHARE_INTERVAL
    return 1


@kernel
def collect(wg: WireGuardTables, now: Word) -> None:
    """Forget idle sources. Each call looks at a tenth of the rows that were ever used."""
    state = wg.limiter_state[0]
    for _ in range((state.high + COLLECTIONS_PER_SECOND - 1) // COLLECTIONS_PER_SECOND):
        state.hand = state.hand + 1 if state.hand < state.high else 1
        row = wg.limiter[state.hand]
        if row.version != 0 and now - row.seen > IDLE:
            _unlink(wg, state.hand)
            row.version = 0
            row.after = state.free
            state.free = state.hand
            state.used -= 1


@kernel
def reset(wg: WireGuardTables) -> None:
    """Forget every source: the worker before this one may have died between two stores. Rows count only up to `high`."""
    state = wg.limiter_state[0]
    state.high = 0
    state.free = 0
    state.used = 0
    state.hand = 0
    for chain in range(wg.limiter_heads.size):
        wg.limiter_heads[chain].first = 0


@kernel
def _spend(row: Row, now: Word) -> Word:
    row.tokens = min(TOKENS_MAX, row.tokens + now - row.seen)
    row.seen = now
    if row.tokens < COST:
        return 0
    row.tokens -= COST
    return 1


@kernel
def _chain(wg: WireGuardTables, s: Scratch, version: Word, source: Word) -> Word:
    """Index in `limiter_heads` for a source."""
    return _hash(wg, s, version, source) & (wg.limiter_heads.size - 1)


@kernel
def _hash(wg: WireGuardTables, s: Scratch, version: Word, source: Word) -> Word:
    """32 bits that nobody outside can tell."""
    put_le64(s.message, 0, source)
    s.message[8] = version
    resume(s, wg.limiter_state[0].state)
    finish(s, s.message, 0, 9)
    return s.state[0]


@kernel
def _take(wg: WireGuardTables) -> Word:
    """A row for a new source, 0 when there is none."""
    state = wg.limiter_state[0]
    slot = state.free
    if slot != 0:
        state.free = wg.limiter[slot].after
    elif state.high < wg.limiter.size - 1:
        state.high += 1
        slot = state.high
    else:
        return np.int64(0)
    state.used += 1
    return slot


@kernel
def _unlink(wg: WireGuardTables, slot: Word) -> None:
    head = wg.limiter_heads[wg.limiter[slot].chain]
    if head.first == slot:
        head.first = wg.limiter[slot].after
        return
    before = head.first
    while wg.limiter[before].after != slot:
        before = wg.limiter[before].after
    wg.limiter[before].after = wg.limiter[slot].after
