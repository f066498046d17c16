"""A TCP segment of a flow was seen: does it count, what does it tell of the two windows, and what is the flow's next state.

Of each side the flow knows `next_sequence` (SND.NXT), the highest acknowledgment it sent (RCV.NXT, `acknowledged`) and how
far above that it offered to receive (`window`). The inside is believed about its own connection: it can harm nobody else.
What comes from outside may be forged by anyone who can guess ports, so it changes the flow only when its sequence number is
one that the inside would accept (RFC 5961 9, RFC 7857 2.2):

- a RST, from either side, only when it is exactly what its receiver expects next, or what its sender was seen to send up
  to; one that is elsewhere in the window passes and changes nothing, because the receiver answers it with a challenge ACK;
  from outside, one beyond the window is dropped;
- a SYN that is not the answer to one of the inside changes nothing while the inside has a connection;
- data and FIN outside the window pass (the receiver answers them), but neither change nor prolong anything.

A RST that was wrongly believed does no harm: the flow lives on in TRANS, and the next data segment brings it back. Segments
are not dropped otherwise, so that a doubtful window never breaks a connection. `scale` holds what is known of a side; the
unit of `window` is 2^shift octets when both sides offered scaling, else one octet (RFC 7323 2.2). Sequence numbers are
compared modulo 2^32. A super-packet is one long segment.

Sides are handed on as np.int64: for a literal, the compiler would make a kernel of its own.
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Octets, Row, Word, kernel
from egressvpn.nat.tables import CONFIRMED, MILLISECOND
from egressvpn.nat.tcp import (
    BOTH_FIN,
    CLIENT,
    CLIENT_FIN,
    DATA,
    ESTABLISHED,
    FIN,
    INIT,
    NEXT,
    OPENING,
    RST,
    SEGMENTS,
    SERVER,
    SERVER_FIN,
    SYN,
    SYN_ACK,
    TIMER,
    TRANS,
)
from egressvpn.packet.octets import be16, be32
from egressvpn.verdict import Verdict

PASS: Final = int(Verdict.PASS)
TCP_OUT_OF_WINDOW: Final = int(Verdict.TCP_OUT_OF_WINDOW)

FIN_FLAG: Final = 0x01
SYN_FLAG: Final = 0x02
RST_FLAG: Final = 0x04
ACK_FLAG: Final = 0x10

# `scale` of a side.
SHIFT: Final = 0x0F
OFFERED: Final = 0x10  # it can scale, or may
SENT: Final = 0x20  # `next_sequence` is known
ACKED: Final = 0x40  # `acknowledged` and `window` are known

MAX_SHIFT: Final = 14  # RFC 7323 2.3
UNKNOWN_SCALE: Final = OFFERED | MAX_SHIFT  # its SYN was not seen: it may be as much as there is
SCALE_OPTION: Final = 3
MAX_WINDOW: Final = 1 << 30
REACH: Final = 66_000  # octets below what was acknowledged that are still taken for a repetition, whatever the window; Linux's value
HALF: Final = 1 << 31
WRAP: Final = (1 << 32) - 1


@kernel
def opening_state(flags: Word) -> Word:
    """State of a flow that a segment from inside begins. Without a SYN, or with the answer to one, it was begun without us."""
    return INIT if flags & (SYN_FLAG | ACK_FLAG) == SYN_FLAG else TRANS


@kernel
def track(flow: Row, direction: Word, packet: Row, buffer: Octets, now: Word) -> Word:
    """Take a segment of the flow into account, also the one that began it. PASS, or why it must be dropped; then nothing has changed.

    An unconfirmed flow is not prolonged from outside; a RST from inside confirms none (RFC 7857 7.1): that is the caller's.
    """
    side = np.int64(direction)
    kind = _kind(packet.tcp_flags)
    state = np.int64(flow.state)
    known = (np.int64(flow.scale[CLIENT]) | np.int64(flow.scale[SERVER])) & SENT
    if kind == RST:
        judged = _judge_reset(flow, state, side, packet, buffer)
    elif kind == DATA or kind == FIN:
        judged = _learn(flow, side, packet, buffer)
    elif side == CLIENT:
        judged = _learn_own_syn(flow, state, packet, buffer, kind)
    else:
        judged = _learn_foreign_syn(flow, state, packet, buffer, kind)
    if judged < 0:
        return -judged
    if judged == 0:
        return PASS
    after = NEXT[(state * 2 + side) * SEGMENTS + kind]
    if known == 0 and state == TRANS:
        after = state  # it began the flow, which tells its state already
    if after != state:
        flow.state = after
    elif kind == RST or state == BOTH_FIN or (side == SERVER and TIMER[state] == OPENING):
        return PASS
    if side == CLIENT or np.int64(flow.role) & CONFIRMED != 0:
        flow.seen = (now // MILLISECOND) & WRAP
    return PASS


@kernel
def plausible_sequence(flow: Row, side: Word, sequence: Word) -> bool:
    """Whether a segment that an ICMP error quotes, sent by `side`, may be under way (RFC 5927 4.1): sent and not acknowledged."""
    other = 1 - side
    if np.int64(flow.scale[side]) & SENT == 0 or np.int64(flow.scale[other]) & ACKED == 0:
        return True
    if _ahead(sequence, np.int64(flow.acknowledged[other])) < 0:
        return False
    return _ahead(np.int64(flow.next_sequence[side]), sequence) >= 0


@kernel
def offered(flow: Row, side: Word) -> Word:
    """Octets above `acknowledged` that the side is ready to receive."""
    return np.int64(flow.window[side]) << _shift(flow, side)


@kernel
def _kind(flags: Word) -> Word:
    if flags & (SYN_FLAG | FIN_FLAG | RST_FLAG) == 0:
        return DATA
    if flags & RST_FLAG:
        return RST
    if flags & SYN_FLAG:
        return SYN_ACK if flags & ACK_FLAG else SYN
    return FIN


@kernel
def _judge_reset(flow: Row, state: Word, sender: Word, packet: Row, buffer: Octets) -> Word:
    """1: it ends the connection, 0: it passes, negative: the verdict."""
    receiver = 1 - sender
    sequence = be32(buffer, packet.transport + 4)
    if np.int64(flow.scale[receiver]) & ACKED == 0:
        # the receiver is waiting for the answer to its SYN and believes one that acknowledges it (RFC 9293 3.10.7.3)
        if packet.tcp_flags & ACK_FLAG == 0 or np.int64(flow.scale[receiver]) & SENT == 0:
            return 0
        return 1 if be32(buffer, packet.transport + 8) == np.int64(flow.next_sequence[receiver]) else 0
    expected = np.int64(flow.acknowledged[receiver])
    if sequence == expected:
        return 1
    if np.int64(flow.scale[sender]) & SENT != 0 and sequence == np.int64(flow.next_sequence[sender]):
        return 1
    if sender == CLIENT or (state != ESTABLISHED and state != CLIENT_FIN and state != SERVER_FIN):
        return 0
    above = _ahead(sequence, expected)
    return 0 if 0 <= above <= offered(flow, receiver) else -TCP_OUT_OF_WINDOW


@kernel
def _learn(flow: Row, side: Word, packet: Row, buffer: Octets) -> Word:
    """Take sequence number, acknowledgment and window of a segment that is no SYN and no RST. 1: it counts."""
    sequence = be32(buffer, packet.transport + 4)
    end = (sequence + _length(packet)) & WRAP
    other = 1 - side
    mine, theirs = np.int64(flow.scale[side]), np.int64(flow.scale[other])
    if side == CLIENT and (mine | theirs) & SENT == 0:
        flow.scale[CLIENT] = UNKNOWN_SCALE
        flow.scale[SERVER] = UNKNOWN_SCALE
        mine = np.int64(UNKNOWN_SCALE)
    if side == SERVER:
        if theirs & ACKED:
            window = offered(flow, np.int64(CLIENT))
            expected = np.int64(flow.acknowledged[CLIENT])
            if _ahead(sequence, expected) > window or _ahead(end, expected) < -max(window, REACH):
                return 0
        if mine & SENT == 0:
            return 1  # before its SYN it has nothing to say
    if mine & SENT == 0 or _ahead(end, np.int64(flow.next_sequence[side])) > 0:
        flow.next_sequence[side] = end
        flow.scale[side] = np.int64(flow.scale[side]) | SENT
    if packet.tcp_flags & ACK_FLAG:
        _learn_acknowledgment(flow, side, packet, buffer, _shift(flow, side))
    return 1


@kernel
def _learn_acknowledgment(flow: Row, side: Word, packet: Row, buffer: Octets, shift: Word) -> None:
    """`shift`: how the segment's window field is scaled. The server can acknowledge only what the client has sent."""
    value = be32(buffer, packet.transport + 8)
    other = 1 - side
    mine, theirs = np.int64(flow.scale[side]), np.int64(flow.scale[other])
    sent = np.int64(flow.next_sequence[other])
    if side == SERVER and (theirs & SENT == 0 or not 0 <= _ahead(sent, value) <= MAX_WINDOW):
        return
    best = be16(buffer, packet.transport + 14) << shift
    if mine & ACKED:
        advance = _ahead(value, np.int64(flow.acknowledged[side]))
        if advance < 0:
            return
        best = max(best, offered(flow, side) - advance)
    unit = _shift(flow, side)
    flow.acknowledged[side] = value
    flow.window[side] = min((best + (1 << unit) - 1) >> unit, 0xFFFF)
    flow.scale[side] = mine | ACKED
    if side == CLIENT and (theirs & SENT == 0 or _ahead(value, sent) > 0):
        flow.next_sequence[SERVER] = value
        flow.scale[SERVER] = theirs | SENT


@kernel
def _learn_own_syn(flow: Row, state: Word, packet: Row, buffer: Octets, kind: Word) -> Word:
    """A SYN from inside: unless it is a repetition, the client knows nothing of what was before."""
    end = (be32(buffer, packet.transport + 4) + 1 + _length(packet)) & WRAP
    mine, theirs = np.int64(flow.scale[CLIENT]), np.int64(flow.scale[SERVER])
    again = mine & SENT != 0 and 0 <= _ahead(np.int64(flow.next_sequence[CLIENT]), end) <= REACH
    if not again or state == BOTH_FIN or state == TRANS:
        flow.next_sequence[CLIENT] = end
        flow.scale[CLIENT] = SENT | _scale_option(packet, buffer)
        flow.scale[SERVER] = theirs & ~ACKED if kind == SYN_ACK else theirs & ~(ACKED | SENT)
    if kind == SYN:
        return 1
    gap = _ahead(np.int64(flow.next_sequence[SERVER]), be32(buffer, packet.transport + 8))
    if np.int64(flow.scale[SERVER]) & SENT == 0 or not 0 <= gap <= REACH:
        flow.scale[SERVER] = UNKNOWN_SCALE  # it answers a SYN that was not believed or not seen
        flow.scale[CLIENT] = np.int64(flow.scale[CLIENT]) & ~ACKED
    _learn_acknowledgment(flow, np.int64(CLIENT), packet, buffer, np.int64(0))
    return 1


@kernel
def _learn_foreign_syn(flow: Row, state: Word, packet: Row, buffer: Octets, kind: Word) -> Word:
    """A SYN from outside counts while the client has not acknowledged anything, with ACK only when it answers the client's."""
    client = np.int64(flow.scale[CLIENT])
    if client & ACKED:
        if kind == SYN_ACK or state != BOTH_FIN:
            return 0
        flow.scale[CLIENT] = client & ~ACKED
    elif kind == SYN_ACK:
        gap = _ahead(np.int64(flow.next_sequence[CLIENT]), be32(buffer, packet.transport + 8))
        if client & SENT == 0 or not 0 <= gap <= REACH:
            return 0
    flow.next_sequence[SERVER] = (be32(buffer, packet.transport + 4) + 1 + _length(packet)) & WRAP
    flow.scale[SERVER] = SENT | _scale_option(packet, buffer)
    if kind == SYN_ACK:
        _learn_acknowledgment(flow, np.int64(SERVER), packet, buffer, np.int64(0))
    return 1


@kernel
def _length(packet: Row) -> Word:
    """Sequence numbers that the segment takes, its SYN not counted."""
    return packet.start + packet.length - packet.payload + (packet.tcp_flags & FIN_FLAG)


@kernel
def _shift(flow: Row, side: Word) -> Word:
    """By how much the side's windows are scaled: only when both can."""
    if np.int64(flow.scale[CLIENT]) & np.int64(flow.scale[SERVER]) & OFFERED == 0:
        return np.int64(0)
    return np.int64(flow.scale[side]) & SHIFT


@kernel
def _scale_option(packet: Row, buffer: Octets) -> Word:
    """What a SYN says of window scaling. Broken options say nothing."""
    offset = packet.transport + 20
    while offset + 1 < packet.payload:
        kind = np.int64(buffer[offset])
        if kind == 0:
            return np.int64(0)
        if kind == 1:
            offset += 1
            continue
        size = np.int64(buffer[offset + 1])
        if size < 2 or offset + size > packet.payload:
            return np.int64(0)
        if kind == SCALE_OPTION and size == 3:
            shift = np.int64(buffer[offset + 2])
            return OFFERED | (shift if shift < MAX_SHIFT else MAX_SHIFT)
        offset += size
    return np.int64(0)


@kernel
def _ahead(sequence: Word, other: Word) -> Word:
    """How far a sequence number is after another, modulo 2^32: from -2^31 to 2^31 - 1."""
    return ((sequence - other + HALF) & WRAP) - HALF
