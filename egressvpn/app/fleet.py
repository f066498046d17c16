"""The devices of the store, as the data path has them: which slot, which addresses, which keys. Follows the store's revision.

A slot is a row of the worker's tables; it belongs to a device as long as the device exists, whatever its keys do.
"""

from dataclasses import dataclass
from ipaddress import IPv6Address, ip_network
from typing import Any

import numpy as np
import structlog
import trio

from egressvpn.addresses import IPNetwork, words
from egressvpn.app.egress import external4, external6, pool_addresses
from egressvpn.control.devices import gateway_address
from egressvpn.control.schema import Config
from egressvpn.control.store import Device, Store
from egressvpn.control.tunnel import Tunnel
from egressvpn.dataplane.channel import COMMAND, Command
from egressvpn.errors import OperatorError
from egressvpn.netio.netlink import local_addresses
from egressvpn.wireguard.tables import DISABLED, ENABLED
from egressvpn.wireguard.timestamps import NO_TIMESTAMP

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """A device in the data path."""

    slot: int
    device: Device
    external4: str
    external6: str


class Fleet:
    """Keeps the worker's device table equal to the store."""

    def __init__(self, config: Config, store: Store, tunnel: Tunnel) -> None:
        self._config = config
        self._store = store
        self._tunnel = tunnel
        self._free = list(range(config.wireguard.max_devices, 0, -1))
        self._taken6: set[IPv6Address] = set()
        self._addresses = {pool.name: pool_addresses(pool.addresses) for pool in config.pools}
        self._first_slot: dict[str, int] = {}
        self._revision = -1
        self._newest: dict[int, bytes] = {}  # by device: what a replayed initiation cannot be newer than
        self._denied: set[IPNetwork] = set()
        self.members: dict[str, Member] = {}
        self.by_slot: dict[int, Member] = {}
        self.store_error = ""
        self.left_out: dict[str, str] = {}  # devices that are not in the data path, and why
        self.pool_of_slot: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.members)

    def open(self) -> None:
        """Pools, policy and devices into the worker's tables, then OPEN."""
        slot = 1
        for pool in self._config.pools:
            self._first_slot[pool.name] = slot
            for address in self._addresses[pool.name]:
                self.pool_of_slot[slot] = pool.name
                self._send(Command.ADD_POOL, external4=slot, low=int(address), port_low=pool.ports.low, port_high=pool.ports.high)
                slot += 1
        for prefix in (*self._config.policy.deny, *self._config.tunnel.networks):
            self._send_prefix(Command.ADD_DENIED, 0, prefix)
        self.deny_machine()
        self.refresh()
        inner = [gateway_address(network) for network in self._config.tunnel.networks]
        low4 = next((int(address) for address in inner if address.version == 4), 0)
        high6, low6 = next((words(address) for address in inner if address.version == 6), (0, 0))
        self._send(Command.OPEN, internal4=low4, internal6_hi=high6, internal6_lo=low6)

    def deny_machine(self) -> None:
        """No device reaches the gateway's own services by way of the tunnel: its addresses are denied, new ones when seen."""
        for local in local_addresses():
            address = ip_network(local.address.ip)
            if address not in self._denied and not local.address.is_link_local and not local.address.is_loopback:
                self._denied.add(address)
                self._send_prefix(Command.ADD_DENIED, 0, address)

    async def follow(self) -> None:
        """Look whether the store changed, and follow. A store that is away is not the end: what is loaded goes on."""
        try:
            revision = await trio.to_thread.run_sync(self._store.revision)
            if revision != self._revision:
                revision, devices = await trio.to_thread.run_sync(self._store.snapshot)
                self._apply(devices, revision)
            if self.store_error:
                log.info("store is back")
            self.store_error = ""
        except OperatorError as error:
            if not self.store_error:
                log.error("store is away; forwarding goes on with what is loaded", error=str(error))
            self.store_error = str(error)

    def refresh(self) -> None:
        """Read all devices now."""
        revision, devices = self._store.snapshot()
        self._apply(devices, revision)

    def _apply(self, devices: list[Device], revision: int) -> None:
        wanted = {device.name: device for device in devices}
        self.left_out.clear()
        for name, member in list(self.members.items()):
            if name not in wanted or _identity(wanted[name]) != _identity(member.device):
                self._remove(member)
        for device in devices:
            known = self.members.get(device.name)
            if known is None:
                self._add(device)
            elif known.device != device:
                self._change(known, device)
        self._revision = revision
        self._tunnel.flush()

    def _add(self, device: Device) -> None:
        if not self._free:
            self._leave_out(device, f"{device.name} has no room: raise [wireguard] max_devices")
            return
        pool = self._config.pool(device.pool)
        if pool is None:
            self._leave_out(device, f"{device.name} is in pool {device.pool}, which is not configured")
            return
        position = external4(str(device.id), self._addresses[pool.name])
        address6 = external6(str(device.id), pool.addresses, self._taken6)
        if address6 is not None:
            self._taken6.add(address6)
        shown4 = "" if position is None else str(self._addresses[pool.name][position])
        member = Member(self._free.pop(), device, shown4, "" if address6 is None else str(address6))
        self.members[device.name] = self.by_slot[member.slot] = member
        self._admit(member)
        self._send_device(member, 0 if position is None else self._first_slot[pool.name] + position, address6)
        for address in device.addresses:
            self._send_prefix(Command.ADD_PREFIX, member.slot, ip_network(address))

    def _leave_out(self, device: Device, why: str) -> None:
        log.error("device left out", why=why)
        self.left_out[device.name] = why

    def _change(self, member: Member, device: Device) -> None:
        """Same identity, other state: nothing but the state moves."""
        changed = Member(member.slot, device, member.external4, member.external6)
        self.members[device.name] = self.by_slot[member.slot] = changed
        position = external4(str(device.id), self._addresses[device.pool])
        address6 = IPv6Address(member.external6) if member.external6 else None
        self._send_device(changed, 0 if position is None else self._first_slot[device.pool] + position, address6)
        self._admit(changed)

    def _admit(self, member: Member) -> None:
        """Handshakes are for enabled devices only; to others the gateway is silent and their sessions end."""
        device = member.device
        peer = self._tunnel.interface.peer(member.slot)
        if peer is not None:
            self._newest[device.id] = peer.newest_timestamp
        if not device.enabled:
            self._tunnel.interface.remove_peer(member.slot)
            self._tunnel.send(Command.CLEAR, member.slot)
            return
        try:
            newest = self._newest.get(device.id, NO_TIMESTAMP)
            secret = device.preshared_key or bytes(32)
            self._tunnel.interface.add_peer(member.slot, device.public_key, secret, newest_timestamp=newest)
        except ValueError as error:
            self._leave_out(device, f"{device.name} cannot have its key: {error}")

    def _remove(self, member: Member) -> None:
        del self.members[member.device.name], self.by_slot[member.slot]
        self._tunnel.interface.remove_peer(member.slot)
        self._tunnel.send(Command.REMOVE_DEVICE, member.slot)
        if member.external6:
            self._taken6.discard(IPv6Address(member.external6))
        self._free.append(member.slot)

    def _send_device(self, member: Member, pool_slot: int, address6: IPv6Address | None) -> None:
        internal = member.device.addresses
        internal4 = next((int(address) for address in internal if address.version == 4), -1)
        high, low = next((words(address) for address in internal if address.version == 6), (0, 0))
        external_high, external_low = (0, 0) if address6 is None else words(address6)
        self._send(
            Command.SET_DEVICE,
            owner=member.slot,
            state=ENABLED if member.device.enabled else DISABLED,
            internal4=internal4,
            internal6_hi=high,
            internal6_lo=low,
            external4=pool_slot,
            external6_hi=external_high,
            external6_lo=external_low,
        )

    def _send_prefix(self, kind: Command, slot: int, prefix: IPNetwork) -> None:
        high, low = words(prefix.network_address)
        self._send(kind, owner=slot, version=prefix.version, high=high, low=low, prefix_length=prefix.prefixlen)

    def _send(self, kind: Command, **fields: int) -> None:
        record: Any = np.zeros(1, COMMAND)
        record["kind"] = kind
        for name, value in fields.items():
            record[name] = value
        self._tunnel.command(record)


def _identity(device: Device) -> tuple[Any, ...]:
    """What makes a device another one for the data path when it changes."""
    return device.id, device.public_key, device.preshared_key, device.addresses, device.pool
