"""Longest-prefix match over IPv4 and IPv6 prefixes: a path-compressed binary trie in one flat table of 64-byte rows.

Row 0 is the header: `child` holds the two roots (IPv4, IPv6), `next` the head of the free list, `value` the highest row
ever used and `length` how many rows are in the trie. Every other row is a prefix with a value, or a fork (value 0) with two
children. IPv4 addresses are kept as the top 32 bits of the high word, so both versions share all code; a look-up visits
at most 33 or 129 rows, one cache line each.

Every change becomes visible with a single store of one link, after the new rows are complete: a writer killed anywhere
leaves a trie that is right, and at worst rows that belong to nobody, which `recover` collects.

Values are positive: 0 is the answer "no prefix matches". Matches the kernel's allowedips.c self-test.
"""

import numpy as np

from egressvpn.kernel import Row, Table, Word, kernel
from egressvpn.prefix_tables import NODE, tables

__all__ = ["NODE", "find", "insert", "lookup4", "lookup6", "recover", "remove", "remove_value", "tables"]


@kernel
def lookup4(table: Table, address: Word) -> Word:
    """The value of the longest prefix that holds this IPv4 address, 0 for none."""
    return _longest(table, table[0].child[0], np.int64(address) << 32, np.int64(0))


@kernel
def lookup6(table: Table, hi: Word, lo: Word) -> Word:
    """The value of the longest prefix that holds this IPv6 address, 0 for none."""
    return _longest(table, table[0].child[1], np.int64(hi), np.int64(lo))


@kernel
def insert(table: Table, version: Word, hi: Word, lo: Word, length: Word, value: Word) -> Word:
    """1; or 0 when the table is full. Host bits are ignored; a prefix that is there already changes its value."""
    side = _side(version)
    hi, lo = _key(version, hi, lo, length)
    parent, branch = np.int64(0), side
    node = table[0].child[side]
    while node != 0 and table[node].length <= length and _holds(table[node], hi, lo):
        if table[node].length == length:
            table[node].value = value
            return 1
        parent, branch = node, _bit(hi, lo, table[node].length)
        node = table[parent].child[branch]
    if table.size - 1 - table[0].length < 2:
        return 0
    leaf = _allocate(table, side, hi, lo, length, value)
    if node == 0:
        table[parent].child[branch] = leaf
        return 1
    shared = min(_common(table[node], hi, lo), length)
    if shared == length:
        table[leaf].child[_bit(table[node].hi, table[node].lo, length)] = node
        table[parent].child[branch] = leaf
        return 1
    fork = _allocate(table, side, hi & _mask(shared), lo & _mask(shared - 64), shared, 0)
    table[fork].child[_bit(hi, lo, shared)] = leaf
    table[fork].child[_bit(table[node].hi, table[node].lo, shared)] = node
    table[parent].child[branch] = fork
    return 1


@kernel
def find(table: Table, version: Word, hi: Word, lo: Word, length: Word) -> Word:
    """The value of exactly this prefix, 0 when it is not in the table."""
    hi, lo = _key(version, hi, lo, length)
    node = table[0].child[_side(version)]
    while node != 0 and table[node].length < length and _holds(table[node], hi, lo):
        node = table[node].child[_bit(hi, lo, table[node].length)]
    if node == 0 or table[node].length != length or table[node].hi != hi or table[node].lo != lo:
        return np.int64(0)
    return table[node].value


@kernel
def remove(table: Table, version: Word, hi: Word, lo: Word, length: Word) -> Word:
    """1; or 0 when exactly this prefix is not in the table."""
    hi, lo = _key(version, hi, lo, length)
    return _remove(table, _side(version), hi, lo, np.int64(length))


@kernel
def remove_value(table: Table, value: Word) -> Word:
    """Remove every prefix with this value; how many there were. Visits every row ever used."""
    removed = 0
    for node in range(1, table[0].value + 1):
        row = table[node]
        if row.value == value:
            removed += _remove(table, row.side, row.hi, row.lo, row.length)
    return removed


@kernel
def recover(table: Table) -> Word:
    """After a writer was killed: collect the rows that nothing leads to. How many rows are in the trie."""
    header = table[0]
    header.next = 0
    used = 0
    for node in range(1, header.value + 1):
        if _reachable(table, node):
            used += 1
        else:
            table[node].value = 0
            table[node].next = header.next
            header.next = node
    header.length = used
    return used


@kernel
def _longest(table: Table, node: Word, hi: Word, lo: Word) -> Word:
    best = np.int64(0)
    while node != 0:
        row = table[node]
        length = row.length
        if not _holds(row, hi, lo):
            break
        if row.value != 0:
            best = row.value
        if length == 128:
            break
        node = row.child[_bit(hi, lo, length)]
    return best


@kernel
def _remove(table: Table, side: Word, hi: Word, lo: Word, length: Word) -> Word:
    """Unlink a prefix; a fork above it that is left with one child goes with it, by the same store."""
    above, above_branch, parent, branch = np.int64(0), np.int64(0), np.int64(0), side
    node = table[0].child[side]
    while node != 0 and table[node].length < length and _holds(table[node], hi, lo):
        above, above_branch = parent, branch
        parent, branch = node, _bit(hi, lo, table[node].length)
        node = table[parent].child[branch]
    if node == 0 or table[node].length != length or table[node].hi != hi or table[node].lo != lo or table[node].value == 0:
        return 0
    zero, one = table[node].child[0], table[node].child[1]
    if zero != 0 and one != 0:
        table[node].value = 0
        return 1
    if zero == 0 and one == 0 and parent != 0 and table[parent].value == 0:
        table[above].child[above_branch] = table[parent].child[1 - branch]
        _release(table, parent)
    else:
        table[parent].child[branch] = zero + one
    _release(table, node)
    return 1


@kernel
def _reachable(table: Table, wanted: Word) -> Word:
    """1 when the way from the root to the prefix in row `wanted` leads to that very row."""
    row = table[wanted]
    node = table[0].child[row.side]
    while node != 0 and table[node].length < row.length and _holds(table[node], row.hi, row.lo):
        node = table[node].child[_bit(row.hi, row.lo, table[node].length)]
    return 1 if node == wanted else 0


@kernel
def _allocate(table: Table, side: Word, hi: Word, lo: Word, length: Word, value: Word) -> Word:
    """A complete row that nothing leads to yet. The caller has made sure that there is one."""
    header = table[0]
    node = header.next
    if node != 0:
        header.next = table[node].next
    else:
        header.value += 1
        node = header.value
    header.length += 1
    row = table[node]
    row.hi, row.lo, row.length, row.value = hi, lo, length, value
    row.child[0] = 0
    row.child[1] = 0
    row.side = side
    row.next = 0
    return node


@kernel
def _release(table: Table, node: Word) -> None:
    header = table[0]
    table[node].value = 0
    table[node].next = header.next
    header.next = node
    header.length -= 1


@kernel
def _side(version: Word) -> Word:
    return np.int64(0) if version == 4 else np.int64(1)


@kernel
def _key(version: Word, hi: Word, lo: Word, length: Word) -> tuple[Word, Word]:
    """The two words of a prefix with its host bits cleared."""
    if version == 4:
        return (np.int64(lo) << 32) & _mask(length), np.int64(0)
    return np.int64(hi) & _mask(length), np.int64(lo) & _mask(length - 64)


@kernel
def _mask(length: Word) -> Word:
    """A word with its first `length` bits set; all of them from 64 on, none below 1."""
    if length <= 0:
        return np.int64(0)
    return np.int64(-1) << max(np.int64(64) - length, np.int64(0))


@kernel
def _holds(row: Row, hi: Word, lo: Word) -> Word:
    """Whether the address or longer prefix lies inside the prefix of `row`."""
    length = row.length
    if length <= 64:
        return ((hi ^ row.hi) & _mask(length)) == 0
    return hi == row.hi and ((lo ^ row.lo) & _mask(length - 64)) == 0


@kernel
def _bit(hi: Word, lo: Word, position: Word) -> Word:
    """The bit at this position, 0 to 127 from the left."""
    if position < 64:
        return (hi >> (63 - position)) & 1
    return (lo >> (127 - position)) & 1


@kernel
def _common(row: Row, hi: Word, lo: Word) -> Word:
    """How many leading bits the prefix of `row` and this one share, at most the length of the first."""
    shared = _leading_zeros(hi ^ row.hi)
    if shared == 64:
        shared += _leading_zeros(lo ^ row.lo)
    return min(shared, row.length)


@kernel
def _leading_zeros(word: Word) -> Word:
    if word < 0:
        return np.int64(0)
    zeros = np.int64(64)
    while word != 0:
        word >>= 1
        zeros -= 1
    return zeros
