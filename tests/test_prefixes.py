"""The prefix table against the kernel's allowedips self-test, and against a linear scan."""

import ipaddress
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egressvpn import prefixes
from egressvpn.addresses import IPNetwork, from_words, words
from egressvpn.kernel import JIT
from tests.vectors import load

A, B, C = 1, 2, 3
TABLE = load("allowed_ips")
OWNERS = {letter: number for number, letter in enumerate("abcdefgh", 1)}
INSERTS = [(prefix, OWNERS[owner]) for prefix, owner in TABLE["inserts"]]
LOOKUPS = [(address, OWNERS[owner]) for address, owner in TABLE["lookups"]]

# The kernel's randomised test: routes of each version, mutations of each, and owners. Interpreted a tenth of it says as much.
ROUTES, MUTATIONS, RANDOM_OWNERS = (400 if JIT else 40), 100, 2000


def test_a_row_is_one_cache_line() -> None:
    assert prefixes.NODE.itemsize == 64


@pytest.mark.parametrize(("address", "owner"), LOOKUPS)
def test_kernel_lookups(address: str, owner: int) -> None:
    table = kernel_table()

    assert lookup(table, address) == owner


@pytest.mark.parametrize(("kept", "gone"), TABLE["removals"])
def test_removing_a_peer_leaves_nothing_of_it(kept: list[str], gone: list[str]) -> None:
    table = make(64)
    for prefix in kept:
        insert(table, prefix, A)
    assert [lookup(table, address) for address in gone] == [A] * len(gone)

    assert prefixes.remove_value(table, A) == len(kept)

    assert [lookup(table, address) for address in gone] == [0] * len(gone)
    assert used(table) == 0


def test_removing_a_peer_leaves_the_prefixes_around_its_own() -> None:
    table = kernel_table()
    before = {address: owner for address, owner in LOOKUPS if owner != A}

    prefixes.remove_value(table, A)

    assert {address: lookup(table, address) for address in before} == before
    after = {address: lookup(table, address) for address, owner in LOOKUPS if owner == A}
    wider = {"192.168.4.20": "c", "192.168.4.0": "c", "2404:6800:4004:800:dead:beef:dead:beef": "h", "10.0.0.52": "e", "10.1.0.2": "e"}
    assert after == {address: OWNERS[owner] for address, owner in wider.items()}


def test_the_table_holds_the_masked_prefixes_and_nothing_else() -> None:
    table = make(64)
    for prefix, _ in TABLE["iteration"]:
        assert insert(table, prefix, A) == 1

    rows = [row for row in table[1 : int(table[0].value) + 1] if row.value == A]

    assert sorted(map(written, rows)) == sorted(masked for _, masked in TABLE["iteration"])


def test_128_prefixes_one_bit_off_are_freed() -> None:
    table = make(256)
    for position in range(128):
        high, low = signed(~(1 << position) & (1 << 128) - 1)
        assert prefixes.insert(table, 6, high, low, 128, A) == 1

    assert prefixes.remove_value(table, A) == 128

    assert used(table) == 0
    assert table[0].child.tolist() == [0, 0]


def test_an_empty_table_matches_nothing() -> None:
    table = make(4)

    assert lookup(table, "1.2.3.4") == 0
    assert lookup(table, "::1") == 0


def test_versions_are_apart() -> None:
    table = make(4)
    insert(table, "0.0.0.0/0", A)

    assert lookup(table, "::") == 0
    assert lookup(table, "255.255.255.255") == A


def test_a_prefix_that_is_not_there_is_not_removed() -> None:
    table = kernel_table()

    assert remove(table, "10.0.0.0/24") == 0
    assert remove(table, "10.1.0.0/29") == 0  # a fork at best
    assert remove(table, "::/1") == 0
    assert all(lookup(table, address) == owner for address, owner in LOOKUPS)


def test_a_full_table_refuses_and_stays_whole() -> None:
    table = make(3)
    accepted = [prefix for prefix in ("10.0.0.0/8", "11.0.0.0/8", "12.0.0.0/8", "13.0.0.0/8", "14.0.0.0/8") if insert(table, prefix, A)]

    assert accepted[:3] == ["10.0.0.0/8", "11.0.0.0/8", "12.0.0.0/8"]
    assert insert(table, "15.0.0.0/8", A) == 0
    assert insert(table, "10.0.0.0/8", B) == 1  # what is there may still change hands
    assert lookup(table, "10.1.1.1") == B
    assert remove(table, "11.0.0.0/8") == 1
    assert insert(table, "16.0.0.0/8", C) == 1
    assert lookup(table, "16.0.0.1") == C


def test_rows_nothing_leads_to_are_collected() -> None:
    table = kernel_table()
    before = used(table)
    table[0].length += 2  # a writer killed between taking a row and linking it
    table[0].value += 2
    table[table[0].value].value = A

    assert prefixes.recover(table) == before
    assert all(lookup(table, address) == owner for address, owner in LOOKUPS)
    assert prefixes.remove_value(table, A) == 4


NETWORKS = st.one_of(
    st.builds(
        lambda bits, length: ipaddress.ip_network((bits, length), strict=False),
        st.integers(0, 2**32 - 1).map(lambda n: n & 0xC0C0C0C3),
        st.integers(0, 32),
    ),
    st.builds(
        lambda bits, length: ipaddress.ip_network((ipaddress.IPv6Address(bits), length), strict=False),
        st.integers(0, 2**128 - 1).map(lambda n: n & (3 << 126 | 1 << 65 | 1 << 64 | 1 << 63 | 3)),
        st.integers(0, 128),
    ),
)


@given(st.lists(st.tuples(st.sampled_from(("insert", "insert", "remove", "purge")), NETWORKS, st.integers(1, 5)), max_size=40))
@settings(deadline=None)
def test_same_answers_as_a_linear_scan(steps: list[tuple[str, IPNetwork, int]]) -> None:
    table, twin = make(64), LinearScan()
    for verb, network, value in steps:
        high, low = words(network.network_address)
        if verb == "insert":
            assert prefixes.insert(table, network.version, high, low, network.prefixlen, value) == 1
            twin.routes[network] = value
        elif verb == "remove":
            assert prefixes.remove(table, network.version, high, low, network.prefixlen) == twin.remove(network)
        else:
            assert prefixes.remove_value(table, value) == twin.purge(value)
    for _, network, _ in steps:
        for address in (network[0], network[-1]):
            assert lookup(table, str(address)) == twin.lookup(address)
    assert used(table) <= 2 * len(twin.routes)
    assert prefixes.recover(table) == used(table)


@pytest.mark.parametrize("version", [4, 6])
def test_random_routes_and_their_mutations_match_a_linear_list(version: int) -> None:
    bits = 32 if version == 4 else 128
    dice, table, twin = random.Random(version), make(ROUTES * (MUTATIONS + 1)), LinearList(bits)
    for _ in range(ROUTES):
        base, length = dice.getrandbits(bits), dice.randint(1, bits)
        twin.insert(table, base, length, dice.randrange(1, RANDOM_OWNERS + 1))
        for _ in range(MUTATIONS):
            kept = dice.randint(1, bits)  # leading bits
            mutated = base ^ dice.getrandbits(bits) & (1 << bits - kept) - 1
            twin.insert(table, mutated, dice.randint(kept, bits), dice.randrange(1, RANDOM_OWNERS + 1))

    stored = dice.sample(twin.routes, min(1000, len(twin.routes)))
    for address in [first for first, _ in stored] + [dice.getrandbits(bits) for _ in range(200)]:
        assert lookup_bits(table, version, address) == twin.lookup(address)

    for owner in dice.sample(range(1, RANDOM_OWNERS + 1), 20):
        assert prefixes.remove_value(table, owner) == twin.purge(owner)
    for address, _ in stored:
        assert lookup_bits(table, version, address) == twin.lookup(address)
    assert prefixes.recover(table) == used(table)


class LinearList:
    """A dumb twin fast enough for tens of thousands of routes: per prefix length, who owns which leading bits."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.owners: list[dict[int, int]] = [{} for _ in range(bits + 1)]

    @property
    def routes(self) -> list[tuple[int, int]]:
        """(first address, length) of every route."""
        return [(lead << self.bits - length, length) for length, owners in enumerate(self.owners) for lead in owners]

    def insert(self, table: Any, address: int, length: int, owner: int) -> None:
        """The same into both."""
        version = 4 if self.bits == 32 else 6
        high, low = (0, address) if version == 4 else signed(address)
        assert prefixes.insert(table, version, high, low, length, owner) == 1
        self.owners[length][address >> self.bits - length] = owner

    def lookup(self, address: int) -> int:
        for length in range(self.bits, -1, -1):
            owner = self.owners[length].get(address >> self.bits - length)
            if owner is not None:
                return owner
        return 0

    def purge(self, owner: int) -> int:
        before = len(self.routes)
        self.owners = [{lead: other for lead, other in owners.items() if other != owner} for owners in self.owners]
        return before - len(self.routes)


class LinearScan:
    """The dumb twin."""

    def __init__(self) -> None:
        self.routes: dict[IPNetwork, int] = {}

    def lookup(self, address: Any) -> int:
        found = [(network.prefixlen, value) for network, value in self.routes.items() if address in network]
        return max(found)[1] if found else 0

    def remove(self, network: IPNetwork) -> int:
        return 0 if self.routes.pop(network, None) is None else 1

    def purge(self, value: int) -> int:
        gone = [network for network, owner in self.routes.items() if owner == value]
        for network in gone:
            del self.routes[network]
        return len(gone)


def make(max_prefixes: int) -> Any:
    ((dtype, count),) = prefixes.tables(max_prefixes).values()
    return np.zeros(count, dtype).view(np.recarray)


def kernel_table() -> Any:
    table = make(64)
    for prefix, owner in INSERTS:
        assert insert(table, prefix, owner) == 1
    return table


def insert(table: Any, prefix: str, value: int) -> int:
    interface = ipaddress.ip_interface(prefix)  # keeps the host bits
    high, low = words(interface.ip)
    return int(prefixes.insert(table, interface.version, high, low, interface.network.prefixlen, value))


def remove(table: Any, prefix: str) -> int:
    network = ipaddress.ip_network(prefix)
    high, low = words(network.network_address)
    return int(prefixes.remove(table, network.version, high, low, network.prefixlen))


def lookup(table: Any, address: str) -> int:
    parsed = ipaddress.ip_address(address)
    high, low = words(parsed)
    return int(prefixes.lookup4(table, low) if parsed.version == 4 else prefixes.lookup6(table, high, low))


def lookup_bits(table: Any, version: int, address: int) -> int:
    if version == 4:
        return int(prefixes.lookup4(table, address))
    return int(prefixes.lookup6(table, *signed(address)))


def written(row: Any) -> str:
    """The prefix of a row of the table."""
    version, high, low, length = (4, 0, int(row.hi) >> 32 & 0xFFFFFFFF, row.length) if row.side == 0 else (6, row.hi, row.lo, row.length)
    return f"{from_words(version, int(high), int(low))}/{length}"


def signed(bits: int) -> tuple[int, int]:
    return words(ipaddress.IPv6Address(bits))


def used(table: Any) -> int:
    return int(table[0].length)
