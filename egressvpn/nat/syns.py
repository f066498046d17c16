"""Unsolicited SYNs from outside wait 6 s for their answer (RFC 5382 REQ-4), so that a simultaneous open has its chance.

Only those that the filter stopped at a living mapping wait; a SYN to nobody is dropped in silence (REQ-4 a). When its time
has come, a SYN is forgotten if the inside has meanwhile sent to where it came from: then there is a flow. Else it is
answered with port unreachable, from the external address. An answer is never longer than the SYN, as its source may be
forged; a SYN that leaves no room for the quote an error needs (56 octets, 96 in IPv6) is not answered. The ring is bounded:
what finds it full is dropped in silence too.
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Octets, Row, Word, kernel
from egressvpn.nat.flows import find_flow, find_home_inbound
from egressvpn.nat.tables import SECOND, SYN_OCTETS, WAITING_SYNS, NatTables
from egressvpn.nat.wheel import expired
from egressvpn.packet.headers import TCP
from egressvpn.packet.icmp import build_error

TCP_INCOMING_SYN: Final = 6 * SECOND  # RFC 5382 REQ-4, RFC 6146 4
ANSWER_HEADERS4: Final = 28  # octets before the quote
ANSWER_HEADERS6: Final = 48
SHORTEST_QUOTE4: Final = 28  # header and the 8 octets that name the ports (RFC 792)
SHORTEST_QUOTE6: Final = 48
UNREACHABLE4: Final = 3
UNREACHABLE6: Final = 1
PORT_UNREACHABLE4: Final = 3
PORT_UNREACHABLE6: Final = 4


@kernel
def wait(nat: NatTables, packet: Row, buffer: Octets, now: Word) -> None:
    """Remember a SYN that was filtered, if there is room and it is long enough."""
    settings = nat.settings[0]
    shortest = ANSWER_HEADERS4 + SHORTEST_QUOTE4 if packet.version == 4 else ANSWER_HEADERS6 + SHORTEST_QUOTE6
    if packet.length < shortest or settings.syn_tail - settings.syn_head >= WAITING_SYNS:
        return
    entry = nat.syns[settings.syn_tail & (WAITING_SYNS - 1)]
    entry.due = now + TCP_INCOMING_SYN
    entry.external_hi = packet.destination_hi
    entry.external_lo = packet.destination_lo
    entry.remote_hi = packet.source_hi
    entry.remote_lo = packet.source_lo
    entry.ports = packet.destination_port << 16 | packet.source_port
    entry.length = packet.length
    for at in range(min(packet.length, SYN_OCTETS)):
        entry.octets[at] = buffer[packet.start + at]
    settings.syn_tail += 1


@kernel
def next_due(nat: NatTables, now: Word) -> Word:
    """Take the next SYN that has waited long enough and is to be answered out of the ring: its index, until more SYNs come. -1: none."""
    settings = nat.settings[0]
    while settings.syn_head != settings.syn_tail:
        index = settings.syn_head & (WAITING_SYNS - 1)
        if nat.syns[index].due > now:
            return -1
        settings.syn_head += 1
        if _unanswered(nat, nat.syns[index], now):
            return index
    return -1


@kernel
def build_answer(nat: NatTables, index: Word, out: Octets, at: Word) -> Word:
    """Write the ICMP error about a waiting SYN, ready to leave, to `out`. Returns its length, 0: none may be sent."""
    entry, quote = nat.syns[index], nat.quote[0]
    version = np.int64(entry.octets[0]) >> 4
    headers = ANSWER_HEADERS4 if version == 4 else ANSWER_HEADERS6
    room = min(entry.length - headers, SYN_OCTETS)
    for position in range(room):
        out[at + headers + position] = entry.octets[position]
    quote.start = at + headers
    quote.length = room
    quote.version = version
    quote.fragment = 0
    quote.icmp_type = -1
    quote.icmp_error = 0
    quote.source_hi = entry.remote_hi
    quote.source_lo = entry.remote_lo
    quote.destination_hi = entry.external_hi
    quote.destination_lo = entry.external_lo
    if version == 4:
        return build_error(out, at, out, quote, UNREACHABLE4, PORT_UNREACHABLE4, 0, 0, entry.external_lo)
    return build_error(out, at, out, quote, UNREACHABLE6, PORT_UNREACHABLE6, 0, entry.external_hi, entry.external_lo)


@kernel
def _unanswered(nat: NatTables, entry: Row, now: Word) -> bool:
    """Its mapping still lives and the inside has not sent to where it came from."""
    version = np.int64(entry.octets[0]) >> 4
    home = find_home_inbound(nat, version, TCP, entry.external_hi, entry.external_lo, (entry.ports >> 16) & 0xFFFF)
    if home == 0:
        return False
    slot = find_flow(nat, home, entry.remote_hi, entry.remote_lo, entry.ports & 0xFFFF)
    return slot == 0 or expired(nat.settings[0], nat.flows[slot], now)
