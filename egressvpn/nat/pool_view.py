"""Pool addresses, their blocks and the journal, for people and for the NAT log: read while the worker writes, with numpy only.

Nothing is locked. What is shown to people may be torn in the middle; what is read of the journal may not: an entry counts only
when `settings.journal`, read after it was copied, says that the writer was done with it and has not come round to it again.
"""

from typing import Any, Final

import numpy as np

from egressvpn.addresses import from_words
from egressvpn.nat.slices import block_of_port, first_port, ports_of_block
from egressvpn.nat.tables import BLOCK_FREE, BLOCK_HELD, BLOCK_OWNED, ICMP_PORTS, MAX_BLOCKS, TCP_PORTS, UDP_PORTS, NatTables

STATE_NAMES: Final = {BLOCK_FREE: "free", BLOCK_OWNED: "used", BLOCK_HELD: "held"}


def pool_usage(nat: NatTables, now: int = 0) -> list[dict[str, Any]]:
    """Every pool address: its slice, ports in use by protocol, blocks by state. Blocks whose hold is over by `now` count as free."""
    paired = np.bincount(nat.subscribers["external4"], minlength=nat.pool.size)
    usage = []
    for slot in np.nonzero(nat.pool["address"])[0]:
        row = nat.pool[slot]
        blocks = _blocks(nat, int(slot))
        used = int(np.count_nonzero(blocks["state"] == BLOCK_OWNED))
        held = int(np.count_nonzero((blocks["state"] == BLOCK_HELD) & (blocks["hold_until"] > now)))
        size = int(row.port_high - row.port_low + 1)
        usage.append(
            {
                "slot": int(slot),
                "address": str(from_words(4, 0, int(row.address))),
                "group": int(row.group),
                "port_low": int(row.port_low),
                "port_high": int(row.port_high),
                "size": size,
                "unused": size - _in_blocks(row),  # too few for another block
                "block_size": int(row.block_size),
                "max_blocks": int(row.max_blocks),
                "tcp": int(row.used[TCP_PORTS]),
                "udp": int(row.used[UDP_PORTS]),
                "icmp": int(row.used[ICMP_PORTS]),
                "blocks": int(row.blocks),
                "blocks_used": used,
                "blocks_held": held,
                "blocks_free": len(blocks) - used - held,
                "devices": int(paired[slot]),
                "exhausted": int(row.exhausted),
            }
        )
    return usage


def blocks_of(nat: NatTables, device: int) -> list[dict[str, Any]]:
    """The blocks that a device owns or that are held for it, in the order of their addresses and ports."""
    found: set[int] = set()
    row = int(nat.subscribers[device].first_block)
    while 0 < row < nat.blocks.size and row not in found and len(found) <= MAX_BLOCKS:
        found.add(row)
        row = int(nat.blocks[row].list_next)
    return [_describe(nat, row) for row in sorted(found) if nat.blocks[row].owner == device]


def owned(nat: NatTables) -> list[tuple[int, int, int, int, int, int]]:
    """All blocks that devices own: pool slot, address, first and last port, identity of the device, when it was given."""
    found = []
    for slot in np.nonzero(nat.pool["address"])[0]:
        pool = nat.pool[slot].copy()
        blocks = _blocks(nat, int(slot))
        for number in np.nonzero(blocks["state"] == BLOCK_OWNED)[0]:
            low = int(first_port(pool, number))
            high = low + int(ports_of_block(pool, number)) - 1
            found.append((int(slot), int(pool.address), low, high, int(blocks[number]["identity"]), int(blocks[number]["given"])))
    return found


def block_of(nat: NatTables, slot: int, port: int) -> dict[str, Any] | None:
    """The block of a pool address that a port belongs to; None when it is no port of ours or in no block."""
    if not 0 < slot < nat.pool.size or nat.pool[slot].address == 0:
        return None
    number = int(block_of_port(nat.pool[slot], port))
    return _describe(nat, slot * (nat.blocks.size // nat.pool.size) + number) if number >= 0 else None


def read(nat: NatTables, after: int, limit: int = 1024) -> tuple[Any, int]:
    """Journal entries that follow number `after`, oldest first, at most `limit`, as a copy; and how many before them were lost.

    What to ask for next is `after` + lost + len(entries).
    """
    size = nat.journal.size
    written = int(nat.settings[0].journal)
    first = max(after + 1, written - size + 1)
    numbers = np.arange(first, min(written, first + limit - 1) + 1)
    entries = np.array(nat.journal[(numbers - 1) % size])
    again = int(nat.settings[0].journal)  # the writer may be in the middle of entry again + 1, which overwrites again + 1 - size
    start = int(np.count_nonzero(numbers <= again + 1 - size))
    unfinished = np.flatnonzero(entries["sequence"][start:] != numbers[start:])
    end = start + int(unfinished[0]) if unfinished.size else len(numbers)
    return entries[start:end], first + start - 1 - after


def _blocks(nat: NatTables, slot: int) -> Any:
    """A copy of the blocks of an address. Rows behind them have no memory, and looking at them would give them some."""
    first = slot * (nat.blocks.size // nat.pool.size)
    return np.array(nat.blocks[first : first + int(nat.pool[slot].blocks)])


def _in_blocks(pool: Any) -> int:
    """Ports of an address that are in some block."""
    fixed = int(pool.fixed_blocks)
    return fixed * int(pool.fixed_size) + (int(pool.blocks) - fixed) * int(pool.block_size)


def _describe(nat: NatTables, row: int) -> dict[str, Any]:
    slot, number = divmod(row, nat.blocks.size // nat.pool.size)
    pool, block = nat.pool[slot], nat.blocks[row].copy()
    low = int(first_port(pool, number))
    return {
        "slot": slot,
        "address": str(from_words(4, 0, int(pool.address))),
        "port_low": low,
        "port_high": low + int(ports_of_block(pool, number)) - 1,
        "state": STATE_NAMES.get(int(block["state"]), "free"),
        "predefined": number < int(pool.fixed_blocks),
        "device": int(block["owner"]),
        "identity": int(block["identity"]),
        "given": int(block["given"]),
        "hold_until": int(block["hold_until"]),
        "ports_used": int(block["used"]),
    }
