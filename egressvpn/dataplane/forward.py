"""Packets out of the tunnel that are not the common case, a whole packet of a known flow to somewhere outside.

    its last hop            an ICMP error to the device
    a fragment              waits until its datagram is whole, which then goes on as one packet and leaves in pieces again
    no flow yet             policy, limits, then a flow is opened; who is refused is told so
    an exempt destination   leaves as it is (RFC 6888 REQ-6)
    an address of our own   is turned round to the device behind it (hairpinning: RFC 4787 REQ-9), never written to the TUN

The hairpinned packet has the external endpoint of its sender as its source, and one hop less to live, so that a loop ends.
"""

from typing import Final

import numpy as np

from egressvpn.dataplane.answers import explain_refusal, note_error, note_unreachable, send_error
from egressvpn.dataplane.bundle import Bundle
from egressvpn.dataplane.coalesce import emit
from egressvpn.dataplane.egress import maybe_ours, ours
from egressvpn.dataplane.identification import identify
from egressvpn.dataplane.local import ERROR_LENGTH, WAITING, WAITING_PACKETS, WAITING_WORDS
from egressvpn.dataplane.pieces import send_pieces
from egressvpn.dataplane.reassembly import collect, release
from egressvpn.dataplane.tables import Counter
from egressvpn.dataplane.transmit import NO_ENDPOINT, transmit
from egressvpn.kernel import Octets, Row, Word, inlined, kernel
from egressvpn.nat.translate import inbound, open_outbound, outbound
from egressvpn.packet.fragments import DONT_FRAGMENT
from egressvpn.packet.headers import WHOLE, parse
from egressvpn.packet.octets import be16
from egressvpn.packet.rewrite import clamp_mss, decrement_ttl, rewrite_destination
from egressvpn.policy.deny import denied, exempt
from egressvpn.policy.martians import from_nowhere, to_itself
from egressvpn.verdict import Verdict

PASS: Final = int(Verdict.PASS)
NO_MAPPING: Final = int(Verdict.NO_MAPPING)
MARTIAN: Final = int(Verdict.MARTIAN)
TTL_EXCEEDED: Final = int(Verdict.TTL_EXCEEDED)
PACKET_TOO_BIG: Final = int(Verdict.PACKET_TOO_BIG)
DROPS: Final = int(Counter.DROPS)
EXEMPT: Final = -1


@kernel
def put_off(words: Octets, number: Word, packet: Row, verdict: Word) -> None:
    """Such a packet of a device, and what `outbound` said of it or TTL_EXCEEDED, until its datagram is done with.

    So `forward` is no part of what handles the common case; every kernel is optimised anew with all that it calls.
    """
    at = WAITING_PACKETS + words[WAITING] * WAITING_WORDS
    words[at] = number
    words[at + 1] = packet.start
    words[at + 2] = packet.length
    words[at + 3] = verdict
    words[WAITING] += 1


@kernel
def forward(b: Bundle, position: Word, now: Word) -> None:
    """Take a packet that was put off to where it goes, or count why it does not go on."""
    octets, packet, worker = b.local.octets, b.local.packet[0], b.work.worker[0]
    at, slot = WAITING_PACKETS + position * WAITING_WORDS, np.int64(0)
    number, verdict = b.local.words[at], b.local.words[at + 3]
    parse(octets, b.local.words[at + 1], b.local.words[at + 2], packet)
    if packet.fragment != WHOLE and verdict != TTL_EXCEEDED:
        slot = np.int64(-collect(b, number, packet, now))
        if slot <= 0:
            count_drop(b.work.counters, -slot)
            return
        verdict = np.int64(outbound(b.nat, number, packet, octets, now))
    if verdict != PASS:
        verdict = np.int64(_policy(b, packet, verdict))
    if verdict == NO_MAPPING:
        verdict = np.int64(open_outbound(b.nat, number, packet, now))
        if verdict == PASS:
            verdict = np.int64(outbound(b.nat, number, packet, octets, now))
    if verdict != PASS and verdict != EXEMPT:
        explain_refusal(b, number, packet, verdict, now)
    elif _depart(b, packet, slot, verdict):
        verdict = np.int64(_turn(b, number, packet, slot, now))
    elif slot > 0:
        verdict = np.int64(send_pieces(b, packet, slot, np.int64(0), now))
    else:
        verdict = np.int64(PASS)
        emit(b.local, b.work.counters, packet, worker.uso)
    if slot > 0:
        release(b.local, slot)
    count_drop(b.work.counters, verdict)


@inlined
def _turn(b: Bundle, number: Word, packet: Row, slot: Word, now: Word) -> Word:
    """A device's translated packet to an address of our own: in again, to the device behind it. Returns the verdict."""
    high, low, port = packet.destination_hi, packet.destination_lo, packet.destination_port
    verdict = np.int64(MARTIAN)
    if not to_itself(packet):
        verdict = np.int64(inbound(b.nat, packet, b.local.octets, now))
    if verdict == PASS:
        verdict = np.int64(deliver(b, number, packet, slot, high, low, port, now))
    if verdict == NO_ENDPOINT:
        rewrite_destination(b.local.octets, packet, high, low, port)
        note_unreachable(b, number, packet, now)
    if b.local.words[ERROR_LENGTH] > 0:
        send_error(b, now)
    return verdict


@kernel
def count_drop(counters: Octets, verdict: Word) -> None:
    """A packet was not let through, unless the verdict is PASS."""
    if verdict != PASS:
        counters[DROPS + verdict] += 1


@kernel
def _policy(b: Bundle, packet: Row, verdict: Word) -> Word:
    """What is to be done with a packet that was not translated: EXEMPT, NO_MAPPING if it may open a flow, or why it may not go on."""
    if verdict == TTL_EXCEEDED:
        return verdict
    if from_nowhere(packet.version, packet.source_hi, packet.source_lo) or to_itself(packet):
        return MARTIAN
    if exempt(b.exempt, b.denied, packet.version, packet.destination_hi, packet.destination_lo):
        return EXEMPT
    if verdict == NO_MAPPING and packet.icmp_error == 0:
        refused = denied(b.denied, packet)
        return verdict if refused == PASS else refused
    return verdict


@kernel
def _depart(b: Bundle, packet: Row, slot: Word, verdict: Word) -> bool:
    """What every packet is given before it goes on. True: it goes to an address of our own."""
    octets, worker = b.local.octets, b.work.worker[0]
    decrement_ttl(octets, packet)
    clamp_mss(octets, packet, worker.mtu - 40, worker.mtu - 60)
    if verdict == EXEMPT:
        return False
    if packet.version == 4 and (slot > 0 or be16(octets, packet.start + 6) & DONT_FRAGMENT == 0):
        identify(b.work.identifications, b.nat.settings[0], octets, packet)
    hi, lo = packet.destination_hi, packet.destination_lo
    return maybe_ours(worker, packet.version, hi, lo) and ours(b, packet.version, hi, lo)


@kernel
def deliver(b: Bundle, sender: Word, packet: Row, slot: Word, high: Word, low: Word, port: Word, now: Word) -> Word:
    """A packet of a device (0: from outside) that was translated to its device, to that; then the destination endpoint it came with.

    One that does not fit the tunnel goes in pieces when it came so or may be cut; else its sender hears how much fits.
    """
    octets, mtu, four = b.local.octets, b.work.worker[0].mtu, packet.version == 4
    if packet.length <= mtu:
        verdict = np.int64(transmit(b, packet.owner, packet.start, packet.length, now))
    elif slot > 0 or (four and be16(octets, packet.start + 6) & DONT_FRAGMENT == 0):
        verdict = np.int64(send_pieces(b, packet, slot, packet.owner, now))
    else:
        verdict = np.int64(PACKET_TOO_BIG)
    if verdict == PACKET_TOO_BIG:
        rewrite_destination(octets, packet, high, low, port)
        kind, code = (3, 4) if four else (2, 0)
        note_error(b, sender, packet, kind, code, mtu, now)
    return verdict
