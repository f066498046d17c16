"""TAI64N: the label, the whitening, and that it only grows."""

from hypothesis import given
from hypothesis import strategies as st

from egressvpn.wireguard.constants import MILLISECOND, SECOND
from egressvpn.wireguard.timestamps import NO_TIMESTAMP, TimestampClock


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
