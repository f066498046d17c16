"""Pool addresses with blocks and ports alone, without flows: what `ports` says is the device, not a home. And a check of every list."""

from typing import Any

import numpy as np

from egressvpn.nat.blocks import release_device, release_expired
from egressvpn.nat.pools import hold_empty, recover_blocks, set_pool
from egressvpn.nat.ports import free, place, pool_slot, take, take_exact
from egressvpn.nat.slices import block_of_port, first_port, ports_of_block
from egressvpn.nat.tables import (
    BLOCK_FREE,
    BLOCK_GIVEN,
    BLOCK_HELD,
    BLOCK_OWNED,
    DERIVED,
    PORT_CLASSES,
    PORT_KINDS,
    SECOND,
    NatTables,
    configure,
    seed,
    subscribe,
    tables,
)

ADDRESS = 0xCB007100  # 203.0.113.0; slot n has .n
Port = tuple[int, int, int]  # pool slot, kind, port


class Pools:
    """`addresses` addresses of one group with the same slice; devices 1.. have identity 1000 + n and are paired in turn."""

    def __init__(
        self, *, addresses: int = 1, devices: int = 4, low: int = 1024, high: int = 1087, size: int = 16, most: int = 3, **more: int
    ) -> None:
        fixed, fixed_size = more.pop("fixed_blocks", 0), more.pop("fixed_size", 0)
        key = more.pop("key", 0x1122334455667788)
        self.slice = (low, high, size, most, fixed, fixed_size)
        made = {
            name: (np.zeros(count, kind).view(np.recarray) if kind.names else np.zeros(count, kind))
            for name, (kind, count) in tables(8, devices, addresses, max(4, (high - low + 1) // size + fixed)).items()
        }
        self.nat = NatTables(**made)
        self.owners: dict[Port, int] = {}
        self.read = 0  # journal entries that `assert_whole` has replayed
        self.journalled: dict[tuple[int, int], int] = {}
        seed(self.nat, key, -0x0102030405060708)
        configure(self.nat, **more)
        for slot in range(1, addresses + 1):
            assert set_pool(self.nat, slot, ADDRESS + slot, 1, *self.slice) == 1
        for device in range(1, devices + 1):
            self.subscribe(device, 1000 + device, 1 + (device - 1) % addresses)

    def subscribe(self, device: int, identity: int, slot: int, fixed: int = 0) -> None:
        subscribe(self.nat, device, identity, slot, 0, 0, fixed)

    def take(self, device: int, kind: int = 0, internal_port: int = 0, now: float = 0) -> Port | int:
        """A port, or the verdict."""
        taken = int(take(self.nat, device, kind, internal_port, ns(now)))
        if taken < 0:
            return -taken
        port = (taken >> 16, kind, taken & 0xFFFF)
        assert port not in self.owners
        self.owners[port] = device
        self.nat.ports[place(*port)] = device
        return port

    def port(self, device: int, kind: int = 0, internal_port: int = 0, now: float = 0) -> Port:
        """A port that there must be."""
        port = self.take(device, kind, internal_port, now)
        assert isinstance(port, tuple), port
        return port

    def fill(self, device: int, kind: int = 0, now: float = 0) -> list[Port]:
        """All ports that the device gets."""
        ports = []
        while isinstance(port := self.take(device, kind, 0, now), tuple):
            ports.append(port)
        return ports

    def free(self, port: Port, now: float = 0) -> None:
        del self.owners[port]
        self.nat.ports[place(*port)] = 0
        free(self.nat, *port, ns(now))

    def free_all(self, device: int, now: float = 0) -> None:
        for port in [port for port, owner in self.owners.items() if owner == device]:
            self.free(port, now)

    def remove(self, device: int, now: float = 0, held: int = 1) -> None:
        self.free_all(device, now)
        release_device(self.nat, device, ns(now), held)
        self.subscribe(device, 0, 0)

    def expire(self, now: float) -> None:
        for slot in range(1, self.nat.pool.size):
            release_expired(self.nat, slot, ns(now), self.nat.blocks.size)

    def crash(self, now: float = 0) -> None:
        """Lose what is derived, and rebuild it from the blocks and from the ports that mappings have."""
        for name in DERIVED:
            getattr(self.nat, name)[:] = 0
        recover_blocks(self.nat)
        for port, device in self.owners.items():
            assert take_exact(self.nat, device, *port) == 1
            self.nat.ports[place(*port)] = device
        hold_empty(self.nat, ns(now))

    def block(self, port: Port) -> Any:
        """The row of the block of a port."""
        return self.nat.blocks[self.row(port[0], int(block_of_port(self.nat.pool[port[0]], port[2])))]

    def row(self, slot: int, number: int) -> int:
        return slot * (self.nat.blocks.size // self.nat.pool.size) + number

    def journal(self) -> list[tuple[int, int, int, int]]:
        """Kind, identity, first and last port of every entry."""
        entries = self.nat.journal[: int(self.nat.settings[0].journal)]
        return [(int(e["kind"]), int(e["identity"]), int(e["port_low"]), int(e["port_high"])) for e in entries]

    def assert_whole(self) -> None:
        """Every list and count says what the blocks and ports say, and the journal tells whose each port is."""
        assert_lists(self)
        assert_free_ports(self)
        self.replay()
        for (slot, _, port), device in self.owners.items():
            row = self.nat.pool[slot]
            assert row.port_low <= port <= row.port_high
            low = int(first_port(row, block_of_port(row, port)))
            assert self.journalled[int(row.address), low] == self.nat.subscribers[device].identity

    def replay(self) -> None:
        """Follow the journal: who has which block by its word."""
        for number in range(self.read, int(self.nat.settings[0].journal)):
            entry = self.nat.journal[number % self.nat.journal.size]
            assert entry.sequence == number + 1
            if entry.kind == BLOCK_GIVEN:
                self.journalled[int(entry.address), int(entry.port_low)] = int(entry.identity)
            else:
                self.journalled.pop((int(entry.address), int(entry.port_low)), None)
        self.read = int(self.nat.settings[0].journal)


def ns(seconds: float) -> int:
    return 1000 * SECOND + round(seconds * SECOND)


def assert_lists(pools: Pools) -> None:
    nat, stride = pools.nat, pools.nat.blocks.size // pools.nat.pool.size
    blocks = {slot: [int(r) for r in range(slot * stride, slot * stride + int(nat.pool[slot].blocks))] for slot in range(1, nat.pool.size)}
    for slot, rows in blocks.items():
        pool = nat.pool[slot]
        dynamic = [row for row in rows if row % stride >= pool.fixed_blocks]
        held = [row for row in dynamic if nat.blocks[row].state == BLOCK_HELD]
        listed = [int(row) for row in nat.free_blocks[slot * stride : slot * stride + int(pool.free)]]
        assert sorted(listed) == [row for row in dynamic if nat.blocks[row].state == BLOCK_FREE] or pool.address == 0
        assert [int(nat.blocks[row].queue_next) for row in listed] == list(range(len(listed)))
        queue = walked(nat, int(pool.held_first), "queue_next", "queue_prev")
        assert sorted(queue) == held
        assert [int(nat.blocks[row].hold_until) for row in queue] == sorted(int(nat.blocks[row].hold_until) for row in held)
        assert pool.held_last == (queue[-1] if queue else 0)
        assert pool.held == len(held)
        assert pool.address == 0 or pool_slot(nat, pool.address) == slot
    for device in range(nat.subscribers.size):
        assert_device(pools, device, [row for rows in blocks.values() for row in rows if device and nat.blocks[row].owner == device])
    orphans = [row for rows in blocks.values() for row in rows if nat.blocks[row].state == BLOCK_HELD and nat.blocks[row].owner == 0]
    chained = [row for head in nat.orphans if head for row in walked(nat, int(head), "list_next", "list_prev")]
    assert sorted(chained) == [row for row in orphans if nat.blocks[row].identity]


def assert_device(pools: Pools, device: int, own: list[int]) -> None:
    nat, stride, subscriber = pools.nat, pools.nat.blocks.size // pools.nat.pool.size, pools.nat.subscribers[device]
    found, row = [], int(subscriber.first_block)
    while row:
        found.append(row)
        row = int(nat.blocks[row].list_next)
    assert sorted(found) == own
    states = [int(nat.blocks[row].state) for row in found]
    assert states == sorted(states, reverse=True)  # held ones first
    for before, row in zip([found[-1], *found] if found else [], found, strict=False):
        assert nat.blocks[row].list_prev == before
        assert nat.blocks[row].identity == subscriber.identity
        assert row // stride == subscriber.external4
    dynamic = [row for row in found if row % stride >= nat.pool[row // stride].fixed_blocks]
    assert subscriber.blocks == len(dynamic)
    for port_class in range(PORT_CLASSES):
        listed = walked(nat, int(subscriber.open[port_class]), "open_next", "open_prev", port_class)
        owned = [row for row in own if nat.blocks[row].state == BLOCK_OWNED]
        assert sorted(listed) == [row for row in owned if nat.blocks[row].free[port_class]]
        fixed = [row % stride < nat.pool[row // stride].fixed_blocks for row in listed]
        assert fixed == sorted(fixed, reverse=True)


def assert_free_ports(pools: Pools) -> None:
    """Of an owned block, the lists and `owners` together hold every port once; a block that is not owned has no port in use."""
    nat, stride = pools.nat, pools.nat.blocks.size // pools.nat.pool.size
    taken: dict[tuple[int, int], set[int]] = {}
    for slot, kind, port in pools.owners:
        row = slot * stride + int(block_of_port(nat.pool[slot], port))
        taken.setdefault((row, kind * 2 + (port & 1)), set()).add(port)
    used = {row: sum(len(ports) for (other, _), ports in taken.items() if other == row) for row, _ in taken}
    for slot in range(1, nat.pool.size):
        pool = nat.pool[slot]
        assert [int(count) for count in pool.used] == [
            sum(s == slot and k == kind for s, k, _ in pools.owners) for kind in range(PORT_KINDS)
        ]
        for number in range(int(pool.blocks) if pool.address else 0):
            row, block = slot * stride + number, nat.blocks[slot * stride + number]
            assert block.used == used.get(row, 0)
            assert block.state == BLOCK_OWNED or row not in used
            low = int(first_port(pool, number))
            ports = range(low, low + int(ports_of_block(pool, number)))
            for port_class in range(PORT_CLASSES if block.state == BLOCK_OWNED else 0):
                mine = [port for port in ports if port & 1 == port_class & 1]
                start = place(slot, port_class >> 1, low) + (sum(port % 2 == 0 for port in ports) if port_class & 1 else 0)
                count = int(block.free[port_class])
                free_now = [mine[int(nat.free_ports[start + at]) ^ at] for at in range(count)]
                assert len(set(free_now)) == count
                assert set(free_now) == set(mine) - taken.get((row, port_class), set())


def walked(nat: NatTables, row: int, after: str, before: str, index: int | None = None) -> list[int]:
    """The rows of a list from its first on; each names the one before it."""
    found: list[int] = []
    while row:
        links = nat.blocks[row]
        link, back = (links[after], links[before]) if index is None else (links[after][index], links[before][index])
        assert back == (found[-1] if found else 0)
        found.append(row)
        assert len(found) <= nat.blocks.size
        row = int(link)
    return found
