"""Token buckets of a device: a burst, then the rate; one device's use is no other's; against exact arithmetic."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from egressvpn.nat.limits import ERROR_BURST, ERROR_RATE, may_take_mapping, take_error, take_mapping
from egressvpn.nat.tables import MAX_TIMEOUT, SECOND
from tests.nat.block_support import Pools, ns
from tests.nat.test_ports import octets

rates = st.integers(1, 1_000_000)
bursts = st.integers(1, 100_000)
steps = st.lists(st.tuples(st.sampled_from([0, 1, 1000, 10**6, SECOND // 3, SECOND, 10**12, MAX_TIMEOUT]), st.integers(1, 30)), max_size=12)


def test_rfc6888_req4c_new_mappings_are_limited_to_a_burst_and_a_rate() -> None:
    pools = Pools(mapping_rate=10, mapping_burst=50)
    assert sum(int(take_mapping(pools.nat, 1, ns(0))) for _ in range(200)) == 50
    assert sum(int(take_mapping(pools.nat, 1, ns(1))) for _ in range(200)) == 10
    assert take_mapping(pools.nat, 1, ns(1.0999)) == 0
    assert take_mapping(pools.nat, 1, ns(1.1)) == 1


def test_rfc6888_req4_one_device_at_its_limit_limits_no_other() -> None:
    pools = Pools(mapping_rate=1, mapping_burst=1)
    while take_mapping(pools.nat, 1, ns(0)):
        pass
    assert take_mapping(pools.nat, 2, ns(0)) == 1


def test_without_a_rate_there_is_no_limit() -> None:
    pools = Pools()
    assert all(take_mapping(pools.nat, 1, ns(0)) for _ in range(1000))


def test_a_burst_of_nothing_is_one() -> None:
    pools = Pools(mapping_rate=1)
    assert [int(take_mapping(pools.nat, 1, ns(second))) for second in (0, 0, 1, 1)] == [1, 0, 1, 0]


def test_rfc1812_icmp_errors_to_a_device_are_limited() -> None:
    pools = Pools()
    assert sum(int(take_error(pools.nat, 1, ns(0))) for _ in range(100)) == ERROR_BURST
    assert sum(int(take_error(pools.nat, 1, ns(1))) for _ in range(100)) == ERROR_RATE
    assert take_error(pools.nat, 2, ns(0)) == 1


@given(rates, bursts, steps)
def test_a_bucket_holds_exactly_what_arithmetic_without_rounding_says(rate: int, burst: int, waits: list[tuple[int, int]]) -> None:
    pools = Pools(mapping_rate=rate, mapping_burst=burst)
    now, tokens = ns(0), None
    for wait, attempts in waits:
        now += wait
        tokens = Fraction(burst) if tokens is None else min(Fraction(burst), tokens + Fraction(wait * rate, SECOND))
        for _ in range(attempts):
            expected = tokens >= 1
            assert bool(may_take_mapping(pools.nat, 1, now)) == expected
            assert bool(take_mapping(pools.nat, 1, now)) == expected
            tokens -= expected


def test_looking_takes_nothing() -> None:
    pools = Pools(mapping_rate=3, mapping_burst=2)
    before = octets(pools)
    assert may_take_mapping(pools.nat, 1, ns(0)) == 1
    assert octets(pools) == before


def test_a_clock_that_stands_still_or_steps_back_gives_no_tokens() -> None:
    pools = Pools(mapping_rate=1000, mapping_burst=5)
    while take_mapping(pools.nat, 1, ns(5)):
        pass
    assert take_mapping(pools.nat, 1, ns(5)) == 0
    assert take_mapping(pools.nat, 1, ns(4)) == 0
    assert take_mapping(pools.nat, 1, ns(5)) == 0
