"""The translation of a packet: out with the mapping's external endpoint as its source, in with the internal one as its destination.

A known flow costs one look-up either way. What has no flow yet opens one: from inside when policy allowed it, from outside
when the filtering behaviour lets it pass (RFC 4787 5). ICMP queries are requests from inside and replies from outside;
ICMP errors belong to the flow they quote (`nat/errors.py`).
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Octets, Row, Word, kernel
from egressvpn.nat.errors import error_inbound, error_outbound
from egressvpn.nat.flows import (
    add_flow,
    expired,
    find_inbound,
    find_outbound,
    find_permit,
    flow_room,
    remove_flow,
    settle_mapping,
    settle_permit,
    timeout_of,
)
from egressvpn.nat.keys import DEVICE_SHIFT, PORTLESS, inside_word, outside_word
from egressvpn.nat.mappings import SAME_PORT, add_mapping, find_mapping_inbound, find_mapping_outbound
from egressvpn.nat.tables import ADDRESS_AND_PORT_DEPENDENT, ADDRESS_DEPENDENT, NatTables
from egressvpn.nat.tcp import ACTIVE, BOTH_FIN, CLIENT, DATA, ESTABLISHED, FIN, FREE, INIT, NEXT, REMOTE_INIT, RST, SERVER, SYN, TRANS
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

FIN_FLAG: Final = 0x01
SYN_FLAG: Final = 0x02
RST_FLAG: Final = 0x04


@kernel
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
    key = inside_word(device, packet, packet.source_port, remote_port)
    settings, flows = nat.settings[0], nat.flows
    slot = find_outbound(settings, nat.heads, flows, key, packet.source_hi, packet.source_lo, packet.destination_hi, packet.destination_lo)
    if slot == 0:
        return NO_MAPPING
    flow = flows[slot]
    if expired(flow, now):
        remove_flow(nat, slot)
        return NO_MAPPING
    port = (flow.external_key >> 16) & 0xFFFF
    pool = np.int64(flow.pool)
    if pool != 0:
        address = nat.pool[pool]
        if port < address.port_low or port > address.port_high or flow.external_lo != address.address:
            settings.slice_violations += 1
            return SLICE_VIOLATION
    if packet.protocol == TCP:
        _track(settings, flow, CLIENT, packet.tcp_flags, now)
    else:
        flow.seen = now
    flow.packets_out += packet.segments
    flow.bytes_out += packet.length
    rewrite_source(buffer, packet, flow.external_hi, flow.external_lo, port)
    packet.owner = device
    packet.flow = slot
    return PASS


@kernel
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
    key = outside_word(packet, packet.destination_port, remote_port)
    settings, flows = nat.settings[0], nat.flows
    slot = find_inbound(settings, nat.heads, flows, key, packet.destination_hi, packet.destination_lo, packet.source_hi, packet.source_lo)
    if slot != 0 and expired(flows[slot], now):
        remove_flow(nat, slot)
        slot = np.int64(0)
    if slot == 0:
        slot = _open_inbound(nat, packet, key, remote_port, now)
        if slot < 0:
            return -slot
    flow = flows[slot]
    if packet.protocol == TCP:
        _track(settings, flow, SERVER, packet.tcp_flags, now)
    else:
        flow.seen = now
    flow.packets_in += packet.segments
    flow.bytes_in += packet.length
    rewrite_destination(buffer, packet, flow.internal_hi, flow.internal_lo, (flow.key >> 16) & 0xFFFF)
    packet.owner = flow.key >> DEVICE_SHIFT
    packet.flow = slot
    return PASS


@kernel
def open_outbound(nat: NatTables, device: Word, packet: Row, now: Word) -> Word:
    """Make the flow of a packet of a device, and its mapping if it is the first of its endpoint. Nothing is evicted for it."""
    verdict = _may_open(nat, device, packet)
    if verdict != PASS:
        return verdict
    settings, heads = nat.settings[0], nat.heads
    remote_port = packet.destination_port if packet.icmp_type < 0 else np.int64(0)
    key = inside_word(device, packet, packet.source_port, remote_port)
    hi, lo = packet.source_hi, packet.source_lo
    slot = find_outbound(settings, heads, nat.flows, key, hi, lo, packet.destination_hi, packet.destination_lo)
    if slot != 0:
        if not expired(nat.flows[slot], now):
            return PASS
        remove_flow(nat, slot)
    if not flow_room(nat):
        return FLOW_TABLE_FULL
    mapping = find_mapping_outbound(settings, heads, nat.mappings, key & PORTLESS, hi, lo)
    if mapping != 0:
        settle_mapping(nat, mapping, now)
    if mapping == 0 or nat.mappings[mapping].state == FREE:
        if packet.version == 6 and _taken(nat, device, key, now):
            return PORTS_EXHAUSTED
        mapping = add_mapping(nat, key & PORTLESS, hi, lo, now)
        if mapping < 0:
            return -mapping
    state = ACTIVE
    if packet.protocol == TCP:
        state = INIT if packet.tcp_flags & SYN_FLAG else TRANS
    add_flow(nat, mapping, packet.destination_hi, packet.destination_lo, remote_port, state, now)
    return PASS


@kernel
def _taken(nat: NatTables, device: Word, key: Word, now: Word) -> bool:
    """Whether another internal IPv6 address has this port of the device's external one."""
    owner = nat.subscribers[device]
    other = find_mapping_inbound(nat.settings[0], nat.heads, nat.mappings, key & SAME_PORT, owner.external6_hi, owner.external6_lo)
    return other != 0 and (settle_mapping(nat, other, now) or nat.mappings[other].state != FREE)


@kernel
def _may_open(nat: NatTables, device: Word, packet: Row) -> Word:
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
def _open_inbound(nat: NatTables, packet: Row, key: Word, remote_port: Word, now: Word) -> Word:
    """The new flow of a packet from outside that the filter lets pass to an existing mapping, or the negated verdict."""
    settings, heads = nat.settings[0], nat.heads
    mapping = find_mapping_inbound(settings, heads, nat.mappings, key & PORTLESS, packet.destination_hi, packet.destination_lo)
    if mapping == 0 or not settle_mapping(nat, mapping, now):
        return -NO_MAPPING
    if settings.filtering == ADDRESS_AND_PORT_DEPENDENT:
        return -FILTERED
    if packet.protocol == TCP and packet.tcp_flags & (SYN_FLAG | RST_FLAG) != SYN_FLAG:
        return -FILTERED  # only a SYN begins a connection from outside
    if settings.filtering == ADDRESS_DEPENDENT:
        permit = find_permit(settings, heads, nat.permits, mapping, packet.source_hi, packet.source_lo)
        if permit == 0 or not settle_permit(nat, permit, now):
            return -FILTERED
    if not flow_room(nat):
        return -FLOW_TABLE_FULL
    state = REMOTE_INIT if packet.protocol == TCP else ACTIVE
    return add_flow(nat, mapping, packet.source_hi, packet.source_lo, remote_port, state, now)


@kernel
def _track(settings: Row, flow: Row, direction: Word, flags: Word, now: Word) -> None:
    """A TCP segment of a flow was seen: the next state of the table, and when the flow expires."""
    state = np.int64(flow.state)
    if state == ESTABLISHED and flags & (FIN_FLAG | SYN_FLAG | RST_FLAG) == 0:
        flow.seen = now
        return
    if flow.packets_out + flow.packets_in == 0:
        flow.seen = now  # what opened the flow has already told its state
        return
    segment = DATA
    if flags & RST_FLAG:
        segment = RST
    elif flags & SYN_FLAG:
        segment = SYN
    elif flags & FIN_FLAG:
        segment = FIN
    after = NEXT[(state * 2 + direction) * 4 + segment]
    if after != state:
        flow.timeout = timeout_of(settings, TCP, after)
        flow.seen = now
        flow.state = after
    elif segment != RST and state != BOTH_FIN:
        flow.seen = now


@kernel
def _is_request(packet: Row) -> bool:
    """An ICMP query, which begins a session from inside."""
    if packet.version == 6:
        return packet.icmp_type == ECHO_REQUEST6
    return packet.icmp_type == ECHO_REQUEST


@kernel
def _is_reply(packet: Row) -> bool:
    if packet.version == 6:
        return packet.icmp_type == ECHO_REPLY6
    return packet.icmp_type == ECHO_REPLY
