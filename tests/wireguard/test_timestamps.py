"""TAI64N: the label, the whitening, and that it only grows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressvpn.wireguard.constants import MILLISECOND, SECOND
from egressvpn.wireguard.timestamps import NO_TIMESTAMP, TAI64_EPOCH, TimestampClock


def test_label_is_tai64n() -> None:
    stamp = TimestampClock().next(1_700_000_000 * SECOND + 999_999_999, NO_TIMESTAMP)

    assert stamp.hex() == f"{(1 << 62) + 10 + 1_700_000_000:016x}" + f"{999_999_999 // 2**24 * 2**24:08x}"


def test_stamps_10_ms_apart_may_tie_but_20_ms_apart_grow() -> None:
    wall = 1_700_000_000 * SECOND
    first = TimestampClock().next(wall, NO_TIMESTAMP)

    assert TimestampClock().next(wall + 10 * MILLISECOND, NO_TIMESTAMP) == first
    assert TimestampClock().next(wall + 20 * MILLISECOND, NO_TIMESTAMP) > first


@given(st.lists(st.integers(0, 10**19), min_size=2))
def test_stamps_to_one_peer_grow_whatever_the_wall_clock_does(walls: list[int]) -> None:
    clock, previous = TimestampClock(), NO_TIMESTAMP
    for wall in walls:
        stamp = clock.next(wall, previous)
        assert stamp > previous
        assert int.from_bytes(stamp[8:], "big") < SECOND
        assert int.from_bytes(stamp[8:], "big") % 2**24 == 0
        previous = stamp


def test_a_wall_clock_set_back_does_not_show_to_another_peer() -> None:
    clock = TimestampClock()
    earlier = clock.next(2_000 * SECOND, NO_TIMESTAMP)

    assert clock.next(1_000 * SECOND, NO_TIMESTAMP) == earlier


def test_many_peers_do_not_drive_the_clock_ahead() -> None:
    clock = TimestampClock()

    stamps = {clock.next(2_000 * SECOND, NO_TIMESTAMP) for _ in range(10_000)}

    assert stamps == {TimestampClock().next(2_000 * SECOND, NO_TIMESTAMP)}


@given(st.lists(st.tuples(st.integers(0, 10**19), st.booleans()), min_size=1))
def test_over_any_restarts_no_stamp_repeats_and_none_is_above_the_mark_kept(steps: list[tuple[int, bool]]) -> None:
    clock, kept, previous, newest = TimestampClock(), NO_TIMESTAMP, NO_TIMESTAMP, NO_TIMESTAMP
    for wall, restarted in steps:
        if restarted:
            clock, previous = TimestampClock(kept), NO_TIMESTAMP  # what was sent to the peer is forgotten
        stamp = clock.next(wall, previous)
        mark = clock.mark_for(stamp)
        if mark is not None:
            assert mark > kept
            kept = mark
        assert newest < stamp <= kept
        newest = previous = stamp


def test_the_mark_runs_a_minute_ahead_and_is_written_no_oftener() -> None:
    clock, writes, stamp = TimestampClock(), 0, NO_TIMESTAMP
    for tick in range(600):
        stamp = clock.next((1_000 + tick) * SECOND, stamp)
        mark = clock.mark_for(stamp)
        if mark is not None:
            writes += 1
            assert mark == (TAI64_EPOCH + 1_000 + tick + 60).to_bytes(8, "big") + bytes(4)

    assert writes == 10


@pytest.mark.parametrize("kept", [b"", bytes(11), bytes(13), b"\xff" * 12, b"\x80" + bytes(11), bytes(8) + b"\x3b\x9a\xca\x00"])
def test_what_is_no_timestamp_is_refused_as_a_mark(kept: bytes) -> None:
    with pytest.raises(ValueError, match="TAI64N"):
        TimestampClock(kept)
