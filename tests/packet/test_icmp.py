"""ICMP errors made here, read back by scapy."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_Redirect, ICMPv6PacketTooBig, ICMPv6TimeExceeded, IPv6
from scapy.packet import Raw

from egressvpn.packet.icmp import build_error
from tests.packet.support import as_words, packets, parsed, raw

GATEWAY4, GATEWAY6 = "100.64.0.1", "fd64::1"


@given(packets())
@settings(max_examples=60)
def test_an_error_quotes_the_packet_and_is_what_scapy_would_build(packet: Any) -> None:
    octets = raw(packet)
    if IP in packet:
        header = IP(src=GATEWAY4, dst=packet[IP].src, tos=0xC0, id=0, flags="DF", ttl=64)
        expected = header / ICMP(type=3, code=4, nexthopmtu=1400) / Raw(octets[:548])
        assert build(packet, 3, 4, 1400) == raw(expected)
    else:
        header = IPv6(src=GATEWAY6, dst=packet[IPv6].src, hlim=64)
        assert build(packet, 2, 0, 1400) == raw(header / ICMPv6PacketTooBig(mtu=1400) / Raw(octets[:1232]))


def test_a_long_packet_is_quoted_up_to_the_largest_error() -> None:
    reply = build(IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=1, dport=2) / Raw(bytes(range(256)) * 6), 11, 0, 0)
    assert len(reply) == 576
    assert IP(reply).len == 576
    packet6 = IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(sport=1, dport=2) / Raw(bytes(range(256)) * 6)
    reply = build(packet6, 3, 0, 0)
    assert len(reply) == 1280
    error = IPv6(reply)
    del error[ICMPv6TimeExceeded].cksum
    assert raw(error) == reply


@pytest.mark.parametrize(
    "packet",
    [
        IP(src="192.0.2.1", dst="192.0.2.2") / ICMP(type=3) / IP(src="192.0.2.2", dst="192.0.2.1") / UDP(),
        IP(src="192.0.2.1", dst="192.0.2.2", proto=17, frag=5) / Raw(bytes(32)),
        IP(src="0.0.0.0", dst="192.0.2.2") / UDP(),
        IP(src="127.0.0.1", dst="192.0.2.2") / UDP(),
        IP(src="224.0.0.1", dst="192.0.2.2") / UDP(),
        IP(src="255.255.255.255", dst="192.0.2.2") / UDP(),
        IP(src="192.0.2.1", dst="239.1.2.3") / UDP(),
        IP(src="192.0.2.1", dst="255.255.255.255") / UDP(),
        IPv6(src="2001:db8::1", dst="2001:db8::2") / ICMPv6TimeExceeded() / IPv6() / UDP(),
        IPv6(src="2001:db8::1", dst="2001:db8::2") / ICMPv6ND_Redirect(),
        IPv6(src="::", dst="2001:db8::2") / UDP(),
        IPv6(src="::1", dst="2001:db8::2") / UDP(),
        IPv6(src="ff02::1", dst="2001:db8::2") / UDP(),
        IPv6(src="2001:db8::1", dst="ff02::1") / UDP(),
    ],
    ids=lambda packet: packet.summary(),
)
def test_no_error_is_made_about_what_must_not_be_answered(packet: Any) -> None:
    assert build(packet, 3 if IPv6 in packet else 11, 0, 0) == b""


def test_a_multicast_listener_hears_of_its_mtu_in_ipv6() -> None:
    assert build(IPv6(src="2001:db8::1", dst="ff0e::1") / UDP(), 2, 0, 1280) != b""


def test_a_first_fragment_is_answered() -> None:
    assert build(IP(src="192.0.2.1", dst="192.0.2.2", flags="MF") / TCP() / Raw(bytes(64)), 11, 0, 0) != b""


def build(packet: Any, icmp_type: int, code: int, info: int) -> bytes:
    buffer, row = parsed(raw(packet))
    out = np.full(1400, 0xEE, np.uint8)
    source = as_words(GATEWAY4 if IP in packet else GATEWAY6)
    length = build_error(out, 9, buffer, row, icmp_type, code, info, *source)
    assert (out[:9] == 0xEE).all()
    assert (out[9 + length :] == 0xEE).all()
    return out[9 : 9 + length].tobytes()
