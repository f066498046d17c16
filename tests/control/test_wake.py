"""The bell: who changes the store wakes who follows it, and never waits for him."""

import select
import stat
import threading
from ipaddress import ip_address
from pathlib import Path

import pytest

from egressvpn.control.store import DeviceKey, PeerChange, Store, open_store
from egressvpn.control.wake import BELL, Bell, ring
from egressvpn.errors import OperatorError


def add(store: Store, name: str = "phone") -> None:
    store.add_device(name, DeviceKey(b"k" * 32), pool="default", allocate=lambda _: [ip_address("100.64.0.2")], limit=9, now=0)


def test_every_kind_of_change_rings_once_and_nothing_else_does(tmp_path: Path) -> None:
    with open_store("sqlite:///x.db", tmp_path) as store, Bell(tmp_path / BELL) as bell:
        assert not bell.hear()
        add(store)
        assert bell.hear()
        assert not bell.hear()
        for verb in ("disable_device", "enable_device", "remove_device"):
            getattr(store, verb)("phone")
            assert bell.hear()
        store.apply([PeerChange(b"a" * 32)], pool="default", limit=9, now=0)
        assert bell.hear()
        store.apply([PeerChange(b"a" * 32)], pool="default", limit=9, now=0)  # changes nothing
        store.set_setting("listen_port", "1")
        store.record_timestamps({b"a" * 32: b"t" * 12})
        with pytest.raises(OperatorError):
            store.remove_device("nobody")
        assert not bell.hear()


def test_it_rings_when_the_change_can_be_seen(tmp_path: Path) -> None:
    with open_store("sqlite:///x.db", tmp_path) as store, Bell(tmp_path / BELL) as bell:
        writer = threading.Thread(target=add, args=(store,))
        writer.start()
        select.select([bell], [], [], 10)
        assert [device.name for device in store.devices()] == ["phone"]
        writer.join()


def test_many_rings_are_heard_as_one_and_no_ringer_waits(tmp_path: Path) -> None:
    with Bell(tmp_path / BELL) as bell:
        for _ in range(5000):  # more than the queue of a socket takes
            ring(tmp_path / BELL)
        assert bell.hear()
        assert not bell.hear()


def test_without_a_listener_nothing_happens(tmp_path: Path) -> None:
    ring(tmp_path / BELL)
    Bell(tmp_path / BELL).close()
    ring(tmp_path / BELL)
    assert not (tmp_path / BELL).exists()
    (tmp_path / BELL).touch()
    ring(tmp_path / BELL)


def test_it_is_for_its_owner_only_and_takes_the_place_of_a_dead_one(tmp_path: Path) -> None:
    dead = Bell(tmp_path / BELL)
    with Bell(tmp_path / BELL) as bell:
        assert stat.S_IMODE((tmp_path / BELL).stat().st_mode) == 0o600
        ring(tmp_path / BELL)
        assert (bell.hear(), dead.hear()) == (True, False)
        dead._socket.close()


def test_a_path_that_no_socket_can_have_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="AF_UNIX path too long"):
        Bell(tmp_path / ("x" * 120))
    ring(tmp_path / ("x" * 120))
