"""The lists that blocks are in, all doubly linked through their rows, so that every change is O(1).

- blocks of a device: held ones first, owned ones last (`list_prev` of the first names the last): one look finds a held one;
- open blocks of a device by port class: those with a free port of that kind and parity, a predefined block before all others;
- held dynamic blocks of an address, by the end of their hold;
- orphans: held blocks whose device is gone, in hash chains by the identity of that device;
- free blocks of an address: an array without order, of which a free block knows its place (`queue_next`).
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Word, inlined, kernel
from egressvpn.nat.tables import NatTables

_SCATTER: Final = 0x9E3779B1  # 2^32 over the golden ratio: consecutive numbers come apart


@kernel
def scattered(number: Word, places: Word) -> Word:
    """A place for a number that the operator chose, among a power of two of places."""
    return ((number * _SCATTER) >> 16) & (places - 1)


@inlined
def pool_of(nat: NatTables, row: Word) -> Word:
    """Pool slot of a block."""
    return row // (nat.blocks.size // nat.pool.size)


@inlined
def number_of(nat: NatTables, row: Word) -> Word:
    """Number of a block among those of its address."""
    return row % (nat.blocks.size // nat.pool.size)


@inlined
def predefined(nat: NatTables, row: Word) -> bool:
    return number_of(nat, row) < nat.pool[pool_of(nat, row)].fixed_blocks


@kernel
def link_block(nat: NatTables, row: Word, first: Word) -> None:
    """Into the list of its owner, at the front (1) or at the back (0). Predefined blocks are no part of the owner's quota."""
    block = nat.blocks[row]
    subscriber = nat.subscribers[np.int64(block.owner)]
    head = subscriber.first_block
    if not predefined(nat, row):
        subscriber.blocks += 1
    block.list_next = head if first else 0
    block.list_prev = row
    if head != 0:
        last = np.int64(nat.blocks[head].list_prev)
        block.list_prev = last
        nat.blocks[head].list_prev = row
        if first == 0:
            nat.blocks[last].list_next = row
    if first or head == 0:
        subscriber.first_block = row


@kernel
def unlink_block(nat: NatTables, row: Word) -> None:
    block = nat.blocks[row]
    subscriber = nat.subscribers[np.int64(block.owner)]
    before, after = np.int64(block.list_prev), np.int64(block.list_next)
    if not predefined(nat, row):
        subscriber.blocks -= 1
    if subscriber.first_block == row:
        subscriber.first_block = after
    else:
        nat.blocks[before].list_next = after
    if after != 0:
        nat.blocks[after].list_prev = before
    elif subscriber.first_block != 0:
        nat.blocks[subscriber.first_block].list_prev = before
    block.list_next = 0
    block.list_prev = 0


@kernel
def link_open(nat: NatTables, row: Word, port_class: Word) -> None:
    """Among its owner's blocks with a free port of the class `port_class`."""
    block = nat.blocks[row]
    subscriber = nat.subscribers[np.int64(block.owner)]
    before, after = np.int64(0), np.int64(subscriber.open[port_class])
    if after != 0 and predefined(nat, after):
        before, after = after, np.int64(nat.blocks[after].open_next[port_class])
    block.open_prev[port_class] = before
    block.open_next[port_class] = after
    if after != 0:
        nat.blocks[after].open_prev[port_class] = row
    if before != 0:
        nat.blocks[before].open_next[port_class] = row
    else:
        subscriber.open[port_class] = row


@kernel
def unlink_open(nat: NatTables, row: Word, port_class: Word) -> None:
    block = nat.blocks[row]
    before, after = np.int64(block.open_prev[port_class]), np.int64(block.open_next[port_class])
    if after != 0:
        nat.blocks[after].open_prev[port_class] = before
    if before != 0:
        nat.blocks[before].open_next[port_class] = after
    else:
        nat.subscribers[np.int64(block.owner)].open[port_class] = after
    block.open_prev[port_class] = 0
    block.open_next[port_class] = 0


@kernel
def link_held(nat: NatTables, row: Word) -> None:
    """A held block: into the queue of its address, and to its device or to the orphans."""
    _enqueue(nat, row)
    if np.int64(nat.blocks[row].owner) != 0:
        link_block(nat, row, 1)
    else:
        _link_orphan(nat, row)


@kernel
def unlink_held(nat: NatTables, row: Word) -> None:
    _dequeue(nat, row)
    if np.int64(nat.blocks[row].owner) != 0:
        unlink_block(nat, row)
    else:
        _unlink_orphan(nat, row)


@kernel
def orphan(nat: NatTables, row: Word) -> None:
    """A held block loses its device, but not its place in the queue."""
    unlink_block(nat, row)
    nat.blocks[row].owner = 0
    _link_orphan(nat, row)


@kernel
def _enqueue(nat: NatTables, row: Word) -> None:
    """Behind all that are held no longer: the last, but after a restart. A predefined block waits for nobody but its device."""
    if predefined(nat, row):
        return
    block, pool = nat.blocks[row], nat.pool[pool_of(nat, row)]
    before, after = pool.held_last, np.int64(0)
    while before != 0 and nat.blocks[before].hold_until > block.hold_until:
        before, after = np.int64(nat.blocks[before].queue_prev), before
    block.queue_prev = before
    block.queue_next = after
    if before != 0:
        nat.blocks[before].queue_next = row
    else:
        pool.held_first = row
    if after != 0:
        nat.blocks[after].queue_prev = row
    else:
        pool.held_last = row
    pool.held += 1


@kernel
def _dequeue(nat: NatTables, row: Word) -> None:
    if predefined(nat, row):
        return
    block, pool = nat.blocks[row], nat.pool[pool_of(nat, row)]
    before, after = np.int64(block.queue_prev), np.int64(block.queue_next)
    if before != 0:
        nat.blocks[before].queue_next = after
    else:
        pool.held_first = after
    if after != 0:
        nat.blocks[after].queue_prev = before
    else:
        pool.held_last = before
    block.queue_prev = 0
    block.queue_next = 0
    pool.held -= 1


@kernel
def _link_orphan(nat: NatTables, row: Word) -> None:
    """A held block without a device; identity 0 is nobody's and is not looked for."""
    block = nat.blocks[row]
    block.list_prev = 0
    block.list_next = 0
    if block.identity == 0:
        return
    place = scattered(block.identity, nat.orphans.size)
    head = np.int64(nat.orphans[place])
    block.list_next = head
    if head != 0:
        nat.blocks[head].list_prev = row
    nat.orphans[place] = row


@kernel
def _unlink_orphan(nat: NatTables, row: Word) -> None:
    block = nat.blocks[row]
    if block.identity == 0:
        return
    before, after = np.int64(block.list_prev), np.int64(block.list_next)
    if before != 0:
        nat.blocks[before].list_next = after
    else:
        nat.orphans[scattered(block.identity, nat.orphans.size)] = after
    if after != 0:
        nat.blocks[after].list_prev = before
    block.list_prev = 0
    block.list_next = 0


@kernel
def put_free(nat: NatTables, row: Word) -> None:
    """A dynamic block to the free ones of its address."""
    slot = pool_of(nat, row)
    pool = nat.pool[slot]
    nat.free_blocks[slot * (nat.blocks.size // nat.pool.size) + pool.free] = row
    nat.blocks[row].queue_next = pool.free
    pool.free += 1


@kernel
def take_free(nat: NatTables, row: Word) -> None:
    """Out of the free ones; the last of them moves to its place."""
    slot = pool_of(nat, row)
    pool, base = nat.pool[slot], slot * (nat.blocks.size // nat.pool.size)
    place = np.int64(nat.blocks[row].queue_next)
    pool.free -= 1
    last = np.int64(nat.free_blocks[base + pool.free])
    nat.free_blocks[base + place] = last
    nat.blocks[last].queue_next = place
    nat.blocks[row].queue_next = 0
