"""The store: devices, their keys and networks, and a few settings. design.md section 3: a device is an identity, not its key.

Every change bumps the one-row `revision` in its own transaction and leaves its mark on the devices it touched, so a running
gateway sees by one small read that there is news, and reads only the news (`changes_since`); it is also woken (wake.py).
Settings and recorded timestamps are the gateway's own notes and bump nothing. Private keys are never here; preshared keys are.
Functions block: call them from a thread when a loop is running.
"""

import dataclasses
import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from egressvpn.addresses import IPAddress
from egressvpn.control.batch import Batch
from egressvpn.control.database import SCHEMA, open_database, reading, writing
from egressvpn.control.keys import encode_key
from egressvpn.control.peers import PeerChange
from egressvpn.control.records import Changes, Device, DeviceKey, read_device, read_devices
from egressvpn.control.tables import allowed_ip, device, device_key, removed_device, revision, setting
from egressvpn.control.wake import BELL, ring
from egressvpn.errors import OperatorError

__all__ = ["BEGINNING", "SCHEMA", "Changes", "Device", "DeviceKey", "PeerChange", "Store", "open_store"]

BEGINNING: Final = -1  # the revision of who knows nothing yet
REMOVALS_KEPT: Final = 100_000  # revisions for which the feed remembers removals; who is further behind reads everything

Allocate = Callable[[Iterable[str]], Sequence[IPAddress]]  # the networks taken, as text -> the new device's own addresses


@dataclasses.dataclass(slots=True)
class _Change:
    """A transaction that holds the write lock, and the revision that it makes."""

    connection: sa.Connection
    revision: int
    made: bool = True

    def execute(self, statement: sa.Executable) -> sa.CursorResult[tuple[object, ...]]:
        return self.connection.execute(statement)


class Store:
    """An open store. Made by `open_store`; close it when done."""

    def __init__(self, engine: sa.Engine, bell: Path | None = None) -> None:
        self._engine = engine
        self._bell = bell

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # reading

    def revision(self) -> int:
        """A number that grows with every change of devices."""
        with reading(self._engine) as connection:
            return _revision(connection)

    def devices(self) -> list[Device]:
        """All devices, in the order they were added."""
        with reading(self._engine) as connection:
            return list(read_devices(connection))

    def device(self, name: str) -> Device:
        """The device of that name. Raises OperatorError."""
        with reading(self._engine) as connection:
            return read_device(connection, name)

    def changes_since(self, known: int) -> Changes:
        """What changed after the revision `known`; everything when that is BEGINNING, too long ago, or not of this store."""
        with reading(self._engine) as connection:
            newest = _revision(connection)  # read first: what is newer by then is only told twice
            if known < max(0, newest - REMOVALS_KEPT) or known > newest:
                return Changes(newest, list(read_devices(connection)), complete=True)
            devices = list(read_devices(connection, device.c.changed > known))
            gone = connection.execute(sa.select(removed_device.c.device_id).where(removed_device.c.revision > known))
            return Changes(newest, devices, frozenset(gone.scalars()))

    def setting(self, key: str) -> str | None:
        """What the gateway noted under this key."""
        with reading(self._engine) as connection:
            return connection.execute(sa.select(setting.c.value).where(setting.c.key == key)).scalar()

    # changing

    def add_device(
        self,
        name: str,
        key: DeviceKey,
        *,
        pool: str,
        allocate: Allocate,
        tags: Iterable[str] = (),
        limit: int,
        now: int,
    ) -> Device:
        """Add a device with the addresses that `allocate` picks. `now` is in seconds since the epoch."""
        with self._change() as change:
            _refuse_duplicates(change.connection, name, key.public_key, limit)
            networks = [
                ipaddress.ip_network(address) for address in allocate(change.connection.execute(sa.select(allowed_ip.c.network)).scalars())
            ]
            row = {"name": name, "enabled": True, "tags": sorted(set(tags)), "pool": pool, "created_at": now, "changed": change.revision}
            number = change.connection.execute(device.insert().values(row).returning(device.c.id)).scalar_one()
            secret = encode_key(key.preshared_key) if key.preshared_key else None
            change.execute(
                device_key.insert().values(device_id=number, public_key=encode_key(key.public_key), preshared_key=secret, state="active")
            )
            rows = [{"network": str(network), "device_id": number, "position": position} for position, network in enumerate(networks)]
            change.connection.execute(allowed_ip.insert(), rows)
            return read_device(change.connection, name)

    def remove_device(self, name: str) -> Device:
        """Remove a device with its keys and networks, and say what it was."""
        with self._change() as change:
            removed = read_device(change.connection, name)
            change.execute(device.delete().where(device.c.id == removed.id))
            _remember_removed(change, [removed.id])
            return removed

    def enable_device(self, name: str) -> Device:
        return self._set_enabled(name, True)

    def disable_device(self, name: str) -> Device:
        return self._set_enabled(name, False)

    def apply(self, changes: Sequence[PeerChange], *, replace: bool = False, own_key: bytes = b"", pool: str, limit: int, now: int) -> bool:
        """Change devices by their public keys, in order, all or nothing; whether anything changed.

        `replace`: only devices that are named here stay. `own_key` is the gateway's public key, which is never a device's.
        New devices go to `pool`; more than `limit` in all raise OperatorError. `now` is in seconds since the epoch.
        """
        with self._change() as change:
            batch = Batch(change.connection, pool, now)
            batch.apply(changes, replace=replace, own_key=own_key)
            change.made, removed = batch.write(change.revision, limit)
            _remember_removed(change, removed)
            return change.made

    def set_setting(self, key: str, value: str | None) -> None:
        """Note a value, or with None forget it."""
        with writing(self._engine) as connection:
            connection.execute(setting.delete().where(setting.c.key == key))
            if value is not None:
                connection.execute(setting.insert().values(key=key, value=value))

    def record_timestamps(self, newest: Mapping[bytes, bytes]) -> None:
        """The newest TAI64N timestamp received with each public key; one that is recorded never goes back."""
        rows = [{"of": encode_key(key), "stamp": stamp} for key, stamp in newest.items()]
        older = sa.or_(device_key.c.newest_timestamp.is_(None), device_key.c.newest_timestamp < sa.bindparam("stamp"))
        record = device_key.update().where(device_key.c.public_key == sa.bindparam("of"), older)
        if rows:
            with writing(self._engine) as connection:
                connection.execute(record.values(newest_timestamp=sa.bindparam("stamp")), rows)

    def _set_enabled(self, name: str, enabled: bool) -> Device:
        with self._change() as change:
            found = read_device(change.connection, name)
            change.execute(device.update().where(device.c.id == found.id).values(enabled=enabled, changed=change.revision))
            return dataclasses.replace(found, enabled=enabled)

    @contextmanager
    def _change(self) -> Iterator[_Change]:
        """A transaction that bumps the revision, and wakes who follows it when it is done."""
        with writing(self._engine) as connection:
            change = _Change(connection, _revision(connection, lock=True) + 1)
            yield change
            if change.made:
                connection.execute(revision.update().values(value=change.revision))
        if change.made and self._bell is not None:
            ring(self._bell)


def open_store(url: str, state_dir: Path) -> Store:
    """The store at `url` (sqlite:///FILE, relative to `state_dir`), created or migrated as needed. Raises OperatorError."""
    return Store(open_database(url, state_dir), state_dir / BELL)


def _revision(connection: sa.Connection, *, lock: bool = False) -> int:
    """The revision; `lock` holds it until the transaction ends, where the whole database is not locked anyway."""
    query = sa.select(revision.c.value)
    return int(connection.execute(query.with_for_update() if lock else query).scalar_one())


def _refuse_duplicates(connection: sa.Connection, name: str, public_key: bytes, limit: int) -> None:
    if connection.execute(sa.select(device.c.id).where(device.c.name == name)).first():
        raise OperatorError(f"there is a device named {name} already", f"choose another name, or `egressvpn peer remove {name}` first")
    holder = sa.select(device.c.name).join(device_key).where(device_key.c.public_key == encode_key(public_key))
    if (other := connection.execute(holder).scalar()) is not None:
        raise OperatorError(
            f"device {other} has this public key already", "every device needs a key of its own: `wg genkey | tee key | wg pubkey`"
        )
    if connection.execute(sa.select(sa.func.count()).select_from(device)).scalar_one() >= limit:
        raise OperatorError(f"there are {limit} devices, as many as allowed", "raise wireguard.max_devices, or remove devices")


def _remember_removed(change: _Change, ids: Iterable[int]) -> None:
    """For followers that have yet to hear of it; what is older than REMOVALS_KEPT is forgotten."""
    rows = [{"device_id": number, "revision": change.revision} for number in ids]
    if rows:
        change.connection.execute(removed_device.insert(), rows)
        change.execute(removed_device.delete().where(removed_device.c.revision <= change.revision - REMOVALS_KEPT))
