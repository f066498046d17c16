"""The prefix table against the kernel's allowedips self-test, and against a linear scan."""

import ipaddress
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egressvpn import prefixes
from egressvpn.addresses import IPNetwork, words

A, B, C, D, E, F, G, H = range(1, 9)

INSERTS = [
    ("192.168.4.0/24", A),
    ("192.168.4.4/32", B),
    ("192.168.0.0/16", C),
    ("192.95.5.64/27", D),
    ("192.95.5.65/27", C),  # host bits are masked, so this replaces
    ("2607:5300:6000:6b00::c05f:543/128", D),
    ("2607:5300:6000:6b00::/64", C),
    ("0.0.0.0/0", E),
    ("::/0", E),
    ("::/0", F),
    ("2404:6800::/32", G),
    ("2404:6800:4004:800:dead:beef:dead:beef/64", H),
    ("2404:6800:4004:800:dead:beef:dead:beef/128", A),
    ("2444:6800:40e4:800:deae:beef:def:beef/128", C),
    ("2444:6800:f0e4:800:eeae:beef::/98", B),
    ("64.15.112.0/20", G),
    ("64.15.123.211/25", H),
    ("10.0.0.0/25", A),
    ("10.0.0.128/25", B),
    ("10.1.0.0/30", A),
    ("10.1.0.4/30", B),
    ("10.1.0.8/29", C),
    ("10.1.0.16/29", D),
]

LOOKUPS = [
    ("192.168.4.20", A),
    ("192.168.4.0", A),
    ("192.168.4.4", B),
    ("192.168.200.182", C),
    ("192.95.5.68", C),
    ("192.95.5.96", E),
    ("2607:5300:6000:6b00::c05f:543", D),
    ("2607:5300:6000:6b00::c02e:1ee", C),
    ("2607:5300:6000:6b01::", F),
    ("2404:6800:4004:806::1006", G),
    ("2404:6800:4004:806:0:1234:0:5678", G),
    ("2404:67ff:4004:806:0:1234:0:5678", F),
    ("2404:6801:4004:806:0:1234:0:5678", F),
    ("2404:6800:4004:800:0:1234:0:5678", H),
    ("2404:6800:4004:800::", H),
    ("2404:6800:4004:800:1010:1010:1010:1010", H),
    ("2404:6800:4004:800:dead:beef:dead:beef", A),
    ("64.15.116.26", G),
    ("64.15.127.3", G),
    ("64.15.123.1", G),
    ("64.15.123.128", H),
    ("64.15.123.129", H),
    ("10.0.0.52", A),
    ("10.0.0.220", B),
    ("10.1.0.2", A),
    ("10.1.0.6", B),
    ("10.1.0.10", C),
    ("10.1.0.20", D),
]


def test_a_row_is_one_cache_line() -> None:
    assert prefixes.NODE.itemsize == 64


@pytest.mark.parametrize(("address", "owner"), LOOKUPS)
def test_kernel_lookups(address: str, owner: int) -> None:
    table = kernel_table()

    assert lookup(table, address) == owner


def test_removing_a_peer_leaves_nothing_of_it() -> None:
    table = make(64)
    for prefix in ("1.0.0.0/32", "64.0.0.0/32", "128.0.0.0/32", "192.0.0.0/32", "255.0.0.0/32"):
        insert(table, prefix, A)
    assert lookup(table, "192.0.0.0") == A

    assert prefixes.remove_value(table, A) == 5

    assert [lookup(table, f"{first}.0.0.0") for first in (1, 64, 128, 192, 255)] == [0] * 5
    assert used(table) == 0


def test_nested_prefixes_of_one_peer_are_all_removed() -> None:
    table = make(64)
    insert(table, "192.168.0.0/16", A)
    insert(table, "192.168.0.0/24", A)

    prefixes.remove_value(table, A)

    assert lookup(table, "192.168.0.1") == 0


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


def test_thousands_of_random_routes_match_a_linear_scan() -> None:
    dice, table, twin = random.Random(7), make(4000), LinearScan()
    for _ in range(400):
        version = dice.choice((4, 6))
        bits = 32 if version == 4 else 128
        base = dice.getrandbits(bits)
        for _ in range(3):
            length = dice.randint(1, bits)
            mutated = base ^ (dice.getrandbits(bits) & (1 << bits - length // 2) - 1)
            address: Any = ipaddress.IPv4Address(mutated) if version == 4 else ipaddress.IPv6Address(mutated)
            network = ipaddress.ip_network((address, length), strict=False)
            value = dice.randint(1, 2000)
            assert insert(table, str(network), value) == 1
            twin.routes[network] = value
    for network in list(twin.routes):
        for address in (network[0], network[-1]):
            assert lookup(table, str(address)) == twin.lookup(address)


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


def signed(bits: int) -> tuple[int, int]:
    return words(ipaddress.IPv6Address(bits))


def used(table: Any) -> int:
    return int(table[0].length)
