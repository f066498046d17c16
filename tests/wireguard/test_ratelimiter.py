"""The rate limiter: the table of the kernel's self-test (selftest/ratelimiter.c), its bounds, and a dumb twin."""

import ipaddress
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egressvpn.addresses import pack_sockaddr
from egressvpn.wireguard import ratelimiter
from egressvpn.wireguard.blake2s import Scratch, scratch
from egressvpn.wireguard.constants import MILLISECOND, SECOND
from egressvpn.wireguard.cookie import set_secret
from egressvpn.wireguard.tables import LIMITER_HEADS, LIMITER_SOURCES, WireGuardTables, tables
from tests.wireguard.doorstep import octets, small_tables

START = 1000 * SECOND

# (milliseconds since the row before, allowed?), for every address family alike
KERNEL_TABLE = [(0, True)] * 5 + [(0, False), (50, True), (0, False), (100, True), (0, True), (0, False)]


@pytest.mark.parametrize(
    ("address", "same", "other"),
    [("1.2.3.4", "1.2.3.4", "1.2.3.5"), ("2001:db8::1234", "2001:db8::ffff:5678", "2001:db8:0:1::1234")],
    ids=["IPv4 address", "IPv6 /64"],
)
def test_the_kernels_table(address: str, same: str, other: str) -> None:
    door, now = Door(), START
    for number, (after, allowed) in enumerate(KERNEL_TABLE):
        now += after * MILLISECOND
        assert door.allow(address if number % 2 else same, now) == allowed, f"row {number}"
        assert door.allow(other, START + number * SECOND)  # never bothered by its neighbour


def test_a_full_table_refuses_new_sources_and_serves_the_known_ones() -> None:
    door = Door(max_sources=100)
    sources = [f"10.{number >> 8}.{number & 0xFF}.1" for number in range(101)]

    assert [door.allow(source, START) for source in sources] == [True] * 100 + [False]
    assert door.allow(sources[0], START)
    assert door.used() == 100


def test_the_table_holds_eight_sources_per_chain_as_the_kernels() -> None:
    counts = {name: count for name, (_, count) in tables(1).items()}
    assert (counts["limiter_heads"], counts["limiter"]) == (LIMITER_HEADS, LIMITER_SOURCES + 1)
    assert LIMITER_SOURCES == 8 * LIMITER_HEADS


def test_sources_silent_for_a_second_are_forgotten_and_their_rows_used_again() -> None:
    door = Door(max_sources=100)
    for number in range(100):
        assert door.allow(f"10.0.0.{number}", START + (SECOND if number < 10 else 0))
    assert not door.allow("192.0.2.1", START + SECOND)

    door.collect_all(START + SECOND + 1)

    assert door.used() == 10
    assert sum(door.allow(f"10.0.1.{number}", START + SECOND + 1) for number in range(100)) == 90


def test_a_collection_looks_at_a_tenth_of_the_rows() -> None:
    door = Door(max_sources=100)
    for number in range(100):
        door.allow(f"10.0.0.{number}", START)

    ratelimiter.collect(door.wg, START + 2 * SECOND)

    assert door.used() == 90


def test_a_source_that_is_forgotten_had_a_full_bucket() -> None:
    door = Door()
    for _ in range(9):
        door.allow("192.0.2.1", START)

    door.collect_all(START + SECOND)  # not yet
    assert door.used() == 1
    assert [door.allow("192.0.2.1", START + SECOND) for _ in range(6)] == [True] * 5 + [False]


def test_a_network_has_two_at_once_and_one_a_second_without_a_cookie() -> None:
    door = Door()
    assert [door.share("192.0.2.1", START) for _ in range(3)] == [True, True, False]
    assert not door.share("192.0.200.9", START + SECOND - 1)  # the same /16
    assert door.share("192.0.200.9", START + SECOND)
    assert [door.share("192.0.2.1", START + 60 * SECOND) for _ in range(3)] == [True, True, False]


def test_the_networks_of_a_share_are_ipv4_16_and_ipv6_32() -> None:
    door = Door()
    for same in ("2001:db8::1", "2001:db8:ffff::1"):
        assert door.share(same, START)
    assert not door.share("2001:db8:1::1", START)
    others = [f"{number}.7.0.1" for number in range(1, 101)] + [f"2001:{number:x}::1" for number in range(100)]
    assert sum(door.share(other, START) for other in others) > 195  # but for those whose hashes meet


def test_reset_leaves_an_empty_table_whatever_was_half_done() -> None:
    door = Door(max_sources=20)
    for number in range(20):
        door.allow(f"10.0.0.{number}", START)
    door.wg.limiter["after"] = 7  # chains that never end

    ratelimiter.reset(door.wg)

    assert door.used() == 0
    assert [door.allow(f"10.0.1.{number}", START) for number in range(21)] == [True] * 20 + [False]


def test_addresses_alone_do_not_tell_the_chain() -> None:
    """The same thousand addresses are spread otherwise under another secret."""
    first, second = Door(max_sources=200, secret=bytes(32)), Door(max_sources=200, secret=bytes([1]) * 32)
    for number in range(200):
        for door in (first, second):
            door.allow(f"10.0.0.{number}", START)

    assert np.count_nonzero(first.wg.limiter["chain"] == second.wg.limiter["chain"]) < 10
    assert len(set(first.wg.limiter["chain"].tolist())) > 190


ADDRESSES = ["192.0.2.1", "192.0.2.2", "0:0:c000:201::1", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "0.0.0.0", "::1"]


@pytest.mark.parametrize("chains", [1, 2, LIMITER_HEADS])
@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(ADDRESSES), st.integers(0, 400), st.booleans()), max_size=60), st.integers(1, 6))
def test_it_does_what_a_list_of_buckets_does(chains: int, steps: list[tuple[str, int, bool]], size: int) -> None:
    door, twin, now = Door(max_sources=size, chains=chains), Twin(size), START
    for address, wait, collect in steps:
        now += wait * MILLISECOND
        if collect:
            door.collect_all(now)
            twin.collect(now)
        assert door.allow(address, now) == twin.allow(address, now)
        assert door.used() == len(twin.buckets)


class Door:
    """The kernels as methods."""

    def __init__(self, max_sources: int = 64, secret: bytes = bytes(32), chains: int = LIMITER_HEADS) -> None:
        self.wg: WireGuardTables = small_tables(max_sources, chains)
        self.scratch: Scratch = scratch()
        set_secret(self.wg, self.scratch, octets(secret))

    def allow(self, address: str, now: int) -> bool:
        ip = ipaddress.ip_address(address)
        source = int(ip) if ip.version == 4 else int.from_bytes(ip.packed[:8], "big", signed=True)
        return bool(ratelimiter.allow(self.wg, self.scratch, ip.version, source, now))

    def share(self, address: str, now: int) -> bool:
        remote = pack_sockaddr(address, 51820)
        return bool(ratelimiter.share(self.wg, self.scratch, octets(remote), 0, now))

    def collect_all(self, now: int) -> None:
        for _ in range(ratelimiter.COLLECTIONS_PER_SECOND):
            ratelimiter.collect(self.wg, now)

    def used(self) -> int:
        used = int(self.wg.limiter_state[0].used)
        assert sorted(self._linked()) == [slot for slot in range(1, self.wg.limiter.size) if self.wg.limiter[slot].version] or not used
        return used

    def _linked(self) -> Iterator[int]:
        for head in self.wg.limiter_heads["first"][self.wg.limiter_heads["first"] != 0]:
            slot = int(head)
            while slot:
                yield slot
                slot = int(self.wg.limiter[slot].after)


class Twin:
    """A dictionary of buckets that hold nanoseconds."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.buckets: dict[str, tuple[int, int]] = {}  # source: (tokens, when)

    def allow(self, address: str, now: int) -> bool:
        source = address if ":" not in address else str(ipaddress.ip_network(address + "/64", strict=False))
        if source not in self.buckets and len(self.buckets) >= self.size:
            return False
        tokens, seen = self.buckets.get(source, (250 * MILLISECOND, now))
        tokens = min(250 * MILLISECOND, tokens + now - seen)
        allowed = tokens >= 50 * MILLISECOND
        self.buckets[source] = (tokens - 50 * MILLISECOND if allowed else tokens, now)
        return allowed

    def collect(self, now: int) -> None:
        self.buckets = {source: bucket for source, bucket in self.buckets.items() if now - bucket[1] <= SECOND}
