"""Making and ending mappings: endpoint-independent (RFC 4787 REQ-1), paired by device (REQ-2), never overloaded (REQ-3).

IPv4 gets a port of a block of the device. IPv6 keeps its port under the device's external address. A mapping is its home
record; which records are in use is kept here too: a free list, and above the high-water mark all are free. Nothing is
ever evicted.
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Octets, Table, Word, inlined, kernel
from egressvpn.nat.keys import DEVICE_SHIFT, PORTLESS, V6, bucket, hash_end
from egressvpn.nat.port_lists import place
from egressvpn.nat.ports import free, port_kind, take
from egressvpn.nat.tables import HOME, HOMES_IN, HOMES_OUT, NatTables
from egressvpn.verdict import Verdict

NO_EXTERNAL_ADDRESS: Final = int(Verdict.NO_EXTERNAL_ADDRESS)

END: Final = V6 | 0xFF00000000  # of a key: version and protocol


@inlined
def record_room(nat: NatTables) -> bool:
    settings = nat.settings[0]
    return settings.free != 0 or settings.high + 1 < nat.flows.size


@kernel
def take_record(nat: NatTables) -> Word:
    """A free record, with no role and nothing that refers to it. There is room."""
    settings = nat.settings[0]
    slot = settings.free
    if slot != 0:
        settings.free = np.int64(nat.flows[slot].list_next)
    else:
        slot = settings.high + 1
        settings.high = slot
    settings.records += 1
    record = nat.flows[slot]
    record.role = 0
    record.live = 0
    record.refs = 0
    record.permit = 0
    return slot


@kernel
def free_record(nat: NatTables, slot: Word) -> None:
    settings = nat.settings[0]
    nat.flows[slot].role = 0
    nat.flows[slot].list_next = settings.free
    settings.free = slot
    settings.records -= 1


@kernel
def add_mapping(nat: NatTables, key: Word, hi: Word, lo: Word, now: Word) -> Word:
    """Give an internal endpoint (`inside_word`) an external one. Returns its home, or the negated verdict why not. There is room."""
    device = key >> DEVICE_SHIFT
    pool, port = np.int64(0), (key >> 16) & 0xFFFF
    if key & V6:
        owner = nat.subscribers[device]
        if owner.external6_hi == 0 and owner.external6_lo == 0:
            return -NO_EXTERNAL_ADDRESS
    else:
        taken = take(nat, device, port_kind((key >> 32) & 0xFF), port, now)
        if taken < 0:
            return taken
        pool, port = taken >> 16, taken & 0xFFFF
    slot = take_record(nat)
    home = nat.flows[slot]
    home.key = key | port
    home.internal_lo = lo
    home.mapping = slot
    home.pool = pool
    if key & V6:
        nat.wide[slot].internal_hi = hi
    link_mapping(nat, slot)
    nat.settings[0].mappings_created += 1
    home.role = HOME
    return slot


@kernel
def link_mapping(nat: NatTables, slot: Word) -> None:
    """Let look-ups find a home. Its port is taken."""
    heads, home = nat.heads, nat.flows[slot]
    key = home.key
    out = _chain_out(nat, slot)
    home.next_anchor = np.int64(heads[out])
    heads[out] = slot
    if key & V6:
        into = _chain_in(nat, slot)
        home.next_in = np.int64(heads[into])
        heads[into] = slot
    else:
        nat.ports[place(np.int64(home.pool), port_kind((key >> 32) & 0xFF), key & 0xFFFF)] = slot
    nat.subscribers[key >> DEVICE_SHIFT].mappings += 1
    nat.settings[0].mappings += 1


@kernel
def end_mapping(nat: NatTables, slot: Word, now: Word) -> None:
    """No look-up finds the home from here on, and its port is free. Unconfirmed flows may still refer to it."""
    heads, home = nat.heads, nat.flows[slot]
    key = home.key
    home.role = np.int64(home.role) & ~HOME
    unlink(heads, nat.flows, _chain_out(nat, slot), slot)
    if key & V6:
        _unlink_in(nat, _chain_in(nat, slot), slot)
    else:
        pool, kind, port = np.int64(home.pool), port_kind((key >> 32) & 0xFF), key & 0xFFFF
        nat.ports[place(pool, kind, port)] = 0
        free(nat, pool, kind, port, now)
    nat.subscribers[key >> DEVICE_SHIFT].mappings -= 1
    nat.settings[0].mappings -= 1


@kernel
def unlink(heads: Octets, flows: Table, head: Word, slot: Word) -> None:
    """Take a home or an anchor out of its chain."""
    after = np.int64(flows[slot].next_anchor)
    at = np.int64(heads[head])
    if at == slot:
        heads[head] = after
    while at != slot and at != 0:
        before = flows[at]
        at = np.int64(before.next_anchor)
        if at == slot:
            before.next_anchor = after


@kernel
def _unlink_in(nat: NatTables, head: Word, slot: Word) -> None:
    after = np.int64(nat.flows[slot].next_in)
    at = np.int64(nat.heads[head])
    if at == slot:
        nat.heads[head] = after
    while at != slot and at != 0:
        before = nat.flows[at]
        at = np.int64(before.next_in)
        if at == slot:
            before.next_in = after


@inlined
def _chain_out(nat: NatTables, slot: Word) -> Word:
    """Where the chain of a home's internal endpoint begins."""
    home = nat.flows[slot]
    word = home.key & PORTLESS
    hi = nat.wide[slot].internal_hi if word & V6 else np.int64(0)
    return bucket(nat.heads, HOMES_OUT, hash_end(nat.settings[0], word & V6, word, hi, home.internal_lo))


@inlined
def _chain_in(nat: NatTables, slot: Word) -> Word:
    """Where the chain of a home's external endpoint begins. IPv6."""
    key = nat.flows[slot].key
    owner = nat.subscribers[key >> DEVICE_SHIFT]
    word = key & END | (key & 0xFFFF) << 16
    return bucket(nat.heads, HOMES_IN, hash_end(nat.settings[0], V6, word, owner.external6_hi, owner.external6_lo))
