"""Whether every table of the translator agrees with every other: all that is derived, computed anew from the records and the blocks."""

from collections import Counter
from typing import Any

from egressvpn.nat.keys import V6, bucket, hash_end
from egressvpn.nat.port_lists import block_of_port, class_size, first_port, list_start, place, ports_of_block
from egressvpn.nat.tables import (
    ANCHOR,
    BLOCK_FREE,
    BLOCK_HELD,
    BLOCK_OWNED,
    CONFIRMED,
    FLOWS,
    HOME,
    HOMES_IN,
    HOMES_OUT,
    MILLISECOND,
    PERMITS,
    PORT_CLASSES,
    PORT_KINDS,
    SHARES,
    TICK_SHIFT,
    WHEEL,
    NatTables,
)
from egressvpn.nat.tcp import FREE
from egressvpn.nat.wheel import timeout_of

KIND = {6: 0, 17: 1, 1: 2}
LINK = {HOMES_IN: "next_in", FLOWS: "next_flow"}


def assert_consistent(nat: NatTables) -> None:
    """Chains, lists, the wheel, ports, blocks and counts all say the same, and no packet ever had a port that was not ours."""
    rows = range(nat.flows.size)
    flows = {slot for slot in rows if nat.flows[slot]["state"] != FREE}
    homes = {slot for slot in rows if int(nat.flows[slot]["role"]) & HOME}
    assert 0 not in flows | homes
    assert_records(nat, flows, homes)
    assert_permits(nat, flows)
    assert_chains(nat, flows, homes)
    assert_devices(nat, flows, homes)
    assert_wheel(nat, flows)
    assert_ports(nat, homes)
    assert_blocks(nat)
    assert nat.settings[0].slice_violations == 0


def assert_records(nat: NatTables, flows: set[int], homes: set[int]) -> None:
    """What refers to what, and what is free."""
    settings = nat.settings[0]
    of_home = Counter(int(nat.flows[slot]["mapping"]) for slot in flows)
    of_anchor = Counter(int(nat.flows[slot]["permit"]) for slot in flows if further(nat, slot) and confirmed(nat, slot))
    live = Counter(int(nat.flows[slot]["mapping"]) for slot in flows if confirmed(nat, slot))
    for slot in range(1, int(settings.high) + 1):
        row = nat.flows[slot]
        assert row["refs"] == of_home[slot] + of_anchor[slot]
        assert row["live"] == (of_anchor[slot] or live[slot])
        assert (slot in homes) == bool(live[slot])
        assert not confirmed(nat, slot) or slot in flows
    used = {slot for slot in range(1, int(settings.high) + 1) if slot in flows or nat.flows[slot]["refs"]}
    assert linked(nat.flows, settings.free, "list_next") == set(range(1, int(settings.high) + 1)) - used
    assert all(nat.flows[slot]["role"] == 0 for slot in range(1, nat.flows.size) if slot not in used)
    assert settings.records == len(used)
    assert settings.flows == len(flows)
    assert settings.mappings == len(homes)
    assert settings.unconfirmed == sum(not confirmed(nat, slot) for slot in flows)
    for slot in flows:
        home, row = nat.flows[nat.flows[slot]["mapping"]], nat.flows[slot]
        assert (row["key"], row["internal_lo"], row["pool"]) == (home["key"], home["internal_lo"], home["pool"])
    assert len({ends(nat, slot) for slot in flows}) == len(flows)


def assert_permits(nat: NatTables, flows: set[int]) -> None:
    """Every remote address that a mapping contacted with flows that are not inline has one anchor."""
    anchors = {slot for slot in range(nat.flows.size) if int(nat.flows[slot]["role"]) & ANCHOR}
    naming = {slot for slot in flows if further(nat, slot) and confirmed(nat, slot)}
    assert {int(nat.flows[slot]["permit"]) for slot in naming} == anchors
    assert chained(nat, PERMITS) == sorted(anchors)
    for slot in naming:
        assert contact(nat, slot) == contact(nat, int(nat.flows[slot]["permit"]))
    assert len({contact(nat, slot) for slot in anchors}) == len(anchors)


def assert_chains(nat: NatTables, flows: set[int], homes: set[int]) -> None:
    assert chained(nat, HOMES_OUT) == sorted(homes)
    assert chained(nat, HOMES_IN) == sorted(slot for slot in homes if int(nat.flows[slot]["key"]) & V6)
    assert chained(nat, FLOWS) == sorted(slot for slot in flows if further(nat, slot))
    assert len({(int(nat.flows[s]["key"]) & ~0xFFFF, int(nat.flows[s]["internal_lo"]), *high(nat, s, "internal")) for s in homes}) == len(
        homes
    )


def assert_devices(nat: NatTables, flows: set[int], homes: set[int]) -> None:
    for device in range(nat.subscribers.size):
        row = nat.subscribers[device]
        own = {slot for slot in flows if owner(nat, slot) == device}
        assert linked(nat.flows, row.first, "list_next", "list_prev") == own
        assert row.flows == len(own)
        assert row.unconfirmed == sum(not confirmed(nat, slot) for slot in own)
        assert row.mappings == sum(owner(nat, slot) == device for slot in homes)


def assert_wheel(nat: NatTables, flows: set[int]) -> None:
    """Every flow is in one slot, and that comes no later than its due time."""
    settings, found = nat.settings[0], set()
    tick = int(settings.tick)
    for number in map(int, nat.wheel.nonzero()[0]):
        comes, slot, before = tick + (number - tick) % WHEEL, int(nat.wheel[number]), -(number + 1)
        while slot:
            row = nat.flows[slot]
            assert slot not in found
            assert row["wheel_prev"] == before
            found.add(slot)
            idle = ((tick << TICK_SHIFT) // MILLISECOND - int(row["seen"]) + 2**31) % 2**32 - 2**31
            left = int(timeout_of(settings, int(row["key"]) >> 32 & 0xFF, int(row["state"]))) - idle
            assert comes <= max(tick + 1, tick + (left * MILLISECOND >> TICK_SHIFT) + 2)
            before, slot = slot, int(row["wheel_next"])
    assert found == flows


def assert_ports(nat: NatTables, homes: set[int]) -> None:
    """A port names the one mapping that has it; all lie in a block of their device."""
    held = {}
    for slot in homes:
        row = nat.flows[slot]
        key, pool = int(row["key"]), int(row["pool"])
        assert (pool == 0) == bool(key & V6)
        if pool:
            assert nat.pool[pool].port_low <= key & 0xFFFF <= nat.pool[pool].port_high
            at = int(place(pool, KIND[key >> 32 & 0xFF], key & 0xFFFF))
            assert at not in held
            held[at] = slot
            block = nat.blocks[pool * stride(nat) + block_of_port(nat.pool[pool], key & 0xFFFF)]
            assert (block.state, block.owner) == (BLOCK_OWNED, owner(nat, slot))
    assert {int(at): int(nat.ports[at]) for at in nat.ports.nonzero()[0]} == held


def assert_blocks(nat: NatTables) -> None:
    """Counts and lists of blocks, and the free ports of each."""
    mine: dict[int, list[int]] = {device: [] for device in range(nat.subscribers.size)}
    for slot in range(1, nat.pool.size):
        pool, first = nat.pool[slot], slot * stride(nat)
        if pool.address == 0:
            continue
        rows = range(first, first + int(pool.blocks))
        dynamic = rows[int(pool.fixed_blocks) :]
        assert sorted(nat.free_blocks[first : first + int(pool.free)]) == [row for row in dynamic if nat.blocks[row].state == BLOCK_FREE]
        held = linked(nat.blocks, pool.held_first, "queue_next", "queue_prev")
        assert held == {row for row in dynamic if nat.blocks[row].state == BLOCK_HELD}
        assert pool.held == len(held)
        used = [assert_block(nat, slot, row) for row in rows]
        assert list(pool.used) == [sum(counts) for counts in zip(*used, strict=True)]
        for row in rows:
            mine[int(nat.blocks[row].owner)].append(row)
    for device in range(1, nat.subscribers.size):
        assert_own_blocks(nat, device, mine[device])


def assert_block(nat: NatTables, slot: int, row: int) -> list[int]:
    """Returns how many of its ports are in use, by kind."""
    pool, block = nat.pool[slot], nat.blocks[row]
    first, count = int(first_port(pool, row % stride(nat))), int(ports_of_block(pool, row % stride(nat)))
    used = []
    for kind in range(PORT_KINDS):
        start = int(place(slot, kind, first))
        taken = {first + offset for offset in range(count) if nat.ports[start + offset]}
        used.append(len(taken))
        for port_class in (kind * 2, kind * 2 + 1):
            if block.state == BLOCK_OWNED:
                assert free_ports(nat, slot, row, port_class) == [
                    p for p in range(first, first + count) if p % 2 == port_class % 2 and p not in taken
                ]
    if block.state == BLOCK_OWNED:
        assert block.used == sum(used)
        assert block.used or row % stride(nat) < pool.fixed_blocks, "a block without ports in use is to be held"
    else:
        assert sum(used) == 0
    assert block.state != BLOCK_FREE or block.owner == 0
    return used


def assert_own_blocks(nat: NatTables, device: int, rows: list[int]) -> None:
    row = nat.subscribers[device]
    assert linked(nat.blocks, row.first_block, "list_next") == set(rows)
    assert row.blocks == sum(block % stride(nat) >= nat.pool[block // stride(nat)].fixed_blocks for block in rows)
    assert {block // stride(nat) for block in rows} <= {int(row.external4)}
    for port_class in range(PORT_CLASSES):
        ready = {block for block in rows if nat.blocks[block].state == BLOCK_OWNED and nat.blocks[block].free[port_class]}
        found, at = set(), int(row.open[port_class])
        while at:
            assert at not in found
            found.add(at)
            at = int(nat.blocks[at].open_next[port_class])
        assert found == ready


def free_ports(nat: NatTables, slot: int, row: int, port_class: int) -> list[int]:
    pool = nat.pool[slot]
    first, count = int(first_port(pool, row % stride(nat))), int(ports_of_block(pool, row % stride(nat)))
    free = int(nat.blocks[row].free[port_class])
    assert free <= class_size(first, count, port_class)
    start = int(list_start(slot, first, count, port_class))
    return sorted(first + 2 * (int(nat.free_ports[start + at]) ^ at) + ((first ^ port_class) & 1) for at in range(free))


def stride(nat: NatTables) -> int:
    return nat.blocks.size // nat.pool.size


def further(nat: NatTables, slot: int) -> bool:
    """A flow that is not inline in its home."""
    return int(nat.flows[slot]["mapping"]) != slot


def confirmed(nat: NatTables, slot: int) -> bool:
    return bool(int(nat.flows[slot]["role"]) & CONFIRMED)


def owner(nat: NatTables, slot: int) -> int:
    return int(nat.flows[slot]["key"]) >> 41


def high(nat: NatTables, slot: int, side: str) -> tuple[int]:
    return (int(nat.wide[slot][f"{side}_hi"]) if int(nat.flows[slot]["key"]) & V6 else 0,)


def contact(nat: NatTables, slot: int) -> tuple[int, ...]:
    """A mapping and a remote address."""
    return int(nat.flows[slot]["mapping"]), *high(nat, slot, "remote"), int(nat.flows[slot]["remote_lo"])


def ends(nat: NatTables, slot: int) -> tuple[int, ...]:
    return *contact(nat, slot), int(nat.flows[slot]["remote_port"])


def chained(nat: NatTables, region: int) -> list[int]:
    """All records in the chains of a region, each in the chain of its hash."""
    share, found = nat.heads.size // SHARES, []
    first, end = region * share, (2 if region == HOMES_OUT else region + 1) * share
    for place_ in first + nat.heads[first:end].nonzero()[0]:
        slot = int(nat.heads[place_])
        while slot:
            assert place_ == bucket(nat.heads, region, hashed(nat, region, slot))
            found.append(slot)
            assert len(found) < nat.flows.size
            slot = int(nat.flows[slot][LINK.get(region, "next_anchor")])
    return sorted(found)


def hashed(nat: NatTables, region: int, slot: int) -> Any:
    row = nat.flows[slot]
    v6 = row["key"] & V6
    words = {
        HOMES_OUT: (row["key"] & ~0xFFFF, *high(nat, slot, "internal"), row["internal_lo"]),
        FLOWS: (int(row["mapping"]) << 16 | int(row["remote_port"]), *high(nat, slot, "remote"), row["remote_lo"]),
        PERMITS: (int(row["mapping"]), *high(nat, slot, "remote"), row["remote_lo"]),
        HOMES_IN: (
            row["key"] & (V6 | 0xFF << 32) | (row["key"] & 0xFFFF) << 16,
            nat.subscribers[owner(nat, slot)].external6_hi,
            nat.subscribers[owner(nat, slot)].external6_lo,
        ),
    }[region]
    return hash_end(nat.settings[0], v6, *words)


def linked(table: Any, first: int, link: str, back: str = "") -> set[int]:
    """What a list holds; its links back, if it has them, agree."""
    found: set[int] = set()
    before, slot = 0, int(first)
    while slot:
        assert slot not in found
        assert not back or table[slot][back] == before
        found.add(slot)
        before, slot = slot, int(table[slot][link])
    return found
