"""A gateway's control plane on its arena, with the worker's commands applied in the same process: no packets, no privileges."""

import os
import secrets
import select
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import trio
import trio.testing

from egressvpn.addresses import words
from egressvpn.app.accounting import Accounts, next_epoch
from egressvpn.app.fleet import OPEN_INTERVAL, Fleet
from egressvpn.app.gateway import limits
from egressvpn.control.config import parse
from egressvpn.control.schema import Config
from egressvpn.control.store import Store, open_store
from egressvpn.control.supervisor import Supervisor
from egressvpn.control.tunnel import Tunnel
from egressvpn.dataplane import aead, arena, local
from egressvpn.dataplane.bundle import Bundle, bundle
from egressvpn.dataplane.commands import apply_waiting
from egressvpn.dataplane.egress import end_some
from egressvpn.dataplane.layout import layout
from egressvpn.nat import tables as nat_tables
from egressvpn.nat.blocks import block_low, give
from egressvpn.nat.tables import SECOND, NatTables
from egressvpn.netio.udp import open_udp
from egressvpn.observe.nat_log import NatLog
from egressvpn.observe.nat_records import decode
from egressvpn.prefixes import find
from egressvpn.wireguard.indexes import SessionIndexes
from egressvpn.wireguard.interface import Interface
from egressvpn.wireguard.tables import FREE

TEXT = """
[wireguard]
max_devices = 8
[tunnel]
networks = ["100.64.0.0/24", "fd64::/64"]
[[pool]]
name = "default"
addresses = ["203.0.113.0/28", "2001:db8:113::/64"]
[[pool]]
name = "other"
addresses = ["203.0.113.16/28"]
[nat]
max_flows = 1024
"""


@dataclass
class Bench:
    """One gateway, opened. `step` brings the store's changes to the worker's tables."""

    store: Store
    fleet: Fleet
    tunnel: Tunnel
    b: Bundle
    supervisor: Supervisor
    accounts: Accounts
    log: NatLog

    @property
    def config(self) -> Config:
        return self.fleet.config

    async def step(self) -> None:
        await self.fleet.follow()
        self.work()

    def work(self) -> None:
        """Everything that waits for the worker."""
        while select.select([self.supervisor._theirs], [], [], 0)[0]:
            assert apply_waiting(self.b, self.supervisor._theirs)

    async def change(self, text: str) -> None:
        """Another configuration of the pools, while the worker works."""
        config = parse(text, self.config.path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_addresses)
            await self.fleet.change_pools(config)
            nursery.cancel_scope.cancel()
        self.work()

    async def _end_addresses(self) -> None:
        """The part of the packet loop that has to do with pools."""
        while True:
            self.work()
            end_some(self.b, time.monotonic_ns())
            await trio.sleep(0.001)

    def give_block(self, name: str) -> tuple[str, int]:
        """The external address and the first port of a block that the data path gives to the device."""
        nat = self.b.nat
        row = int(give(nat, self.slot(name), time.monotonic_ns()))
        assert row > 0, row
        return str(ip_address(int(nat.pool[row // (nat.blocks.size // nat.pool.size)].address))), int(block_low(nat, row))

    def events(self) -> list[tuple[str, str, str]]:
        """What the NAT log says: event, device, external address."""
        lines = [line for path in self.log.files() for line in path.read_bytes().splitlines(keepends=True)]
        return [(record.event, record.device, record.external) for line in lines if (record := decode(line)) is not None]

    def slot(self, name: str) -> int:
        return self.fleet.members[name].slot

    def row(self, name: str) -> Any:
        """The worker's row of a device."""
        return self.b.wg.devices[self.slot(name)]

    def owner(self, network: str) -> str:
        """Whose network it is in the data path; empty for nobody's."""
        wanted = ip_network(network)
        slot = int(find(self.b.prefixes, wanted.version, *words(wanted.network_address), wanted.prefixlen))
        return self.fleet.by_slot[slot].device.name if slot else ""

    def used_slots(self) -> set[int]:
        return {slot for slot in range(1, self.b.wg.devices.size) if self.b.wg.devices[slot].state != FREE}


@asynccontextmanager
async def bench(directory: Path, text: str = TEXT) -> AsyncIterator[Bench]:
    """A gateway whose store is in this directory."""
    config = parse(f'[gateway]\nstate_dir = "{directory}"\n{text}', directory / "gateway.toml")
    with ExitStack() as undo:
        memory = arena.create(layout(limits(config)))
        undo.callback(os.close, memory.fd)
        sockets = open_udp(["127.0.0.1:0", "[::1]:0"])
        for udp in sockets:
            undo.callback(udp.close)
        supervisor = Supervisor(memory, limits(config), -1, [])
        undo.callback(supervisor.close)
        own = local.create(memory.tables["sessions"].size, supervisor._theirs.fileno(), -1, [])
        aead.prepare(own)
        indexes = SessionIndexes(memory.tables["sessions"].size, 0, secrets.token_bytes)
        tunnel = Tunnel(supervisor, Interface(secrets.token_bytes(32), indexes, secrets.token_bytes), sockets)
        store = undo.enter_context(open_store(config.store.url, config.state_dir))
        log = NatLog(config.state_dir, config.log.nat_log)
        nat = memory.bundle(NatTables)
        nat_tables.configure(nat, hold_down=config.nat.hold_down * SECOND)
        accounts = Accounts(nat, log, gateway="test", epoch=next_epoch(log, None), hold_down=config.nat.hold_down * SECOND)
        accounts.begin()
        fleet = Fleet(config, store, tunnel, accounts)
        made = Bench(store, fleet, tunnel, bundle(own, memory), supervisor, accounts, log)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_work, made)
            await made.fleet.open()
            nursery.cancel_scope.cancel()
        yield made
        log.close()


async def _work(made: Bench) -> None:
    while True:
        await trio.lowlevel.wait_readable(made.supervisor._theirs)
        made.work()
        clock = trio.lowlevel.current_clock()
        if isinstance(clock, trio.testing.MockClock):
            clock.jump(OPEN_INTERVAL)  # it is looked for between naps
