"""Session indexes: unique, in a free slot, of the right worker, and random in every bit (W25, W-16)."""

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressvpn.wireguard.indexes import INVERSE, MULTIPLIER, SessionIndexes, index_of, slot_of, worker_of


def test_w25_indexes_are_unique_32_bit_numbers_of_this_worker() -> None:
    indexes = make(64, worker=5)

    given_out = [indexes.allocate() for _ in range(63)]

    assert len(set(given_out)) == 63
    assert all(0 < index < 1 << 32 and worker_of(index) == 5 for index in given_out)
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
    kept = index_of(3, 0xABC, 8)
    indexes.reserve(kept)
    others = [indexes.allocate() for _ in range(6)]
    assert indexes.allocate() == 0
    assert all(slot_of(index, 8) != 3 for index in others)

    indexes.retain([kept])

    assert len(indexes) == 1
    assert kept in indexes


def test_every_bit_and_every_octet_of_an_index_looks_random() -> None:
    """Chi-square over eight bits at each position, 255 degrees of freedom: above 400 is a chance of one in 10^8."""
    indexes = make(1 << 17, worker=0)
    drawn = []
    for _ in range(25_600):
        drawn.append(indexes.allocate())
        indexes.release(drawn[-1])

    for shift in range(25):
        counts = Counter(index >> shift & 0xFF for index in drawn)
        assert sum((counts[octet] - 100) ** 2 / 100 for octet in range(256)) < 400, f"bits {shift} to {shift + 7}"
    for bit in range(32):
        assert abs(sum(index >> bit & 1 for index in drawn) - 12_800) < 480, f"bit {bit}"  # six standard deviations
    differences = Counter((after - before) % (1 << 32) >> 24 for before, after in itertools.pairwise(drawn))
    assert sum((differences[octet] - 100) ** 2 / 100 for octet in range(256)) < 400


@given(st.integers(1, 25), st.integers(0, (1 << 32) - 1), st.integers(0, 63), st.integers(1))
def test_slot_and_worker_are_found_again(bits: int, salt: int, worker: int, seed: int) -> None:
    slots = 1 << bits
    slot = 1 + seed % (slots - 1)
    index = index_of(slot, salt, slots, worker)

    assert 0 < index < 1 << 32
    assert (slot_of(index, slots), worker_of(index)) == (slot, worker)


def test_multiplier_and_inverse_undo_each_other_within_63_bits() -> None:
    assert MULTIPLIER * INVERSE % (1 << 32) == 1
    assert INVERSE * ((1 << 32) - 1) < 1 << 63


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
