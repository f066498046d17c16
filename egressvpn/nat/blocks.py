"""Blocks of ports: given to a device, held when their last port is freed, free again (RFC 6888 REQ-8, RFC 7422).

    FREE -- give --> OWNED -- last port freed --> HELD -- hold_down over --> FREE
                       ^------ give, same identity ----'

A block covers TCP, UDP and ICMP identifiers alike. All blocks of a device are of the pool address it is paired with; only a
device without any may be paired with another address of its group. Owned and held dynamic blocks together are at most `max_blocks`.
A predefined block is its device's alone and stays owned until the device goes.

A block's `state`, `owner`, `identity` and `hold_until` are the truth; every list and count can be rebuilt from them and `ports`.
Order: the truth says OWNED, then the journal says given, then a port is used; the journal says taken back, then the truth says
HELD. So after a crash anywhere no port was used that the journal does not know of: an owned block without ports is held again.
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Word, inlined, kernel
from egressvpn.nat.block_lists import (
    link_block,
    link_held,
    link_open,
    number_of,
    orphan,
    pool_of,
    predefined,
    put_free,
    scattered,
    take_free,
    unlink_block,
    unlink_held,
    unlink_open,
)
from egressvpn.nat.journal import record
from egressvpn.nat.keys import draw, siphash2
from egressvpn.nat.port_lists import block_of_port, class_size, first_port, ports_of_block
from egressvpn.nat.tables import (
    BLOCK_FREE,
    BLOCK_GIVEN,
    BLOCK_HELD,
    BLOCK_OWNED,
    BLOCK_TAKEN_BACK,
    PORT_CLASSES,
    NatTables,
)
from egressvpn.verdict import Verdict

RELEASES: Final = 4  # expired holds that end with each block given: more than come, so none stay for long
PAIRING_LOOKS: Final = 64  # addresses looked at when a device is to be paired anew
_POSITIVE: Final = (1 << 63) - 1

PASS: Final = int(Verdict.PASS)
PORTS_EXHAUSTED: Final = int(Verdict.PORTS_EXHAUSTED)
QUOTA_EXCEEDED: Final = int(Verdict.QUOTA_EXCEEDED)
NO_EXTERNAL_ADDRESS: Final = int(Verdict.NO_EXTERNAL_ADDRESS)


@kernel
def block_low(nat: NatTables, row: Word) -> Word:
    """First port of a block."""
    return first_port(nat.pool[pool_of(nat, row)], number_of(nat, row))


@kernel
def block_high(nat: NatTables, row: Word) -> Word:
    """Last port of a block."""
    return block_low(nat, row) + ports_of_block(nat.pool[pool_of(nat, row)], number_of(nat, row)) - 1


@kernel
def give(nat: NatTables, device: Word, now: Word) -> Word:
    """Another block for a device, all of its ports free; or minus the verdict."""
    verdict, slot, row = choose(nat, device, now)
    if verdict != PASS:
        if verdict == PORTS_EXHAUSTED:
            nat.pool[slot].exhausted += 1
        return -verdict
    if row == 0:
        release_expired(nat, slot, now, RELEASES)
        at = (draw(nat.settings[0]) & _POSITIVE) % nat.pool[slot].free
        row = np.int64(nat.free_blocks[slot * (nat.blocks.size // nat.pool.size) + at])
    nat.subscribers[device].external4 = slot
    _own(nat, row, device, now)
    return row


@inlined
def choose(nat: NatTables, device: Word, now: Word) -> tuple[Word, Word, Word]:
    """Which block a device would be given: verdict, pool slot, block (0: a free one of the slot). Changes nothing."""
    subscriber = nat.subscribers[device]
    slot = subscriber.external4
    if slot == 0 or nat.pool[slot].address == 0 or nat.pool[slot].ending != 0:
        return NO_EXTERNAL_ADDRESS, slot, np.int64(0)
    row = _predefined_block(nat, device, slot, now)
    if row != 0:
        return PASS, slot, row
    first = subscriber.first_block
    if first != 0 and np.int64(nat.blocks[first].state) == BLOCK_HELD:
        return PASS, slot, first
    if subscriber.blocks >= nat.pool[slot].max_blocks:
        return QUOTA_EXCEEDED, slot, np.int64(0)
    row = _orphan(nat, device, slot)
    if row != 0:
        return PASS, pool_of(nat, row), row
    if _has_free(nat, slot, now):
        return PASS, slot, np.int64(0)
    if first == 0 and subscriber.fixed == 0:
        other = _other_address(nat, device, slot, now)
        if other != 0:
            return PASS, other, np.int64(0)
    return PORTS_EXHAUSTED, slot, np.int64(0)


@kernel
def hold(nat: NatTables, row: Word, now: Word) -> None:
    """An owned block whose last port was freed: taken back, and nobody else's before hold_down is over."""
    withdraw(nat, row, now)
    for port_class in range(PORT_CLASSES):
        if np.int64(nat.blocks[row].free[port_class]) != 0:
            unlink_open(nat, row, port_class)
    unlink_block(nat, row)
    link_held(nat, row)


@inlined
def withdraw(nat: NatTables, row: Word, now: Word) -> None:
    """The truth about a block that is held from now on."""
    block, settings = nat.blocks[row], nat.settings[0]
    record(nat, BLOCK_TAKEN_BACK, block.identity, pool_of(nat, row), block_low(nat, row), block_high(nat, row), now)
    settings.blocks_taken_back += 1
    block.hold_until = now + settings.hold_down
    block.state = BLOCK_HELD


@kernel
def release_expired(nat: NatTables, slot: Word, now: Word, budget: Word) -> Word:
    """Free at most `budget` held blocks of an address whose time is over. Returns how many."""
    done = np.int64(0)
    while done < budget:
        row = nat.pool[slot].held_first
        if row == 0 or nat.blocks[row].hold_until > now:
            break
        release(nat, row)
        done += 1
    return done


@kernel
def release(nat: NatTables, row: Word) -> None:
    """A held block becomes free."""
    block = nat.blocks[row]
    unlink_held(nat, row)
    block.state = BLOCK_FREE
    block.owner = 0
    block.identity = 0
    if not predefined(nat, row):
        put_free(nat, row)


@kernel
def release_device(nat: NatTables, device: Word, now: Word, held: Word) -> None:
    """The device goes; its mappings have ended before. Its blocks stay held for its identity, or (`held` 0) are free at once."""
    subscriber = nat.subscribers[device]
    row = subscriber.first_block
    while row != 0:
        block = nat.blocks[row]
        after = np.int64(block.list_next)
        if np.int64(block.state) == BLOCK_OWNED and np.int64(block.used) == 0:
            hold(nat, row, now)
        if np.int64(block.state) == BLOCK_HELD:
            if held == 0:
                release(nat, row)
            else:
                orphan(nat, row)
        row = after


@kernel
def hold_block(nat: NatTables, slot: Word, port_low: Word, identity: Word, hold_until: Word) -> Word:
    """A block that an earlier run of the gateway had given: hold the free block that contains a port. 1, or 0 when there is none."""
    if slot <= 0 or slot >= nat.pool.size or nat.pool[slot].address == 0:
        return 0
    number = block_of_port(nat.pool[slot], port_low)
    row = slot * (nat.blocks.size // nat.pool.size) + number
    if number < 0 or np.int64(nat.blocks[row].state) != BLOCK_FREE:
        return 0
    block = nat.blocks[row]
    if not predefined(nat, row):
        take_free(nat, row)
    block.owner = 0
    block.identity = identity
    block.hold_until = hold_until
    block.state = BLOCK_HELD
    link_held(nat, row)
    return 1


@inlined
def _own(nat: NatTables, row: Word, device: Word, now: Word) -> None:
    """A free block, or one that is held for this identity, becomes the device's."""
    block, identity = nat.blocks[row], nat.subscribers[device].identity
    if np.int64(block.state) == BLOCK_HELD:
        unlink_held(nat, row)
    elif not predefined(nat, row):
        take_free(nat, row)
    block.owner = device
    block.identity = identity
    block.given = now
    block.used = 0
    block.state = BLOCK_OWNED
    slot, number = pool_of(nat, row), number_of(nat, row)
    record(nat, BLOCK_GIVEN, identity, slot, block_low(nat, row), block_high(nat, row), now)
    nat.settings[0].blocks_given += 1
    link_block(nat, row, 0)
    first, count = first_port(nat.pool[slot], number), ports_of_block(nat.pool[slot], number)
    for port_class in range(PORT_CLASSES):
        size = class_size(first, count, port_class)
        block.free[port_class] = size
        if size != 0:
            link_open(nat, row, port_class)


@inlined
def _predefined_block(nat: NatTables, device: Word, slot: Word, now: Word) -> Word:
    """The device's predefined block when it does not own it yet and may have it; 0."""
    subscriber = nat.subscribers[device]
    if subscriber.fixed <= 0 or subscriber.fixed > nat.pool[slot].fixed_blocks:
        return 0
    row = slot * (nat.blocks.size // nat.pool.size) + subscriber.fixed - 1
    block = nat.blocks[row]
    if np.int64(block.state) == BLOCK_OWNED:
        return 0
    if np.int64(block.state) == BLOCK_HELD and block.identity != subscriber.identity and block.hold_until > now:
        return 0
    return row


@inlined
def _orphan(nat: NatTables, device: Word, slot: Word) -> Word:
    """A held block that this identity had before; of another address of the group only when the device has no block; 0."""
    subscriber = nat.subscribers[device]
    if subscriber.identity == 0:
        return 0
    row = np.int64(nat.orphans[scattered(subscriber.identity, nat.orphans.size)])
    while row != 0:
        block, home = nat.blocks[row], pool_of(nat, row)
        if block.identity == subscriber.identity and not predefined(nat, row):
            if home == slot:
                return row
            pool = nat.pool[home]
            if subscriber.first_block == 0 and subscriber.fixed == 0 and pool.group == nat.pool[slot].group and pool.ending == 0:
                return row
        row = np.int64(block.list_next)
    return 0


@inlined
def _has_free(nat: NatTables, slot: Word, now: Word) -> bool:
    """An address has a free block, or one whose hold is over."""
    pool = nat.pool[slot]
    if pool.free > 0:
        return True
    return pool.held_first != 0 and nat.blocks[pool.held_first].hold_until <= now


@inlined
def _other_address(nat: NatTables, device: Word, slot: Word, now: Word) -> Word:
    """Another address of the group that has a free block, among PAIRING_LOOKS from a random one on; 0."""
    settings, slots = nat.settings[0], nat.pool.size - 1
    start = siphash2(settings.key0, settings.key1, device, now) & _POSITIVE
    for step in range(min(slots, PAIRING_LOOKS)):
        other = 1 + (start + step) % slots
        pool = nat.pool[other]
        if pool.address != 0 and pool.ending == 0 and pool.group == nat.pool[slot].group and _has_free(nat, other, now):
            return other
    return 0
