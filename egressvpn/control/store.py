"""The store: devices, their keys and tunnel addresses, in SQLite. design.md section 3: a device is an identity, not its key.

Every change bumps the one-row `revision` in its own transaction, so a running gateway sees by one small read that there is news.
Writers take SQLite's write lock when they begin (BEGIN IMMEDIATE), so what they read (names, free addresses) still holds when they
commit. The gateway's and the devices' private keys are never here; preshared keys are, which is why the file is 0600.
Functions block: call them from a thread when a loop is running.
"""

import base64
import dataclasses
import ipaddress
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from egressvpn.addresses import IPAddress
from egressvpn.control.keys import encode_key
from egressvpn.control.tables import device, device_address, device_key, revision
from egressvpn.errors import OperatorError

SCHEMA: Final = "0001"  # alembic's head: a store that says so is opened without importing alembic
BUSY_TIMEOUT_MS: Final = 5000

Allocate = Callable[[set[str]], Sequence[IPAddress]]  # the addresses taken, as text -> the new device's own


@dataclasses.dataclass(frozen=True, slots=True)
class DeviceKey:
    """One of a device's keys. The states are those of design.md section 3."""

    public_key: bytes
    state: str = "active"
    preshared_key: bytes | None = dataclasses.field(default=None, repr=False)


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
    addresses: tuple[IPAddress, ...]

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


class Store:
    """An open store. Made by `open_store`; close it when done."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def revision(self) -> int:
        """A number that grows with every change."""
        with self._reading() as connection:
            return int(connection.execute(sa.select(revision.c.value)).scalar_one())

    def devices(self) -> list[Device]:
        """All devices, in the order they were added."""
        with self._engine.connect() as connection:
            return list(_read(connection))

    def snapshot(self) -> tuple[int, list[Device]]:
        """The revision and exactly the devices it stands for."""
        with self._reading() as connection:
            return int(connection.execute(sa.select(revision.c.value)).scalar_one()), list(_read(connection))

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        """A connection; whatever the database refuses is an OperatorError."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise OperatorError(f"the store cannot be read: {reason}", "look at the disk and the file's rights") from error

    def device(self, name: str) -> Device:
        """The device of that name. Raises OperatorError."""
        with self._engine.connect() as connection:
            return _device(connection, name)

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
        with self._change() as connection:
            _refuse_duplicates(connection, name, key.public_key, limit)
            taken = {address for (address,) in connection.execute(sa.select(device_address.c.address))}
            addresses = allocate(taken)
            row = {"name": name, "enabled": True, "tags": sorted(set(tags)), "pool": pool, "created_at": now}
            number = connection.execute(device.insert().values(row)).inserted_primary_key[0]  # type: ignore[index]
            secret = encode_key(key.preshared_key) if key.preshared_key else None
            connection.execute(
                device_key.insert().values(device_id=number, public_key=encode_key(key.public_key), preshared_key=secret, state="active")
            )
            connection.execute(
                device_address.insert(),
                [{"device_id": number, "position": position, "address": str(a)} for position, a in enumerate(addresses)],
            )
            return _device(connection, name)

    def remove_device(self, name: str) -> Device:
        """Remove a device with its keys and addresses, and say what it was."""
        with self._change() as connection:
            removed = _device(connection, name)
            connection.execute(device.delete().where(device.c.id == removed.id))
            return removed

    def enable_device(self, name: str) -> Device:
        return self._set_enabled(name, True)

    def disable_device(self, name: str) -> Device:
        return self._set_enabled(name, False)

    def _set_enabled(self, name: str, enabled: bool) -> Device:
        with self._change() as connection:
            found = _device(connection, name)
            connection.execute(device.update().where(device.c.id == found.id).values(enabled=enabled))
            return dataclasses.replace(found, enabled=enabled)

    @contextmanager
    def _change(self) -> Iterator[sa.Connection]:
        """A transaction that holds the write lock from its start and bumps the revision."""
        with _written_at_once(self._engine) as connection:
            yield connection
            connection.execute(revision.update().values(value=revision.c.value + 1))


def open_store(url: str, state_dir: Path) -> Store:
    """The store at `url` (sqlite:///FILE, relative to `state_dir`), created or migrated as needed. Raises OperatorError."""
    database = state_dir / url.removeprefix("sqlite:///")
    try:
        _make_private(database)
    except OSError as error:
        raise OperatorError(
            f"cannot create the store {database}: {error.strerror}", "run as root, or choose another gateway.state_dir"
        ) from None
    engine = sa.create_engine(f"sqlite:///{database}", json_serializer=json.dumps)
    sa.event.listen(engine, "connect", _on_connect)
    sa.event.listen(engine, "begin", _on_begin)
    try:
        _migrate(engine, database)
    except sa.exc.DatabaseError as error:
        engine.dispose()
        raise OperatorError(
            f"cannot use the store {database}: {error.orig}", "restore it from a backup, or move it away to begin anew"
        ) from None
    except OperatorError:
        engine.dispose()
        raise
    return Store(engine)


def _make_private(database: Path) -> None:
    """The directory 0700 when it is made here, the file 0600 before SQLite writes to it (its -wal and -shm copy the mode)."""
    database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if database.parent.stat().st_mode & 0o022:
        raise OperatorError(f"others may write to {database.parent}", f"chmod 700 {database.parent}")
    os.close(os.open(database, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    if database.stat().st_mode & 0o077:
        raise OperatorError(f"others may read the store {database}", f"chmod 600 {database}")


def _on_connect(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where sqlite3 guesses
    for pragma in (f"busy_timeout = {BUSY_TIMEOUT_MS}", "journal_mode = WAL", "foreign_keys = ON", "secure_delete = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _on_begin(connection: sa.Connection) -> None:
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


@contextmanager
def _written_at_once(engine: sa.Engine) -> Iterator[sa.Connection]:
    try:
        with engine.connect().execution_options(immediate=True) as connection, connection.begin():
            yield connection
    except sa.exc.OperationalError as error:
        if "locked" not in str(error.orig):
            raise
        raise OperatorError(
            "the store is locked by another process", "try again; if it stays, look for a process that hangs on it"
        ) from None


def _migrate(engine: sa.Engine, database: Path) -> None:
    """Bring the tables up to SCHEMA. Two processes may try at once: the second finds the work done."""
    with engine.connect() as connection:
        if _schema_of(connection) == SCHEMA:
            return
    from egressvpn.control import migrations  # alembic takes a third of a second to import

    with _written_at_once(engine) as connection:
        if not migrations.known(_schema_of(connection)):
            raise OperatorError(
                f"the store {database} was written by a newer egressvpn", "upgrade egressvpn, or restore a backup of the store"
            )
        migrations.upgrade(connection)


def _schema_of(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()


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


def _device(connection: sa.Connection, name: str) -> Device:
    found = next(_read(connection, name), None)
    if found is None:
        raise OperatorError(f"there is no device named {name}", "`egressvpn peer list` shows the names")
    return found


def _read(connection: sa.Connection, name: str | None = None) -> Iterator[Device]:
    """Devices with their keys and addresses, in three reads however many there are."""
    rows = connection.execute(sa.select(device).where(*([] if name is None else [device.c.name == name])).order_by(device.c.id)).all()

    def belonging(table: sa.Table, order: sa.Column[Any]) -> dict[int, list[Any]]:
        wanted = sa.select(table).order_by(order)
        wanted = wanted if name is None else wanted.where(table.c.device_id == (rows[0].id if rows else None))
        grouped: dict[int, list[Any]] = {}
        for row in connection.execute(wanted):
            grouped.setdefault(row.device_id, []).append(row)
        return grouped

    keys, addresses = belonging(device_key, device_key.c.id), belonging(device_address, device_address.c.position)
    for row in rows:
        own_keys = tuple(_key(key) for key in keys.get(row.id, ()))
        own_addresses = tuple(ipaddress.ip_address(own.address) for own in addresses.get(row.id, ()))
        yield Device(row.id, row.name, row.enabled, tuple(row.tags), row.pool, row.created_at, own_keys, own_addresses)


def _key(row: Any) -> DeviceKey:
    secret = base64.b64decode(row.preshared_key) if row.preshared_key else None
    return DeviceKey(base64.b64decode(row.public_key), row.state, secret)
