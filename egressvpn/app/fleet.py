"""The devices of the store, as the data path has them: which slot, which networks, which keys. Follows the store change by change.

A slot is a row of the worker's tables; it belongs to a device as long as the device exists, whatever its keys, networks and
endpoint do: sessions and flows stay. Work is done for what changed alone, so a fleet of ten thousand costs one as much as none.
"""

import socket
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final

import sqlalchemy.exc
import structlog
import trio

from egressvpn.addresses import IPNetwork, Path, pack_sockaddr, words
from egressvpn.app.accounting import Accounts
from egressvpn.app.pools import Egress, Pools
from egressvpn.control.devices import gateway_address
from egressvpn.control.schema import Config
from egressvpn.control.store import BEGINNING, Device, Store
from egressvpn.control.tunnel import NANOSECOND, Tunnel
from egressvpn.control.wake import BELL, Bell
from egressvpn.dataplane.channel import Command, pack_command
from egressvpn.errors import OperatorError
from egressvpn.netio.netlink import local_addresses
from egressvpn.netio.udp import split_listen
from egressvpn.wireguard.noise import NO_PRESHARED_KEY
from egressvpn.wireguard.tables import DISABLED, ENABLED

log = structlog.get_logger(__name__)

WATCH_INTERVAL: Final = 0.5  # s between two looks at the store's revision when nobody rings
LOOKS_PER_MACHINE_LOOK: Final = 20  # the machine's addresses change rarely
TIMESTAMP_INTERVAL: Final = 60.0  # s between two recordings: as much of the past can be replayed after a crash, once
OPEN_INTERVAL: Final = 0.002  # s between two looks whether the worker has opened
AT_ONCE: Final = 1000  # networks handed to the worker before other tasks have their turn; a device counts as one


@dataclass(frozen=True, slots=True)
class Member:
    """A device in the data path."""

    slot: int
    device: Device
    egress: Egress

    @property
    def external4(self) -> IPv4Address | None:
        """Where it goes out unless the data path, which knows what is free, has found another address of the pool."""
        return self.egress.external4

    @property
    def external6(self) -> IPv6Address | None:
        return self.egress.external6


@dataclass(frozen=True, slots=True)
class _News:
    """A device as it is, and what that means for the data path."""

    device: Device
    address4: int  # its first tunnel addresses; -1: none
    address6: tuple[int, int]
    lost: list[IPNetwork]
    gained: list[IPNetwork]


@dataclass(frozen=True, slots=True)
class _Plan:
    """The way from one revision of the store to another."""

    revision: int
    gone: Collection[int]  # ids of devices
    news: list[_News]


class Fleet:
    """Keeps the worker's device table equal to the store."""

    def __init__(self, config: Config, store: Store, tunnel: Tunnel, accounts: Accounts) -> None:
        self.config = config
        self._store = store
        self._tunnel = tunnel
        self._accounts = accounts
        self._free = list(range(config.wireguard.max_devices, 0, -1))
        self.pools = Pools(config, tunnel, accounts)
        self._revision = BEGINNING
        self._following = trio.Lock()
        self._newest: dict[bytes, bytes] = {}  # by public key: the timestamp that a replayed initiation cannot be newer than
        self._recorded: dict[bytes, bytes] = {}  # the same, as the store has it
        self.denied: set[IPNetwork] = set()  # addresses of this machine
        self._outside: dict[int, Device] = {}  # by id: devices of the store that have no slot
        self.members: dict[str, Member] = {}
        self.by_id: dict[int, Member] = {}
        self.by_key: dict[bytes, Member] = {}
        self.by_slot: dict[int, Member] = {}
        self.store_error = ""
        self.left_out: dict[str, str] = {}  # devices that cannot connect, and why

    def __len__(self) -> int:
        return len(self.members)

    async def open(self) -> None:
        """Identities, pools, policy and devices into the worker's tables, then OPEN; returns when the worker has done it all."""
        self._tunnel.set_identities()
        self.pools.open()
        for prefix in (*self.config.policy.deny, *self.config.tunnel.networks):
            self._tell_prefix(Command.ADD_DENIED, prefix)
        for prefix in self.config.nat.exempt:
            self._tell_prefix(Command.ADD_EXEMPT, prefix)
        self.deny_machine()
        await self._follow()
        inner = [gateway_address(network) for network in self.config.tunnel.networks]
        low4 = next((int(address) for address in inner if address.version == 4), 0)
        high6, low6 = next((words(address) for address in inner if address.version == 6), (0, 0))
        self._tunnel.command(pack_command(Command.OPEN, internal4=low4, internal6_hi=high6, internal6_lo=low6))
        worker = self._tunnel.supervisor.arena.tables["worker"][0]
        while not worker.open:  # noqa: ASYNC110  (a word in the arena: there is no event to wait for)
            await trio.sleep(OPEN_INTERVAL)

    async def run(self) -> None:
        """Follow the store and the machine's addresses until cancelled, and keep what must survive the process."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            nursery.start_soon(self._listen)
            nursery.start_soon(self._keep_timestamps)

    def deny_machine(self) -> None:
        """No device reaches the gateway's own services by way of the tunnel: its addresses are denied, new ones when seen."""
        for local in local_addresses():
            address = ip_network(local.address.ip)
            if address not in self.denied and not local.address.is_link_local and not local.address.is_loopback:
                self.denied.add(address)
                self._tell_prefix(Command.ADD_DENIED, address)

    async def follow(self) -> None:
        """Look whether the store changed, and follow. A store that is away is not the end: what is loaded goes on."""
        try:
            await self._follow()
            if self.store_error:
                log.info("store is back")
            self.store_error = ""
        except OperatorError as error:
            if not self.store_error:
                log.error("store is away; forwarding goes on with what is loaded", error=str(error))
            self.store_error = str(error)

    async def change_pools(self, config: Config) -> None:
        """Go on with the pools of another configuration. Devices whose addresses stay notice nothing."""
        async with self._following:
            with trio.CancelScope(shield=True):  # neither the pools nor a device are left half done
                await self.pools.change(config)
                self.config = config
                await self._bring_all()

    async def settle_pools(self) -> None:
        """Addresses that took long to end: put them in again if they are wanted, and devices to where they belong."""
        async with self._following:
            with trio.CancelScope(shield=True):
                if self.pools.settle():
                    await self._bring_all()

    # the tasks of `run`

    async def _watch(self) -> None:
        while True:
            for _ in range(LOOKS_PER_MACHINE_LOOK):
                await trio.sleep(WATCH_INTERVAL)
                await self.follow()
                await self.settle_pools()
            try:
                self.deny_machine()
            except (OperatorError, OSError) as error:
                log.error("the machine's addresses cannot be read", error=str(error))

    async def _listen(self) -> None:
        try:
            bell = Bell(self.config.state_dir / BELL)
        except OSError as error:
            log.warning("changes of the store are seen later: nobody can wake the gateway", error=str(error))
            return
        with bell:
            while True:
                await trio.lowlevel.wait_readable(bell)
                bell.hear()
                await self.follow()

    async def _keep_timestamps(self) -> None:
        try:
            while True:
                await trio.sleep(TIMESTAMP_INTERVAL)
                await trio.to_thread.run_sync(self._record_timestamps)
        finally:
            self._record_timestamps()

    def _record_timestamps(self) -> None:
        """The newest timestamp of every device that has a newer one than the store knows."""
        for member in list(self.by_id.values()):
            self._remember_timestamp(member)
        newer = {key: stamp for key, stamp in list(self._newest.items()) if stamp > self._recorded.get(key, b"")}
        try:
            self._store.record_timestamps(newer)
            self._recorded.update(newer)
        except (OperatorError, sqlalchemy.exc.SQLAlchemyError) as error:
            log.error("timestamps cannot be recorded", error=str(error))

    def _remember_timestamp(self, member: Member) -> None:
        peer = self._tunnel.interface.peer(member.slot)
        if peer is not None and any(peer.newest_timestamp):
            self._newest[peer.public_key] = peer.newest_timestamp

    # following

    async def _follow(self) -> None:
        """Raises OperatorError when the store cannot be read."""
        async with self._following:
            if await trio.to_thread.run_sync(self._store.revision) == self._revision:
                return
            plan = await trio.to_thread.run_sync(self._read)
            with trio.CancelScope(shield=True):  # a device is never left half done
                await self._carry_out(plan)
            self._revision = plan.revision

    def _read(self) -> _Plan:
        """What is to be done, found out in a thread: a device may have a hundred thousand networks."""
        changes = self._store.changes_since(self._revision)
        told = {device.id: device for device in changes.devices}
        gone = {*self.by_id, *self._outside} - told.keys() if changes.complete else changes.removed_ids
        waiting = [device for number, device in self._outside.items() if number not in told and number not in gone]
        return _Plan(changes.revision, gone, [self._news(device) for device in (*told.values(), *waiting)])

    def _news(self, device: Device) -> _News:
        known = self.by_id.get(device.id)
        before = () if known is None or known.device.pool != device.pool else known.device.allowed_ips
        addresses = device.addresses
        address4 = next((int(address) for address in addresses if address.version == 4), -1)
        address6 = next((words(address) for address in addresses if address.version == 6), (0, 0))
        if before in ((), device.allowed_ips):
            return _News(device, address4, address6, [], [] if before else list(device.allowed_ips))
        had, has = set(before), set(device.allowed_ips)
        return _News(device, address4, address6, list(had - has), [network for network in device.allowed_ips if network not in had])

    async def _bring_all(self) -> None:
        """Every device anew, after its pool has changed."""
        members, outside = list(self.by_id.values()), list(self._outside.values())
        await self._carry_out(_Plan(self._revision, (), [self._news(member.device) for member in members]))
        await self._carry_out(_Plan(self._revision, (), [self._news(device) for device in outside]))

    async def _carry_out(self, plan: _Plan) -> None:
        """A predefined block is taken from its device before another is told that it has it."""
        for number in plan.gone:
            self._forget(number)
        work = 0
        for news in sorted(plan.news, key=self._keeps_block):
            for steps in self._bring(news):
                work += steps
                if work >= AT_ONCE:
                    work = 0
                    self._tunnel.flush()
                    await trio.lowlevel.checkpoint()
        self._tunnel.flush()

    def _keeps_block(self, news: _News) -> bool:
        known = self.by_id.get(news.device.id)
        return known is None or not self.pools.loses_block(news.device, known.egress)

    def _forget(self, number: int) -> None:
        """The store has no device with this id any more."""
        outside = self._outside.pop(number, None)
        if outside is not None:
            self.left_out.pop(outside.name, None)
        if number in self.by_id:
            self._remove(self.by_id[number])

    def _bring(self, news: _News) -> Iterator[int]:
        """Make the data path have a device as it is; after each step, how much that was."""
        device = news.device
        known = self.by_id.get(device.id)
        self.left_out.pop(device.name if known is None else known.device.name, None)
        if known is not None and (known.device.pool != device.pool or not self.pools.knows(device.pool)):
            self._remove(known)  # another external address: nothing of the old may go on
            known = None
        member = self._join(device, known)
        if member is None:
            self._outside[device.id] = device
            return
        if known is not None and (known.device.name, known.device.public_key) != (device.name, device.public_key):
            self._unlist(known)
        self._outside.pop(device.id, None)
        self.members[device.name] = self.by_id[device.id] = self.by_key[device.public_key] = self.by_slot[member.slot] = member
        self._admit(member)
        self._send_device(member, news)
        self._send_path(member, "" if known is None else known.device.endpoint)
        yield 1
        for part in _parts(news.lost):
            self._tunnel.remove_prefixes(member.slot, part)
            yield len(part)
        for part in _parts(news.gained):
            self._tunnel.add_prefixes(member.slot, part)
            yield len(part)

    def _join(self, device: Device, known: Member | None) -> Member | None:
        """A slot and external addresses for a device, those it has if it can keep them. None when it must stay outside."""
        if not self.pools.knows(device.pool):
            self._leave_out(device, f"{device.name} is in pool {device.pool}, which is not configured")
            return None
        if known is None and not self._free:
            self._leave_out(device, f"{device.name} has no room: raise [wireguard] max_devices")
            return None
        self._accounts.on_device(device)
        if known is None:
            return Member(self._free.pop(), device, self.pools.join(device))
        return Member(known.slot, device, self.pools.join(device, known.egress))

    def _leave_out(self, device: Device, why: str) -> None:
        if device.id not in self._outside:
            log.error("device left out", why=why)
        self.left_out[device.name] = why

    def _admit(self, member: Member) -> None:
        """Handshakes are for enabled devices only; to others the gateway is silent and their sessions end."""
        device, interface = member.device, self._tunnel.interface
        self._remember_timestamp(member)
        peer = interface.peer(member.slot)
        if peer is not None and (peer.public_key != device.public_key or not device.enabled):
            interface.remove_peer(member.slot)
        if not device.enabled:
            return
        key = device.key
        newest = max(key.newest_timestamp, self._newest.get(key.public_key, b""))
        self._recorded.setdefault(key.public_key, key.newest_timestamp)
        secret = key.preshared_key or NO_PRESHARED_KEY
        try:
            interface.add_peer(member.slot, key.public_key, secret, None, device.persistent_keepalive, newest_timestamp=newest)
        except ValueError as error:
            self._leave_out(device, f"{device.name} cannot have its key: {error}")

    def _remove(self, member: Member) -> None:
        self._unlist(member)
        self.left_out.pop(member.device.name, None)
        self._newest.pop(member.device.public_key, None)
        self._recorded.pop(member.device.public_key, None)
        self._tunnel.interface.remove_peer(member.slot)
        self._tunnel.command(pack_command(Command.REMOVE_DEVICE, member.slot))
        self._accounts.on_device_gone(member.device.id)
        self._free.append(member.slot)

    def _unlist(self, member: Member) -> None:
        del self.members[member.device.name], self.by_id[member.device.id], self.by_slot[member.slot]
        self.by_key.pop(member.device.public_key, None)

    # telling the worker

    def _send_device(self, member: Member, news: _News) -> None:
        high, low = news.address6
        external_high, external_low = (0, 0) if member.external6 is None else words(member.external6)
        self._tunnel.command(
            pack_command(
                Command.SET_DEVICE,
                member.slot,
                state=ENABLED if member.device.enabled else DISABLED,
                internal4=news.address4,
                internal6_hi=high,
                internal6_lo=low,
                external4=member.egress.slot,
                external6_hi=external_high,
                external6_lo=external_low,
                identity=member.device.id,
                fixed=member.egress.fixed,
                persistent_interval=member.device.persistent_keepalive * NANOSECOND,
            )
        )

    def _send_path(self, member: Member, before: str) -> None:
        """Where the operator says that the device is, when he says something new: else what was heard from it is better."""
        endpoint = member.device.endpoint
        if endpoint in ("", before):
            return
        host, port = split_listen(endpoint)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        number = next((number for number, udp in enumerate(self._tunnel.sockets) if udp.family == family), None)
        if number is None:
            log.warning("no socket leads to the endpoint", device=member.device.name, endpoint=endpoint)
            return
        path = Path(pack_sockaddr(host, port), b"", number)
        self._tunnel.interface.set_path(member.slot, path)
        self._tunnel.command(pack_command(Command.SET_PATH, member.slot, path=path))

    def _tell_prefix(self, kind: Command, prefix: IPNetwork) -> None:
        high, low = words(prefix.network_address)
        self._tunnel.command(pack_command(kind, version=prefix.version, high=high, low=low, prefix_length=prefix.prefixlen))


def _parts(networks: list[IPNetwork]) -> Iterator[list[IPNetwork]]:
    return (networks[start : start + AT_ONCE] for start in range(0, len(networks), AT_ONCE))
