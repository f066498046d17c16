"""Which of two lists an address is on, by the longer prefix: against a scan of all of them. And addresses that are nobody's."""

from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP

from egressvpn.addresses import words
from egressvpn.policy.deny import exempt
from egressvpn.policy.martians import from_nowhere, to_itself
from egressvpn.prefix_tables import tables
from egressvpn.prefixes import insert
from tests.packet.support import parsed
from tests.policy.test_deny import NEVER, PUBLIC

networks4 = st.tuples(st.integers(0, 15), st.integers(0, 32)).map(
    lambda pair: IPv4Network(((10 << 24) + (pair[0] << 20), pair[1]), strict=False)
)
networks6 = st.tuples(st.integers(0, 15), st.integers(0, 128)).map(
    lambda pair: IPv6Network(((0x20010DB8 << 96) + (pair[0] << 80), pair[1]), strict=False)
)


def table_of(networks: list[Any]) -> Any:
    (kind, count) = tables(64)["prefixes"]
    table = np.zeros(count, kind).view(np.recarray)
    for network in networks:
        assert insert(table, network.version, *words(network.network_address), network.prefixlen, network.prefixlen + 1)
    return table


@pytest.mark.parametrize(("networks", "base"), [(networks4, 10 << 24), (networks6, 0x20010DB8 << 96)], ids=["IPv4", "IPv6"])
def test_the_longer_prefix_decides_and_of_two_equal_ones_the_denied(networks: Any, base: int) -> None:
    @given(st.lists(networks, max_size=8), st.lists(networks, max_size=8), st.integers(0, 15))
    def holds(exempted: list[Any], denied: list[Any], host: int) -> None:
        address = ip_address(base + (host << (20 if base < 1 << 32 else 80)) + 1)
        longest = [max((n.prefixlen for n in some if address in n), default=-1) for some in (exempted, denied)]
        assert bool(exempt(table_of(exempted), table_of(denied), address.version, *words(address))) == (longest[0] > longest[1])

    holds()


@pytest.mark.parametrize("address", NEVER)
def test_what_is_nobodys_is_never_exempt_and_nobody_sends_from_there(address: str) -> None:
    everything = table_of([IPv4Network("0.0.0.0/0"), IPv6Network("::/0")])
    where = ip_address(address)
    assert not exempt(everything, table_of([]), where.version, *words(where))
    assert from_nowhere(where.version, *words(where))


@pytest.mark.parametrize("address", PUBLIC)
def test_everybody_else_is_somebody(address: str) -> None:
    assert not from_nowhere(ip_address(address).version, *words(ip_address(address)))


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (IP(src="192.0.2.1", dst="192.0.2.1") / TCP(sport=7, dport=7), True),
        (IP(src="192.0.2.1", dst="192.0.2.1") / UDP(sport=7, dport=7), True),
        (IP(src="192.0.2.1", dst="192.0.2.1") / UDP(sport=7, dport=8), False),
        (IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=7, dport=7), False),
        (IP(src="192.0.2.1", dst="192.0.2.1") / ICMP(id=7), False),
    ],
)
def test_a_packet_to_its_own_endpoint_is_known(packet: Any, expected: bool) -> None:
    assert bool(to_itself(parsed(bytes(packet))[1])) == expected
