"""The fleet follows the store: every device in its slot, change by change as if it had been read at once."""

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from egressvpn.addresses import Path as NetworkPath
from egressvpn.addresses import pack_sockaddr, unpack_sockaddr
from egressvpn.control import wake
from egressvpn.control.store import Changes, DeviceKey, PeerChange
from egressvpn.dataplane.channel import Command, pack_command
from egressvpn.wireguard.tables import DISABLED, ENABLED
from tests.app.bench import TEXT, Bench, bench
from tests.control.stores import make_empty_store

KEYS = [bytes([number]) * 32 for number in range(1, 7)]
NETWORKS = [ip_network(n) for n in ("100.64.0.2/32", "100.64.0.3/32", "10.0.0.0/8", "0.0.0.0/0", "fd64::2/128", "fd64::/64")]
SECOND = 1_000_000_000

pytestmark = pytest.mark.timeout(300)  # s: whoever comes first compiles what the worker's commands call


@contextmanager
def state() -> Iterator[Path]:
    with TemporaryDirectory() as directory:
        make_empty_store(Path(directory))
        yield Path(directory)


def change(made: Bench, *changes: PeerChange, replace: bool = False) -> None:
    made.store.apply(changes, replace=replace, pool="default", limit=100, now=0)


def added(*networks: str) -> tuple[tuple[bool, Any], ...]:
    return tuple((True, ip_network(network)) for network in networks)


def add(made: Bench, name: str, number: int, *addresses: str, pool: str = "default") -> None:
    key = DeviceKey(KEYS[number], preshared_key=b"s" * 32)
    made.store.add_device(name, key, pool=pool, allocate=lambda _: [ip_address(a) for a in addresses], limit=100, now=0)


def session(made: Bench, name: str, index: int = 0x77) -> None:
    """A session in the worker's tables, as after a handshake."""
    path = NetworkPath(pack_sockaddr("127.0.0.1", 9))
    keys = {"receive_key": b"r" * 32, "send_key": b"t" * 32}
    made.tunnel.command(pack_command(Command.INSTALL, made.slot(name), index=index, remote_index=1, initiator=1, path=path, **keys))
    made.work()


def remote(row: Any) -> str:
    octets = bytes(row.remote[: int(row.remote_length)])
    return "{}|{}".format(*unpack_sockaddr(octets)) if octets else ""


def table(made: Bench) -> dict[str, tuple[Any, ...]]:
    """What the data path and the handshakes know of each device."""
    seen = {}
    for name, member in made.fleet.members.items():
        row, nat = made.row(name), made.b.nat.subscribers[member.slot]
        peer = made.tunnel.interface.peer(member.slot)
        seen[name] = (
            (int(row.state), int(row.internal4), int(row.internal6_hi), int(row.internal6_lo), int(row.persistent_interval)),
            (int(nat.external4), int(nat.external6_hi), int(nat.external6_lo)),
            None if peer is None else (peer.public_key, peer.preshared_key, peer.persistent_keepalive),
            remote(row) if member.device.endpoint else "",
        )
    return seen


# change by change, or at once

OPERATIONS = st.lists(
    st.one_of(
        st.builds(
            PeerChange,
            public_key=st.sampled_from(KEYS),
            remove=st.sampled_from([False, False, False, True]),
            preshared_key=st.sampled_from([None, bytes(32), b"p" * 32]),
            endpoint=st.sampled_from([None, "", "192.0.2.1:51820", "[2001:db8::1]:1"]),
            persistent_keepalive=st.sampled_from([None, 0, 25]),
            replace_allowed_ips=st.booleans(),
            allowed_ips=st.lists(st.tuples(st.sampled_from([True, True, False]), st.sampled_from(NETWORKS)), max_size=3).map(tuple),
        ),
        st.sampled_from(["follow", "disable", "enable", "remove", "forget"]),
    ),
    max_size=25,
)


@settings(max_examples=20, deadline=None)
@given(OPERATIONS)
def test_following_change_by_change_is_the_same_as_reading_everything(operations: Sequence[PeerChange | str]) -> None:
    async def run() -> None:
        with state() as directory:
            async with bench(directory) as made:
                for operation in operations:
                    await _carry_out(made, operation)
                await made.step()
                async with bench(directory) as fresh:
                    assert table(made) == table(fresh)
                    assert {str(n): made.owner(str(n)) for n in NETWORKS} == {str(n): fresh.owner(str(n)) for n in NETWORKS}
                devices = made.store.devices()
                assert {str(n): made.owner(str(n)) for n in NETWORKS if made.owner(str(n))} == {
                    str(n): device.name for device in devices for n in device.allowed_ips
                }
                assert made.used_slots() == set(made.fleet.by_slot)
                for lookup in (made.fleet.members, made.fleet.by_id, made.fleet.by_key, made.fleet.by_slot):
                    assert {member.device for member in lookup.values()} == set(devices)

    trio.run(run)


async def _carry_out(made: Bench, operation: PeerChange | str) -> None:
    names = [device.name for device in made.store.devices()]
    if isinstance(operation, PeerChange):
        change(made, operation)
    elif operation == "follow":
        await made.step()
    elif operation == "forget":  # as after a store restored from a backup
        made.fleet._revision = 10**6
    elif names:
        getattr(made.store, f"{operation}_device")(names[-1])


# what stays


async def test_networks_endpoint_keepalive_and_preshared_key_change_under_a_living_session(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        add(made, "phone", 0, "100.64.0.2", "fd64::2")
        await made.step()
        session(made, "phone")
        slot, external = made.slot("phone"), made.fleet.members["phone"].external6
        current = int(made.row("phone").current)
        assert current != 0
        change(
            made,
            PeerChange(KEYS[0], False, True, b"q" * 32, "192.0.2.9:1000", 25, True, added("100.64.0.3/32", "fd64::2/128", "10.0.0.0/8")),
        )
        await made.step()
        row = made.row("phone")
        assert (made.slot("phone"), made.fleet.members["phone"].external6, int(row.current)) == (slot, external, current)
        assert [made.owner(n) for n in ("100.64.0.2/32", "fd64::2/128", "100.64.0.3/32", "10.0.0.0/8")] == ["", "phone", "phone", "phone"]
        assert (int(row.internal4), int(row.persistent_interval)) == (int(ip_address("100.64.0.3")), 25 * SECOND)
        assert remote(row) == "192.0.2.9|1000"
        peer = made.tunnel.interface.peer(slot)
        assert peer is not None
        assert (peer.preshared_key, str(peer.path)) == (b"q" * 32, "192.0.2.9:1000")


async def test_an_endpoint_that_was_learnt_is_not_overwritten_by_other_changes(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        change(made, PeerChange(KEYS[0], endpoint="192.0.2.9:1000"))
        await made.step()
        (name,) = made.fleet.members
        session(made, name)  # the device is heard at 127.0.0.1:9
        change(made, PeerChange(KEYS[0], persistent_keepalive=5))
        await made.step()
        assert remote(made.row(name)) == "127.0.0.1|9"
        change(made, PeerChange(KEYS[0], endpoint="[2001:db8::9]:1000"))
        await made.step()
        assert remote(made.row(name)) == "2001:db8::9|1000"
        assert made.row(name).socket == 1


async def test_a_prefix_that_moves_belongs_to_the_new_owner_whatever_came_first(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        add(made, "phone", 0, "100.64.0.2")
        add(made, "tv", 1, "100.64.0.3")
        await made.step()
        change(made, PeerChange(KEYS[1], allowed_ips=added("100.64.0.2/32")))
        await made.step()
        assert (made.owner("100.64.0.2/32"), made.owner("100.64.0.3/32")) == ("tv", "tv")
        assert made.row("phone").internal4 == -1  # the shortcut for the first address must not outlive the address
        change(made, PeerChange(KEYS[0], allowed_ips=added("100.64.0.2/32")))
        await made.step()
        assert (made.owner("100.64.0.2/32"), made.row("phone").internal4) == ("phone", int(ip_address("100.64.0.2")))


async def test_a_disabled_device_keeps_its_place_and_hears_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        add(made, "phone", 0, "100.64.0.2")
        await made.step()
        slot = made.slot("phone")
        session(made, "phone")
        made.store.disable_device("phone")
        await made.step()
        assert (made.slot("phone"), int(made.row("phone").state), int(made.row("phone").current)) == (slot, DISABLED, 0)
        assert made.tunnel.interface.peer(slot) is None
        made.store.enable_device("phone")
        await made.step()
        assert (made.slot("phone"), int(made.row("phone").state)) == (slot, ENABLED)
        assert made.tunnel.interface.peer(slot) is not None


async def test_a_removed_device_leaves_nothing_in_the_data_path(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        add(made, "phone", 0, "100.64.0.2", "fd64::2")
        await made.step()
        slot = made.slot("phone")
        session(made, "phone")
        made.store.remove_device("phone")
        await made.step()
        assert (made.owner("100.64.0.2/32"), made.owner("fd64::2/128"), made.used_slots(), len(made.fleet)) == ("", "", set(), 0)
        assert not made.b.wg.sessions["index"].any()
        assert made.tunnel.interface.peer(slot) is None


async def test_many_devices_and_networks_come_in_and_go_at_once(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        many = [ip_network((0x0A00_0000 + number, 32)) for number in range(1100)]
        change(made, PeerChange(KEYS[0], allowed_ips=tuple((True, network) for network in many)), *map(PeerChange, KEYS[1:]))
        await made.step()
        assert len(made.fleet) == len(KEYS)
        (name,) = {made.owner(str(network)) for network in many}
        assert made.fleet.members[name].device.public_key == KEYS[0]
        change(made, PeerChange(KEYS[1]), replace=True)
        await made.step()
        assert [member.device.public_key for member in made.fleet.members.values()] == [KEYS[1]]
        assert made.b.prefixes[0].length == 0


# what cannot be


async def test_a_device_without_room_comes_in_when_another_leaves(tmp_path: Path) -> None:
    async with bench(tmp_path, TEXT.replace("max_devices = 8", "max_devices = 2")) as made:
        for number, name in enumerate(["a", "b", "c"]):
            add(made, name, number, f"100.64.0.{number + 2}")
        await made.step()
        assert set(made.fleet.members) == {"a", "b"}
        assert made.fleet.left_out == {"c": "c has no room: raise [wireguard] max_devices"}
        made.store.remove_device("a")
        await made.step()
        assert (set(made.fleet.members), made.fleet.left_out) == ({"b", "c"}, {})
        assert made.owner("100.64.0.4/32") == "c"
        made.store.disable_device("c")
        await made.step()
        made.store.disable_device("b")
        await made.step()
        assert int(made.row("c").state) == DISABLED  # as it is now, not as it waited outside


async def test_a_device_of_an_unknown_pool_is_left_out_until_it_is_removed(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        add(made, "martian", 0, "100.64.0.2", pool="mars")
        await made.step()
        assert (len(made.fleet), made.used_slots()) == (0, set())
        assert made.fleet.left_out == {"martian": "martian is in pool mars, which is not configured"}
        made.store.remove_device("martian")
        await made.step()
        assert made.fleet.left_out == {}


async def test_a_device_that_is_put_into_another_pool_begins_anew_there(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        add(made, "phone", 0, "100.64.0.2", "fd64::2")
        await made.step()
        session(made, "phone")
        with closing(sqlite3.connect(tmp_path / "egressvpn.db")) as database:
            database.execute("UPDATE device SET pool = 'other', changed = 2")
            database.execute("UPDATE revision SET value = 2")
            database.commit()
        await made.step()
        member = made.fleet.members["phone"]
        assert (member.external4 in ip_network("203.0.113.16/28"), member.external6) == (True, None)
        assert (made.owner("100.64.0.2/32"), made.owner("fd64::2/128"), int(made.row("phone").current)) == ("phone", "phone", 0)
        assert made.used_slots() == {member.slot}


async def test_a_device_with_the_gateways_own_key_is_named_and_cannot_connect(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        change(made, PeerChange(made.tunnel.interface.public_key))
        await made.step()
        (name,) = made.fleet.members
        assert "own key" in made.fleet.left_out[name]
        assert made.tunnel.interface.peer(made.slot(name)) is None


async def test_a_store_that_is_away_ends_nothing_and_is_followed_when_it_is_back(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        add(made, "phone", 0, "100.64.0.2")
        database = sqlite3.connect(tmp_path / "egressvpn.db")
        database.execute("ALTER TABLE revision RENAME TO away")
        await made.step()
        assert "cannot be read" in made.fleet.store_error
        database.execute("ALTER TABLE away RENAME TO revision")
        database.close()
        await made.step()
        assert (made.fleet.store_error, set(made.fleet.members)) == ("", {"phone"})


# what outlives the process, and what wakes it


async def test_the_newest_timestamps_are_kept_and_known_to_the_next_gateway(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    async with bench(tmp_path) as made:
        add(made, "phone", 0, "100.64.0.2")
        await made.step()
        _heard(made, "phone", b"\x40" + b"a" * 11)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.fleet.run)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(60)
            await until(lambda: made.store.device("phone").key.newest_timestamp == b"\x40" + b"a" * 11)
            _heard(made, "phone", b"\x40" + b"b" * 11)
            nursery.cancel_scope.cancel()  # the gateway stops before another minute is over
    async with bench(tmp_path) as restarted:
        peer = restarted.tunnel.interface.peer(restarted.slot("phone"))
        assert peer is not None
        assert peer.newest_timestamp == b"\x40" + b"b" * 11


async def test_disabling_a_device_does_not_forget_its_newest_timestamp(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        add(made, "phone", 0, "100.64.0.2")
        await made.step()
        _heard(made, "phone", b"\x40" * 12)
        for verb in (made.store.disable_device, made.store.enable_device):
            verb("phone")
            await made.step()
        peer = made.tunnel.interface.peer(made.slot("phone"))
        assert peer is not None
        assert peer.newest_timestamp == b"\x40" * 12


async def test_a_change_wakes_the_gateway_before_its_next_look(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    async with bench(tmp_path) as made:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.fleet.run)  # the clock stands still: it never comes to look by itself
            await trio.testing.wait_all_tasks_blocked()
            add(made, "phone", 0, "100.64.0.2")
            await until(lambda: "phone" in made.fleet.members)
            nursery.cancel_scope.cancel()
        assert not (tmp_path / wake.BELL).exists()


async def test_without_a_place_for_the_bell_the_gateway_looks_by_itself(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    async with bench(tmp_path) as made:
        (tmp_path / wake.BELL).mkdir()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.fleet.run)
            add(made, "phone", 0, "100.64.0.2")
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(0.5)
            await until(lambda: "phone" in made.fleet.members)
            nursery.cancel_scope.cancel()


async def test_what_was_read_earlier_is_not_brought_in_after_what_was_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(tmp_path) as made:
        add(made, "phone", 0, "100.64.0.2")
        read, go_on = threading.Event(), threading.Event()
        changes_since = made.store.changes_since

        def slowly(known: int) -> Changes:
            changes = changes_since(known)
            if not read.is_set():  # the first reader is held up with what it has read
                read.set()
                go_on.wait(10)
            return changes

        monkeypatch.setattr(made.store, "changes_since", slowly)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.fleet.follow)
            await trio.to_thread.run_sync(read.wait, 10)
            made.store.remove_device("phone")
            nursery.start_soon(made.fleet.follow)
            await trio.testing.wait_all_tasks_blocked(0.05)
            go_on.set()
        made.work()
        assert (len(made.fleet), made.used_slots()) == (0, set())


async def test_a_store_restored_from_a_backup_is_followed(tmp_path: Path) -> None:
    with closing(sqlite3.connect(":memory:")) as backup:
        async with bench(tmp_path) as made:
            add(made, "phone", 0, "100.64.0.2")
            with closing(sqlite3.connect(tmp_path / "egressvpn.db")) as database:
                database.backup(backup)
                add(made, "tv", 1, "100.64.0.3")
                made.store.remove_device("phone")
                await made.step()
                assert set(made.fleet.members) == {"tv"}
                backup.backup(database)
            await made.step()
            assert set(made.fleet.members) == {"phone"}
            assert (made.owner("100.64.0.2/32"), made.owner("100.64.0.3/32")) == ("phone", "")


async def until(condition: Callable[[], bool]) -> None:
    """Other threads do the work, so only real time can tell; none passes on the clock of the test."""
    for _ in range(10_000):
        if condition():
            return
        await trio.testing.wait_all_tasks_blocked(0.001)
    raise AssertionError("it never came about")


def _heard(made: Bench, name: str, stamp: bytes) -> None:
    peer = made.tunnel.interface.peer(made.slot(name))
    assert peer is not None
    peer.newest_timestamp = stamp
