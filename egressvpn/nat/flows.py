"""Finding, making and removing flows and permits, and what hangs on them: chains, lists, counts.

Records are taken from a free list, or from above the high-water mark while that lasts: nothing is ever evicted. `state`
is written last when a flow is made and first when it goes, so that a crash in between leaves a slot that `recover` can tell.
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Octets, Row, Table, Word, kernel
from egressvpn.nat.keys import DEVICE_SHIFT, bucket, hash_one, hash_pair
from egressvpn.nat.mappings import remove_mapping
from egressvpn.nat.tables import FLOWS_IN, FLOWS_OUT, OF_DEVICE, OF_MAPPING, OF_PERMIT, PERMITS, NatTables
from egressvpn.nat.tcp import ACTIVE, EXPIRES_SOON, FREE
from egressvpn.packet.headers import UDP

MAX_SETTLE: Final = 64  # expired flows removed while answering one packet


@kernel
def find_outbound(settings: Row, heads: Octets, flows: Table, key: Word, hi: Word, lo: Word, remote_hi: Word, remote_lo: Word) -> Word:
    """The flow of a packet from inside: packed word, internal address, remote address. 0: none."""
    slot = np.int64(heads[bucket(heads, FLOWS_OUT, hash_pair(settings, key, hi, lo, remote_hi, remote_lo))])
    while slot != 0:
        flow = flows[slot]
        if flow.key == key and flow.internal_lo == lo and flow.remote_lo == remote_lo:
            if flow.internal_hi == hi and flow.remote_hi == remote_hi:
                return slot
        slot = np.int64(flow.next_out)
    return slot


@kernel
def find_inbound(settings: Row, heads: Octets, flows: Table, key: Word, hi: Word, lo: Word, remote_hi: Word, remote_lo: Word) -> Word:
    """The flow of a packet from outside: packed word, external address, remote address. 0: none."""
    slot = np.int64(heads[bucket(heads, FLOWS_IN, hash_pair(settings, key, hi, lo, remote_hi, remote_lo))])
    while slot != 0:
        flow = flows[slot]
        if flow.external_key == key and flow.external_lo == lo and flow.remote_lo == remote_lo:
            if flow.external_hi == hi and flow.remote_hi == remote_hi:
                return slot
        slot = np.int64(flow.next_in)
    return slot


@kernel
def find_permit(settings: Row, heads: Octets, permits: Table, mapping: Word, hi: Word, lo: Word) -> Word:
    """The permit that says that the mapping has contacted this remote address. 0: none."""
    slot = np.int64(heads[bucket(heads, PERMITS, hash_one(settings, mapping, hi, lo))])
    while slot != 0:
        permit = permits[slot]
        if permit.mapping == mapping and permit.remote_lo == lo and permit.remote_hi == hi:
            return slot
        slot = permit.next
    return slot


@kernel
def expired(flow: Row, now: Word) -> bool:
    return now - flow.seen >= flow.timeout


@kernel
def timeout_of(settings: Row, protocol: Word, state: Word) -> Word:
    """How long a flow in this state may be idle."""
    if state != ACTIVE:
        return settings.tcp_transitory if EXPIRES_SOON[state] == 1 else settings.tcp_established
    return settings.udp if protocol == UDP else settings.icmp


@kernel
def flow_room(nat: NatTables) -> bool:
    settings = nat.settings[0]
    return settings.flow_free != 0 or settings.flow_high + 1 < nat.flows.size


@kernel
def add_flow(nat: NatTables, mapping: Word, remote_hi: Word, remote_lo: Word, remote_port: Word, state: Word, now: Word) -> Word:
    """Make the flow between a mapping and a remote endpoint. There is room, and no such flow yet. Returns its slot."""
    settings, source = nat.settings[0], nat.mappings[mapping]
    slot = settings.flow_free
    if slot != 0:
        settings.flow_free = np.int64(nat.flows[slot].next_out)
    else:
        slot = settings.flow_high + 1
        settings.flow_high = slot
    flow = nat.flows[slot]
    flow.key = source.key | remote_port
    flow.internal_hi = source.internal_hi
    flow.internal_lo = source.internal_lo
    flow.external_key = source.external_key | remote_port
    flow.external_hi = source.external_hi
    flow.external_lo = source.external_lo
    flow.remote_hi = remote_hi
    flow.remote_lo = remote_lo
    flow.pool = source.pool
    flow.mapping = mapping
    flow.seen = now
    flow.timeout = timeout_of(settings, (source.key >> 32) & 0xFF, state)
    flow.created = now
    flow.packets_out = 0
    flow.bytes_out = 0
    flow.packets_in = 0
    flow.bytes_in = 0
    link_flow(nat, slot)
    settings.flows_created += 1
    flow.state = state
    return slot


@kernel
def link_flow(nat: NatTables, slot: Word) -> None:
    """Put a flow into its chains and lists, with a permit, made when it is the first for its remote address."""
    settings, heads, flow = nat.settings[0], nat.heads, nat.flows[slot]
    out, into = _buckets(nat, flow)
    flow.next_out = np.int64(heads[out])
    heads[out] = slot
    flow.next_in = np.int64(heads[into])
    heads[into] = slot
    mapping = np.int64(flow.mapping)
    permit = find_permit(settings, heads, nat.permits, mapping, flow.remote_hi, flow.remote_lo)
    if permit == 0:
        permit = _add_permit(nat, mapping, flow.remote_hi, flow.remote_lo)
    flow.permit = permit
    owner = nat.subscribers[flow.key >> DEVICE_SHIFT]
    owner.first = _link(nat.flows, OF_DEVICE, slot, owner.first)
    owner.flows += 1
    nat.mappings[mapping].first = _link(nat.flows, OF_MAPPING, slot, nat.mappings[mapping].first)
    nat.permits[permit].first = _link(nat.flows, OF_PERMIT, slot, nat.permits[permit].first)
    settings.flows += 1


@kernel
def remove_flow(nat: NatTables, slot: Word) -> None:
    """Free a flow, and with the last one its permit and its mapping."""
    settings, heads, flow = nat.settings[0], nat.heads, nat.flows[slot]
    flow.state = FREE
    out, into = _buckets(nat, flow)
    after_out, after_in = np.int64(flow.next_out), np.int64(flow.next_in)
    at = np.int64(heads[out])
    if at == slot:
        heads[out] = after_out
    while at != slot and at != 0:
        before = nat.flows[at]
        at = np.int64(before.next_out)
        if at == slot:
            before.next_out = after_out
    at = np.int64(heads[into])
    if at == slot:
        heads[into] = after_in
    while at != slot and at != 0:
        before = nat.flows[at]
        at = np.int64(before.next_in)
        if at == slot:
            before.next_in = after_in
    _leave_lists(nat, slot)
    flow.next_out = settings.flow_free
    settings.flow_free = slot
    settings.flows -= 1


@kernel
def _leave_lists(nat: NatTables, slot: Word) -> None:
    flow = nat.flows[slot]
    owner = nat.subscribers[flow.key >> DEVICE_SHIFT]
    owner.first = _unlink(nat.flows, OF_DEVICE, slot, owner.first)
    owner.flows -= 1
    permit = np.int64(flow.permit)
    nat.permits[permit].first = _unlink(nat.flows, OF_PERMIT, slot, nat.permits[permit].first)
    if nat.permits[permit].first == 0:
        _remove_permit(nat, permit)
    mapping = np.int64(flow.mapping)
    nat.mappings[mapping].first = _unlink(nat.flows, OF_MAPPING, slot, nat.mappings[mapping].first)
    if nat.mappings[mapping].first == 0:
        remove_mapping(nat, mapping)


@kernel
def settle_mapping(nat: NatTables, mapping: Word, now: Word) -> bool:
    """Whether a mapping has a live flow. Expired flows found first are removed, the mapping with its last one."""
    for _ in range(MAX_SETTLE):
        slot = nat.mappings[mapping].first
        if slot == 0:
            return False
        if not expired(nat.flows[slot], now):
            return True
        remove_flow(nat, slot)
    return False


@kernel
def settle_permit(nat: NatTables, permit: Word, now: Word) -> bool:
    """Whether a permit has a live flow. Expired flows found first are removed, the permit with its last one."""
    for _ in range(MAX_SETTLE):
        slot = nat.permits[permit].first
        if slot == 0:
            return False
        if not expired(nat.flows[slot], now):
            return True
        remove_flow(nat, slot)
    return False


@kernel
def _buckets(nat: NatTables, flow: Row) -> tuple[Word, Word]:
    """Where a flow's two chains begin."""
    settings = nat.settings[0]
    out = hash_pair(settings, flow.key, flow.internal_hi, flow.internal_lo, flow.remote_hi, flow.remote_lo)
    into = hash_pair(settings, flow.external_key, flow.external_hi, flow.external_lo, flow.remote_hi, flow.remote_lo)
    return bucket(nat.heads, FLOWS_OUT, out), bucket(nat.heads, FLOWS_IN, into)


@kernel
def _add_permit(nat: NatTables, mapping: Word, hi: Word, lo: Word) -> Word:
    """There is always room: as many records as flows, and each has a flow."""
    settings = nat.settings[0]
    slot = settings.permit_free
    if slot != 0:
        settings.permit_free = nat.permits[slot].next
    else:
        slot = settings.permit_high + 1
        settings.permit_high = slot
    permit = nat.permits[slot]
    permit.mapping = mapping
    permit.remote_hi = hi
    permit.remote_lo = lo
    permit.first = 0
    at = bucket(nat.heads, PERMITS, hash_one(settings, mapping, hi, lo))
    permit.next = np.int64(nat.heads[at])
    nat.heads[at] = slot
    settings.permits += 1
    return slot


@kernel
def _remove_permit(nat: NatTables, slot: Word) -> None:
    settings, permit = nat.settings[0], nat.permits[slot]
    head = bucket(nat.heads, PERMITS, hash_one(settings, permit.mapping, permit.remote_hi, permit.remote_lo))
    at = np.int64(nat.heads[head])
    if at == slot:
        nat.heads[head] = permit.next
    while at != slot and at != 0:
        before = nat.permits[at]
        at = before.next
        if at == slot:
            before.next = permit.next
    permit.mapping = 0
    permit.next = settings.permit_free
    settings.permit_free = slot
    settings.permits -= 1


@kernel
def _link(flows: Table, kind: Word, slot: Word, first: Word) -> Word:
    """Put a flow at the head of a list that began with `first`. Returns the new head."""
    flow = flows[slot]
    flow.next[kind] = first
    flow.prev[kind] = 0
    if first != 0:
        flows[first].prev[kind] = slot
    return slot


@kernel
def _unlink(flows: Table, kind: Word, slot: Word, first: Word) -> Word:
    """Take a flow out of a list that begins with `first`. Returns the new head."""
    before, after = np.int64(flows[slot].prev[kind]), np.int64(flows[slot].next[kind])
    if after != 0:
        flows[after].prev[kind] = before
    if before != 0:
        flows[before].next[kind] = after
        return first
    return after
