"""After a crash at any instruction: every chain, list, bitmap, permit and count anew from the flow and mapping records.

A record counts when its `state` says so and all that it holds twice agrees: a mapping's port lies in our slice of its
pool address and nobody else has it, a flow's endpoints are its mapping's. What does not hold is dropped, never guessed.
One slot beyond the high-water mark is looked at too, for the case that the mark itself came too late.
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Row, Word, kernel
from egressvpn.nat.flows import find_inbound, find_outbound, link_flow
from egressvpn.nat.keys import DEVICE_SHIFT, PORTLESS, V6
from egressvpn.nat.mappings import find_mapping_inbound, find_mapping_outbound, link_mapping, remove_mapping
from egressvpn.nat.ports import port_kind, take_exact
from egressvpn.nat.tables import REGIONS, USED_REGIONS, NatTables
from egressvpn.nat.tcp import ACTIVE, FREE, STATES
from egressvpn.packet.headers import TCP

_PROTOCOL_MASK: Final = V6 | 0xFF00000000


@kernel
def recover(nat: NatTables) -> Word:
    """Rebuild what is derived. Returns how many flows there are."""
    settings = nat.settings[0]
    mappings_end = min(settings.mapping_high + 2, nat.mappings.size)
    flows_end = min(settings.flow_high + 2, nat.flows.size)
    _forget(nat)
    for slot in range(1, mappings_end):
        if nat.mappings[slot].state != FREE:
            if _mapping_holds(nat, nat.mappings[slot]):
                link_mapping(nat, slot)
            else:
                nat.mappings[slot].state = FREE
    for slot in range(1, flows_end):
        if nat.flows[slot].state != FREE:
            if _flow_holds(nat, nat.flows[slot]):
                link_flow(nat, slot)
            else:
                nat.flows[slot].state = FREE
    for slot in range(1, mappings_end):
        if nat.mappings[slot].state != FREE and nat.mappings[slot].first == 0:
            remove_mapping(nat, slot)
    _list_free(nat, mappings_end, flows_end)
    return settings.flows


@kernel
def _forget(nat: NatTables) -> None:
    settings = nat.settings[0]
    settings.flow_free = 0
    settings.mapping_free = 0
    settings.permit_free = 0
    settings.permit_high = 0
    settings.hand = 0
    settings.flows = 0
    settings.mappings = 0
    settings.permits = 0
    nat.heads[: (nat.heads.size // REGIONS) * USED_REGIONS] = 0
    nat.port_bits[:] = 0
    for slot in range(nat.pool.size):
        nat.pool[slot].used[:] = 0
    for slot in range(nat.subscribers.size):
        owner = nat.subscribers[slot]
        owner.first = 0
        owner.flows = 0
        owner.mappings = 0


@kernel
def _mapping_holds(nat: NatTables, mapping: Row) -> bool:
    """The record is whole, and its endpoints are its own. Marks its port as taken when so."""
    device = mapping.key >> DEVICE_SHIFT
    if mapping.state != ACTIVE or device <= 0 or device >= nat.subscribers.size:
        return False
    if (mapping.key ^ mapping.external_key) & _PROTOCOL_MASK != 0 or (mapping.key | mapping.external_key) & 0xFFFF != 0:
        return False
    settings, heads = nat.settings[0], nat.heads
    if find_mapping_outbound(settings, heads, nat.mappings, mapping.key, mapping.internal_hi, mapping.internal_lo) != 0:
        return False
    if find_mapping_inbound(settings, heads, nat.mappings, mapping.external_key, mapping.external_hi, mapping.external_lo) != 0:
        return False
    if mapping.key & V6:
        return mapping.pool == 0 and (mapping.key ^ mapping.external_key) & 0xFFFF0000 == 0
    pool = mapping.pool
    if pool <= 0 or pool >= nat.pool.size or nat.pool[pool].address == 0 or nat.pool[pool].address != mapping.external_lo:
        return False
    kind = port_kind((mapping.key >> 32) & 0xFF)
    return take_exact(nat.pool, nat.port_bits, pool, kind, (mapping.external_key >> 16) & 0xFFFF) == 1


@kernel
def _flow_holds(nat: NatTables, flow: Row) -> bool:
    """The record is whole and belongs to its mapping, and no other flow has its key."""
    state, slot = np.int64(flow.state), np.int64(flow.mapping)
    if state < 0 or state >= STATES or (state != ACTIVE) != ((flow.key >> 32) & 0xFF == TCP):
        return False
    if slot <= 0 or slot >= nat.mappings.size:
        return False
    mapping = nat.mappings[slot]
    if mapping.state != ACTIVE or flow.key & PORTLESS != mapping.key or flow.external_key & PORTLESS != mapping.external_key:
        return False
    if (flow.key ^ flow.external_key) & 0xFFFF != 0 or np.int64(flow.pool) != mapping.pool or flow.timeout <= 0:
        return False
    if flow.internal_hi != mapping.internal_hi or flow.internal_lo != mapping.internal_lo:
        return False
    if flow.external_hi != mapping.external_hi or flow.external_lo != mapping.external_lo:
        return False
    settings, heads = nat.settings[0], nat.heads
    hi, lo = flow.remote_hi, flow.remote_lo
    if find_outbound(settings, heads, nat.flows, flow.key, flow.internal_hi, flow.internal_lo, hi, lo) != 0:
        return False
    return find_inbound(settings, heads, nat.flows, flow.external_key, flow.external_hi, flow.external_lo, hi, lo) == 0


@kernel
def _list_free(nat: NatTables, mappings_end: Word, flows_end: Word) -> None:
    """The free lists, lowest slot first."""
    settings = nat.settings[0]
    settings.mapping_free = 0
    settings.mapping_high = max(mappings_end - 1, 0)
    settings.flow_high = max(flows_end - 1, 0)
    for slot in range(mappings_end - 1, 0, -1):
        if nat.mappings[slot].state == FREE:
            nat.mappings[slot].next_out = settings.mapping_free
            settings.mapping_free = slot
    for slot in range(flows_end - 1, 0, -1):
        if nat.flows[slot].state == FREE:
            nat.flows[slot].next_out = settings.flow_free
            settings.flow_free = slot
