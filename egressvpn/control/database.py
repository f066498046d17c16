"""The database under the store: how it is opened, kept private, migrated, and how its transactions begin.

SQLite in a file of its own, 0600 because preshared keys are in it. Writers take the write lock when they begin (BEGIN
IMMEDIATE), so what they read still holds when they commit; readers see one moment (WAL) and never wait.
"""

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from egressvpn.errors import OperatorError

SCHEMA: Final = "0002"  # alembic's head: a store that says so is opened without importing alembic
BUSY_TIMEOUT_MS: Final = 5000
SWITCH_PAUSE: Final = 0.01  # s


def open_database(url: str, state_dir: Path) -> sa.Engine:
    """The database at `url` (sqlite:///FILE, relative to `state_dir`), created or migrated as needed. Raises OperatorError."""
    database = state_dir / url.removeprefix("sqlite:///")
    try:
        _make_private(database)
    except OSError as error:
        raise OperatorError(
            f"cannot create the store {database}: {error.strerror}", "run as root, or choose another gateway.state_dir"
        ) from None
    engine = sa.create_engine(f"sqlite:///{database}", json_serializer=json.dumps, hide_parameters=True)
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
    return engine


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection; whatever the database refuses is an OperatorError."""
    try:
        with engine.connect() as connection:
            yield connection
    except sa.exc.SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise OperatorError(f"the store cannot be read: {reason}", "look at the disk and the file's rights") from error


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that holds the write lock from its start; committed in the end. Raises OperatorError when it is locked."""
    try:
        with engine.connect().execution_options(immediate=True) as connection, connection.begin():
            yield connection
    except sa.exc.OperationalError as error:
        if "locked" not in str(error.orig):
            raise
        raise OperatorError(
            "the store is locked by another process", "try again; if it stays, look for a process that hangs on it"
        ) from None


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
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    _log_ahead(connection)
    for pragma in ("foreign_keys = ON", "secure_delete = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _log_ahead(connection: sqlite3.Connection) -> None:
    """Write-ahead log: a new file is switched to it once, and for that SQLite does not wait for others that are at it."""
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(SWITCH_PAUSE)
        else:
            return


def _on_begin(connection: sa.Connection) -> None:
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _migrate(engine: sa.Engine, database: Path) -> None:
    """Bring the tables up to SCHEMA. Two processes may try at once: the second finds the work done."""
    with engine.connect() as connection:
        if _schema_of(connection) == SCHEMA:
            return
    from egressvpn.control import migrations  # alembic takes a third of a second to import

    with writing(engine) as connection:
        if not migrations.known(_schema_of(connection)):
            raise OperatorError(
                f"the store {database} was written by a newer egressvpn", "upgrade egressvpn, or restore a backup of the store"
            )
        migrations.upgrade(connection)


def _schema_of(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
