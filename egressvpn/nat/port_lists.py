"""The free ports of a block, by class: kind (TCP, UDP, ICMP identifiers) * 2 + parity.

Of each class the first `free` entries of its part of `free_ports` are free. An entry holds the port's number in the class XOR
its own place, so zeroed memory lists every port in order, and nothing needs to be filled in. Taking one moves the last free
entry to its place; when all ports are back, the list is whole again, in another order.
"""

import numpy as np

from egressvpn.kernel import Word, kernel
from egressvpn.nat import slices
from egressvpn.nat.block_lists import number_of, pool_of
from egressvpn.nat.tables import PORT_KINDS, PORTS, NatTables

block_of_port = kernel(slices.block_of_port)
first_port = kernel(slices.first_port)
ports_of_block = kernel(slices.ports_of_block)


@kernel
def place(slot: Word, kind: Word, port: Word) -> Word:
    """Where `ports` says whose a port of a pool address is."""
    return (slot * PORT_KINDS + kind) * PORTS + port


@kernel
def list_start(slot: Word, first: Word, count: Word, port_class: Word) -> Word:
    """Index in `free_ports` of a class of the block that has `count` ports from `first` on: the even ones come before the odd ones."""
    start = place(slot, port_class >> 1, first)
    if port_class & 1:
        return start + ((count + 1 - (first & 1)) >> 1)
    return start


@kernel
def class_size(first: Word, count: Word, port_class: Word) -> Word:
    """How many ports of a parity a block has."""
    return (count + 1 - ((first ^ port_class) & 1)) >> 1


@kernel
def list_free_ports(nat: NatTables, row: Word, port_class: Word) -> Word:
    """For recovery: list the ports of a class that `ports` does not give to anybody. Returns how many."""
    slot, number = pool_of(nat, row), number_of(nat, row)
    pool = nat.pool[slot]
    first, count = first_port(pool, number), ports_of_block(pool, number)
    start = list_start(slot, first, count, port_class)
    found = np.int64(0)
    for offset in range((first ^ port_class) & 1, count, 2):
        if np.int64(nat.ports[place(slot, port_class >> 1, first + offset)]) == 0:
            nat.free_ports[start + found] = (offset >> 1) ^ found
            found += 1
    return found
