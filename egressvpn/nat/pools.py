"""Pool addresses: added while others are in use, removed when nothing of theirs is left, and their blocks after a crash.

Recovery takes `state`, `owner`, `identity` and `hold_until` of the blocks as the truth, in three steps: `recover_blocks`, then
`ports.take_exact` for each mapping that lived, then `hold_empty`. The tables that are derived are zero when it begins.
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Row, Word, kernel
from egressvpn.nat import slices
from egressvpn.nat.block_lists import link_block, link_held, link_open, number_of, predefined, put_free, scattered, unlink_block
from egressvpn.nat.blocks import release, withdraw
from egressvpn.nat.port_lists import first_port, list_free_ports, place, ports_of_block
from egressvpn.nat.ports import pool_slot
from egressvpn.nat.tables import BLOCK_FREE, BLOCK_HELD, BLOCK_OWNED, MAX_BLOCKS, PORT_CLASSES, PORT_KINDS, PORTS, NatTables

ADDRESSES: Final = 1 << 32

block_count = kernel(slices.block_count)


@kernel
def set_pool(
    nat: NatTables,
    slot: Word,
    address: Word,
    group: Word,
    port_low: Word,
    port_high: Word,
    block_size: Word,
    max_blocks: Word,
    fixed_blocks: Word,
    fixed_size: Word,
) -> Word:
    """Add an IPv4 address; or change the group or quota of one that is there. 0 when that is impossible."""
    if (
        slot <= 0
        or slot >= nat.pool.size
        or address <= 0
        or address >= ADDRESSES
        or group <= 0
        or max_blocks < 0
        or max_blocks > MAX_BLOCKS
    ):
        return 0
    if _slice_is_sound(port_low, port_high, block_size, fixed_blocks, fixed_size) == 0:
        return 0
    pool, count = nat.pool[slot], block_count(port_low, port_high, block_size, fixed_blocks, fixed_size)
    if pool.address == 0:
        if count > nat.blocks.size // nat.pool.size or pool_slot(nat, address) != 0:
            return 0
        pool.blocks = count
        _cut(pool, port_low, port_high, block_size, fixed_blocks, fixed_size)
        _add_address(nat, slot, address)
    else:
        same = pool.address == address and pool.ending == 0 and pool.port_low == port_low and pool.port_high == port_high
        if not same or pool.block_size != block_size or pool.fixed_blocks != fixed_blocks or pool.fixed_size != fixed_size:
            return 0
    pool.group = group
    pool.max_blocks = max_blocks
    return 1


@kernel
def clear_pool(nat: NatTables, slot: Word) -> Word:
    """Remove an address of which no device has a block any more. 0 when one has."""
    pool, first_row = nat.pool[slot], slot * (nat.blocks.size // nat.pool.size)
    for row in range(first_row, first_row + pool.blocks):
        if np.int64(nat.blocks[row].state) == BLOCK_OWNED:
            return 0
    for row in range(first_row, first_row + pool.blocks):
        if np.int64(nat.blocks[row].state) == BLOCK_HELD:
            release(nat, row)
        if nat.blocks[row].given != 0:
            _forget_ports(nat, slot, row)
            nat.blocks[row].given = 0
    pool.free = 0
    pool.ending = 0
    pool.address = 0
    _index(nat)
    return 1


@kernel
def recover_blocks(nat: NatTables) -> None:
    """Lists and counts from the blocks themselves. What is owned or held by a device that is not there is held for its identity."""
    for device in range(nat.subscribers.size):
        subscriber = nat.subscribers[device]
        subscriber.first_block = 0
        subscriber.blocks = 0
        for port_class in range(PORT_CLASSES):
            subscriber.open[port_class] = 0
    _index(nat)
    for slot in range(1, nat.pool.size):
        pool = nat.pool[slot]
        pool.free = 0
        pool.held = 0
        pool.held_first = 0
        pool.held_last = 0
        for kind in range(PORT_KINDS):
            pool.used[kind] = 0
        if pool.address != 0:
            first_row = slot * (nat.blocks.size // nat.pool.size)
            for row in range(first_row, first_row + pool.blocks):
                _recover_block(nat, slot, row)


@kernel
def hold_empty(nat: NatTables, now: Word) -> None:
    """After every port in use is in `ports` again: list the free ports of owned blocks, and hold the blocks that have no other."""
    stride = nat.blocks.size // nat.pool.size
    for slot in range(1, nat.pool.size):
        if nat.pool[slot].address != 0:
            for row in range(slot * stride, slot * stride + nat.pool[slot].blocks):
                if np.int64(nat.blocks[row].state) == BLOCK_OWNED:
                    _finish_block(nat, row, now)


@kernel
def _slice_is_sound(port_low: Word, port_high: Word, block_size: Word, fixed_blocks: Word, fixed_size: Word) -> Word:
    if port_low <= 0 or port_high < port_low or port_high >= PORTS or block_size <= 0 or fixed_blocks < 0 or fixed_size < 0:
        return 0
    if fixed_blocks > 0 and (fixed_size == 0 or fixed_blocks > (port_high - port_low + 1) // fixed_size):
        return 0
    return 1


@kernel
def _cut(pool: Row, port_low: Word, port_high: Word, block_size: Word, fixed_blocks: Word, fixed_size: Word) -> None:
    pool.port_low = port_low
    pool.port_high = port_high
    pool.block_size = block_size
    pool.fixed_blocks = fixed_blocks
    pool.fixed_size = fixed_size


@kernel
def _add_address(nat: NatTables, slot: Word, address: Word) -> None:
    """All blocks of the slot are free; the address, which says that the slot is in use, comes last."""
    pool, first_row = nat.pool[slot], slot * (nat.blocks.size // nat.pool.size)
    pool.free = 0
    pool.held = 0
    pool.held_first = 0
    pool.held_last = 0
    pool.exhausted = 0
    for row in range(first_row + pool.fixed_blocks, first_row + pool.blocks):
        put_free(nat, row)
    pool.address = address
    _index_slot(nat, slot)


@kernel
def _forget_ports(nat: NatTables, slot: Word, row: Word) -> None:
    """Zero the lists of a block: what the next owner of the slot expects."""
    pool, number = nat.pool[slot], number_of(nat, row)
    first = first_port(pool, number)
    for kind in range(PORT_KINDS):
        start = place(slot, kind, first)
        nat.free_ports[start : start + ports_of_block(pool, number)] = 0


@kernel
def _index(nat: NatTables) -> None:
    nat.pool_index[:] = 0
    for slot in range(1, nat.pool.size):
        if nat.pool[slot].address != 0:
            _index_slot(nat, slot)


@kernel
def _index_slot(nat: NatTables, slot: Word) -> None:
    places = nat.pool_index.size
    at = scattered(nat.pool[slot].address, places)
    while np.int64(nat.pool_index[at]) != 0:
        at = (at + 1) & (places - 1)
    nat.pool_index[at] = slot


@kernel
def _recover_block(nat: NatTables, slot: Word, row: Word) -> None:
    block = nat.blocks[row]
    state, owner = np.int64(block.state), np.int64(block.owner)
    if state != BLOCK_OWNED and state != BLOCK_HELD:
        block.state = BLOCK_FREE
        block.owner = 0
        block.identity = 0
        if not predefined(nat, row):
            put_free(nat, row)
        return
    block.used = 0
    present = owner > 0 and owner < nat.subscribers.size
    if present:
        present = nat.subscribers[owner].identity == block.identity and nat.subscribers[owner].external4 == slot
    if not present:
        block.owner = 0
    if state == BLOCK_HELD:
        link_held(nat, row)
    elif present:
        link_block(nat, row, 0)


@kernel
def _finish_block(nat: NatTables, row: Word, now: Word) -> None:
    block = nat.blocks[row]
    if np.int64(block.used) == 0:
        if np.int64(block.owner) != 0:
            unlink_block(nat, row)
        withdraw(nat, row, now)
        link_held(nat, row)
        return
    for port_class in range(PORT_CLASSES):
        count = list_free_ports(nat, row, port_class)
        block.free[port_class] = count
        if count != 0:
            link_open(nat, row, port_class)
