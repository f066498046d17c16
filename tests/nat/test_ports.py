"""Ports: always in the slice and in an own block, at random, with the parity asked for, and as quickly when nearly all are taken."""

import math
import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressvpn.kernel import JIT
from egressvpn.nat.pools import clear_pool, set_pool
from egressvpn.nat.ports import free, may_take, pool_slot, port_kind, take_exact
from egressvpn.nat.tables import ICMP_PORTS, PORT_KINDS, TCP_PORTS, UDP_PORTS
from egressvpn.verdict import Verdict
from tests.nat.block_support import ADDRESS, Pools, Port, ns

slices = st.tuples(st.integers(1024, 2000), st.integers(8, 300), st.integers(8, 64)).filter(lambda s: s[1] >= s[2])


def test_each_protocol_has_its_kind_and_what_is_neither_tcp_nor_udp_has_identifiers() -> None:
    assert [port_kind(protocol) for protocol in (6, 17, 1)] == [TCP_PORTS, UDP_PORTS, ICMP_PORTS]


@given(slices, st.integers(0, PORT_KINDS - 1), st.integers(0, 2**62))
def test_every_port_of_whole_blocks_is_given_once_and_none_outside_the_slice(geometry: tuple[int, int, int], kind: int, key: int) -> None:
    low, width, size = geometry
    pools = Pools(low=low, high=low + width - 1, size=size, most=256, key=key)
    ports = pools.fill(1, kind)
    assert sorted(port for _, _, port in ports) == list(range(low, low + width // size * size))
    assert pools.take(1, kind) == Verdict.PORTS_EXHAUSTED
    pools.assert_whole()


def test_what_is_too_little_for_a_block_stays_unused() -> None:
    pools = Pools(low=1000, high=1999, size=256, most=256)
    ports = [port for _, _, port in pools.fill(1)]
    assert len(ports) == 768
    assert max(ports) == 1767
    assert take_exact(pools.nat, 1, 1, 0, 1800) == 0


def test_the_highest_port_is_used_and_the_next_slot_is_not_touched() -> None:
    pools = Pools(addresses=2, low=65_528, high=65_535, size=8, most=1)
    assert {port for _, _, port in pools.fill(1)} == set(range(65_528, 65_536))
    pools.assert_whole()


def test_kinds_do_not_share_ports() -> None:
    pools = Pools(low=1024, high=1031, size=8, most=1)
    for kind in range(PORT_KINDS):
        assert len(pools.fill(1, kind)) == 8
    pools.assert_whole()


@given(st.lists(st.integers(0, 65535), max_size=40), st.integers(0, 2**62))
def test_rfc4787_req4_parity_is_kept_while_an_own_block_has_such_a_port(internal_ports: list[int], key: int) -> None:
    pools = Pools(size=16, high=1024 + 63, most=2, key=key)
    blocks: dict[int, list[int]] = {}
    for internal_port in internal_ports:
        before = {low: [p for p in range(low, low + 16) if (1, 0, p) not in pools.owners] for low in blocks}
        port = pools.take(1, 0, internal_port)
        if not isinstance(port, tuple):
            assert not any(before.values())
            continue
        own = [p for free in before.values() for p in free]
        if any((p ^ internal_port) & 1 == 0 for p in own):
            assert (port[2] ^ internal_port) & 1 == 0
        if own:
            assert port[2] in own
        blocks[1024 + (port[2] - 1024) // 16 * 16] = []


def test_rfc4787_req4_parity_finds_the_only_even_port_among_256_blocks() -> None:
    pools = Pools(size=8, high=1024 + 8 * 256 - 1, most=256)
    pools.fill(1)
    even = [port for port in sorted(pools.owners) if port[2] % 2 == 0][700]
    for port in [port for port in pools.owners if port[2] % 2][:300]:
        pools.free(port)
    pools.free(even)
    assert pools.port(1, internal_port=4000) == even
    assert pools.port(1, internal_port=4000)[2] % 2 == 1


@pytest.mark.parametrize("fill", [0, 50, 90, 99])
def test_rfc6056_ports_are_uniform_at_any_fill(fill: int) -> None:
    pools, rest = at_fill(fill, 256)
    seen: Counter[int] = Counter()
    for _ in range(max(20 * len(rest) // 2, 400)):
        port = pools.port(1, UDP_PORTS)
        seen[port[2]] += 1
        pools.free(port)
    candidates = [port for port in rest if port % 2 == 0]
    assert set(seen) <= set(candidates)
    assert chi_square_is_likely([seen[port] for port in candidates])


def test_rfc6056_consecutive_ports_do_not_tell_the_next() -> None:
    pools, _ = at_fill(0, 64)
    steps: Counter[int] = Counter()
    before = 0
    for _ in range(1500):
        port = pools.port(1, UDP_PORTS)
        steps[(port[2] - before) // 2 % 32] += 1
        before = port[2]
        pools.free(port)
    assert chi_square_is_likely([steps[step] for step in range(32)])


def test_other_keys_draw_other_ports() -> None:
    drawn = [[Pools(key=key, size=64, most=1).fill(1)[:10] for _ in range(2)] for key in (1, 2)]
    assert drawn[0][0] == drawn[0][1]
    assert drawn[0][0] != drawn[1][0]


@pytest.mark.skipif(JIT, reason="only the lines of an interpreted kernel can be counted")
@pytest.mark.parametrize("size", [256, 4096])
def test_taking_a_port_takes_as_many_steps_at_99_percent_as_when_all_are_free(size: int) -> None:
    steps = []
    for fill in (1, 99):
        pools, _ = at_fill(fill, size)
        steps.append(max(lines(lambda pools=pools: pools.free(pools.port(1, UDP_PORTS))) for _ in range(8)))  # type: ignore[misc]
    assert steps[1] <= steps[0]


@pytest.mark.skipif(JIT, reason="only the lines of an interpreted kernel can be counted")
def test_giving_a_block_takes_as_many_steps_whether_251_of_252_are_taken_or_none() -> None:
    steps = []
    for taken in (0, 251):
        pools = Pools(devices=252, high=1024 + 252 * 8 - 1, size=8, most=1)
        for device in range(1, taken + 1):
            pools.port(device)
        steps.append(lines(lambda pools=pools: pools.port(252)))  # type: ignore[misc]
    assert steps[1] <= steps[0]


@pytest.mark.skipif(JIT, reason="only the lines of an interpreted kernel can be counted")
def test_refusing_takes_a_bounded_number_of_steps_however_large_the_pool() -> None:
    steps = []
    for addresses in (64, 192):
        pools = Pools(addresses=addresses, devices=addresses + 1, high=1031, size=8, most=1)
        for device in range(1, addresses + 1):
            pools.port(device)
        steps.append(lines(lambda pools=pools: pools.take(addresses + 1)))  # type: ignore[misc]  # noqa: B023
    assert steps[1] <= steps[0] + 8


def test_may_take_says_what_take_would_and_changes_nothing() -> None:
    pools = Pools(addresses=2, devices=6, most=1, size=32, high=1024 + 63)
    for device in (1, 2, 3, 4, 5, 1, 6):
        before = octets(pools)
        expected = int(may_take(pools.nat, device, 0, ns(0)))
        assert octets(pools) == before
        taken = pools.take(device)
        assert expected == (0 if isinstance(taken, tuple) else -taken)
    assert int(may_take(pools.nat, 5, 0, ns(0))) == -Verdict.PORTS_EXHAUSTED


def test_a_device_without_an_external_address_gets_no_port() -> None:
    pools = Pools()
    pools.subscribe(1, 1001, 0)
    assert pools.take(1) == Verdict.NO_EXTERNAL_ADDRESS


def test_an_address_that_ends_gives_no_port_also_not_of_a_block_that_the_device_has() -> None:
    pools = Pools()
    pools.port(1)
    pools.nat.pool[int(pools.nat.subscribers[1].external4)].ending = 1
    before = octets(pools)
    assert pools.take(1) == Verdict.NO_EXTERNAL_ADDRESS
    assert int(may_take(pools.nat, 1, 0, ns(0))) == -Verdict.NO_EXTERNAL_ADDRESS
    assert octets(pools) == before


def test_freeing_a_port_that_is_in_no_block_changes_nothing() -> None:
    pools = Pools(low=1000, high=1099, size=32)
    pools.port(1)
    before = octets(pools)
    for port in (999, 1096, 1100, 65535, 0):
        free(pools.nat, 1, 0, port, ns(0))
    assert octets(pools) == before


@given(st.sets(st.integers(1, 2**32 - 1), max_size=16), st.lists(st.integers(0, 2**32), max_size=40))
def test_pool_slot_finds_our_addresses_and_no_others(addresses: set[int], others: list[int]) -> None:
    pools = Pools(addresses=16)
    for slot in range(1, 17):
        clear_pool(pools.nat, slot)
    expected = dict(zip(sorted(addresses), range(1, 17), strict=False))
    for address, slot in expected.items():
        assert set_pool(pools.nat, slot, address, 1, *pools.slice) == 1
    for address in [*others, *expected, ADDRESS + 1]:
        assert pool_slot(pools.nat, address) == expected.get(address, 0)
    for address, slot in list(expected.items())[::2]:
        assert clear_pool(pools.nat, slot) == 1
        del expected[address]
    for address in addresses:
        assert pool_slot(pools.nat, address) == expected.get(address, 0)


def at_fill(percent: int, size: int) -> tuple[Pools, list[int]]:
    """A device with one block of which so many percent of each parity of the UDP ports are taken, and the free ones."""
    pools = Pools(size=size, high=1024 + size - 1, most=1)
    pools.port(1, ICMP_PORTS)  # so that the block stays
    taken = [pools.port(1, UDP_PORTS, parity) for parity in (0, 1) for _ in range(size // 2 * percent // 100)]
    return pools, sorted(set(range(1024, 1024 + size)) - {port for _, _, port in taken})


def chi_square_is_likely(counts: list[int]) -> bool:
    """Whether uniform counts would be this uneven more often than once in 1000 (Wilson and Hilferty's approximation)."""
    if len(counts) == 1:
        return True
    mean, freedom = sum(counts) / len(counts), len(counts) - 1
    value = sum((count - mean) ** 2 for count in counts) / mean
    spread = 2 / (9 * freedom)
    return ((value / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread) < 3.09


def octets(pools: Pools) -> bytes:
    return b"".join(table.tobytes() for table in pools.nat)


def lines(operation: Callable[[], Port | int | None]) -> int:
    """How many lines of kernels an operation runs through."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if "/egressvpn/" not in frame.f_code.co_filename:
            return None
        count += event == "line"
        return trace

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        operation()
    finally:
        sys.settrace(old)
    return count
