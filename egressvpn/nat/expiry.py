"""Removing what has had its time: a clock hand over the flow table, and all of a device at once.

Look-ups never see an expired flow, so the sweep only gives room and ports back; how often it runs changes nothing else.
"""

from egressvpn.kernel import Word, kernel
from egressvpn.nat.flows import expired, remove_flow
from egressvpn.nat.tables import NatTables
from egressvpn.nat.tcp import FREE


@kernel
def sweep(nat: NatTables, budget: Word, now: Word) -> Word:
    """Visit the next `budget` slots and remove the flows that have expired. Returns how many that were."""
    settings = nat.settings[0]
    high = settings.flow_high
    hand = settings.hand
    removed = 0
    for _ in range(min(budget, high)):
        hand = hand + 1 if hand < high else 1
        flow = nat.flows[hand]
        if flow.state != FREE and expired(flow, now):
            remove_flow(nat, hand)
            removed += 1
    settings.hand = hand
    settings.flows_expired += removed
    return removed


@kernel
def drop_flows(nat: NatTables, device: Word) -> Word:
    """Remove every flow and mapping of a device. Returns how many flows that were."""
    if device <= 0 or device >= nat.subscribers.size:
        return 0
    owner = nat.subscribers[device]
    removed = 0
    while owner.first != 0:
        remove_flow(nat, owner.first)
        removed += 1
    return removed


@kernel
def remove_device(nat: NatTables, device: Word) -> Word:
    """Take a device's external addresses away, then all its flows: none of its packets passes from here on."""
    if device <= 0 or device >= nat.subscribers.size:
        return 0
    owner = nat.subscribers[device]
    owner.external4 = 0
    owner.external6_hi = 0
    owner.external6_lo = 0
    return drop_flows(nat, device)
