"""The pools in the data path: which addresses are in which slot, who egresses from where, and what a changed configuration means for it.

A slot is a row of the worker's table of pool addresses. An address that is taken out, or whose ports or blocks are cut differently,
leaves its slot first: what was on it ends there, step by step, and only then may the slot, or the address in another slot, be used
again. What takes long is left out meanwhile, and put in by `settle`. Devices that can stay where they are stay.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

import structlog
import trio

from egressvpn.addresses import IPNetwork, words
from egressvpn.app.accounting import Accounts
from egressvpn.app.egress import external4, external6, pool_addresses
from egressvpn.control.checks import deterministic
from egressvpn.control.records import Device
from egressvpn.control.schema import Config, Pool
from egressvpn.control.tunnel import Tunnel
from egressvpn.dataplane.channel import Command, pack_command
from egressvpn.errors import OperatorError
from egressvpn.nat.deterministic import Deterministic
from egressvpn.nat.slices import block_count
from egressvpn.nat.tables import NatTables
from egressvpn.observe.nat_ledger import HeldBack, Ledger

log = structlog.get_logger(__name__)

REMOVAL_INTERVAL: Final = 0.01  # s between two looks whether an address has ended
REMOVAL_PATIENCE: Final = 2.0  # s that a change waits for addresses to end, and whatever follows the store with it
NOBODYS_GROUP: Final = 1  # of an address whose blocks are yet to be held back: no pool has it


@dataclass(frozen=True, slots=True)
class Slice:
    """Our ports of one IPv4 address, and how they are cut into blocks."""

    address: IPv4Address
    pool: str
    port_low: int
    port_high: int
    block_size: int
    max_blocks: int
    fixed_blocks: int = 0
    fixed_size: int = 0

    @property
    def blocks(self) -> int:
        return block_count(self.port_low, self.port_high, self.block_size, self.fixed_blocks, self.fixed_size)

    def begins(self, low: int, high: int) -> Iterator[int]:
        """The first port of every block that these ports touch."""
        fixed_end = self.port_low + self.fixed_blocks * self.fixed_size
        for number in range(self.blocks):
            if number < self.fixed_blocks:
                first, size = self.port_low + number * self.fixed_size, self.fixed_size
            else:
                first, size = fixed_end + (number - self.fixed_blocks) * self.block_size, self.block_size
            if first <= high and low < first + size:
                yield first

    def stays(self, other: "Slice | None") -> bool:
        """Whether what is on it can go on; a quota may change at any time."""
        return other is not None and replace(other, max_blocks=self.max_blocks) == self


@dataclass(frozen=True, slots=True)
class Egress:
    """Where a device goes out."""

    slot: int = 0  # of its external IPv4 address in the worker's table; 0: none
    external4: IPv4Address | None = None
    external6: IPv6Address | None = None
    fixed: int = 0  # number of its predefined block + 1; 0: none
    internal6: IPv6Address | None = None  # what `external6` was chosen for


NOWHERE: Final = Egress()


@dataclass(frozen=True, slots=True)
class _TakenByOthers:
    """IPv6 addresses that are in use or held back, but not those that are held back for this device."""

    taken: set[IPv6Address]
    ledger: Ledger
    device_id: int

    def __contains__(self, address: IPv6Address) -> bool:
        return address in self.taken and not self.ledger.is_held_for(self.device_id, str(address))

    def __len__(self) -> int:
        return len(self.taken)


class Pools:
    """The worker's table of pool addresses, and who has which."""

    def __init__(self, config: Config, tunnel: Tunnel, accounts: Accounts) -> None:
        nat = tunnel.supervisor.arena.bundle(NatTables)
        self._rows: Any = nat.pool
        self._endings: Any = tunnel.supervisor.arena.tables["endings"]
        self._blocks_per_address = nat.blocks.size // nat.pool.size
        self._tunnel = tunnel
        self._accounts = accounts
        self._free = list(range(nat.pool.size - 1, 0, -1))
        self._slots: dict[IPv4Address, int] = {}
        self._slices: dict[IPv4Address, Slice] = {}
        self._present: dict[str, list[IPv4Address]] = {}  # by pool: its addresses that are in a slot
        self._ending: dict[int, Slice] = {}  # by slot: what was there, and has not ended yet
        self.late: list[str] = []  # addresses that should have ended by now
        self._networks6: set[IPNetwork] = set()
        self._groups: dict[str, int] = {}
        self._taken6 = {IPv6Address(held.external) for held in accounts.ledger.held_back(0) if held.ports is None}
        self._configure(config)

    def _configure(self, config: Config) -> None:
        self._config = config
        self._pools = {pool.name: pool for pool in config.pools}
        self._addresses = {pool.name: pool_addresses(pool.addresses) for pool in config.pools}
        self._plans = {pool.name: plan for pool in config.pools if (plan := deterministic(pool, config)) is not None}
        self._planned = {pool.name: _plan_record(pool, self._plans[pool.name]) for pool in config.pools if pool.name in self._plans}

    def address_of(self, slot: int) -> IPv4Address | None:
        """The address in a slot; None when it has none (any more)."""
        address = IPv4Address(int(self._rows[slot].address))
        return address if address in self._slices else None

    def pool_of(self, slot: int) -> str:
        if slot in self._ending:
            return self._ending[slot].pool
        address = self.address_of(slot)
        return "" if address is None else self._slices[address].pool

    def knows(self, pool: str) -> bool:
        return pool in self._pools

    def open(self) -> None:
        """All of them into the worker's table."""
        self._add(wanted_slices(self._config))

    # devices

    def join(self, device: Device, before: Egress = NOWHERE) -> Egress:
        """Where a device of a known pool goes out: as before, where that is possible."""
        slot, address, fixed = self._join4(device, before)
        internal = next((address for address in device.addresses if isinstance(address, IPv6Address)), None)
        return Egress(slot, address, self._join6(device, before, internal), fixed, internal)

    def _join4(self, device: Device, before: Egress) -> tuple[int, IPv4Address | None, int]:
        addresses = self._present[device.pool]
        planned = self._planned_block(device)
        if planned is not None:
            address, number = planned
            return (self._slots[address], address, number + 1) if address in self._slots else (0, None, 0)
        if before.external4 is not None and self._slots.get(before.external4) == before.slot and before.external4 in addresses:
            return before.slot, before.external4, 0
        position = external4(str(device.id), addresses)
        return (0, None, 0) if position is None else (self._slots[addresses[position]], addresses[position], 0)

    def _planned_block(self, device: Device) -> tuple[IPv4Address, int] | None:
        """External address and number of the block that belongs to a tunnel address of the device beforehand."""
        plan = self._plans.get(device.pool)
        blocks = (plan.block(address) for address in device.addresses if plan is not None and isinstance(address, IPv4Address))
        block = next((block for block in blocks if block is not None), None)
        return None if block is None else (self._addresses[device.pool][block[0]], block[1])

    def loses_block(self, device: Device, before: Egress) -> bool:
        """Whether a device had a predefined block that is not its own any more."""
        planned = self._planned_block(device)
        now = (0, 0) if planned is None else (self._slots.get(planned[0], 0), planned[1] + 1)
        return before.fixed != 0 and now != (before.slot, before.fixed)

    def _join6(self, device: Device, before: Egress, internal: IPv6Address | None) -> IPv6Address | None:
        """The same after a restart as now: so it follows the internal address, which it is checksum-neutral to."""
        networks = self._pools[device.pool].addresses
        if before.external6 is not None and before.internal6 == internal and any(before.external6 in network for network in networks):
            return before.external6
        self._taken6 -= {IPv6Address(held.external) for held in self._accounts.let_go() if held.ports is None}
        address = external6(str(device.id), networks, _TakenByOthers(self._taken6, self._accounts.ledger, device.id), internal)
        if before.external6 is not None:
            self._accounts.on_address_gone(device.id)
        if address is not None:
            self._taken6.add(address)
            self._accounts.on_address(device.id, address, device.pool)
        return address

    # another configuration

    def check(self, config: Config) -> None:
        """Raises OperatorError when the running gateway has no room for these pools."""
        wanted = wanted_slices(config)
        ending = {one.address for one in self._ending.values()}  # each leaves a slot
        more = [address for address in wanted if address not in self._slots and address not in ending]
        room = len(self._free)
        if len(more) > room:
            raise OperatorError(f"{len(more)} more pool addresses are more than the {room} there is room for", "restart the gateway")
        largest = max((one.blocks for one in wanted.values()), default=0)
        if largest > self._blocks_per_address:
            what = f"{largest} blocks for each address are more than the {self._blocks_per_address} there is room for"
            raise OperatorError(what, "restart the gateway, or use a larger block_size")

    async def change(self, config: Config) -> None:
        """Take out what is not wanted any more, then put in what is new. Devices are to `join` again afterwards."""
        wanted = wanted_slices(config)
        self._end([address for address, one in self._slices.items() if not one.stays(wanted.get(address))])
        with trio.move_on_after(REMOVAL_PATIENCE):
            while not all(map(self._has_ended, self._ending)):  # noqa: ASYNC110  (words in the arena: nothing to wait for)
                await trio.sleep(REMOVAL_INTERVAL)
        self._collect()
        for address in {str(one.address) for one in self._ending.values()} - set(self.late):
            log.error("a pool address takes long to end; until it has, nobody goes out from it", address=address)
        self.late = [str(one.address) for one in self._ending.values()]
        self._configure(config)
        self._add(wanted)

    def settle(self) -> bool:
        """Put in what could not be put in before it had ended. True when something has: devices are to `join` again."""
        ended = self._collect()
        if ended:
            self.late = [str(one.address) for one in self._ending.values()]
            log.info("pool addresses have ended", addresses=ended)
            self._add(wanted_slices(self._config))
        return bool(ended)

    def _end(self, addresses: Sequence[IPv4Address]) -> None:
        for address in addresses:
            slot = self._slots.pop(address)
            self._ending[slot] = self._slices.pop(address)
            self._tunnel.command(pack_command(Command.REMOVE_POOL, external4=slot))

    def _has_ended(self, slot: int) -> bool:
        return not self._rows[slot].address and not self._endings[slot]

    def _collect(self) -> list[str]:
        """The slots of what has ended are free again. Which addresses that were."""
        slots = [slot for slot in self._ending if self._has_ended(slot)]
        while slots and self._accounts.follow():  # what ended there is held back in the next slot
            pass
        self._free[:0] = slots
        return [str(self._ending.pop(slot).address) for slot in slots]

    def _add(self, wanted: dict[IPv4Address, Slice]) -> None:
        """The slices that are not in the worker's table, or have another quota there; not what has yet to end in another slot."""
        self._set_networks6({network for pool in self._pools.values() for network in pool.addresses if network.version == 6})
        ending = {one.address for one in self._ending.values()}
        held: dict[str, list[HeldBack]] = {}
        for before in self._accounts.ledger.held_back(0):
            held.setdefault(before.external, []).append(before)
        for address, one in wanted.items():
            if address not in ending and self._slices.get(address) != one:
                self._put(one, held.get(str(address), ()))
        self._present = {pool: [one for one in addresses if one in self._slots] for pool, addresses in self._addresses.items()}
        self._accounts.set_deterministic(self._planned.values())

    def _put(self, one: Slice, held: Sequence[HeldBack]) -> None:
        """A slice into the worker's table. Nobody has a port of it before what is held back there is."""
        fresh = one.address not in self._slots
        if fresh:
            self._slots[one.address] = self._free.pop()
        slot = self._slots[one.address]
        self._slices[one.address] = one
        self._accounts.ledger.pools[str(one.address)] = one.pool
        if fresh and held:
            self._send(slot, one, NOBODYS_GROUP)
            self._hold_back(slot, one, held)
        self._send(slot, one, self._groups.setdefault(one.pool, NOBODYS_GROUP + 1 + len(self._groups)))

    def _send(self, slot: int, one: Slice, group: int) -> None:
        self._tunnel.command(
            pack_command(
                Command.ADD_POOL,
                external4=slot,
                low=int(one.address),
                port_low=one.port_low,
                port_high=one.port_high,
                group=group,
                block_size=one.block_size,
                max_blocks=one.max_blocks,
                fixed_blocks=one.fixed_blocks,
                fixed_size=one.fixed_size,
            )
        )

    def _hold_back(self, slot: int, one: Slice, held: Iterable[HeldBack]) -> None:
        """Blocks that devices had until a moment ago, before this start or in another slot; for nobody, when two had parts of one."""
        blocks: dict[int, tuple[int, int]] = {}
        for before in held:
            for first in one.begins(*before.ports) if before.ports else ():
                device_id, until = blocks.get(first, (before.device_id, 0))
                blocks[first] = device_id if device_id == before.device_id else 0, max(until, before.until)
        for first, (device_id, until) in blocks.items():
            command = pack_command(
                Command.HOLD_BLOCK, external4=slot, port_low=first, identity=device_id, wall=self._accounts.monotonic_at(until)
            )
            self._tunnel.command(command)

    def _set_networks6(self, networks: set[IPNetwork]) -> None:
        """The networks that IPv6 addresses of devices come from: what is sent to them never leaves to the kernel."""
        for kind, changed in ((Command.REMOVE_POOL, self._networks6 - networks), (Command.ADD_POOL, networks - self._networks6)):
            for network in changed:
                high, low = words(network.network_address)
                self._tunnel.command(pack_command(kind, version=6, high=high, low=low, prefix_length=network.prefixlen))
        self._networks6 = networks


def wanted_slices(config: Config) -> dict[IPv4Address, Slice]:
    """What the worker's table of pool addresses holds with this configuration."""
    return {one.address: one for pool in config.pools for one in _slices(pool, deterministic(pool, config))}


def _slices(pool: Pool, plan: Deterministic | None) -> Iterator[Slice]:
    fixed = (0, 0) if plan is None else (plan.compression, plan.ports_per_user)
    for address in pool_addresses(pool.addresses):
        yield Slice(address, pool.name, pool.ports.low, pool.ports.high, pool.block_size, pool.max_blocks, *fixed)


def _plan_record(pool: Pool, plan: Deterministic) -> dict[str, Any]:
    """A deterministic pool as the NAT log tells of it."""
    told = plan.record()
    return {**told, "pool": pool.name, "outside": tuple(told["outside"]), "ports": tuple(told["ports"])}
