"""ICMP errors that the gateway makes itself: to a device whose packet it will not carry, and to who sent something from outside.

Bounded by one bucket for all, and by one for each device, so that none uses up what others need (RFC 1812 4.3.2.8).
Answers to waiting SYNs, which anyone outside may cause, are bounded apart. An error goes the way any packet goes: one for
an address of our own outside is for a device, not for the TUN.

    refused because                                            IPv4   IPv6
    policy denies the destination                              3/13   1/1     RFC 1812 5.2.7.1
    no port, no room for a flow, a quota, a rate               3/1    1/3     RFC 6888 REQ-11 B
    the device has no external address of that version         3/0    1/0     so that a program tries the other at once
    its TTL ran out                                            11/0   3/0
"""

from typing import Final

import numpy as np

from egressvpn.dataplane.bundle import Bundle
from egressvpn.dataplane.coalesce import emit
from egressvpn.dataplane.egress import maybe_ours, ours
from egressvpn.dataplane.local import ERROR_LENGTH, ICMP
from egressvpn.dataplane.tables import Counter
from egressvpn.dataplane.transmit import answer
from egressvpn.kernel import Row, Word, kernel
from egressvpn.nat.limits import take_error
from egressvpn.nat.syns import build_answer, next_due
from egressvpn.nat.translate import inbound
from egressvpn.packet.headers import parse
from egressvpn.packet.icmp import build_error
from egressvpn.verdict import Verdict

PASS: Final = int(Verdict.PASS)
POLICY_DENIED: Final = int(Verdict.POLICY_DENIED)
TTL_EXCEEDED: Final = int(Verdict.TTL_EXCEEDED)
NO_EXTERNAL_ADDRESS: Final = int(Verdict.NO_EXTERNAL_ADDRESS)
PORTS_EXHAUSTED: Final = int(Verdict.PORTS_EXHAUSTED)
FLOW_TABLE_FULL: Final = int(Verdict.FLOW_TABLE_FULL)
QUOTA_EXCEEDED: Final = int(Verdict.QUOTA_EXCEEDED)
RATE_EXCEEDED: Final = int(Verdict.RATE_EXCEEDED)
ICMP_SUPPRESSED: Final = int(Counter.ICMP_SUPPRESSED)
ICMP_ERRORS: Final = int(Counter.ICMP_ERRORS)

# Of waiting SYNs, per sweep: 50 a second, half of what all other errors may be. Honest ones are few, as a SYN waits only
# where the filter stopped it at a living mapping; and a full ring (nat/syns.py) is empty again after 20 s.
SYN_ANSWERS: Final = 5


@kernel
def explain_refusal(b: Bundle, number: Word, packet: Row, verdict: Word, now: Word) -> None:
    """Tell the device why its packet, as it came, is not carried; most verdicts are kept from it."""
    four = packet.version == 4
    if verdict == POLICY_DENIED:
        kind, code = (3, 13) if four else (1, 1)
    elif verdict == PORTS_EXHAUSTED or verdict == FLOW_TABLE_FULL or verdict == QUOTA_EXCEEDED or verdict == RATE_EXCEEDED:
        kind, code = (3, 1) if four else (1, 3)
    elif verdict == NO_EXTERNAL_ADDRESS:
        kind, code = (3, 0) if four else (1, 0)
    elif verdict == TTL_EXCEEDED:
        kind, code = (11, 0) if four else (3, 0)
    else:
        return
    worker = b.work.worker[0]
    high, low = worker.inner6_hi, worker.inner6_lo
    if four:
        high, low = np.int64(0), worker.inner4
    if high == 0 and low == 0:
        return
    if worker.icmp_tokens <= 0 or take_error(b.nat, number, now) == 0:
        b.work.counters[ICMP_SUPPRESSED] += 1
        return
    length = build_error(b.local.octets, ICMP, b.local.octets, packet, kind, code, 0, high, low)
    if length > 0:
        worker.icmp_tokens -= 1
        b.work.counters[ICMP_ERRORS] += 1
        answer(b, number, np.int64(ICMP), length, now)


@kernel
def note_error(b: Bundle, sender: Word, packet: Row, kind: Word, code: Word, info: Word, now: Word) -> None:
    """Make an error about a packet of a device to an address of our own, or from outside (0), as it came; `send_error` sends it.

    It comes from that packet's destination: from an address of this machine the kernel would take it for a forgery.
    """
    worker, octets = b.work.worker[0], b.local.octets
    if worker.icmp_tokens <= 0 or (sender != 0 and take_error(b.nat, sender, now) == 0):
        b.work.counters[ICMP_SUPPRESSED] += 1
        return
    hi, lo = packet.destination_hi, packet.destination_lo
    b.local.words[ERROR_LENGTH] = build_error(octets, ICMP, octets, packet, kind, code, info, hi, lo)
    if b.local.words[ERROR_LENGTH] > 0:
        worker.icmp_tokens -= 1


@kernel
def note_unreachable(b: Bundle, sender: Word, packet: Row, now: Word) -> None:
    """Host unreachable, address unreachable: nobody has its destination, or nobody knows where that device is (W20)."""
    kind, code = (3, 1) if packet.version == 4 else (1, 3)
    note_error(b, sender, packet, kind, code, np.int64(0), now)


@kernel
def send_error(b: Bundle, now: Word) -> None:
    """The error that stands at ICMP, to the TUN; to a device when it is for an address of our own."""
    packet, worker, length = b.local.packet[1], b.work.worker[0], b.local.words[ERROR_LENGTH]
    b.local.words[ERROR_LENGTH] = 0
    b.work.counters[ICMP_ERRORS] += 1
    parse(b.local.octets, ICMP, length, packet)
    hi, lo = packet.destination_hi, packet.destination_lo
    if not maybe_ours(worker, packet.version, hi, lo) or not ours(b, packet.version, hi, lo):
        emit(b.local, b.work.counters, packet, np.int64(0))
    elif inbound(b.nat, packet, b.local.octets, now) == PASS:
        answer(b, packet.owner, np.int64(ICMP), packet.length, now)


@kernel
def answer_waiting_syns(b: Bundle, now: Word) -> None:
    """Those that have waited their six seconds (nat/syns.py), a few at a time; they take nothing from other errors."""
    for _ in range(SYN_ANSWERS):
        index = next_due(b.nat, now)
        if index < 0:
            return
        b.local.words[ERROR_LENGTH] = build_answer(b.nat, index, b.local.octets, np.int64(ICMP))
        if b.local.words[ERROR_LENGTH] > 0:
            send_error(b, now)
