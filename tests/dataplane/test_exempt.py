"""Exempt destinations are reached untranslated, and answer so (RFC 6888 REQ-6). Nobody else reaches a device by its inner address."""

import struct
from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, UDPerror
from scapy.layers.inet6 import IPv6

from egressvpn.dataplane.channel import Command
from egressvpn.dataplane.segment import read_tun
from egressvpn.dataplane.transmit import flush_run
from tests.dataplane.gateway import ONE, ONE6, POOL, REMOTE, REMOTE6, TWO, Gateway, address_words, udp
from tests.dataplane.rig import START

SERVICE, SERVICE6 = "10.20.0.5", "2001:db8:5::5"


def list_prefix(gateway: Gateway, kind: Command, address: str, length: int) -> None:
    high, low = address_words(address)
    gateway.rig.command(kind, version=6 if ":" in address else 4, high=high, low=low, prefix_length=length)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    """Private addresses are denied, some of them are exempt, and the gateway's own address among those is denied."""
    made = Gateway()
    list_prefix(made, Command.ADD_DENIED, "10.0.0.0", 8)
    list_prefix(made, Command.ADD_DENIED, "10.20.0.1", 32)
    list_prefix(made, Command.ADD_EXEMPT, "10.20.0.0", 16)
    list_prefix(made, Command.ADD_EXEMPT, "2001:db8:5::", 48)
    yield made
    made.close()


@pytest.mark.parametrize(("source", "destination"), [(ONE, SERVICE), (ONE6, SERVICE6)])
def test_rfc6888_req6_a_packet_leaves_as_it_is_but_for_one_hop(gateway: Gateway, source: str, destination: str) -> None:
    packet = udp(source, destination)
    (out,) = gateway.send(1, packet)
    if IP in out:
        assert (out.src, out.ttl, out.id) == (ONE, 63, packet.id)
    else:
        assert (out.src, out.hlim) == (ONE6, 63)
    assert (out.dst, out[UDP].sport, out.load) == (destination, 5000, b"question")
    assert int(gateway.b.nat.settings[0].flows) == 0


@pytest.mark.parametrize(("source", "destination"), [(SERVICE, ONE), (SERVICE6, ONE6), ("10.20.255.255", ONE)])
def test_its_answer_comes_back_by_allowed_ips(gateway: Gateway, source: str, destination: str) -> None:
    ((number, packet),) = gateway.arrive(udp(source, destination, sport=53, dport=5000, payload=b"answer"))
    assert (number, packet.src, packet.dst, packet[UDP].dport, packet.load) == (1, source, destination, 5000, b"answer")


def test_an_answer_in_a_super_packet_is_cut(gateway: Gateway) -> None:
    whole = IP(src=SERVICE, dst=TWO) / TCP(sport=80, dport=9, flags="A", seq=1) / bytes(3000)
    gateway.rig.tun.send(struct.pack("<BBHHHH", 1, 1, 40, 1000, 20, 16) + bytes(whole))
    assert read_tun(gateway.b, START) == 1
    flush_run(gateway.b)
    assert [(number, len(packet), packet.dst) for number, packet in gateway.delivered()] == [(2, 1040, TWO)] * 3


@pytest.mark.parametrize(("source", "destination"), [(REMOTE, ONE), (REMOTE6, ONE6), ("10.21.0.1", ONE), ("10.20.0.1", ONE)])
def test_anything_else_to_an_inner_address_is_dropped(gateway: Gateway, source: str, destination: str) -> None:
    assert gateway.arrive(udp(source, destination)) == []
    assert gateway.drops() == {"no_mapping": 1}


def test_an_exempt_host_reaches_nobody_by_an_address_nobody_has(gateway: Gateway) -> None:
    assert gateway.arrive(udp(SERVICE, "100.64.0.9")) == []
    assert gateway.drops() == {"no_mapping": 1}


def test_of_two_prefixes_the_longer_one_decides_and_of_equal_ones_the_denied(gateway: Gateway) -> None:
    list_prefix(gateway, Command.ADD_EXEMPT, "10.20.0.1", 32)
    assert gateway.send(1, udp(ONE, "10.20.0.1"), udp(ONE, "10.21.0.1")) == []
    assert gateway.drops() == {"policy_denied": 2}


def test_nothing_makes_loopback_and_multicast_exempt(gateway: Gateway) -> None:
    list_prefix(gateway, Command.ADD_EXEMPT, "0.0.0.0", 0)
    assert gateway.send(1, udp(ONE, "127.0.0.1"), udp(ONE, "224.0.0.1")) == []
    assert gateway.drops() == {"policy_denied": 2}


def test_all_protocols_pass_untranslated(gateway: Gateway) -> None:
    error = IP(src=ONE, dst=SERVICE) / ICMP(type=3, code=3) / IPerror(src=SERVICE, dst=ONE) / UDPerror(sport=53, dport=5000)
    out = gateway.send(1, IP(src=ONE, dst=SERVICE, proto=47) / bytes(20), error, IP(src=ONE, dst=SERVICE) / ICMP(id=9))
    assert [packet.src for packet in out] == [ONE] * 3
    assert [number for number, _ in gateway.arrive(IP(src=SERVICE, dst=ONE, proto=47) / bytes(20))] == [1]


def test_a_device_may_not_lie_about_its_source_there_either(gateway: Gateway) -> None:
    assert gateway.send(1, udp(TWO, SERVICE)) == []
    gateway.rig.add_prefixes(1, "127.0.0.0/8")
    assert gateway.send(1, udp("127.0.0.1", SERVICE)) == []
    assert gateway.drops() == {"source_mismatch": 1, "martian": 1}


def test_a_flow_that_an_exempt_host_began_to_an_external_endpoint_is_answered_from_there(gateway: Gateway) -> None:
    gateway.b.nat.settings[0].filtering = 0
    list_prefix(gateway, Command.ADD_EXEMPT, "192.0.2.0", 24)
    port = gateway.external(1, udp(ONE, REMOTE))
    gateway.arrive(udp("192.0.2.9", POOL, sport=99, dport=port))
    (out,) = gateway.send(1, udp(ONE, "192.0.2.9", dport=99))
    assert (out.src, out[UDP].sport) == (POOL, port)


def test_a_version_without_addresses_is_no_way_around(gateway: Gateway) -> None:
    assert gateway.send(1, IPv6(src=ONE6, dst="2001:db8:6::1") / UDP())[0].src != ONE6
