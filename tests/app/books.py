"""A gateway's accounting without a gateway: a journal that a test writes, clocks that it sets, and a plain record of who had what when."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

import numpy as np

from egressvpn.app.accounting import Accounts, next_epoch
from egressvpn.control.records import Device, DeviceKey
from egressvpn.nat import tables as nat_tables
from egressvpn.nat.tables import BLOCK_FREE, BLOCK_GIVEN, BLOCK_OWNED, BLOCK_TAKEN_BACK, NatTables
from egressvpn.observe.nat_history import EVER, Whois, log_files, whois
from egressvpn.observe.nat_log import NatLog
from egressvpn.observe.nat_records import written

MS = 1_000_000
SECOND = 1_000_000_000
START = 1_767_225_590 * SECOND  # ten seconds before 2026 begins
ADDRESSES = [IPv4Address("203.0.113.1"), IPv4Address("203.0.113.2")]
BLOCKS = 4  # of each
LOW, SIZE = 1024, 16
PATTERN = "nat-%Y%m%d%H%M.jsonl"  # a file a minute
RING = 16  # entries of the journal
HOLD_DOWN = 120 * SECOND

Key = tuple[str, int]


def tables(ring: int = RING) -> NatTables:
    """Tables of the translator, of which control reads."""
    made: dict[str, Any] = {}
    for name, (dtype, count) in nat_tables.tables(1024, 8, len(ADDRESSES), BLOCKS).items():
        table: Any = np.zeros(ring if name == "journal" else count, dtype)
        made[name] = table.view(np.recarray) if dtype.names else table
    nat = NatTables(**made)
    for slot, address in enumerate(ADDRESSES, 1):
        row = nat.pool[slot]
        row.address, row.port_low, row.port_high = int(address), LOW, LOW + BLOCKS * SIZE - 1
        row.block_size, row.blocks, row.group = SIZE, BLOCKS, 1
    return nat


@dataclass
class Span:
    """Truth: a device had something from `begin` until before `end` (ms since the epoch; -1: it has it still)."""

    device_id: int
    name: str
    begin: int
    end: int = -1


@dataclass
class Books:
    """One gateway after another in the same directory."""

    directory: Path
    pattern: str = PATTERN
    wall: int = START
    monotonic: int = 5 * SECOND
    truth: dict[Key, list[Span]] = field(default_factory=dict)
    unknown: list[tuple[Key, int, int]] = field(default_factory=list)  # what a crash, or an overrun, kept from the log
    names: dict[int, str] = field(default_factory=dict)
    epoch: int = 0
    clock_was_set: bool = False

    def start(self) -> None:
        self.nat = tables()
        self.log = NatLog(self.directory, self.pattern)
        self.epoch = next_epoch(self.log, str(self.epoch))
        self.accounts = Accounts(
            self.nat,
            self.log,
            gateway="lis1",
            epoch=self.epoch,
            hold_down=HOLD_DOWN,
            wall=lambda: self.wall,
            monotonic=lambda: self.monotonic,
        )
        self.accounts.begin()
        self._check_held_back()
        for address in ADDRESSES:
            self.accounts.ledger.pools[str(address)] = "default"
        for number in self.names:
            self.tell(number)
        self.unread: list[tuple[Key, int]] = []

    def tell(self, number: int) -> None:
        """The fleet tells of a device."""
        keys = (DeviceKey(bytes([number]) * 32),)
        networks = (ip_network(f"100.64.0.{number}"), ip_network(f"fd64::{number}"))
        self.accounts.on_device(Device(number, self.names[number], True, (), "default", 0, keys, networks))

    # what happens

    def pass_time(self, ms: int) -> None:
        self.wall += ms * MS
        self.monotonic += ms * MS

    def set_clock(self, ms: int) -> None:
        before = self.wall // MS
        self.wall += ms * MS
        self.clock_was_set = True
        for spans in self.truth.values():
            if spans and spans[-1].end < 0:
                spans[-1].end = before
                spans.append(Span(spans[-1].device_id, spans[-1].name, self.wall // MS))

    def give(self, slot: int, number: int, device_id: int) -> None:
        """The data path gives a block."""
        row = self._block(slot, number)
        if row.state == BLOCK_FREE:
            row.state, row.identity, row.given, row.owner = BLOCK_OWNED, device_id, self.monotonic, device_id
            self._journal(BLOCK_GIVEN, slot, number, device_id)
            self._begin(self.key(slot, number), device_id)

    def take_back(self, slot: int, number: int) -> None:
        row = self._block(slot, number)
        if row.state == BLOCK_OWNED:
            row.state = BLOCK_FREE
            self._journal(BLOCK_TAKEN_BACK, slot, number, int(row.identity))
            self._finish(self.key(slot, number))

    def rename(self, device_id: int, name: str) -> None:
        self.names[device_id] = name
        self.tell(device_id)
        for spans in self.truth.values():
            if spans and spans[-1].end < 0 and spans[-1].device_id == device_id and spans[-1].name != name:
                spans[-1].end = self.wall // MS
                spans.append(Span(device_id, name, self.wall // MS))

    def remove(self, device_id: int) -> None:
        """The fleet forgets a device before the data path does."""
        self.accounts.on_device_gone(device_id)
        self._finish(("v6", device_id))
        for slot, number in self.blocks():
            row = self._block(slot, number)
            if row.state == BLOCK_OWNED and row.identity == device_id:
                self.take_back(slot, number)

    def address(self, device_id: int) -> None:
        """An IPv6 address of its own."""
        if not self._holds(("v6", device_id)):
            self.accounts.on_address(device_id, self.address6(device_id), "default")
            self._begin(("v6", device_id), device_id)

    async def follow(self) -> None:
        """The log is up to date and on disk."""
        while self.accounts.follow():
            pass
        await self.log.flush()
        self.unread.clear()

    async def overrun(self) -> None:
        """The data path writes more than its journal holds before anybody reads it."""
        chance = random.Random(self.wall)
        while int(self.nat.settings[0].journal) - self.accounts._after <= 2 * self.nat.journal.size:
            slot, number = chance.choice(list(self.blocks()))
            self.pass_time(1)
            self.take_back(slot, number)
            self.give(slot, number, chance.choice(sorted(self.names)))
        self.unknown += [(key, since, self.wall // MS) for key, since in self.unread]
        await self.follow()

    async def stop(self) -> None:
        await self.accounts._end()
        for key in self.truth:
            self._finish(key)

    async def kill(self, torn: bytes = b"") -> None:
        """Nobody could say a word. The last line may be torn."""
        self.log.close()
        files = log_files(self.directory, self.pattern)
        if torn and files:
            with files[-1].open("ab") as file:
                file.write(torn)
        self.killed = self.wall // MS

    def restart_after_kill(self) -> None:
        """The log says that everything ends at the latest now."""
        now = self.wall // MS
        self.unknown += [(key, since, now) for key, since in self.unread]
        self.start()
        for key in self.truth:
            self._finish(key)

    # asking

    def blocks(self) -> Iterator[tuple[int, int]]:
        return ((slot, number) for slot in range(1, len(ADDRESSES) + 1) for number in range(BLOCKS))

    def key(self, slot: int, number: int) -> Key:
        return str(ADDRESSES[slot - 1]), LOW + number * SIZE

    def address6(self, device_id: int) -> IPv6Address:
        return IPv6Address(f"2001:db8:113::{device_id}")

    def ask(self, key: Key, port: int, begin: int, length: int) -> Whois:
        """`begin` and `length` in ms."""
        external = str(self.address6(key[1])) if key[0] == "v6" else key[0]
        files = log_files(self.directory, self.pattern)
        return whois(files, external, port, written(begin * MS), written((begin + length) * MS))

    def expected(self, key: Key, begin: int, length: int) -> set[tuple[int, str]]:
        found = set()
        for span in self.truth.get(key, ()):
            end = begin + length + 1 if span.end < 0 else span.end
            if span.begin < begin + length and (end > begin or span.begin == end >= begin):
                found.add((span.device_id, span.name))
        return found

    def is_known(self, key: Key, begin: int, length: int) -> bool:
        return not any(key == other and first < begin + length and last >= begin for other, first, last in self.unknown)

    def _check_held_back(self) -> None:
        """Every start knows what devices had until less than the hold-down ago."""
        now, unknown = self.wall // MS, {key for key, *_ in self.unknown}
        had = {key: spans[-1] for key, spans in self.truth.items() if spans and key not in unknown}
        expected = {key: span.device_id for key, span in had.items() if span.end < 0 or span.end > now - HOLD_DOWN // MS}
        held = {
            (("v6", one.device_id) if one.ports is None else (one.external, one.ports[0])): one.device_id
            for one in self.accounts.ledger.held_back(self.wall)
        }
        if not self.clock_was_set:
            assert {key: device_id for key, device_id in held.items() if key not in unknown} == expected

    def _block(self, slot: int, number: int) -> Any:
        return self.nat.blocks[slot * BLOCKS + number]

    def _journal(self, kind: int, slot: int, number: int, device_id: int) -> None:
        sequence = int(self.nat.settings[0].journal) + 1
        entry = self.nat.journal[(sequence - 1) % self.nat.journal.size]
        entry.kind, entry.identity, entry.pool, entry.address = kind, device_id, slot, int(ADDRESSES[slot - 1])
        entry.port_low = LOW + number * SIZE
        entry.port_high = entry.port_low + SIZE - 1
        entry.when, entry.sequence = self.monotonic, sequence
        self.nat.settings[0].journal = sequence
        self.unread.append((self.key(slot, number), self.wall // MS))

    def _holds(self, key: Key) -> bool:
        return bool(self.truth.get(key)) and self.truth[key][-1].end < 0

    def _begin(self, key: Key, device_id: int) -> None:
        self.truth.setdefault(key, []).append(Span(device_id, self.names[device_id], self.wall // MS))

    def _finish(self, key: Key) -> None:
        if self._holds(key):
            self.truth[key][-1].end = self.wall // MS


def named(answer: Whois) -> set[tuple[int, str]]:
    return {(held.record.device_id, held.record.device) for held in answer.holdings}


__all__ = ["EVER", "Books", "named"]
