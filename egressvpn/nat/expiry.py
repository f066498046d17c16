"""Ending flows: those whose time has come, a device's, a pool address's. What depends on time is done in bounded steps.

A flow that a look-up finds is judged by its own time, however late `expire` is. A mapping ends when its last confirmed flow is
removed: a tick of the wheel after that flow's time, and what a backlog takes.
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Word, kernel
from egressvpn.nat import wheel
from egressvpn.nat.blocks import release_device, release_expired
from egressvpn.nat.flows import remove_flow
from egressvpn.nat.keys import V6
from egressvpn.nat.pools import clear_pool
from egressvpn.nat.tables import HOME, TICK_SHIFT, WHEEL, NatTables

STEP: Final = 512  # entries of the wheel per call: well below a millisecond, most of it cache misses
SUBSCRIBERS_PER_ENTRY: Final = 16  # looking at a device that is not concerned costs that much less than ending a flow


@kernel
def expire(nat: NatTables, budget: Word, now: Word) -> Word:
    """Look at up to `budget` flows that may have had their time, and free blocks of ports whose hold is over.

    Returns how many that were: if `budget`, there may be more.
    """
    settings = nat.settings[0]
    last = now >> TICK_SHIFT
    tick = max(settings.tick, last + 1 if settings.flows == 0 else last - WHEEL + 1)
    handled = np.int64(0)
    while tick <= last:
        slot = np.int64(nat.wheel[tick & (WHEEL - 1)])
        if slot == 0:
            tick += 1
            continue
        if handled == budget:
            break
        settings.tick = tick
        _visit(nat, slot, now)
        handled += 1
    settings.tick = tick
    for pool in range(1, nat.pool.size):
        handled += release_expired(nat, pool, now, budget - handled)
    return handled


@kernel
def _visit(nat: NatTables, slot: Word, now: Word) -> None:
    """End a flow, or put it where it is due now; that is never the slot of this tick."""
    settings, flow = nat.settings[0], nat.flows[slot]
    if np.int64(nat.flows[np.int64(flow.mapping)].role) & HOME == 0 or wheel.expired(settings, flow, now):
        remove_flow(nat, slot, now)
        settings.flows_expired += 1
        return
    wheel.clear(nat, slot)
    wheel.arm(nat, slot, now)


@kernel
def drop_flows(nat: NatTables, device: Word, now: Word) -> Word:
    """End every flow and mapping of a device. Returns how many flows that were."""
    if device <= 0 or device >= nat.subscribers.size:
        return 0
    owner = nat.subscribers[device]
    removed = 0
    while owner.first != 0:
        remove_flow(nat, owner.first, now)
        removed += 1
    return removed


@kernel
def drop_flows6(nat: NatTables, device: Word, now: Word) -> Word:
    """End the IPv6 flows of a device, before it gets another IPv6 address: they have it from the device."""
    if device <= 0 or device >= nat.subscribers.size:
        return 0
    return _drop(nat, device, np.int64(V6), nat.flows.size * SUBSCRIBERS_PER_ENTRY, now)


@kernel
def remove_device(nat: NatTables, device: Word, now: Word) -> Word:
    """End all flows of a device and take its external addresses and blocks away; nobody else has its ports for a while."""
    if device <= 0 or device >= nat.subscribers.size:
        return 0
    removed = drop_flows(nat, device, now)
    release_device(nat, device, now, np.int64(1))
    owner = nat.subscribers[device]
    owner.identity = 0
    owner.external4 = 0
    owner.external6_hi = 0
    owner.external6_lo = 0
    owner.fixed = 0
    return removed


@kernel
def end_address(nat: NatTables, slot: Word, budget: Word, now: Word) -> Word:
    """Take a pool address away, in steps: 0, call again; 1, it is gone. Flows on it end, its ports are nobody's at once.

    From the first call on nobody gets a port of it.
    """
    address = nat.pool[slot]
    if address.address == 0:
        return 1
    device = max(address.ending, 1)
    left = budget * SUBSCRIBERS_PER_ENTRY
    while device < nat.subscribers.size and left > 0:
        address.ending = device
        left -= 1
        owner = nat.subscribers[device]
        if owner.external4 == slot:
            left -= _drop(nat, device, np.int64(0), left, now) * SUBSCRIBERS_PER_ENTRY
            if left <= 0:
                return 0  # it may have more
            left -= owner.flows  # they were looked at
            release_device(nat, device, now, np.int64(0))
            owner.external4 = 0
        device += 1
    address.ending = device
    if device < nat.subscribers.size:
        return 0
    clear_pool(nat, slot)
    return 1


@kernel
def _drop(nat: NatTables, device: Word, version: Word, left: Word, now: Word) -> Word:
    """End the flows of a device that are IPv6 (V6) or IPv4 (0), as many as `left` allows. Returns how many."""
    slot = nat.subscribers[device].first
    removed = 0
    while slot != 0 and removed * SUBSCRIBERS_PER_ENTRY < left:
        after = np.int64(nat.flows[slot].list_next)
        if nat.flows[slot].key & V6 == version:
            remove_flow(nat, slot, now)
            removed += 1
        slot = after
    return removed
