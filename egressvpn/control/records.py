"""What the store tells: devices with their keys and allowed networks, as plain values, and how they are read.

A device is an identity, not its key (design.md section 3). `allowed_ips` are the inner networks that are the device's; every
network belongs to one device. The host addresses among them (/32 and /128) are its tunnel addresses.
"""

import base64
import dataclasses
import ipaddress
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from egressvpn.addresses import IPAddress, IPNetwork
from egressvpn.control.tables import allowed_ip, device, device_key
from egressvpn.errors import OperatorError
from egressvpn.wireguard.timestamps import NO_TIMESTAMP


@dataclasses.dataclass(frozen=True, slots=True)
class DeviceKey:
    """One of a device's keys. The states are those of design.md section 3."""

    public_key: bytes
    state: str = "active"
    preshared_key: bytes | None = dataclasses.field(default=None, repr=False)
    newest_timestamp: bytes = dataclasses.field(default=NO_TIMESTAMP, compare=False)  # of its initiations, as last recorded


@dataclasses.dataclass(frozen=True, slots=True)
class Device:
    """A device as the store knows it."""

    id: int
    name: str
    enabled: bool
    tags: tuple[str, ...]
    pool: str
    created_at: int  # s since the epoch
    keys: tuple[DeviceKey, ...]
    allowed_ips: tuple[IPNetwork, ...]
    persistent_keepalive: int = 0  # s, 0: off
    endpoint: str = ""  # "192.0.2.1:51820", "[2001:db8::1]:51820"; empty: it calls us

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """Its tunnel addresses: the host addresses it is allowed, oldest first."""
        return tuple(network.network_address for network in self.allowed_ips if network.prefixlen == network.max_prefixlen)

    @property
    def key(self) -> DeviceKey:
        """The active key; every device has exactly one."""
        return next(key for key in self.keys if key.state == "active")

    @property
    def public_key(self) -> bytes:
        return self.key.public_key

    @property
    def preshared_key(self) -> bytes | None:
        return self.key.preshared_key


@dataclasses.dataclass(frozen=True, slots=True)
class Changes:
    """What happened since a revision: devices as they are now, ids of those removed."""

    revision: int
    devices: list[Device]
    removed_ids: frozenset[int] = frozenset()
    complete: bool = False  # `devices` are all there are; whatever is not among them is gone


def read_devices(connection: sa.Connection, *which: sa.ColumnElement[bool]) -> Iterator[Device]:
    """The devices whose row fulfils all conditions, in the order they were added; three reads however many there are."""
    rows = connection.execute(sa.select(device).where(*which).order_by(device.c.id)).all()

    def belonging(table: sa.Table, order: sa.Column[Any]) -> dict[int, list[Any]]:
        wanted = sa.select(table).order_by(order)
        wanted = wanted.join(device).where(*which) if which else wanted
        grouped: dict[int, list[Any]] = {}
        for row in connection.execute(wanted):
            grouped.setdefault(row.device_id, []).append(row)
        return grouped

    keys, networks = belonging(device_key, device_key.c.id), belonging(allowed_ip, allowed_ip.c.position)
    for row in rows:
        yield Device(
            row.id,
            row.name,
            row.enabled,
            tuple(row.tags),
            row.pool,
            row.created_at,
            tuple(_key(key) for key in keys.get(row.id, ())),
            tuple(ipaddress.ip_network(own.network) for own in networks.get(row.id, ())),
            row.persistent_keepalive,
            row.endpoint,
        )


def read_device(connection: sa.Connection, name: str) -> Device:
    """The device of that name. Raises OperatorError."""
    found = next(read_devices(connection, device.c.name == name), None)
    if found is None:
        raise OperatorError(f"there is no device named {name}", "`egressvpn peer list` shows the names")
    return found


def _key(row: Any) -> DeviceKey:
    secret = base64.b64decode(row.preshared_key) if row.preshared_key else None
    return DeviceKey(base64.b64decode(row.public_key), row.state, secret, row.newest_timestamp or NO_TIMESTAMP)
