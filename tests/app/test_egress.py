"""Egress addresses: stable, spread evenly, never twice; IPv6 ones such that no transport checksum has to change."""

from collections import Counter
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from egressvpn.app.egress import external4, external6, pool_addresses

POOL = IPv6Network("2001:db8:113::/64")
addresses6 = st.integers(1, (1 << 128) - 1).map(IPv6Address)
prefixes = st.integers(0, 96).flatmap(
    lambda n: st.integers(0, (1 << n) - 1).map(lambda bits: IPv6Network((bits << (128 - n) if n else 0, n)))
)


def test_rfc6888_req3_a_pool_need_not_be_contiguous() -> None:
    networks = [IPv4Network("198.51.100.7/32"), POOL, IPv4Network("203.0.113.0/30")]
    assert [str(address) for address in pool_addresses(networks)] == [
        "198.51.100.7",
        "203.0.113.0",
        "203.0.113.1",
        "203.0.113.2",
        "203.0.113.3",
    ]


def test_devices_are_spread_over_the_addresses_and_stay_where_they_are() -> None:
    addresses = [IPv4Address(f"203.0.113.{n}") for n in range(8)]
    positions = [external4(str(device), addresses) for device in range(4000)]
    assert positions == [external4(str(device), addresses) for device in range(4000)]
    assert min(Counter(positions).values()) > 400
    assert external4("1", []) is None


@given(addresses6, prefixes, st.text(max_size=8))
def test_rfc6296_the_address_has_the_sum_of_the_internal_one(internal: IPv6Address, network: IPv6Network, identity: str) -> None:
    external = external6(identity, [network], set(), internal)
    assert external is not None
    assert external in network
    assert external != network.network_address
    assert folded(external) == folded(internal)


def test_rfc6296_a_translated_packet_keeps_its_checksum() -> None:
    internal = IPv6Address("fd64::1234:2")
    external = external6("7", [POOL], set(), internal)
    sums = []
    for source in (internal, external):
        packet = IPv6(src=str(source), dst="2001:db8:51::2") / UDP(sport=4000, dport=53) / Raw(b"query")
        sums.append(IPv6(bytes(packet))[UDP].chksum)
    assert sums[0] == sums[1]


def test_addresses_are_stable_and_differ_from_those_that_are_taken() -> None:
    taken: set[IPv6Address] = set()
    for device in range(300):
        internal = IPv6Address("fd64::") + device % 3
        external = external6(str(device), [IPv6Network("2001:db8::/96")], taken, internal)
        assert external == external6(str(device), [IPv6Network("2001:db8::/96")], taken, internal)
        assert external is not None
        assert external not in taken
        taken.add(external)


@pytest.mark.parametrize("length", [97, 112, 120, 126])
def test_a_prefix_without_room_for_it_is_used_all_the_same(length: int) -> None:
    network = IPv6Network(("2001:db8::", length))
    external = external6("1", [network], set(), IPv6Address("fd64::2"))
    assert external is not None
    assert external in network


def test_a_device_without_an_inner_address_has_an_external_one() -> None:
    assert external6("1", [IPv4Network("203.0.113.0/24"), POOL], set(), None) in POOL


def test_a_full_or_missing_prefix_gives_none() -> None:
    network = IPv6Network("2001:db8::/126")
    taken: set[IPv6Address] = set()
    for device in range(3):
        address = external6(str(device), [network], taken)
        assert address is not None
        taken.add(address)
    assert external6("9", [network], taken) is None
    assert external6("9", [IPv4Network("203.0.113.0/24")], set()) is None


def folded(address: IPv6Address) -> int:
    """Ones' complement sum of the 16-bit words, 0xFFFF counting as 0."""
    total = sum(int.from_bytes(address.packed[at : at + 2], "big") for at in range(0, 16, 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total % 0xFFFF
