"""What would be done with the first packet of a new flow, without doing it: `egressvpn explain`.

EXPLAINED: `first` is the verdict, and in the bits from 8 on the way it would take; `second` says where it would leave from.
"""

from typing import Final

import numpy as np

from egressvpn.dataplane.bundle import Bundle
from egressvpn.dataplane.channel import Event
from egressvpn.dataplane.egress import maybe_ours, ours
from egressvpn.dataplane.transmit import report
from egressvpn.kernel import Row, Word, kernel
from egressvpn.nat.blocks import block_high, block_low
from egressvpn.nat.translate import may_open
from egressvpn.packet.headers import ECHO_REQUEST, ECHO_REQUEST6, ICMP, ICMPV6, WHOLE
from egressvpn.policy.deny import denied, exempt
from egressvpn.verdict import Verdict
from egressvpn.wireguard.tables import ENABLED

EXPLAINED: Final = np.int64(Event.EXPLAINED)
PASS: Final = int(Verdict.PASS)
NOT_CONFIGURED: Final = int(Verdict.NOT_CONFIGURED)
DEVICE_DISABLED: Final = int(Verdict.DEVICE_DISABLED)
SOURCE_MISMATCH: Final = int(Verdict.SOURCE_MISMATCH)

WAY_SHIFT: Final = 8
TRANSLATED: Final = 0  # to the outside, by a flow of its own
EXEMPTED: Final = 1  # to an exempt destination, untranslated
TURNED: Final = 2  # to an address of our own, by a flow of its own: hairpinned
SLOT_SHIFT: Final = 32  # `second`: pool slot, then first and last port of the device's first block; 0: IPv6, or none yet
SYN: Final = 0x02


@kernel
def explain(b: Bundle, number: Word, now: Word) -> None:
    """Answer EXPLAIN, the command in work."""
    packet, command, way = b.local.packet[1], b.local.commands[0], TRANSLATED
    _describe(b, command, number, packet)
    version, hi, lo = packet.version, packet.destination_hi, packet.destination_lo
    if maybe_ours(b.work.worker[0], version, hi, lo) and ours(b, version, hi, lo):
        way = TURNED
    if b.work.worker[0].open == 0:
        verdict = NOT_CONFIGURED
    elif b.wg.devices[number].state != ENABLED:
        verdict = DEVICE_DISABLED
    elif packet.source_hi == 0 and packet.source_lo == 0:
        verdict = SOURCE_MISMATCH  # it has no address of this version
    elif exempt(b.exempt, b.denied, version, hi, lo):
        verdict, way = PASS, EXEMPTED
    else:
        verdict = denied(b.denied, packet)
        if verdict == PASS:
            verdict = may_open(b.nat, number, packet, now)
    b.local.events[0].second = _place(b, number) if version == 4 and way != EXEMPTED else 0
    report(b, EXPLAINED, number, command.index, way << WAY_SHIFT | verdict)
    b.local.events[0].second = 0


@kernel
def _describe(b: Bundle, command: Row, number: Word, packet: Row) -> None:
    """The packet that is asked about: from a port nothing was sent from yet."""
    device = b.wg.devices[number]
    packet.start = 0
    packet.length = 0
    packet.version = command.version
    packet.protocol = command.state
    packet.fragment = WHOLE
    packet.ttl = 64
    packet.source_hi = device.internal6_hi if command.version == 6 else 0
    packet.source_lo = device.internal6_lo if command.version == 6 else device.internal4
    packet.destination_hi = command.high
    packet.destination_lo = command.low
    packet.source_port = 0
    packet.destination_port = command.port_low
    packet.tcp_flags = SYN
    packet.icmp_type = -1
    if command.state == ICMP:
        packet.icmp_type = ECHO_REQUEST
    elif command.state == ICMPV6:
        packet.icmp_type = ECHO_REQUEST6
    packet.icmp_error = 0
    packet.partial = 0
    packet.segments = 1
    packet.owner = number
    packet.flow = 0


@kernel
def _place(b: Bundle, number: Word) -> Word:
    """The device's pool address and its first block."""
    owner = b.nat.subscribers[number]
    place = owner.external4 << SLOT_SHIFT
    if owner.first_block != 0:
        place |= block_low(b.nat, owner.first_block) << 16 | block_high(b.nat, owner.first_block)
    return place
