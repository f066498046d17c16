"""The journal: every block given and taken back, in order; a reader beside the writer sees whole entries, and counts what it missed."""

import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressvpn.kernel import JIT
from egressvpn.nat.journal import record
from egressvpn.nat.pool_view import read
from egressvpn.nat.tables import BLOCK_GIVEN, BLOCK_TAKEN_BACK, JOURNAL_SLOTS
from tests.nat.block_support import ADDRESS, Pools, ns


def test_rfc6888_section4_an_entry_says_who_had_which_ports_of_which_address_since_when() -> None:
    pools = Pools(addresses=2)
    pools.free(pools.port(2, now=5), now=9)
    entries, lost = read(pools.nat, 0)
    assert lost == 0
    low = int(entries[0]["port_low"])
    assert [tuple(map(int, entry)) for entry in entries] == [
        (1, BLOCK_GIVEN, 1002, 2, ADDRESS + 2, low, low + 15, ns(5)),
        (2, BLOCK_TAKEN_BACK, 1002, 2, ADDRESS + 2, low, low + 15, ns(9)),
    ]


def test_reading_goes_on_where_it_stopped() -> None:
    pools = small()
    write(pools, 1, 5)
    assert numbers(*read(pools.nat, 0, 2)) == ([1, 2], 0)
    assert numbers(*read(pools.nat, 2, 2)) == ([3, 4], 0)
    assert numbers(*read(pools.nat, 4, 2)) == ([5], 0)
    assert numbers(*read(pools.nat, 5, 2)) == ([], 0)
    assert numbers(*read(pools.nat, 9, 2)) == ([], 0)  # of another journal


def test_what_was_overwritten_is_counted() -> None:
    pools = small()
    write(pools, 1, 20)
    entries, lost = read(pools.nat, 4)
    assert numbers(entries, lost) == ([*range(14, 21)], 9)  # 13 may be being overwritten now


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 12)), max_size=20))
def test_every_entry_is_read_once_in_order_or_counted_as_lost(turns: list[tuple[int, int]]) -> None:
    pools = small()
    written = after = missed = 0
    seen: list[int] = []
    for count, limit in turns:
        write(pools, written + 1, count)
        written += count
        entries, lost = read(pools.nat, after, limit)
        assert [int(entry["identity"]) for entry in entries] == [10 * int(entry["sequence"]) for entry in entries]
        assert lost + len(entries) <= written - after
        assert lost == 0 or written - after >= 8
        after += lost + len(entries)
        missed += lost
        seen += [int(entry["sequence"]) for entry in entries]
        assert not seen or seen[-1] == after or lost
    assert seen == sorted(set(seen))
    assert len(seen) + missed == after


@pytest.mark.skipif(JIT, reason="only an interpreted kernel can be looked at between two of its lines")
def test_a_reader_between_any_two_lines_of_the_writer_sees_whole_entries_only() -> None:
    pools = small()
    looks = 0

    def trace(frame: FrameType, _: str, __: Any) -> Any:
        nonlocal looks
        if not frame.f_code.co_filename.endswith("/nat/journal.py"):
            return None
        for after in (0, int(pools.nat.settings[0].journal) - 7):
            entries, lost = read(pools.nat, max(after, 0))
            looks += 1
            assert numbers(entries, lost)[0] == list(range(max(after, 0) + lost + 1, int(pools.nat.settings[0].journal) + 1))
            for entry in entries:
                n = int(entry["sequence"])
                assert [int(entry[name]) for name in ("identity", "pool", "port_low", "port_high", "when")] == [10 * n, 1, n, n + 1, 3 * n]
        return trace

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        write(pools, 1, 30)
    finally:
        sys.settrace(old)
    assert looks > 400


@given(st.integers(0, 8), st.integers(0, 8))
def test_a_writer_that_laps_the_reader_in_the_middle_of_a_copy_costs_entries_but_tears_none(before: int, during: int) -> None:
    pools = small()
    write(pools, 1, before)
    lapped = Lapped(pools, before + 1, during)
    entries, lost = read(lapped, 0)  # type: ignore[arg-type]
    assert len(entries) + lost == min(before, 8)
    for entry in entries:
        n = int(entry["sequence"])
        assert [int(entry[name]) for name in ("identity", "port_low", "when")] == [10 * n, n, 3 * n]
        assert n > before + during + 1 - 8


def test_a_worker_that_was_restarted_goes_on_with_the_numbers() -> None:
    pools = Pools()
    pools.port(1)
    pools.crash()
    pools.port(2)
    assert numbers(*read(pools.nat, 0)) == ([1, 2], 0)


def test_the_ring_has_room_for_every_block_of_64_addresses() -> None:
    assert JOURNAL_SLOTS >= 64 * 252


class Lapped:
    """Tables whose writer goes on between the reader's look at how much there is and its copy."""

    def __init__(self, pools: Pools, first: int, count: int) -> None:
        self.settings, self._ring = pools.nat.settings, pools.nat.journal
        self._looks, self._go_on = 0, lambda: write(pools, first, count)

    @property
    def journal(self) -> Any:
        self._looks += 1
        if self._looks == 2:  # the first was for its size
            self._go_on()
        return self._ring


def small() -> Pools:
    """A journal of eight entries."""
    pools = Pools()
    pools.nat = pools.nat._replace(journal=pools.nat.journal[:8])
    return pools


def write(pools: Pools, first: int, count: int) -> None:
    for n in range(first, first + count):
        record(pools.nat, BLOCK_GIVEN, 10 * n, 1, n, n + 1, 3 * n)


def numbers(entries: Any, lost: int) -> tuple[list[int], int]:
    return [int(entry["sequence"]) for entry in entries], lost
