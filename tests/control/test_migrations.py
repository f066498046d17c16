"""From the schema of each release to today's. `store_0001.sql` is what a store of the first schema held, dumped from a real one."""

import ipaddress
import sqlite3
from pathlib import Path

import pytest

from egressvpn.control.store import BEGINNING, DeviceKey, Store, open_store

DUMP = Path(__file__).with_name("store_0001.sql")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A state directory with a store as the first schema left it."""
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    file = directory / "old.db"
    file.touch(mode=0o600)
    database = sqlite3.connect(file)
    database.executescript(DUMP.read_text())
    database.close()
    return directory


def opened(directory: Path) -> Store:
    return open_store("sqlite:///old.db", directory)


def test_a_store_of_the_first_schema_is_read_with_everything_it_held(old: Path) -> None:
    with opened(old) as store:
        phone, laptop, tv = store.devices()
        assert store.revision() == 8
    assert (phone.id, phone.name, phone.enabled, phone.tags, phone.pool, phone.created_at) == (
        1,
        "phone",
        True,
        ("a", "b"),
        "default",
        1_700_000_001,
    )
    assert (phone.public_key, phone.preshared_key) == (bytes([1]) * 32, b"s" * 32)
    assert (laptop.id, laptop.enabled, laptop.pool) == (3, False, "other")
    assert [[str(network) for network in device.allowed_ips] for device in (phone, laptop, tv)] == [
        ["100.64.0.2/32", "fd64::2/128"],
        ["100.64.0.4/32", "fd64::4/128"],
        ["fd64::5/128"],
    ]
    assert [str(address) for address in phone.addresses] == ["100.64.0.2", "fd64::2"]
    assert (phone.endpoint, phone.persistent_keepalive, phone.key.newest_timestamp) == ("", 0, bytes(12))


def test_its_history_goes_on(old: Path) -> None:
    with opened(old) as store:
        assert store.changes_since(8).devices == []
        assert len(store.changes_since(7).devices) == 3  # nobody knows in which change they came: better told twice than not at all
        assert len(store.changes_since(BEGINNING).devices) == 3
        added = store.add_device(
            "new", DeviceKey(b"n" * 32), pool="default", allocate=lambda _: [ipaddress.ip_address("100.64.0.9")], limit=9, now=0
        )
        assert added.id == 6  # 5 was given once
        assert store.changes_since(8).devices == [added]


def test_it_is_migrated_once(old: Path) -> None:
    opened(old).close()
    with opened(old) as store:
        assert len(store.devices()) == 3
    database = sqlite3.connect(old / "old.db")
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert ("device_address" in tables, "allowed_ip" in tables) == (False, True)
    assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    database.close()


def test_a_migration_that_fails_changes_nothing(old: Path) -> None:
    database = sqlite3.connect(old / "old.db")
    database.execute("CREATE TABLE setting (key TEXT)")  # in the way of the last step
    before = list(database.iterdump())
    with pytest.raises(Exception, match="already exists"):
        opened(old)
    assert list(database.iterdump()) == before
    database.close()
