"""S15: packets that lie about themselves, from either side: dropped, with a name, and nothing has changed. No exception ever escapes.

FreeBSD's nat44.py (unknown protocols), VPP's icmp_echo_reply_trailer (octets behind the packet), lengths, options, checksums.
"""

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from egressvpn.nat.translate import inbound, open_outbound, outbound
from egressvpn.packet import headers
from egressvpn.packet.headers import parse
from egressvpn.verdict import Verdict
from tests.nat.support import Gateway, ns
from tests.packet.support import START, address, networks, place, raw, record, transports
from tests.security.mutants import interpreted_only, mutate

INSIDE = {4: "100.64.0.5", 6: "fd64::5"}
REMOTE = {4: "198.51.100.7", 6: "2001:db8:51::7"}
REFUSED = {Verdict.PORTS_EXHAUSTED, Verdict.QUOTA_EXCEEDED}  # is counted
Way = Callable[[Gateway, bytes, int], Verdict]


def leave(gateway: Gateway, octets: bytes, available: int) -> Verdict:
    """A packet of device 1 of which `available` octets are there."""
    buffer, row = place(octets), record()
    verdict = Verdict(parse(buffer, START, available, row))
    if verdict == Verdict.PASS:
        verdict = Verdict(outbound(gateway.nat, 1, row, buffer, ns(0)))
        if verdict == Verdict.NO_MAPPING and row.icmp_error == 0:
            verdict = Verdict(open_outbound(gateway.nat, 1, row, ns(0)))
    return verdict


def enter(gateway: Gateway, octets: bytes, available: int) -> Verdict:
    """A packet from outside."""
    buffer, row = place(octets), record()
    verdict = Verdict(parse(buffer, START, available, row))
    return Verdict(inbound(gateway.nat, row, buffer, ns(0))) if verdict == Verdict.PASS else verdict


@given(st.sampled_from([4, 6]), st.sampled_from([leave, enter]), st.data())
@settings(max_examples=150)
def test_s15_what_is_cut_short_is_malformed_and_changes_nothing(version: int, way: Way, data: Any) -> None:
    gateway = Gateway()
    packet = raw(data.draw(networks(version, INSIDE[version], REMOTE[version])) / data.draw(transports(version)))
    before = gateway.octets()
    for available in {data.draw(st.integers(0, len(packet) - 1)), len(packet) - 1}:
        assert way(gateway, packet, available) == Verdict.MALFORMED_PACKET
        assert gateway.octets() == before


@given(st.sampled_from([4, 6]), st.sampled_from([leave, enter]), st.data())
@settings(max_examples=300)
def test_s15_whatever_the_octets_no_exception_and_no_change_when_dropped(version: int, way: Way, data: Any) -> None:
    """A valid packet with some octets of its headers changed."""
    gateway = Gateway()
    _, row, _ = gateway.send(1, data.draw(networks(version, INSIDE[version], REMOTE[version])) / data.draw(transports(version)))
    external = address(version, row.source_hi, row.source_lo)
    ends = (INSIDE[version], REMOTE[version]) if way is leave else (REMOTE[version], external)
    packet = bytearray(raw(data.draw(networks(version, *ends)) / data.draw(transports(version))))
    for _ in range(data.draw(st.integers(1, 6))):
        packet[data.draw(st.integers(0, min(len(packet), 80) - 1))] = data.draw(st.integers(0, 255))
    before, flows = gateway.octets(), gateway.live()
    verdict = way(gateway, bytes(packet), len(packet))
    assert verdict == Verdict.PASS or gateway.live() == flows
    assert verdict in {Verdict.PASS, *REFUSED} or gateway.octets() == before


@given(st.sampled_from([leave, enter]), st.binary(max_size=120))
@settings(max_examples=300)
def test_s15_noise_is_dropped(way: Way, noise: bytes) -> None:
    gateway = Gateway()
    before = gateway.octets()
    way(gateway, noise, len(noise))
    octets = bytes([0x45]) + noise
    if way(gateway, octets, len(octets)) != Verdict.PASS:
        assert gateway.octets() == before


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [0, 2, 4, 33, 41, 46, 47, 50, 51, 88, 89, 103, 112, 132, 136, 255])
def test_s15_protocols_without_a_translation_make_no_mapping(version: int, protocol: int) -> None:
    gateway = Gateway()
    head = {4: bytes([0x45, 0, 0, 40]) + bytes(4) + bytes([64, protocol, 0, 0]), 6: bytes([0x60, 0, 0, 0, 0, 20, protocol, 64])}[version]
    packet = head + ip_address(INSIDE[version]).packed + ip_address(REMOTE[version]).packed + bytes(20)
    before = gateway.octets()
    for way in (leave, enter):
        assert way(gateway, packet, len(packet)) in {Verdict.UNSUPPORTED_PROTOCOL, Verdict.MALFORMED_PACKET, Verdict.NO_MAPPING}
        assert gateway.octets() == before


@interpreted_only
def test_s15_a_lie_about_the_length_goes_through_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser that believes the packet's own length."""
    gateway = Gateway()
    honest = parse

    def trusting(buffer: Any, start: int, available: int, packet: Any) -> int:
        return int(honest(np.concatenate([buffer, np.zeros(200, np.uint8)]), start, available + 100, packet))

    packet = bytes(IP(src=INSIDE[4], dst=REMOTE[4]) / UDP(sport=1, dport=2) / Raw(bytes(40)))
    assert leave(gateway, packet, len(packet) - 20) == Verdict.MALFORMED_PACKET
    mutate(monkeypatch, headers.parse, trusting)
    assert leave(gateway, packet, len(packet) - 20) == Verdict.PASS
