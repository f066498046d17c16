"""The replay window against the kernel's counter.c self-test, and against a set of all counters seen."""

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egressvpn.wireguard.constants import REJECT_AFTER_MESSAGES as R
from egressvpn.wireguard.replay import WINDOW_BITS, accept, counter_usable
from egressvpn.wireguard.tables import SESSION
from tests.vectors import load

L = WINDOW_BITS + 1

TABLE = load("replay_counters")


def test_window_and_limit_are_those_of_the_table() -> None:
    assert WINDOW_BITS == TABLE["window"] == 8128
    assert TABLE["limit"] == R


def test_counter_c_table() -> None:
    session = fresh()

    assert len(TABLE["cases"]) == 34
    assert [accept(session, signed(counter)) for counter, _ in TABLE["cases"]] == [expected for _, expected in TABLE["cases"]]


@pytest.mark.parametrize(("case", "ends", "after"), TABLE["bulk"])
def test_counter_c_bulk_cases(case: str, ends: tuple[int, int], after: list[tuple[int, bool]]) -> None:
    session = fresh()
    first, last = ends
    step = 1 if last > first else -1

    assert all(accept(session, counter) for counter in range(first, last + step, step))
    assert [accept(session, counter) for counter, _ in after] == [expected for _, expected in after]


@pytest.mark.parametrize("counter", [R, R + 1, 2**64 - 2**13 - 1 + 63, 2**64 - 1])
def test_counters_from_the_limit_on_are_unusable(counter: int) -> None:
    session = fresh()

    assert counter_usable(signed(counter)) == 0
    assert accept(session, signed(counter)) == 0
    assert session.newest == 0


@pytest.mark.parametrize("counter", [0, 1, 2**63 - 1, 2**63, R - 1])
def test_counters_below_the_limit_are_usable(counter: int) -> None:
    assert counter_usable(signed(counter)) == 1
    assert accept(fresh(), signed(counter)) == 1


def test_a_jump_over_the_sign_bit_clears_the_window() -> None:
    session = fresh()
    assert accept(session, 2**63 - 1) == 1

    assert accept(session, signed(2**63 + 1)) == 1
    assert accept(session, signed(2**63)) == 1
    assert accept(session, 2**63 - 1) == 0
    assert accept(session, 2**63 - 2) == 1
    assert accept(session, signed(2**63 + 5 * L)) == 1
    assert accept(session, 2**63 - 3) == 0


@pytest.mark.parametrize("start", [0, 2**63 - 9_000])
def test_counters_in_order_are_all_accepted_however_often_the_ring_goes_round(start: int) -> None:
    session = fresh()

    assert all(accept(session, signed(counter)) for counter in range(start, start + 18_000))
    assert not any(accept(session, signed(counter)) for counter in range(start + 8_000, start + 18_000))


@pytest.mark.parametrize("jump", [1, 63, 64, 65, 8_127, 8_128, 8_191, 8_192, 8_193, 20_000])
@pytest.mark.parametrize("start", [0, 2**63 - 8_200])
def test_a_jump_forgets_exactly_what_falls_out_of_the_window(start: int, jump: int) -> None:
    session = fresh()
    filled = range(start, start + 8_200)
    for counter in filled:
        accept(session, signed(counter))
    newest = filled[-1] + jump

    assert accept(session, signed(newest)) == 1

    fresh_ones = [counter for counter in range(newest - WINDOW_BITS - 70, newest) if accept(session, signed(counter))]
    assert fresh_ones == list(range(max(filled[-1] + 1, newest - WINDOW_BITS), newest))


def test_w17_a_rejected_counter_changes_nothing() -> None:
    session = fresh()
    for counter in (5, 20_000):
        accept(session, counter)
    before = session.tobytes()

    for counter in (5, 20_000, 20_000 - L, signed(2**64 - 1)):
        assert accept(session, counter) == 0

    assert session.tobytes() == before


STEPS = st.one_of(st.integers(-9000, 9000), st.integers(-70, 70), st.integers(0, 2**62))


@given(st.integers(0, 2**64 - 1), st.lists(STEPS, max_size=60))
@settings(deadline=None)
def test_same_answers_as_a_set_of_all_counters_seen(start: int, steps: list[int]) -> None:
    session, seen, newest = fresh(), set[int](), 0
    counter = start
    for step in steps:
        counter = min(max(counter + step, 0), 2**64 - 1)
        expected = counter < R and counter not in seen and newest - counter <= WINDOW_BITS
        assert accept(session, signed(counter)) == expected
        if expected:
            seen.add(counter)
            newest = max(newest, counter)


def fresh() -> Any:
    return np.zeros(1, SESSION).view(np.recarray)[0]


def signed(counter: int) -> int:
    return counter - (1 << 64) if counter >= 1 << 63 else counter


class Dying:
    """A session whose process is killed at its `stores`-th store."""

    class Killed(Exception):
        pass

    def __init__(self, session: Any, stores: int) -> None:
        self.__dict__.update(session=session, left=stores)

    def __getattr__(self, name: str) -> Any:
        return self if name == "window" else getattr(self.session, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._store()
        setattr(self.session, name, value)

    def __getitem__(self, word: int) -> Any:
        return self.session.window[word]

    def __setitem__(self, word: int, value: Any) -> None:
        self._store()
        self.session.window[word] = value

    def _store(self) -> None:
        if self.left == 0:
            raise self.Killed
        self.__dict__["left"] -= 1


@pytest.mark.parametrize("stores", [0, 1, 2, 60, 127, 128, 129])
@pytest.mark.parametrize("jump", [1, 70, 5_000, 20_000])
def test_a_worker_killed_in_the_middle_accepts_nothing_twice(jump: int, stores: int) -> None:
    session = fresh()
    for counter in range(1000):
        assert accept(session, counter) == 1
    rules = getattr(accept, "py_func", accept)
    with contextlib.suppress(Dying.Killed):
        rules(Dying(session, stores), 999 + jump)
    assert [counter for counter in range(1000) if accept(session, counter)] == []
