"""The translation of a packet: out with the mapping's external endpoint as its source, in with the internal one as its destination.

A packet finds its mapping, and the flow there. What has no flow yet opens one: from inside when policy allowed it, from
outside when the filtering behaviour lets it pass (RFC 4787 5). What the inside sends prolongs a flow; what comes from outside
prolongs only a flow that the inside has sent on (RFC 7857 7.1), and what is dropped nothing. ICMP queries are requests from
inside and replies from outside; ICMP errors belong to the flow they quote (`nat/errors.py`).
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Octets, Row, Word, inlined, kernel
from egressvpn.nat import wheel
from egressvpn.nat.errors import error_inbound, error_outbound
from egressvpn.nat.flows import add_flow, confirm, contacted, find_flow, find_home_inbound, find_home_outbound, remove_flow
from egressvpn.nat.keys import DEVICE_SHIFT, V6, inside_word
from egressvpn.nat.limits import may_take_mapping, take_mapping
from egressvpn.nat.mappings import add_mapping, record_room
from egressvpn.nat.ports import may_take, port_kind
from egressvpn.nat.syns import wait
from egressvpn.nat.tables import ADDRESS_AND_PORT_DEPENDENT, ADDRESS_DEPENDENT, CONFIRMED, HOME, NatTables
from egressvpn.nat.tcp import ACTIVE, CLIENT, FREE, REMOTE_INIT, SERVER
from egressvpn.nat.tracking import ACK_FLAG, FIN_FLAG, RST_FLAG, SYN_FLAG, opening_state, track
from egressvpn.packet.headers import ECHO_REPLY, ECHO_REPLY6, ECHO_REQUEST, ECHO_REQUEST6, TCP, UDP, WHOLE
from egressvpn.packet.rewrite import rewrite_destination, rewrite_source
from egressvpn.verdict import Verdict

PASS: Final = int(Verdict.PASS)
UNSUPPORTED_PROTOCOL: Final = int(Verdict.UNSUPPORTED_PROTOCOL)
FRAGMENT: Final = int(Verdict.FRAGMENT)
NO_MAPPING: Final = int(Verdict.NO_MAPPING)
FILTERED: Final = int(Verdict.FILTERED)
FLOW_TABLE_FULL: Final = int(Verdict.FLOW_TABLE_FULL)
PORTS_EXHAUSTED: Final = int(Verdict.PORTS_EXHAUSTED)
NO_EXTERNAL_ADDRESS: Final = int(Verdict.NO_EXTERNAL_ADDRESS)
SLICE_VIOLATION: Final = int(Verdict.SLICE_VIOLATION)
UNMATCHED_ICMP_ERROR: Final = int(Verdict.UNMATCHED_ICMP_ERROR)
QUOTA_EXCEEDED: Final = int(Verdict.QUOTA_EXCEEDED)
RATE_EXCEEDED: Final = int(Verdict.RATE_EXCEEDED)

OUTSIDE_SHARE: Final = 4  # unanswered flows from outside take at most one in so many of a device's flows, and of all


@inlined
def outbound(nat: NatTables, device: Word, packet: Row, buffer: Octets, now: Word) -> Word:
    """Translate a packet of a device. NO_MAPPING: it has no flow; if it may have one, `open_outbound` and come again."""
    if packet.fragment != WHOLE:
        return FRAGMENT
    remote_port = packet.destination_port
    if packet.protocol != TCP and packet.protocol != UDP:
        if packet.icmp_error != 0:
            return error_outbound(nat, device, packet, buffer, now)
        if not _is_request(packet):
            return UNSUPPORTED_PROTOCOL
        remote_port = np.int64(0)
    home = find_home_outbound(nat, inside_word(device, packet, packet.source_port), packet.source_hi, packet.source_lo)
    if home == 0:
        return NO_MAPPING
    slot = find_flow(nat, home, packet.destination_hi, packet.destination_lo, remote_port)
    if slot == 0:
        return NO_MAPPING
    settings, flow = nat.settings[0], nat.flows[slot]
    if wheel.expired(settings, flow, now):
        return NO_MAPPING
    pool, port = np.int64(flow.pool), flow.key & 0xFFFF
    hi, lo = np.int64(0), np.int64(0)
    if pool != 0:
        address = nat.pool[pool]
        lo = address.address
        if port < address.port_low or port > address.port_high or lo == 0:
            settings.slice_violations += 1
            return SLICE_VIOLATION
    else:
        owner = nat.subscribers[device]
        hi, lo = owner.external6_hi, owner.external6_lo
    verdict = _account(nat, slot, CLIENT, packet, buffer, now)
    if verdict != PASS:
        return verdict
    rewrite_source(buffer, packet, hi, lo, port)
    packet.owner = device
    packet.flow = slot
    return PASS


@inlined
def inbound(nat: NatTables, packet: Row, buffer: Octets, now: Word) -> Word:
    """Translate a packet from outside to the device behind its destination, and say in `packet.owner` which."""
    if packet.fragment != WHOLE:
        return FRAGMENT
    remote_port = packet.source_port
    if packet.protocol != TCP and packet.protocol != UDP:
        if packet.icmp_error != 0:
            return error_inbound(nat, packet, buffer, now)
        if packet.icmp_type < 0:
            return UNSUPPORTED_PROTOCOL
        if not _is_reply(packet):
            return FILTERED
        remote_port = np.int64(0)
    home = find_home_inbound(nat, packet.version, packet.protocol, packet.destination_hi, packet.destination_lo, packet.destination_port)
    if home == 0:
        return NO_MAPPING
    slot = find_flow(nat, home, packet.source_hi, packet.source_lo, remote_port)
    if slot == 0 or wheel.expired(nat.settings[0], nat.flows[slot], now):
        slot = _open_inbound(nat, home, slot, packet, buffer, remote_port, now)
        if slot < 0:
            return -slot
    verdict = _account(nat, slot, SERVER, packet, buffer, now)
    if verdict != PASS:
        return verdict
    flow = nat.flows[slot]
    hi = nat.wide[slot].internal_hi if flow.key & V6 else np.int64(0)
    rewrite_destination(buffer, packet, hi, flow.internal_lo, (flow.key >> 16) & 0xFFFF)
    packet.owner = flow.key >> DEVICE_SHIFT
    packet.flow = slot
    return PASS


@inlined
def _account(nat: NatTables, slot: Word, side: Word, packet: Row, buffer: Octets, now: Word) -> Word:
    """Let a flow know of its packet, unless TCP says that it must be dropped; then nothing has changed.

    The counts come first: they stand in the record's second cache line, which is fetched while the first is still on its way.
    """
    flow = nat.flows[slot]
    flow.packets[side] += packet.segments
    flow.octets[side] += packet.length
    if packet.protocol == TCP:
        before = np.int64(flow.state)
        verdict = track(flow, side, packet, buffer, now)
        if verdict != PASS:
            flow.packets[side] -= packet.segments
            flow.octets[side] -= packet.length
            return verdict
        if np.int64(flow.state) != before:
            _rearm(nat, slot, now)
    elif side == CLIENT or np.int64(flow.role) & CONFIRMED:
        flow.seen = wheel.milliseconds(now)
    if side == CLIENT and np.int64(flow.role) & CONFIRMED == 0 and (packet.protocol != TCP or packet.tcp_flags & RST_FLAG == 0):
        confirm(nat, slot)
    return PASS


@kernel
def _rearm(nat: NatTables, slot: Word, now: Word) -> None:
    """The flow may be due earlier than the wheel knows."""
    wheel.clear(nat, slot)
    wheel.arm(nat, slot, now)


@kernel
def open_outbound(nat: NatTables, device: Word, packet: Row, now: Word) -> Word:
    """Make the flow of a packet of a device, and its mapping if it is the first of its endpoint. Nothing is evicted for it."""
    verdict = _may_begin(nat, device, packet)
    if verdict != PASS:
        return verdict
    verdict = _open(nat, device, packet, now)
    if verdict != PASS:
        nat.subscribers[device].refused += 1
        if verdict == QUOTA_EXCEEDED or verdict == RATE_EXCEEDED:
            nat.settings[0].quota_exceeded += 1
    return verdict


@kernel
def _open(nat: NatTables, device: Word, packet: Row, now: Word) -> Word:
    remote_port = packet.destination_port if packet.icmp_type < 0 else np.int64(0)
    key = inside_word(device, packet, packet.source_port)
    home = find_home_outbound(nat, key, packet.source_hi, packet.source_lo)
    if home != 0:
        slot = find_flow(nat, home, packet.destination_hi, packet.destination_lo, remote_port)
        if slot != 0 and not wheel.expired(nat.settings[0], nat.flows[slot], now):
            return PASS
        if slot != 0:
            remove_flow(nat, slot, now)
            home = find_home_outbound(nat, key, packet.source_hi, packet.source_lo)
    verdict = _room(nat, device, home)
    if verdict != PASS:
        return verdict
    if home == 0:
        if packet.version == 6 and _taken(nat, device, packet):
            return PORTS_EXHAUSTED
        if take_mapping(nat, device, now) == 0:
            return RATE_EXCEEDED
        home = add_mapping(nat, key, packet.source_hi, packet.source_lo, now)
        if home < 0:
            return -home
    state = np.int64(opening_state(packet.tcp_flags) if packet.protocol == TCP else ACTIVE)
    add_flow(nat, home, packet.destination_hi, packet.destination_lo, remote_port, state, np.int64(1), now)
    return PASS


@kernel
def may_open(nat: NatTables, device: Word, packet: Row, now: Word) -> Word:
    """What `open_outbound` would say, changing nothing."""
    verdict = _may_begin(nat, device, packet)
    if verdict != PASS:
        return verdict
    remote_port = packet.destination_port if packet.icmp_type < 0 else np.int64(0)
    home = find_home_outbound(nat, inside_word(device, packet, packet.source_port), packet.source_hi, packet.source_lo)
    if home != 0:
        slot = find_flow(nat, home, packet.destination_hi, packet.destination_lo, remote_port)
        if slot != 0:
            return PASS  # it lives, or makes room for its successor
    verdict = _room(nat, device, home)
    if verdict != PASS or home != 0:
        return verdict
    if packet.version == 6 and _taken(nat, device, packet):
        return PORTS_EXHAUSTED
    if may_take_mapping(nat, device, now) == 0:
        return RATE_EXCEEDED
    if packet.version == 6:
        owner = nat.subscribers[device]
        return NO_EXTERNAL_ADDRESS if owner.external6_hi == 0 and owner.external6_lo == 0 else PASS
    return -may_take(nat, device, port_kind(packet.protocol), now)


@kernel
def _may_begin(nat: NatTables, device: Word, packet: Row) -> Word:
    """Whether this packet can begin a flow at all."""
    if packet.fragment != WHOLE:
        return FRAGMENT
    if packet.icmp_error != 0:
        return UNMATCHED_ICMP_ERROR
    if packet.protocol == TCP:
        if packet.tcp_flags & RST_FLAG:
            return NO_MAPPING
    elif packet.protocol != UDP and not _is_request(packet):
        return UNSUPPORTED_PROTOCOL
    if device <= 0 or device >= nat.subscribers.size:
        return NO_EXTERNAL_ADDRESS
    return PASS


@kernel
def _room(nat: NatTables, device: Word, home: Word) -> Word:
    """Whether a device may have one more flow, of this mapping if it is not 0, and whether there is a record for it.

    A mapping on an address that ends gets no more: else its device could keep the address for ever.
    """
    if home != 0 and nat.pool[np.int64(nat.flows[home].pool)].ending != 0:
        return NO_EXTERNAL_ADDRESS
    if nat.subscribers[device].flows >= nat.settings[0].max_flows_per_device:
        return QUOTA_EXCEEDED
    if home != 0 and np.int64(nat.flows[home].state) == FREE:
        return PASS
    return PASS if record_room(nat) else FLOW_TABLE_FULL


@kernel
def _taken(nat: NatTables, device: Word, packet: Row) -> bool:
    """Whether another internal IPv6 address has this port of the device's external one."""
    owner = nat.subscribers[device]
    return find_home_inbound(nat, 6, packet.protocol, owner.external6_hi, owner.external6_lo, packet.source_port) != 0


@kernel
def _open_inbound(nat: NatTables, home: Word, old: Word, packet: Row, buffer: Octets, remote_port: Word, now: Word) -> Word:
    """The new flow of a packet from outside that the filter lets pass to a mapping, or the negated verdict. `old`: one that expired."""
    settings, record = nat.settings[0], nat.flows[home]
    if old != 0:
        remove_flow(nat, old, now)
        if np.int64(record.role) & HOME == 0:
            return -NO_MAPPING
    if packet.protocol == TCP and packet.tcp_flags & (SYN_FLAG | ACK_FLAG | RST_FLAG | FIN_FLAG) != SYN_FLAG:
        return -FILTERED  # only a SYN begins a connection from outside
    if settings.filtering == ADDRESS_AND_PORT_DEPENDENT or (
        settings.filtering == ADDRESS_DEPENDENT and not contacted(nat, home, packet.source_hi, packet.source_lo)
    ):
        if packet.protocol == TCP:
            wait(nat, packet, buffer, now)
        return -FILTERED
    device = record.key >> DEVICE_SHIFT
    verdict = _room(nat, device, home)
    if verdict != PASS:
        return -verdict
    unconfirmed = nat.subscribers[device].unconfirmed
    if unconfirmed * OUTSIDE_SHARE >= settings.max_flows_per_device or settings.unconfirmed * OUTSIDE_SHARE >= nat.flows.size:
        return -QUOTA_EXCEEDED
    state = np.int64(REMOTE_INIT if packet.protocol == TCP else ACTIVE)
    return add_flow(nat, home, packet.source_hi, packet.source_lo, remote_port, state, np.int64(0), now)


@inlined
def _is_request(packet: Row) -> bool:
    """An ICMP query, which begins a session from inside."""
    if packet.version == 6:
        return packet.icmp_type == ECHO_REQUEST6
    return packet.icmp_type == ECHO_REQUEST


@inlined
def _is_reply(packet: Row) -> bool:
    if packet.version == 6:
        return packet.icmp_type == ECHO_REPLY6
    return packet.icmp_type == ECHO_REPLY
