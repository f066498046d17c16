"""How our slice of an address's ports is cut into blocks. Plain functions over a POOL row: kernels are made of them, views call them.

Predefined blocks (RFC 7422) come first, dynamic ones follow; both lie one behind the other, so a port tells its block by one
division. What is left over at the top when the slice is no multiple of the block size belongs to no block and is not used.
"""

from typing import Any, TypeAlias

Word: TypeAlias = Any  # as in egressvpn.kernel, which loads the compiler
Row: TypeAlias = Any


def block_count(port_low: int, port_high: int, block_size: int, fixed_blocks: int = 0, fixed_size: int = 0) -> int:
    """Blocks of a slice, predefined ones included."""
    return fixed_blocks + (port_high - port_low + 1 - fixed_blocks * fixed_size) // block_size


def block_of_port(pool: Row, port: Word) -> Word:
    """Number of the block that a port belongs to, or -1."""
    offset = port - pool.port_low
    predefined = pool.fixed_blocks * pool.fixed_size
    if offset < 0:
        return -1
    if offset < predefined:
        return offset // pool.fixed_size
    number = pool.fixed_blocks + (offset - predefined) // pool.block_size
    return number if number < pool.blocks else -1


def first_port(pool: Row, number: Word) -> Word:
    """Lowest port of a block."""
    if number < pool.fixed_blocks:
        return pool.port_low + number * pool.fixed_size
    return pool.port_low + pool.fixed_blocks * pool.fixed_size + (number - pool.fixed_blocks) * pool.block_size


def ports_of_block(pool: Row, number: Word) -> Word:
    """How many ports a block has."""
    return pool.fixed_size if number < pool.fixed_blocks else pool.block_size
