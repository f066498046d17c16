"""External ports: drawn at random in a block of the device (RFC 6056, RFC 7857 9), found by port, given back. O(1), however full.

The port has the internal port's parity as long as a block of the device has such a port (RFC 4787 4.2.2). A predefined block
(RFC 7422 2, step 3) comes before parity, and every port of the device's own blocks comes before another block.
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Word, inlined, kernel
from egressvpn.nat.block_lists import link_open, number_of, pool_of, predefined, scattered, unlink_open
from egressvpn.nat.blocks import choose, give, hold
from egressvpn.nat.keys import draw
from egressvpn.nat.port_lists import block_of_port, first_port, list_start, place, ports_of_block
from egressvpn.nat.tables import BLOCK_OWNED, ICMP_PORTS, TCP_PORTS, UDP_PORTS, NatTables
from egressvpn.packet.headers import TCP, UDP

_POSITIVE: Final = (1 << 63) - 1


@kernel
def port_kind(protocol: Word) -> Word:
    if protocol == TCP:
        return TCP_PORTS
    return UDP_PORTS if protocol == UDP else ICMP_PORTS


@kernel
def pool_slot(nat: NatTables, address: Word) -> Word:
    """Slot of a pool address, or 0."""
    places = nat.pool_index.size
    at = scattered(address, places)
    for _ in range(places):
        slot = np.int64(nat.pool_index[at])
        if slot == 0 or nat.pool[slot].address == address:
            return slot
        at = (at + 1) & (places - 1)
    return 0


@inlined
def take(nat: NatTables, device: Word, kind: Word, internal_port: Word, now: Word) -> Word:
    """A free port for the device: pool slot << 16 | port, or minus the verdict. May give it a block, or pair it anew when it has none."""
    wanted = kind * 2 + (internal_port & 1)
    row = _open_block(nat, device, wanted)
    if row == 0:
        row = give(nat, device, now)
        if row < 0:
            return row
    if np.int64(nat.blocks[row].free[wanted]) == 0:
        wanted ^= 1
    return pool_of(nat, row) << 16 | _draw_port(nat, row, wanted)


@kernel
def may_take(nat: NatTables, device: Word, kind: Word, now: Word) -> Word:
    """0 when `take` would find a port, or minus the verdict. Changes nothing."""
    if _open_block(nat, device, kind * 2) != 0:
        return 0
    verdict, _, _ = choose(nat, device, now)
    return -verdict


@inlined
def free(nat: NatTables, slot: Word, kind: Word, port: Word, now: Word) -> None:
    """Give a port back. With its last port a block ends, too: it is held."""
    pool = nat.pool[slot]
    number = block_of_port(pool, port)
    row = slot * (nat.blocks.size // nat.pool.size) + number
    if number < 0 or nat.blocks[row].state != BLOCK_OWNED:
        return
    block = nat.blocks[row]
    port_class = kind * 2 + (port & 1)
    count = np.int64(block.free[port_class])
    first = first_port(pool, number)
    nat.free_ports[list_start(slot, first, ports_of_block(pool, number), port_class) + count] = ((port - first) >> 1) ^ count
    block.free[port_class] = count + 1
    if count == 0:
        link_open(nat, row, port_class)
    block.used -= 1
    pool.used[kind] -= 1
    if np.int64(block.used) == 0 and number >= pool.fixed_blocks:
        hold(nat, row, now)


@kernel
def take_exact(nat: NatTables, device: Word, slot: Word, kind: Word, port: Word) -> Word:
    """For recovery, between `recover_blocks` and `hold_empty`: count a port as taken. 0 when it is not the device's, or taken."""
    if slot <= 0 or slot >= nat.pool.size or nat.pool[slot].address == 0:
        return 0
    pool = nat.pool[slot]
    number = block_of_port(pool, port)
    if number < 0 or port > pool.port_high or np.int64(nat.ports[place(slot, kind, port)]) != 0:
        return 0
    block = nat.blocks[slot * (nat.blocks.size // nat.pool.size) + number]
    if np.int64(block.state) != BLOCK_OWNED or np.int64(block.owner) != device:
        return 0
    block.used += 1
    pool.used[kind] += 1
    return 1


@inlined
def _open_block(nat: NatTables, device: Word, wanted: Word) -> Word:
    """A block of the device with a free port, of the wanted parity when it can be; 0: none. An address that ends gives no more."""
    subscriber = nat.subscribers[device]
    if nat.pool[subscriber.external4].ending != 0:
        return np.int64(0)
    same, other = subscriber.open[wanted], subscriber.open[wanted ^ 1]
    if same == 0 or (subscriber.fixed != 0 and other != 0 and not predefined(nat, same) and predefined(nat, other)):
        return other
    return same


@inlined
def _draw_port(nat: NatTables, row: Word, port_class: Word) -> Word:
    """Take a random free port of the class in a block that has one."""
    slot, number = pool_of(nat, row), number_of(nat, row)
    pool, block = nat.pool[slot], nat.blocks[row]
    first = first_port(pool, number)
    start = list_start(slot, first, ports_of_block(pool, number), port_class)
    count = np.int64(block.free[port_class])
    at = (draw(nat.settings[0]) & _POSITIVE) % count
    drawn = np.int64(nat.free_ports[start + at]) ^ at
    last = np.int64(nat.free_ports[start + count - 1]) ^ (count - 1)
    nat.free_ports[start + at] = last ^ at
    block.free[port_class] = count - 1
    if count == 1:
        unlink_open(nat, row, port_class)
    block.used += 1
    pool.used[port_class >> 1] += 1
    return first + 2 * drawn + ((first ^ port_class) & 1)
