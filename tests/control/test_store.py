"""The store on a real SQLite file."""

import ipaddress
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from egressvpn.control import migrations
from egressvpn.control import store as store_module
from egressvpn.control.store import BEGINNING, SCHEMA, Changes, Device, DeviceKey, Store, open_store
from egressvpn.control.tables import metadata
from egressvpn.errors import OperatorError

URL = "sqlite:///egressvpn.db"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(URL, tmp_path / "state") as opened:
        yield opened


def add(store: Store, name: str, number: int = 1, *, limit: int = 100, secret: bytes | None = None) -> Device:
    key = DeviceKey(bytes([number]) * 32, preshared_key=secret)
    addresses = [ipaddress.ip_address(f"100.64.0.{number + 1}"), ipaddress.ip_address(f"fd64::{number + 1:x}")]
    return store.add_device(name, key, pool="default", allocate=lambda _: addresses, tags=["b", "a", "b"], limit=limit, now=1_700_000_000)


def test_a_device_is_read_back_as_it_was_added(store: Store) -> None:
    added = add(store, "phone", secret=b"s" * 32)
    assert store.device("phone") == added
    assert store.devices() == [added]
    assert (added.enabled, added.tags, added.pool, added.created_at) == (True, ("a", "b"), "default", 1_700_000_000)
    assert added.public_key == bytes([1]) * 32
    assert added.preshared_key == b"s" * 32
    assert [str(address) for address in added.addresses] == ["100.64.0.2", "fd64::2"]


def test_devices_come_in_the_order_they_were_added(store: Store) -> None:
    for number, name in enumerate(["c", "a", "b"], 1):
        add(store, name, number)
    assert [device.name for device in store.devices()] == ["c", "a", "b"]


def test_a_name_is_given_once(store: Store) -> None:
    add(store, "phone", 1)
    with pytest.raises(OperatorError, match=r"named phone already.*peer remove phone"):
        add(store, "phone", 2)


def test_a_public_key_belongs_to_one_device(store: Store) -> None:
    add(store, "phone", 1)
    with pytest.raises(OperatorError, match="device phone has this public key"):
        add(store, "laptop", 1)


def test_no_more_devices_than_allowed(store: Store) -> None:
    add(store, "one", 1, limit=1)
    with pytest.raises(OperatorError, match="max_devices"):
        add(store, "two", 2, limit=1)


def test_a_removed_device_leaves_nothing_behind_and_its_id_never_returns(store: Store) -> None:
    first = add(store, "phone", 1)
    assert store.remove_device("phone") == first
    assert store.devices() == []
    second = add(store, "phone", 1)
    assert second.id > first.id
    assert second.addresses == first.addresses


def test_a_device_is_disabled_and_enabled(store: Store) -> None:
    add(store, "phone")
    assert not store.disable_device("phone").enabled
    assert not store.device("phone").enabled
    assert store.enable_device("phone").enabled
    assert store.device("phone").enabled


@pytest.mark.parametrize("verb", ["device", "remove_device", "enable_device", "disable_device"])
def test_an_unknown_name_is_refused(store: Store, verb: str) -> None:
    with pytest.raises(OperatorError, match="no device named nobody; `egressvpn peer list`"):
        getattr(store, verb)("nobody")


def test_every_change_bumps_the_revision_and_no_refusal_does(store: Store) -> None:
    seen = [store.revision()]
    add(store, "phone")
    seen.append(store.revision())
    store.disable_device("phone")
    seen.append(store.revision())
    store.remove_device("phone")
    seen.append(store.revision())
    assert seen == [0, 1, 2, 3]
    with pytest.raises(OperatorError):
        store.remove_device("phone")
    assert store.revision() == 3


def test_the_feed_tells_only_what_changed_after_a_revision(store: Store) -> None:
    phone, tv = add(store, "phone", 1), add(store, "tv", 2)
    assert store.changes_since(BEGINNING) == Changes(2, [phone, tv], complete=True)
    assert store.changes_since(1) == Changes(2, [tv])
    assert store.changes_since(2) == Changes(2, [])
    store.remove_device("phone")
    disabled = store.disable_device("tv")
    assert store.changes_since(2) == Changes(4, [disabled], frozenset({phone.id}))
    assert store.changes_since(3) == Changes(4, [disabled])


def test_a_follower_too_far_behind_or_of_another_store_is_told_everything(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "REMOVALS_KEPT", 2)
    phone = add(store, "phone", 1)
    for number in range(2, 5):
        add(store, "tv", number)
        store.remove_device("tv")
    assert store.revision() == 7
    assert store.changes_since(4) == Changes(7, [phone], complete=True)
    assert store.changes_since(5) == Changes(7, [], frozenset({4}))
    assert store.changes_since(8) == Changes(7, [phone], complete=True)  # the store was restored from a backup


def test_removals_are_not_remembered_for_ever(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "REMOVALS_KEPT", 10)
    for _ in range(20):
        add(store, "tv")
        store.remove_device("tv")
    database = sqlite3.connect(tmp_path / "state" / "egressvpn.db")
    assert database.execute("SELECT count(*) FROM removed_device").fetchone() == (5,)
    database.close()


def test_settings_are_kept_and_forgotten_without_a_new_revision(store: Store, tmp_path: Path) -> None:
    assert store.setting("listen_port") is None
    store.set_setting("listen_port", "51821")
    store.set_setting("listen_port", "51822")
    with open_store(URL, tmp_path / "state") as other:
        assert other.setting("listen_port") == "51822"
    store.set_setting("listen_port", None)
    store.set_setting("fwmark", None)
    assert (store.setting("listen_port"), store.revision()) == (None, 0)


def test_a_recorded_timestamp_never_goes_back_and_is_no_news(store: Store) -> None:
    key = add(store, "phone").public_key
    for stamp in (b"b" * 12, b"a" * 12, b"b" * 12):
        store.record_timestamps({key: stamp, b"unknown" * 4: stamp})
        assert store.device("phone").key.newest_timestamp == b"b" * 12
    store.record_timestamps({key: b"c" * 12})
    store.record_timestamps({})
    assert store.device("phone").key.newest_timestamp == b"c" * 12
    assert store.revision() == 1


def test_an_allocation_that_fails_leaves_no_device(store: Store) -> None:
    def exhausted(_: Iterable[str]) -> list[ipaddress.IPv4Address]:
        raise OperatorError("full")

    with pytest.raises(OperatorError, match="full"):
        store.add_device("phone", DeviceKey(b"k" * 32), pool="default", allocate=exhausted, limit=10, now=0)
    assert (store.devices(), store.revision()) == ([], 0)


def test_files_are_for_their_owner_only(store: Store, tmp_path: Path) -> None:
    add(store, "phone")
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    files = list((tmp_path / "state").iterdir())
    assert {file.name for file in files} >= {"egressvpn.db", "egressvpn.db-wal"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_no_secret_is_in_a_repr(store: Store) -> None:
    added = add(store, "phone", secret=b"s" * 32)
    assert "ssss" not in repr(added)
    assert "ssss" not in repr(added.key)


def test_two_devices_cannot_hold_one_address(store: Store) -> None:
    add(store, "phone", 1)
    with pytest.raises(sa.exc.IntegrityError):
        store.add_device("tv", DeviceKey(b"k" * 32), pool="p", allocate=lambda _: [ipaddress.ip_address("100.64.0.2")], limit=9, now=0)


def test_only_the_four_states_of_a_key_are_allowed_and_one_key_is_active(store: Store, tmp_path: Path) -> None:
    add(store, "phone")
    database = sqlite3.connect(tmp_path / "state" / "egressvpn.db")
    insert = "INSERT INTO device_key (device_id, public_key, state) VALUES (1, ?, ?)"
    for state in ("pending", "retiring", "revoked"):
        database.execute(insert, (state, state))
    with pytest.raises(sqlite3.IntegrityError):
        database.execute(insert, ("other", "lost"))
    with pytest.raises(sqlite3.IntegrityError):
        database.execute(insert, ("second", "active"))
    database.close()


def test_concurrent_writers_all_get_their_turn(tmp_path: Path) -> None:
    def add_ten(base: int) -> None:
        with open_store(URL, tmp_path) as mine:
            for number in range(base, base + 10):
                add(mine, f"device{number}", number)

    threads = [threading.Thread(target=add_ten, args=(base,)) for base in (1, 21, 41)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open_store(URL, tmp_path) as store:
        assert (len(store.devices()), store.revision()) == (30, 30)


def test_the_schema_constant_is_alembics_head() -> None:
    assert migrations.head() == SCHEMA


def test_the_migrations_make_the_tables_that_the_program_uses(store: Store, tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    engine = sa.create_engine(f"sqlite:///{tmp_path}/state/egressvpn.db")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        made = statements(connection)
    engine.dispose()
    twin = sa.create_engine("sqlite://")
    metadata.create_all(twin)
    with twin.connect() as connection:
        meant = statements(connection)
    twin.dispose()
    assert {name: words(sql) for name, sql in made.items() if name != "alembic_version"} == {
        name: words(sql) for name, sql in meant.items()
    }


def statements(connection: sa.Connection) -> dict[str, str]:
    return {row.name: row.sql for row in connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql LIKE 'CREATE%'")}


def words(sql: str) -> list[str]:
    return sorted(sql.replace(",", " ").split())


def test_a_current_store_opens_without_alembic(store: Store, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from egressvpn.control.store import open_store\n"
        f"open_store({URL!r}, Path({str(tmp_path / 'state')!r})).close()\n"
        "sys.exit('alembic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_store_of_a_newer_release_is_refused(store: Store, tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "state" / "egressvpn.db")
    database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.commit()
    database.close()
    with pytest.raises(OperatorError, match="newer egressvpn; upgrade"):
        open_store(URL, tmp_path / "state")


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "egressvpn.db").write_bytes(b"this is not a database" * 100)
    (tmp_path / "egressvpn.db").chmod(0o600)
    with pytest.raises(OperatorError, match="cannot use the store"):
        open_store(URL, tmp_path)


def test_a_store_open_to_others_is_refused(tmp_path: Path) -> None:
    open_store(URL, tmp_path).close()
    (tmp_path / "egressvpn.db").chmod(0o644)
    with pytest.raises(OperatorError, match="chmod 600"):
        open_store(URL, tmp_path)


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(OperatorError, match="chmod 700"):
        open_store(URL, tmp_path)


def test_a_place_where_nothing_can_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OperatorError, match="cannot create the store"):
        open_store(URL, tmp_path / "file" / "state")


def test_a_store_that_cannot_be_read_is_an_error_for_the_operator(tmp_path: Path) -> None:
    with open_store("sqlite:///devices.db", tmp_path) as store:
        store.close()
        (tmp_path / "devices.db").write_bytes(b"no database at all" * 400)
        for read in (store.revision, store.devices, lambda: store.changes_since(BEGINNING), lambda: store.setting("x")):
            with pytest.raises(OperatorError, match="cannot be read"):
                read()
