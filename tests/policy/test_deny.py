"""Destinations that no packet from a tunnel may have."""

import ipaddress

import numpy as np
import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from egressvpn.addresses import words
from egressvpn.policy.deny import denied
from egressvpn.prefix_tables import tables
from egressvpn.prefixes import insert
from egressvpn.verdict import Verdict
from tests.packet.support import parsed, raw

DEFAULT = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "fc00::/7"]

NEVER = [
    "0.0.0.0",
    "0.1.2.3",
    "127.0.0.1",
    "127.255.255.255",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::192.0.2.1",
    "::ffff:192.0.2.1",
    "::ffff:8.8.8.8",
    "fe80::1",
    "febf::1",
    "fec0::1",
    "feff::1",
    "ff02::1",
    "ff0e::1234",
    "ffff::",
]
PUBLIC = [
    "1.0.0.0",
    "8.8.8.8",
    "126.255.255.255",
    "128.0.0.0",
    "223.255.255.255",
    "100.63.255.255",
    "100.128.0.0",
    "172.32.0.1",
    "192.0.2.1",
    "2001:db8::1",
    "2606:4700::1111",
    "::1:0:0:1",
    "0:0:1::1",
    "fbff::1",
    "fe7f::1",
    "64:ff9b::808:808",
]
PRIVATE = [
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "100.127.255.255",
    "169.254.169.254",
    "fc00::1",
    "fd64::1",
    "fdff::",
]


@pytest.mark.parametrize("destination", NEVER)
def test_what_is_no_destination_on_the_internet_is_denied_without_any_list(destination: str) -> None:
    assert verdict([], destination) == Verdict.POLICY_DENIED


@pytest.mark.parametrize("destination", PUBLIC)
def test_the_internet_is_not_denied_by_the_default_list(destination: str) -> None:
    assert verdict(DEFAULT, destination) == Verdict.PASS


@pytest.mark.parametrize("destination", PRIVATE)
def test_the_default_list_denies_what_is_private_and_the_metadata_address(destination: str) -> None:
    assert verdict(DEFAULT, destination) == Verdict.POLICY_DENIED
    assert verdict([], destination) == Verdict.PASS


def verdict(prefixes: list[str], destination: str) -> Verdict:
    ((kind, count),) = tables(64).values()
    table = np.zeros(count, kind).view(np.recarray)
    for text in prefixes:
        prefix = ipaddress.ip_network(text)
        assert insert(table, prefix.version, *map(np.int64, words(prefix.network_address)), prefix.prefixlen, 1) == 1
    source = IPv6(src="fd64::5", dst=destination) if ":" in destination else IP(src="100.64.0.5", dst=destination)
    _, row = parsed(raw(source / UDP(sport=1, dport=2)))
    return Verdict(denied(table, row))
