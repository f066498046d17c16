"""Batches of peer changes on the store: against a dumb dictionary, and what a dictionary does not know (names, identities, limits)."""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egressvpn.control import batch
from egressvpn.control.devices import check_name
from egressvpn.control.store import BEGINNING, Device, DeviceKey, PeerChange, Store, open_store
from egressvpn.errors import OperatorError
from tests.control.stores import URL, make_empty_store

KEYS = [bytes([number]) * 32 for number in range(1, 6)]
NETWORKS = [ip_network(n) for n in ("100.64.0.2/32", "100.64.0.0/24", "10.0.0.0/8", "0.0.0.0/0", "fd64::2/128", "fd64::/64", "::/0")]
OWN = KEYS[0]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(URL, tmp_path / "state") as opened:
        yield opened


def apply(store: Store, *changes: PeerChange, replace: bool = False, own_key: bytes = b"", limit: int = 100) -> bool:
    return store.apply(changes, replace=replace, own_key=own_key, pool="default", limit=limit, now=1_700_000_000)


def networks(*texts: str) -> tuple[tuple[bool, object], ...]:
    """Additions; removals begin with a minus."""
    return tuple((not text.startswith("-"), ip_network(text.removeprefix("-"))) for text in texts)


def owners(store: Store) -> dict[str, str]:
    return {str(network): device.name for device in store.devices() for network in device.allowed_ips}


# against a dictionary


@contextmanager
def empty_store() -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as directory:
        make_empty_store(Path(directory))
        with open_store(URL, Path(directory)) as store:
            yield store


@dataclass
class Twin:
    """A peer as the dumb model has it. `identity` is new whenever it should be another device."""

    identity: int
    secret: bytes | None = None
    endpoint: str = ""
    keepalive: int = 0
    allowed: set[object] = field(default_factory=set)


class Model:
    """The peers of an interface as a dictionary, changed one by one."""

    def __init__(self) -> None:
        self.peers: dict[bytes, Twin] = {}
        self._identities = itertools.count(1)

    def apply(self, changes: Sequence[PeerChange], replace: bool, own_key: bytes) -> None:
        self.peers.pop(own_key, None)
        before, self.peers = (self.peers, {}) if replace else ({}, self.peers)
        for change in changes:
            if change.public_key != own_key:
                self._one(change, before)

    def _one(self, change: PeerChange, before: dict[bytes, Twin]) -> None:
        key = change.public_key
        if change.remove:
            self.peers.pop(key, None)
            return
        if key not in self.peers and change.update_only:
            return
        if key not in self.peers:
            self.peers[key] = Twin(before.pop(key).identity if key in before else next(self._identities))
        twin = self.peers[key]
        if change.preshared_key is not None:
            twin.secret = None if change.preshared_key == bytes(32) else change.preshared_key
        if change.endpoint is not None:
            twin.endpoint = change.endpoint
        if change.persistent_keepalive is not None:
            twin.keepalive = change.persistent_keepalive
        if change.replace_allowed_ips:
            twin.allowed.clear()
        for adding, network in change.allowed_ips:
            if adding:
                for other in self.peers.values():
                    other.allowed.discard(network)
                twin.allowed.add(network)
            else:
                twin.allowed.discard(network)


CHANGES = st.lists(
    st.builds(
        PeerChange,
        public_key=st.sampled_from(KEYS),
        remove=st.sampled_from([False, False, False, True]),
        update_only=st.sampled_from([False, False, True]),
        preshared_key=st.sampled_from([None, None, bytes(32), b"p" * 32]),
        endpoint=st.sampled_from([None, None, "", "192.0.2.1:51820", "[2001:db8::1]:1"]),
        persistent_keepalive=st.sampled_from([None, None, 0, 25]),
        replace_allowed_ips=st.sampled_from([False, False, True]),
        allowed_ips=st.lists(st.tuples(st.sampled_from([True, True, False]), st.sampled_from(NETWORKS)), max_size=4).map(tuple),
    ),
    max_size=6,
)
BATCHES = st.lists(st.tuples(CHANGES, st.sampled_from([False, False, True]), st.sampled_from([b"", b"", OWN]), st.booleans()), max_size=6)


def shown(devices: Sequence[Device]) -> dict[bytes, tuple[object, ...]]:
    return {d.public_key: (d.preshared_key, d.endpoint, d.persistent_keepalive, frozenset(d.allowed_ips)) for d in devices}


@settings(max_examples=60, deadline=None)
@given(BATCHES)
def test_batches_do_what_a_dictionary_does_and_the_feed_tells_it(batches: list[tuple[list[PeerChange], bool, bytes, bool]]) -> None:
    model, identities, followed, revision = Model(), {}, {}, BEGINNING
    with empty_store() as store:
        for changes, replace, own_key, follow in batches:
            before = store.devices()
            changed = apply(store, *changes, replace=replace, own_key=own_key)
            model.apply(changes, replace, own_key)
            devices = store.devices()
            assert shown(devices) == {k: (t.secret, t.endpoint, t.keepalive, frozenset(t.allowed)) for k, t in model.peers.items()}
            for device in devices:  # the same identity is the same device, another is another
                assert identities.setdefault(model.peers[device.public_key].identity, device.id) == device.id
            assert len(set(identities.values())) == len(identities)
            assert changed == (devices != before)
            if follow:
                news = store.changes_since(revision)
                gone = set(followed) if news.complete else news.removed_ids
                followed = {number: device for number, device in followed.items() if number not in gone}
                followed |= {device.id: device for device in news.devices}
                revision = news.revision
                assert followed == {device.id: device for device in devices}
            store.record_timestamps({KEYS[1]: b"t" * 12})  # changes nothing of all this


@settings(max_examples=15, deadline=None)
@given(BATCHES)
def test_batches_that_are_read_in_small_chunks_do_the_same(batches: list[tuple[list[PeerChange], bool, bytes, bool]]) -> None:
    with empty_store() as store, empty_store() as twin, pytest.MonkeyPatch.context() as patch:
        for changes, replace, own_key, _ in batches:
            patch.setattr(batch, "CHUNK", 1)
            apply(store, *changes, replace=replace, own_key=own_key)
            patch.setattr(batch, "CHUNK", 5000)
            apply(twin, *changes, replace=replace, own_key=own_key)
        assert store.devices() == twin.devices()


# what a dictionary does not know


def test_a_device_without_a_name_gets_one_from_its_key(store: Store) -> None:
    apply(store, PeerChange(bytes(range(1, 33))))
    (device,) = store.devices()
    assert check_name(device.name) == "wg-0102030405060708"
    assert (device.enabled, device.pool, device.tags, device.created_at, device.allowed_ips) == (True, "default", (), 1_700_000_000, ())


def test_a_name_that_is_taken_gets_a_number(store: Store) -> None:
    keys = [b"k" * 8 + bytes([number]) * 24 for number in range(3)]
    apply(store, *map(PeerChange, keys[:2]))
    apply(store, PeerChange(keys[2]))
    stem = f"wg-{(b'k' * 8).hex()}"
    assert [device.name for device in store.devices()] == [stem, f"{stem}-2", f"{stem}-3"]


def test_an_operators_device_keeps_its_name_tags_and_state_when_a_tool_replaces_all_peers(store: Store) -> None:
    key = DeviceKey(KEYS[0], preshared_key=b"s" * 32)
    store.add_device("phone", key, pool="gold", allocate=lambda _: [ip_address("100.64.0.2")], tags=["a"], limit=9, now=1)
    store.add_device("tv", DeviceKey(KEYS[1]), pool="gold", allocate=lambda _: [ip_address("100.64.0.3")], limit=9, now=1)
    before = store.disable_device("phone")
    apply(store, PeerChange(KEYS[0], allowed_ips=networks("100.64.0.2/32", "10.1.0.0/16")), replace=True)
    (phone,) = store.devices()
    assert (phone.id, phone.name, phone.tags, phone.pool, phone.enabled) == (before.id, "phone", ("a",), "gold", False)
    assert phone.preshared_key is None  # a peer that is replaced begins anew, but for who it is
    assert list(map(str, phone.allowed_ips)) == ["100.64.0.2/32", "10.1.0.0/16"]


def test_a_network_moves_to_whom_it_is_given(store: Store) -> None:
    apply(store, PeerChange(KEYS[0], allowed_ips=networks("100.64.0.2/32", "10.0.0.0/8")), PeerChange(KEYS[1]))
    first, second = (device.name for device in store.devices())
    revision = store.revision()
    apply(store, PeerChange(KEYS[1], allowed_ips=networks("10.0.0.0/8")))
    assert owners(store) == {"100.64.0.2/32": first, "10.0.0.0/8": second}
    assert [device.name for device in store.changes_since(revision).devices] == [first, second]  # who lost it is told as well


def test_networks_stay_in_the_order_they_were_given(store: Store) -> None:
    apply(store, PeerChange(KEYS[0], allowed_ips=networks("10.3.0.0/16", "10.2.0.0/16", "10.4.0.0/16")))
    apply(store, PeerChange(KEYS[0], allowed_ips=networks("10.1.0.0/16", "-10.2.0.0/16")))
    apply(store, PeerChange(KEYS[0], allowed_ips=networks("10.2.0.0/16", "10.3.0.0/16")))
    assert list(owners(store)) == ["10.3.0.0/16", "10.4.0.0/16", "10.1.0.0/16", "10.2.0.0/16"]


def test_the_minus_takes_only_what_is_ones_own(store: Store) -> None:
    apply(store, PeerChange(KEYS[0], allowed_ips=networks("10.0.0.0/8")), PeerChange(KEYS[1]))
    assert not apply(store, PeerChange(KEYS[1], allowed_ips=networks("-10.0.0.0/8")))
    assert apply(store, PeerChange(KEYS[0], allowed_ips=networks("-10.0.0.0/8")))
    assert owners(store) == {}


def test_the_same_configuration_again_is_no_change(store: Store) -> None:
    change = PeerChange(KEYS[0], False, False, b"p" * 32, "192.0.2.1:1", 25, True, networks("10.0.0.0/8", "fd64::/64"))
    assert apply(store, change, replace=True)
    assert not apply(store, change, replace=True)
    assert not apply(store, change)
    assert store.revision() == 1


def test_the_gateways_own_key_is_no_device_and_ceases_to_be_one(store: Store) -> None:
    apply(store, PeerChange(KEYS[0], allowed_ips=networks("10.0.0.0/8")), PeerChange(KEYS[1]), own_key=KEYS[1])
    assert [device.public_key for device in store.devices()] == [KEYS[0]]
    apply(store, own_key=KEYS[0])  # the gateway has another key now
    assert store.devices() == []


def test_too_many_devices_are_refused_as_a_whole(store: Store) -> None:
    apply(store, PeerChange(KEYS[0]), limit=2)
    with pytest.raises(OperatorError, match="2 devices at most"):
        apply(store, PeerChange(KEYS[0], remove=True), *map(PeerChange, KEYS[1:4]), limit=2)
    assert [device.public_key for device in store.devices()] == [KEYS[0]]
    apply(store, PeerChange(KEYS[0], remove=True), *map(PeerChange, KEYS[1:3]), limit=2)  # room made in the same batch counts
    apply(store, PeerChange(KEYS[1], persistent_keepalive=1), limit=1)  # a lower limit takes nobody away


def test_a_device_removed_and_named_again_is_another_one(store: Store) -> None:
    apply(store, PeerChange(KEYS[0]))
    (first,) = store.devices()
    apply(store, PeerChange(KEYS[0], remove=True), PeerChange(KEYS[0]))
    (second,) = store.devices()
    assert (second.name, second.id > first.id) == (first.name, True)


def test_tens_of_thousands_of_networks_of_one_device_are_one_change(store: Store) -> None:
    many = tuple((True, ip_network((0x0A00_0000 + number, 32))) for number in range(30_000))
    apply(store, PeerChange(KEYS[0], allowed_ips=many))
    (device,) = store.devices()
    assert device.allowed_ips == tuple(network for _, network in many)
    assert store.revision() == 1


def test_no_secret_is_in_the_repr_of_a_change() -> None:
    assert "pppp" not in repr(PeerChange(KEYS[0], preshared_key=b"p" * 32))
