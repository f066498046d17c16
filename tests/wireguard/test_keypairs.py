"""W15: previous, current and next. And that a worker killed at any moment leaves tables that recovery makes whole."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from egressvpn.wireguard import keypairs
from egressvpn.wireguard.indexes import index_of, slot_of
from egressvpn.wireguard.tables import DISABLED, ENABLED, WireGuardTables, session_slots, tables

DEVICES = 3
SLOTS = session_slots(DEVICES)


def test_the_layout_has_four_sessions_per_device_and_a_power_of_two() -> None:
    assert SLOTS == 16
    assert session_slots(1000) == 4096
    assert {name: count for name, (_, count) in tables(DEVICES).items()}.items() >= {"sessions": 16, "devices": 4}.items()


def test_an_initiators_session_is_current_at_once() -> None:
    wg = Twin()

    assert wg.install(1, index(1), initiator=True) == []

    assert wg.links(1) == (0, 1, 0)


def test_an_initiators_session_makes_the_old_current_previous() -> None:
    wg = Twin()
    wg.install(1, index(1), initiator=True)
    wg.install(1, index(2), initiator=True)

    assert wg.install(1, index(3), initiator=True) == [index(1)]

    assert wg.links(1) == (2, 3, 0)


def test_an_initiators_session_demotes_an_unconfirmed_next_to_previous() -> None:
    wg = Twin()
    wg.install(1, index(1), initiator=True)
    wg.install(1, index(2), initiator=True)
    wg.install(1, index(3), initiator=False)

    assert wg.install(1, index(4), initiator=True) == [index(2)]

    assert wg.links(1) == (3, 4, 0)


def test_w14_a_responders_session_waits_as_next() -> None:
    wg = Twin()
    wg.install(1, index(1), initiator=True)
    wg.install(1, index(2), initiator=True)

    assert wg.install(1, index(3), initiator=False) == [index(1)]

    assert wg.links(1) == (0, 2, 3)


def test_a_second_responders_session_replaces_the_first() -> None:
    wg = Twin()
    wg.install(1, index(1), initiator=False)

    assert wg.install(1, index(2), initiator=False) == [index(1)]

    assert wg.links(1) == (0, 0, 2)


def test_w15_first_data_promotes_next() -> None:
    wg = Twin()
    wg.install(1, index(1), initiator=True)
    wg.install(1, index(2), initiator=False)

    assert wg.promote(1) == []
    assert wg.links(1) == (1, 2, 0)

    wg.install(1, index(3), initiator=False)
    assert wg.links(1) == (0, 2, 3)  # as the kernel does, the previous goes when the next comes
    assert wg.promote(1) == []
    assert wg.promote(1) == []
    assert wg.links(1) == (2, 3, 0)


def test_installing_again_what_is_there_keeps_the_send_counter() -> None:
    wg = Twin()
    wg.install(1, index(1), initiator=True)
    wg.tables.sessions[1].send_counter = 77

    assert wg.install(1, index(1), initiator=True) == []

    assert wg.tables.sessions[1].send_counter == 77


def test_clear_wipes_every_key() -> None:
    wg = Twin()
    wg.install(1, index(1), initiator=True)
    wg.install(1, index(2), initiator=True)
    wg.install(2, index(3), initiator=True)
    wg.install(1, index(4), initiator=False)

    assert sorted(wg.clear(1)) == [index(2), index(4)]
    assert wg.links(1) == (0, 0, 0)
    assert wg.links(2) == (0, 3, 0)
    wg.clear(2)

    assert not wg.tables.sessions.tobytes().strip(b"\0")


def test_find_takes_the_whole_index_not_only_the_slot() -> None:
    wg = Twin()
    wg.install(1, index(5), initiator=True)

    assert keypairs.find(wg.tables, index(5)) == 5
    assert keypairs.find(wg.tables, index(5) ^ 1 << 31) == 0
    assert keypairs.find(wg.tables, index(5) ^ 1) == 0  # another worker
    assert keypairs.find(wg.tables, index(6)) == 0
    assert keypairs.find(wg.tables, 0) == 0


def test_sessions_of_nobody_are_refused() -> None:
    wg = Twin()
    for device in (0, -1, DEVICES + 1):
        assert keypairs.install(wg.tables, device, index(1), 9, 1, wg.key, wg.key, wg.freed, 1) == -1
    wg.tables.devices[1].state = 0
    assert keypairs.install(wg.tables, 1, index(1), 9, 1, wg.key, wg.key, wg.freed, 1) == -1
    assert keypairs.install(wg.tables, 2, 1 << 31, 9, 1, wg.key, wg.key, wg.freed, 1) == -1  # slot 0
    assert not wg.tables.sessions.tobytes().strip(b"\0")


def test_a_disabled_device_keeps_its_place() -> None:
    wg = Twin()
    wg.tables.devices[1].state = DISABLED

    assert wg.install(1, index(1), initiator=True) == []


def test_a_slot_given_out_anew_goes_to_the_newer_owner() -> None:
    wg = Twin()
    wg.install(1, index(1), initiator=True)

    assert wg.install(2, index(1) ^ 1 << 31, initiator=True) == [index(1)]

    assert wg.links(1) == (0, 0, 0)
    assert wg.links(2) == (0, 1, 0)


STEPS = st.lists(
    st.tuples(st.sampled_from(("initiator", "responder", "promote", "clear", "recover")), st.integers(1, DEVICES)), max_size=40
)


@given(STEPS)
@settings(deadline=None)
def test_every_index_is_in_exactly_one_place_or_freed_once(steps: list[tuple[str, int]]) -> None:
    wg = Twin()
    held: set[int] = set()
    for number, (verb, device) in enumerate(steps):
        freed: list[int] = []
        if verb in ("initiator", "responder"):
            slot = next(slot for slot in range(1, SLOTS) if all(slot_of(i, SLOTS) != slot for i in held))
            held.add(index(slot, number))
            freed = wg.install(device, index(slot, number), initiator=verb == "initiator")
        elif verb == "promote":
            freed = wg.promote(device)
        elif verb == "clear":
            freed = wg.clear(device)
        else:
            assert recover(wg.tables) == len(held)
        assert len(set(freed)) == len(freed)
        assert held.issuperset(freed)
        held.difference_update(freed)
        linked = [slot for device in range(1, DEVICES + 1) for slot in wg.links(device) if slot]
        assert sorted(linked) == sorted(slot_of(i, SLOTS) for i in held)
        assert {int(i) for i in wg.tables.sessions["index"] if i} == held


@given(st.permutations(["current", "previous", "next"]), st.integers(0, 3), st.booleans())
def test_recover_mends_any_half_done_move(order: list[str], done: int, wiped: bool) -> None:
    wg = Twin()
    wg.install(1, index(1), initiator=True)
    wg.install(1, index(2), initiator=True)
    wg.install(1, index(3), initiator=False)
    row = wg.tables.devices[1]
    after = {"current": 3, "previous": 2, "next": 0}  # a promotion, its stores in any order, stopped anywhere
    for name in order[:done]:
        row[name] = after[name]
    if wiped:
        wg.tables.sessions[2]["index"] = 0

    live = recover(wg.tables)

    links = [slot for slot in wg.links(1) if slot]
    assert len(set(links)) == len(links) == live
    assert all(wg.tables.sessions[slot]["index"] for slot in links)
    for slot in set(range(1, SLOTS)) - set(links):
        assert not wg.tables.sessions[slot].tobytes().strip(b"\0")


def index(slot: int, salt: int = 0x155) -> int:
    """An index of worker 3 in this slot."""
    return index_of(slot, salt, SLOTS, worker=3)


class Twin:
    """Tables of a few devices, and the kernels as methods that return what was freed."""

    def __init__(self) -> None:
        arrays: dict[str, Any] = {name: np.zeros(count, dtype).view(np.recarray) for name, (dtype, count) in tables(DEVICES).items()}
        self.tables = WireGuardTables(**arrays)
        self.tables.devices.state[1:] = ENABLED
        self.freed = np.zeros(keypairs.FREED_MAX, np.int64)
        self.key = np.full(32, 0x5A, np.uint8)

    def install(self, device: int, index: int, *, initiator: bool) -> list[int]:
        return self._freed(keypairs.install(self.tables, device, index, 9, int(initiator), self.key, self.key, self.freed, 1))

    def promote(self, device: int) -> list[int]:
        return self._freed(keypairs.promote_next(self.tables, device, self.freed))

    def clear(self, device: int) -> list[int]:
        return self._freed(keypairs.clear(self.tables, device, self.freed))

    def links(self, device: int) -> tuple[int, int, int]:
        row = self.tables.devices[device]
        return int(row.previous), int(row.current), int(row.next)

    def _freed(self, count: int) -> list[int]:
        assert count >= 0
        return self.freed[:count].tolist()  # type: ignore[no-any-return]


def recover(tables: WireGuardTables) -> int:
    """Everything that a successor does, on the whole table."""
    keypairs.recover_devices(tables, tables.devices.size)
    return int(keypairs.recover_sessions(tables, 0, tables.sessions.size))
