"""Finding, making and removing flows, and what hangs on them: chains, permits, lists, the wheel, counts.

A home's own flow is in no chain: who has the home has it. `state` is written last when a flow is made and first when it
goes, so that a crash in between leaves a record that `recover` can tell.
"""

import numpy as np

from egressvpn.kernel import Word, inlined, kernel
from egressvpn.nat import wheel
from egressvpn.nat.keys import DEVICE_SHIFT, PORTLESS, V6, bucket, hash_end, outside_word
from egressvpn.nat.mappings import END, end_mapping, free_record, take_record, unlink
from egressvpn.nat.port_lists import place
from egressvpn.nat.ports import pool_slot, port_kind
from egressvpn.nat.tables import ANCHOR, CONFIRMED, FLOWS, HOMES_IN, HOMES_OUT, PERMITS, NatTables
from egressvpn.nat.tcp import FREE


@inlined
def find_home_outbound(nat: NatTables, key: Word, hi: Word, lo: Word) -> Word:
    """The home of an internal endpoint: `inside_word` and address. 0: none."""
    heads, flows = nat.heads, nat.flows
    slot = np.int64(heads[bucket(heads, HOMES_OUT, hash_end(nat.settings[0], key & V6, key, hi, lo))])
    while slot != 0:
        home = flows[slot]
        if home.key & PORTLESS == key and home.internal_lo == lo:
            if key & V6 == 0 or nat.wide[slot].internal_hi == hi:
                return slot
        slot = np.int64(home.next_anchor)
    return slot


@inlined
def find_home_inbound(nat: NatTables, version: Word, protocol: Word, hi: Word, lo: Word, port: Word) -> Word:
    """The home of an external endpoint. 0: none."""
    if version == 6:
        return _find_home6(nat, outside_word(version, protocol, port), hi, lo)
    pool = pool_slot(nat, lo)
    if pool == 0:
        return pool
    return np.int64(nat.ports[place(pool, port_kind(protocol), port)])


@kernel
def _find_home6(nat: NatTables, word: Word, hi: Word, lo: Word) -> Word:
    slot = np.int64(nat.heads[bucket(nat.heads, HOMES_IN, hash_end(nat.settings[0], V6, word, hi, lo))])
    while slot != 0:
        key = nat.flows[slot].key
        owner = nat.subscribers[key >> DEVICE_SHIFT]
        if key & END | (key & 0xFFFF) << 16 == word and owner.external6_lo == lo and owner.external6_hi == hi:
            return slot
        slot = np.int64(nat.flows[slot].next_in)
    return slot


@inlined
def find_flow(nat: NatTables, home: Word, remote_hi: Word, remote_lo: Word, remote_port: Word) -> Word:
    """The flow of a mapping with a remote endpoint, also one that has expired. 0: none."""
    record = nat.flows[home]
    v6 = record.key & V6
    own = np.int64(record.state) != FREE
    if own and record.remote_lo == remote_lo and np.int64(record.remote_port) == remote_port:
        if v6 == 0 or nat.wide[home].remote_hi == remote_hi:
            return home
    if np.int64(record.refs) == (1 if own else 0):
        return np.int64(0)
    return find_further(nat, home, v6, remote_hi, remote_lo, remote_port)


@kernel
def find_further(nat: NatTables, home: Word, v6: Word, remote_hi: Word, remote_lo: Word, remote_port: Word) -> Word:
    heads, flows = nat.heads, nat.flows
    slot = np.int64(heads[bucket(heads, FLOWS, hash_end(nat.settings[0], v6, home << 16 | remote_port, remote_hi, remote_lo))])
    while slot != 0:
        flow = flows[slot]
        if np.int64(flow.mapping) == home and flow.remote_lo == remote_lo and np.int64(flow.remote_port) == remote_port:
            if v6 == 0 or nat.wide[slot].remote_hi == remote_hi:
                return slot
        slot = np.int64(flow.next_flow)
    return slot


@kernel
def contacted(nat: NatTables, home: Word, remote_hi: Word, remote_lo: Word) -> bool:
    """Whether the mapping has a confirmed flow with this remote address."""
    record = nat.flows[home]
    if np.int64(record.role) & CONFIRMED and record.remote_lo == remote_lo:
        if record.key & V6 == 0 or nat.wide[home].remote_hi == remote_hi:
            return True
    return _find_anchor(nat, home, remote_hi, remote_lo) != 0


@kernel
def _find_anchor(nat: NatTables, home: Word, remote_hi: Word, remote_lo: Word) -> Word:
    v6 = nat.flows[home].key & V6
    slot = np.int64(nat.heads[bucket(nat.heads, PERMITS, hash_end(nat.settings[0], v6, home, remote_hi, remote_lo))])
    while slot != 0:
        anchor = nat.flows[slot]
        if np.int64(anchor.mapping) == home and anchor.remote_lo == remote_lo:
            if v6 == 0 or nat.wide[slot].remote_hi == remote_hi:
                return slot
        slot = np.int64(anchor.next_anchor)
    return slot


@kernel
def add_flow(
    nat: NatTables, home: Word, remote_hi: Word, remote_lo: Word, remote_port: Word, state: Word, outbound: Word, now: Word
) -> Word:
    """Make the flow of a mapping with a remote endpoint, opened from inside (`outbound` 1) or not (0). There is room, and none such yet."""
    slot, record = home, nat.flows[home]
    if np.int64(record.state) != FREE:
        slot = take_record(nat)
        flow = nat.flows[slot]
        flow.key = record.key
        flow.internal_lo = record.internal_lo
        flow.mapping = home
        flow.pool = np.int64(record.pool)
        if record.key & V6:
            nat.wide[slot].internal_hi = nat.wide[home].internal_hi
    flow = nat.flows[slot]
    flow.remote_lo = remote_lo
    flow.remote_port = remote_port
    if flow.key & V6:
        nat.wide[slot].remote_hi = remote_hi
    flow.seen = wheel.milliseconds(now)
    flow.created = wheel.milliseconds(now)
    for side in range(2):
        flow.scale[side] = 0  # nothing is known of either side's window
        flow.next_sequence[side] = 0
        flow.acknowledged[side] = 0
        flow.window[side] = 0
        flow.packets[side] = 0
        flow.octets[side] = 0
    if outbound != 0:
        flow.role = np.int64(flow.role) | CONFIRMED
    flow.state = state
    link_flow(nat, slot)
    wheel.arm(nat, slot, now)
    nat.settings[0].flows_created += 1
    return slot


@kernel
def link_flow(nat: NatTables, slot: Word) -> None:
    """Put a flow into its chains and its device's list, and count it."""
    settings, flow = nat.settings[0], nat.flows[slot]
    home = np.int64(flow.mapping)
    record = nat.flows[home]
    record.refs = np.int64(record.refs) + 1
    if slot != home:
        head = _chain(nat, slot)
        flow.next_flow = np.int64(nat.heads[head])
        nat.heads[head] = slot
    owner = nat.subscribers[flow.key >> DEVICE_SHIFT]
    flow.list_next = owner.first
    flow.list_prev = 0
    if owner.first != 0:
        nat.flows[owner.first].list_prev = slot
    owner.first = slot
    owner.flows += 1
    settings.flows += 1
    if np.int64(flow.role) & CONFIRMED:
        _link_confirmed(nat, slot, home)
    else:
        owner.unconfirmed += 1
        settings.unconfirmed += 1


@kernel
def confirm(nat: NatTables, slot: Word) -> None:
    """The inside has sent on a flow that was opened from outside."""
    flow = nat.flows[slot]
    flow.role = np.int64(flow.role) | CONFIRMED
    nat.subscribers[flow.key >> DEVICE_SHIFT].unconfirmed -= 1
    nat.settings[0].unconfirmed -= 1
    _link_confirmed(nat, slot, np.int64(flow.mapping))


@kernel
def _link_confirmed(nat: NatTables, slot: Word, home: Word) -> None:
    """A confirmed flow keeps its mapping alive, and permits its remote address."""
    record, flow = nat.flows[home], nat.flows[slot]
    record.live = np.int64(record.live) + 1
    if slot == home:
        return
    remote_hi = nat.wide[slot].remote_hi if flow.key & V6 else np.int64(0)
    at = _find_anchor(nat, home, remote_hi, flow.remote_lo)
    if at == 0:
        at = slot
        flow.role = np.int64(flow.role) | ANCHOR
        head = _chain_permits(nat, slot)
        flow.next_anchor = np.int64(nat.heads[head])
        nat.heads[head] = slot
    anchor = nat.flows[at]
    anchor.live = np.int64(anchor.live) + 1
    anchor.refs = np.int64(anchor.refs) + 1
    flow.permit = at


@kernel
def remove_flow(nat: NatTables, slot: Word, now: Word) -> None:
    """End a flow; with its last confirmed one a permit and a mapping end. Records that nothing needs any more are free."""
    settings, flow = nat.settings[0], nat.flows[slot]
    home = np.int64(flow.mapping)
    flow.state = FREE
    wheel.clear(nat, slot)
    _leave_list(nat, slot)
    if slot != home:
        _leave_chain(nat, slot)
    record = nat.flows[home]
    if np.int64(flow.role) & CONFIRMED:
        flow.role = np.int64(flow.role) & ~CONFIRMED
        if slot != home:
            _leave_permit(nat, slot)
        record.live = np.int64(record.live) - 1
        if np.int64(record.live) == 0:
            end_mapping(nat, home, now)
    else:
        nat.subscribers[flow.key >> DEVICE_SHIFT].unconfirmed -= 1
        settings.unconfirmed -= 1
    if slot != home and np.int64(flow.refs) == 0:
        free_record(nat, slot)
    record.refs = np.int64(record.refs) - 1
    if np.int64(record.refs) == 0:
        free_record(nat, home)
    settings.flows -= 1


@kernel
def _leave_list(nat: NatTables, slot: Word) -> None:
    flow = nat.flows[slot]
    owner = nat.subscribers[flow.key >> DEVICE_SHIFT]
    before, after = np.int64(flow.list_prev), np.int64(flow.list_next)
    if after != 0:
        nat.flows[after].list_prev = before
    if before != 0:
        nat.flows[before].list_next = after
    else:
        owner.first = after
    owner.flows -= 1


@kernel
def _leave_chain(nat: NatTables, slot: Word) -> None:
    head, after = _chain(nat, slot), np.int64(nat.flows[slot].next_flow)
    at = np.int64(nat.heads[head])
    if at == slot:
        nat.heads[head] = after
    while at != slot and at != 0:
        before = nat.flows[at]
        at = np.int64(before.next_flow)
        if at == slot:
            before.next_flow = after


@kernel
def _leave_permit(nat: NatTables, slot: Word) -> None:
    """A confirmed flow goes, and with the last one to an address its permit."""
    at = np.int64(nat.flows[slot].permit)
    anchor = nat.flows[at]
    anchor.live = np.int64(anchor.live) - 1
    if np.int64(anchor.live) == 0:
        anchor.role = np.int64(anchor.role) & ~ANCHOR
        unlink(nat.heads, nat.flows, _chain_permits(nat, at), at)
    anchor.refs = np.int64(anchor.refs) - 1
    if at != slot and np.int64(anchor.refs) == 0 and np.int64(anchor.state) == FREE:
        free_record(nat, at)


@inlined
def _chain(nat: NatTables, slot: Word) -> Word:
    """Where the chain of a flow that is not inline begins."""
    flow = nat.flows[slot]
    v6 = flow.key & V6
    hi = nat.wide[slot].remote_hi if v6 else np.int64(0)
    word = np.int64(flow.mapping) << 16 | np.int64(flow.remote_port)
    return bucket(nat.heads, FLOWS, hash_end(nat.settings[0], v6, word, hi, flow.remote_lo))


@inlined
def _chain_permits(nat: NatTables, slot: Word) -> Word:
    """Where the chain of an anchor begins."""
    flow = nat.flows[slot]
    v6 = flow.key & V6
    hi = nat.wide[slot].remote_hi if v6 else np.int64(0)
    return bucket(nat.heads, PERMITS, hash_end(nat.settings[0], v6, np.int64(flow.mapping), hi, flow.remote_lo))
