"""After a crash at any instruction: every chain, list, count, port and slot of the wheel anew from the records and the blocks.

A mapping counts when its record says that it is a home, its port lies in a block of its device and nobody else has it, and a
confirmed flow names it. A flow counts when its `state` says so and it agrees with its home. What does not hold is dropped,
never guessed. One slot beyond the high-water mark is looked at too, for the case that the mark itself came too late.
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Row, Word, kernel
from egressvpn.nat import wheel
from egressvpn.nat.flows import find_further, find_home_inbound, find_home_outbound, link_flow
from egressvpn.nat.keys import DEVICE_SHIFT, PORTLESS, V6
from egressvpn.nat.mappings import END, end_mapping, link_mapping
from egressvpn.nat.pools import hold_empty, recover_blocks
from egressvpn.nat.ports import port_kind, take_exact
from egressvpn.nat.tables import CONFIRMED, HOME, TICK_SHIFT, NatTables
from egressvpn.nat.tcp import ACTIVE, FREE, STATES
from egressvpn.packet.headers import ICMP, ICMPV6, TCP, UDP

_VERSION_SHIFT: Final = 32


@kernel
def recover(nat: NatTables, now: Word) -> Word:
    """Rebuild what is derived; the DERIVED tables are zero. Returns how many flows there are."""
    settings = nat.settings[0]
    end = min(settings.high + 2, nat.flows.size)
    _forget(nat, end, now)
    recover_blocks(nat)
    for slot in range(1, end):
        if np.int64(nat.flows[slot].role) & HOME:
            if _mapping_holds(nat, slot):
                link_mapping(nat, slot)
            else:
                nat.flows[slot].role = 0
                nat.flows[slot].state = FREE
    hold_empty(nat, now)
    for slot in range(1, end):
        flow = nat.flows[slot]
        if np.int64(flow.state) != FREE:
            if _flow_holds(nat, slot):
                link_flow(nat, slot)
                wheel.arm(nat, slot, now)
            else:
                flow.role = np.int64(flow.role) & HOME
                flow.state = FREE
    for slot in range(1, end):
        if np.int64(nat.flows[slot].role) & HOME and np.int64(nat.flows[slot].live) == 0:
            end_mapping(nat, slot, now)
    _list_free(nat, end)
    return settings.flows


@kernel
def _forget(nat: NatTables, end: Word, now: Word) -> None:
    settings = nat.settings[0]
    settings.free = 0
    settings.flows = 0
    settings.mappings = 0
    settings.records = 0
    settings.unconfirmed = 0
    settings.tick = now >> TICK_SHIFT
    for device in range(nat.subscribers.size):
        owner = nat.subscribers[device]
        owner.first = 0
        owner.flows = 0
        owner.mappings = 0
        owner.unconfirmed = 0
    for slot in range(1, end):
        record = nat.flows[slot]
        record.live = 0
        record.refs = 0
        record.permit = 0
        kept = HOME | CONFIRMED if _state_holds(record) else HOME
        if kept == HOME:
            record.state = FREE
        record.role = np.int64(record.role) & kept


@kernel
def _state_holds(record: Row) -> bool:
    """It has a flow, in a state that its protocol knows."""
    state = np.int64(record.state)
    if state == FREE or state >= STATES:
        return False
    return (state != ACTIVE) == ((record.key >> 32) & 0xFF == TCP)


@kernel
def _mapping_holds(nat: NatTables, slot: Word) -> bool:
    """The record is whole, and its endpoints are its own. Counts its port as taken when so."""
    home = nat.flows[slot]
    key, pool = home.key, np.int64(home.pool)
    device = key >> DEVICE_SHIFT
    if np.int64(home.mapping) != slot or device <= 0 or device >= nat.subscribers.size or not _protocol_holds(key):
        return False
    hi = nat.wide[slot].internal_hi if key & V6 else np.int64(0)
    if find_home_outbound(nat, key & PORTLESS, hi, home.internal_lo) != 0:
        return False
    if key & V6 == 0:
        return take_exact(nat, device, pool, port_kind((key >> 32) & 0xFF), key & 0xFFFF) == 1
    owner = nat.subscribers[device]
    if pool != 0 or (key >> 16) & 0xFFFF != key & 0xFFFF or (owner.external6_hi == 0 and owner.external6_lo == 0):
        return False
    return find_home_inbound(nat, 6, (key >> 32) & 0xFF, owner.external6_hi, owner.external6_lo, key & 0xFFFF) == 0


@kernel
def _protocol_holds(key: Word) -> bool:
    protocol = (key & END) >> _VERSION_SHIFT
    if key & V6:
        protocol = protocol ^ (V6 >> _VERSION_SHIFT)
        return protocol == TCP or protocol == UDP or protocol == ICMPV6
    return protocol == TCP or protocol == UDP or protocol == ICMP


@kernel
def _flow_holds(nat: NatTables, slot: Word) -> bool:
    """The record belongs to its home, and no other flow of the home has its remote endpoint."""
    flow = nat.flows[slot]
    home = np.int64(flow.mapping)
    if home <= 0 or home >= nat.flows.size or np.int64(nat.flows[home].role) & HOME == 0:
        return False
    if home == slot:
        return True
    record = nat.flows[home]
    if flow.key != record.key or flow.internal_lo != record.internal_lo or np.int64(flow.pool) != np.int64(record.pool):
        return False
    v6 = flow.key & V6
    remote_hi = nat.wide[slot].remote_hi if v6 else np.int64(0)
    if v6 != 0 and nat.wide[slot].internal_hi != nat.wide[home].internal_hi:
        return False
    if np.int64(record.state) != FREE and record.remote_lo == flow.remote_lo and np.int64(record.remote_port) == np.int64(flow.remote_port):
        if v6 == 0 or nat.wide[home].remote_hi == remote_hi:
            return False
    return find_further(nat, home, v6, remote_hi, flow.remote_lo, np.int64(flow.remote_port)) == 0


@kernel
def _list_free(nat: NatTables, end: Word) -> None:
    """The free list, lowest slot first."""
    settings = nat.settings[0]
    settings.high = max(end - 1, 0)
    for slot in range(end - 1, 0, -1):
        record = nat.flows[slot]
        if np.int64(record.refs) == 0 and np.int64(record.state) == FREE:
            record.role = 0
            record.list_next = settings.free
            settings.free = slot
        else:
            settings.records += 1
