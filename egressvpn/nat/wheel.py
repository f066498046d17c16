"""When flows are looked at again: a hashed timer wheel over their records, and how long each may be idle.

Packets only write down when they saw a flow; nothing moves then. A flow is linked into the slot of the tick in which it is due.
When that tick comes, what was seen since is linked into the slot of its new due time, and the rest has expired: nobody ever
walks the table. A flow due more than a round away is looked at once a round.
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Row, Word, inlined, kernel
from egressvpn.nat.tables import MILLISECOND, TICK_SHIFT, WHEEL, NatTables
from egressvpn.nat.tcp import ACTIVE, OPEN, OPENING, TIMER
from egressvpn.packet.headers import UDP

MILLISECONDS: Final = 0xFFFFFFFF  # mask of times in flows


@inlined
def milliseconds(now: Word) -> Word:
    return (now // MILLISECOND) & MILLISECONDS


@inlined
def timeout_of(settings: Row, protocol: Word, state: Word) -> Word:
    """How long a flow in this state may be idle, in ms."""
    if state == ACTIVE:
        return settings.udp if protocol == UDP else settings.icmp
    timer = TIMER[state]
    if timer == OPEN:
        return settings.tcp_established
    return settings.tcp_opening if timer == OPENING else settings.tcp_closing


@inlined
def idle(flow: Row, now: Word) -> Word:
    """How long ago the flow was seen, in ms."""
    return (now // MILLISECOND - np.int64(flow.seen)) & MILLISECONDS


@inlined
def expired(settings: Row, flow: Row, now: Word) -> bool:
    return idle(flow, now) >= timeout_of(settings, (flow.key >> 32) & 0xFF, np.int64(flow.state))


@kernel
def arm(nat: NatTables, slot: Word, now: Word) -> None:
    """Link a flow that is in no slot into the slot of its due time."""
    settings, flow = nat.settings[0], nat.flows[slot]
    left = timeout_of(settings, (flow.key >> 32) & 0xFF, np.int64(flow.state)) - idle(flow, now)
    due = ((now + max(left, 0) * MILLISECOND) >> TICK_SHIFT) + 1
    due = max(settings.tick, min(due, settings.tick + WHEEL - 1))
    place = due & (WHEEL - 1)
    first = np.int64(nat.wheel[place])
    flow.wheel_next = first
    flow.wheel_prev = -(place + 1)
    if first != 0:
        nat.flows[first].wheel_prev = slot
    nat.wheel[place] = slot


@kernel
def clear(nat: NatTables, slot: Word) -> None:
    """Take a flow out of its slot."""
    flow = nat.flows[slot]
    before, after = np.int64(flow.wheel_prev), np.int64(flow.wheel_next)
    if after != 0:
        nat.flows[after].wheel_prev = before
    if before < 0:
        nat.wheel[-before - 1] = after
    else:
        nat.flows[before].wheel_next = after
