"""Session indexes: unique, in a free slot, random above it, and of the right worker (W25)."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressvpn.wireguard.indexes import SessionIndexes, slot_of


def test_w25_indexes_are_unique_32_bit_numbers_of_this_worker() -> None:
    indexes = make(64, worker=5)

    given_out = [indexes.allocate() for _ in range(63)]

    assert len(set(given_out)) == 63
    assert all(0 < index < 1 << 32 and index & 63 == 5 for index in given_out)
    assert sorted(slot_of(index, 64) for index in given_out) == list(range(1, 64))


def test_a_full_table_gives_zero_until_one_is_released() -> None:
    indexes = make(4)
    held = [indexes.allocate() for _ in range(3)]
    assert indexes.allocate() == 0

    indexes.release(held[1])

    assert slot_of(indexes.allocate(), 4) == slot_of(held[1], 4)


def test_a_reused_slot_has_another_index() -> None:
    indexes = make(2)
    seen = set()
    for _ in range(100):
        index = indexes.allocate()
        seen.add(index)
        indexes.release(index)

    assert len(seen) == 100


def test_slots_are_drawn_at_random() -> None:
    indexes = make(1 << 16)

    slots = [slot_of(indexes.allocate(), 1 << 16) for _ in range(100)]

    assert slots != sorted(slots)
    assert max(slots) - min(slots) > 1 << 14


def test_releasing_twice_or_what_was_never_held_changes_nothing() -> None:
    indexes = make(8)
    index = indexes.allocate()
    indexes.release(index)

    indexes.release(index)
    indexes.release(12345)

    assert len({indexes.allocate() for _ in range(7)}) == 7
    assert indexes.allocate() == 0


def test_reserved_indexes_are_not_given_out_and_retain_frees_the_rest() -> None:
    indexes = make(8)
    kept = 0xABC << 9 | 3 << 6
    indexes.reserve(kept)
    others = [indexes.allocate() for _ in range(6)]
    assert indexes.allocate() == 0
    assert all(slot_of(index, 8) != 3 for index in others)

    indexes.retain([kept])

    assert len(indexes) == 1
    assert kept in indexes


@pytest.mark.parametrize(("slots", "worker"), [(0, 0), (3, 0), (1 << 27, 0), (8, 64), (8, -1)])
def test_impossible_shapes_are_refused(slots: int, worker: int) -> None:
    with pytest.raises(ValueError):
        make(slots, worker)


@given(st.lists(st.booleans(), max_size=80), st.integers())
def test_what_is_held_is_never_given_out_again(steps: list[bool], seed: int) -> None:
    indexes, dice = SessionIndexes(16, 1, random.Random(seed).randbytes), random.Random(seed)
    held: dict[int, int] = {}
    for allocate in steps:
        if allocate:
            index = indexes.allocate()
            assert (index == 0) == (len(held) == 15)
            assert slot_of(index, 16) not in held
            if index:
                held[slot_of(index, 16)] = index
        elif held:
            indexes.release(held.pop(dice.choice(list(held))))
    assert len(indexes) == len(held)


def make(slots: int, worker: int = 0) -> SessionIndexes:
    return SessionIndexes(slots, worker, random.Random(1).randbytes)
