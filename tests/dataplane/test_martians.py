"""What says it comes from where no packet can come from is dropped by name, and changes nothing (RFC 1812 5.3.7)."""

from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, IPerror, UDPerror
from scapy.layers.inet6 import UDP, ICMPv6DestUnreach, IPerror6, IPv6

from egressvpn.nat.tables import ENDPOINT_INDEPENDENT
from tests.dataplane.gateway import EXTERNAL6, ONE, ONE6, POOL, REMOTE, REMOTE6, TWO, Gateway, udp

NOBODY4 = ("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.255", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255")
NOBODY6 = ("::", "::1", "::7f00:1", "::ffff:198.51.100.2", "fe80::1", "fec0::1", "ff02::1", "ff0e::1")


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway(filtering=ENDPOINT_INDEPENDENT)
    yield made
    made.close()


@pytest.mark.parametrize("source", NOBODY4)
def test_from_outside_nothing_comes_from_nobody(gateway: Gateway, source: str) -> None:
    port = gateway.external(1, udp(ONE, REMOTE))
    flows = int(gateway.b.nat.settings[0].flows)
    error = IP(src=source, dst=POOL) / ICMP(type=3, code=1) / IPerror(src=POOL, dst=REMOTE) / UDPerror(sport=port, dport=53)
    assert gateway.arrive(IP(src=source, dst=POOL) / UDP(sport=53, dport=port), error) == []
    assert gateway.drops() == {"martian": 2}
    assert int(gateway.b.nat.settings[0].flows) == flows
    assert gateway.rig.written() == []  # nobody is told


@pytest.mark.parametrize("source", NOBODY6)
def test_the_same_in_ipv6(gateway: Gateway, source: str) -> None:
    gateway.send(1, udp(ONE6, REMOTE6, sport=5000))
    quote = IPerror6(src=EXTERNAL6[1], dst=REMOTE6) / UDPerror(sport=5000, dport=53)
    error = IPv6(src=source, dst=EXTERNAL6[1]) / ICMPv6DestUnreach(code=3) / quote
    assert gateway.arrive(IPv6(src=source, dst=EXTERNAL6[1]) / UDP(sport=53, dport=5000), error) == []
    assert gateway.drops() == {"martian": 2}


@pytest.mark.parametrize("source", NOBODY4)
def test_a_device_that_may_send_from_anywhere_may_not_send_from_nobody(gateway: Gateway, source: str) -> None:
    gateway.rig.add_prefixes(1, "0.0.0.0/0")
    assert gateway.send(1, udp(source, REMOTE)) == []
    assert gateway.drops() == {"martian": 1}
    assert int(gateway.b.nat.settings[0].flows) == 0


def test_a_packet_to_itself_is_a_martian(gateway: Gateway) -> None:
    assert gateway.send(1, udp(ONE, ONE, sport=7, dport=7), IP(src=ONE, dst=ONE) / TCP(sport=7, dport=7, flags="S")) == []
    assert gateway.drops() == {"martian": 2}


def test_land_from_outside_is_a_martian(gateway: Gateway) -> None:
    port = gateway.external(1, IP(src=ONE, dst=REMOTE) / TCP(sport=80, dport=9, flags="S"))
    assert gateway.arrive(IP(src=POOL, dst=POOL) / TCP(sport=port, dport=port, flags="S")) == []
    assert gateway.drops() == {"martian": 1}


def test_nobody_outside_speaks_from_an_endpoint_of_ours(gateway: Gateway) -> None:
    mine, theirs = gateway.external(1, udp(ONE, REMOTE)), gateway.external(2, udp(TWO, REMOTE))
    gateway.send(1, udp(ONE, POOL, dport=theirs))  # there is a flow between the two
    gateway.delivered()
    assert gateway.arrive(IP(src=POOL, dst=POOL) / UDP(sport=mine, dport=theirs) / b"forged") == []
    assert gateway.arrive(IPv6(src=EXTERNAL6[1], dst=EXTERNAL6[2]) / UDP(sport=1, dport=2)) == []
    assert gateway.drops() == {"martian": 2}


def test_another_gateway_with_our_address_and_other_ports_does_speak(gateway: Gateway) -> None:
    port = gateway.external(1, udp(ONE, REMOTE))
    came = gateway.arrive(IP(src=POOL, dst=POOL) / UDP(sport=900, dport=port) / b"from its slice")
    assert [(number, packet.src, packet.load) for number, packet in came] == [(1, POOL, b"from its slice")]


def test_a_packet_from_an_external_address_of_ours_is_source_spoofing_in_the_tunnel(gateway: Gateway) -> None:
    assert gateway.send(1, udp(POOL, REMOTE), udp("203.0.113.9", REMOTE), udp(TWO, REMOTE)) == []
    assert gateway.drops() == {"source_mismatch": 3}
