"""ICMP errors: what comes out is, octet for octet, the error as it would have been made without a NAT in between."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
)
from scapy.packet import Raw

from egressvpn.nat.tables import ENDPOINT_INDEPENDENT
from egressvpn.verdict import Verdict
from tests.nat.support import POOL4, Gateway, assert_consistent
from tests.packet.support import address, networks, raw, transport, transports

INSIDE, REMOTE, ROUTER = "100.64.0.5", "198.51.100.7", "192.0.2.99"
INSIDE6, REMOTE6, ROUTER6 = "fd64::5", "2001:db8:51::7", "2001:db8:99::1"

ERRORS4 = [ICMP(type=3, code=1), ICMP(type=3, code=4, nexthopmtu=1300), ICMP(type=11), ICMP(type=12, ptr=9)]
ERRORS6 = [ICMPv6DestUnreach(code=4), ICMPv6PacketTooBig(mtu=1300), ICMPv6TimeExceeded(), ICMPv6ParamProblem(code=1)]
ENDS = {4: (INSIDE, REMOTE, ROUTER), 6: (INSIDE6, REMOTE6, ROUTER6)}


def error(version: int, choice: int, source: str, destination: str, quote: bytes) -> Any:
    if version == 4:
        return IP(src=source, dst=destination) / ERRORS4[choice] / Raw(quote)
    return IPv6(src=source, dst=destination) / ERRORS6[choice] / Raw(quote)


def shortest(octets: bytes, packet: Any) -> int:
    """How much a quote must hold: the network header and eight octets."""
    return len(octets) - len(raw(transport(packet))) + 8


@given(st.sampled_from([4, 6]), st.integers(0, 3), st.data())
@settings(max_examples=100)
def test_an_error_from_any_router_reaches_the_sender_quoting_what_it_sent(version: int, choice: int, data: Any) -> None:
    inside, remote, router = ENDS[version]
    gateway = Gateway()
    packet = data.draw(networks(version, inside, remote)) / data.draw(transports(version, ("tcp", "udp", "request")))
    original = raw(packet)
    verdict, row, sent = gateway.send(1, packet)
    assert verdict == Verdict.PASS
    external = address(version, row.source_hi, row.source_lo)
    cut = data.draw(st.integers(shortest(original, packet), len(original)))
    if TCP in packet and cut == shortest(original, packet) + 9:
        cut += 1  # a checksum cut through its middle cannot be mended
    before = gateway.octets()

    verdict, row, octets = gateway.receive(error(version, choice, router, external, sent[:cut]), 30)
    assert verdict == Verdict.PASS
    assert octets == raw(error(version, choice, router, inside, original[:cut]))
    assert row.owner == 1
    assert gateway.octets() == before  # it made, prolonged and ended nothing


@given(st.sampled_from([4, 6]), st.integers(0, 3), st.data())
@settings(max_examples=100)
def test_an_error_from_inside_leaves_from_the_external_address_quoting_what_came(version: int, choice: int, data: Any) -> None:
    inside, remote, _ = ENDS[version]
    gateway = Gateway()
    packet = data.draw(networks(version, inside, remote)) / data.draw(transports(version, ("tcp", "udp", "request")))
    _, row, _ = gateway.send(1, packet)
    external, port, layer = address(version, row.source_hi, row.source_lo), int(row.source_port), transport(packet)
    kind = {TCP: "tcp", UDP: "udp"}.get(type(layer), "reply")
    reply = data.draw(networks(version, remote, external)) / data.draw(transports(version, (kind,)))
    inner = transport(reply)
    if kind == "reply":
        inner.id = port
    else:
        inner.sport, inner.dport = layer.dport, port
    if kind == "tcp":
        inner.seq, inner.ack = layer.ack, layer.seq + 1  # what the device expects
    original = raw(reply)
    verdict, _, received = gateway.receive(reply)
    assert verdict == Verdict.PASS
    cut = data.draw(st.integers(shortest(original, reply), len(original)))
    if kind == "tcp" and cut == shortest(original, reply) + 9:
        cut += 1
    before = gateway.octets()

    verdict, _, octets = gateway.send(1, error(version, choice, inside, remote, received[:cut]), 30)
    assert verdict == Verdict.PASS
    assert octets == raw(error(version, choice, external, remote, original[:cut]))
    assert gateway.octets() == before


@pytest.mark.parametrize("mtu", [0, 68, 296, 575])
def test_a_path_mtu_below_what_every_path_has_is_not_believed(mtu: int) -> None:
    gateway, sent, _ = one_flow()
    message = IP(src=ROUTER, dst=IP(sent).src) / ICMP(type=3, code=4, nexthopmtu=mtu) / Raw(sent)
    assert gateway.receive(message)[0] == Verdict.UNMATCHED_ICMP_ERROR
    message[ICMP].nexthopmtu = 576
    assert gateway.receive(message)[0] == Verdict.PASS


@pytest.mark.parametrize("mtu", [0, 1279])
def test_an_ipv6_path_mtu_below_1280_is_not_believed(mtu: int) -> None:
    gateway = Gateway()
    _, _, sent = gateway.send(1, IPv6(src=INSIDE6, dst=REMOTE6) / UDP(sport=4000, dport=80))
    message = IPv6(src=ROUTER6, dst=IPv6(sent).src) / ICMPv6PacketTooBig(mtu=mtu) / Raw(sent)
    assert gateway.receive(message)[0] == Verdict.UNMATCHED_ICMP_ERROR
    message[ICMPv6PacketTooBig].mtu = 1280
    assert gateway.receive(message)[0] == Verdict.PASS


@pytest.mark.parametrize("choice", range(4))
def test_an_error_about_a_segment_that_cannot_be_under_way_is_dropped(choice: int) -> None:
    """RFC 5927 4.1: the sequence number quoted was sent and is not acknowledged; who only guesses ports does not know it."""
    gateway = Gateway()
    client = IP(src=INSIDE, dst=REMOTE) / TCP(sport=4000, dport=80, flags="S", seq=0xFFFFFF00, window=5000)
    external, port = gateway.external(1, client)
    server = IP(src=REMOTE, dst=external) / TCP(sport=80, dport=port, flags="SA", seq=7000, ack=0xFFFFFF01, window=5000)
    assert gateway.receive(server)[0] == Verdict.PASS
    client[TCP].flags, client[TCP].seq, client[TCP].ack = "PA", 0xFFFFFF01, 7001
    _, _, sent = gateway.send(1, client / Raw(bytes(1000)))
    before = gateway.octets()
    for sequence, expected in ((0xFFFFFF00, False), (0xFFFFFF01, True), (100, True), (745, True), (746, False), (0x7FFFFFFF, False)):
        quoted = IP(sent)
        quoted[TCP].seq = sequence
        verdict = gateway.receive(error(4, choice, ROUTER, external, raw(quoted)[:48]))[0]
        assert verdict == (Verdict.PASS if expected else Verdict.UNMATCHED_ICMP_ERROR)
    assert gateway.octets() == before


def test_an_error_about_another_devices_packet_goes_through_both() -> None:
    """RFC 5508 REQ-7: hairpinned; the outer destination is the source of the quoted packet."""
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT)
    other = IP(src="100.64.0.9", dst=REMOTE) / UDP(sport=5000, dport=80)
    theirs = gateway.external(2, other)
    packet = IP(src=INSIDE, dst=theirs[0], id=7) / UDP(sport=4000, dport=theirs[1]) / Raw(b"question")
    original = raw(packet)
    verdict, row, sent = gateway.send(1, packet)
    assert verdict == Verdict.PASS
    ours = address(4, 0, row.source_lo)
    verdict, row, received = gateway.receive(sent)
    assert (verdict, row.owner) == (Verdict.PASS, 2)
    verdict, _, leaving = gateway.send(2, error(4, 0, "100.64.0.9", ours, received))
    assert verdict == Verdict.PASS
    assert leaving == raw(error(4, 0, theirs[0], ours, sent))
    verdict, row, arriving = gateway.receive(leaving)
    assert (verdict, row.owner) == (Verdict.PASS, 1)
    assert arriving == raw(error(4, 0, theirs[0], INSIDE, original))


def test_extensions_behind_the_quote_come_through_and_are_covered() -> None:
    """RFC 4884: the quote is padded to the length the message names, then comes an extension structure."""
    gateway, sent, original = one_flow()
    extension = bytes.fromhex("2000dead00080101000103fc")

    def message(destination: str, quote: bytes) -> Any:
        return IP(src=ROUTER, dst=destination) / ICMP(type=11, length=32) / Raw(quote.ljust(128, b"\0") + extension)

    verdict, _, octets = gateway.receive(message(IP(sent).src, sent))
    assert verdict == Verdict.PASS
    assert octets == raw(message(INSIDE, original))


def test_a_quote_may_not_reach_into_its_extensions() -> None:
    gateway, sent, _ = one_flow()
    message = IP(src=ROUTER, dst=IP(sent).src) / ICMP(type=11, length=6) / Raw(sent)
    assert gateway.receive(message)[0] == Verdict.UNMATCHED_ICMP_ERROR


@pytest.mark.parametrize("at", [20, 22, 24, 29, 40])
def test_an_error_with_a_wrong_checksum_is_dropped(at: int) -> None:
    gateway, sent, _ = one_flow()
    octets = bytearray(raw(error(4, 0, ROUTER, IP(sent).src, sent)))
    octets[at] ^= 0x04 if at != 20 else 0x08  # type 11 instead of 3
    assert gateway.receive(bytes(octets))[0] == Verdict.BAD_CHECKSUM


def test_a_quote_with_a_wrong_header_checksum_is_dropped() -> None:
    gateway, sent, _ = one_flow()
    quote = bytearray(sent)
    quote[8] ^= 1
    assert gateway.receive(error(4, 0, ROUTER, IP(sent).src, bytes(quote)))[0] == Verdict.BAD_CHECKSUM


@pytest.mark.parametrize(
    "change",
    [
        {"src": "203.0.113.1"},  # not what the error is addressed to
        {"dst": "198.51.100.8"},
        {"sport": 9},
        {"dport": 9},
        {"proto": 6},
        {"frag": 3},
    ],
    ids=str,
)
def test_an_error_about_no_flow_of_ours_is_dropped(change: dict[str, Any]) -> None:
    gateway, sent, _ = one_flow()
    quoted = IP(sent)
    for name, value in change.items():
        setattr(quoted[UDP] if name in ("sport", "dport") else quoted, name, value)
    del quoted.chksum
    assert gateway.receive(error(4, 0, ROUTER, IP(sent).src, raw(quoted)))[0] == Verdict.UNMATCHED_ICMP_ERROR


def test_an_error_must_be_addressed_to_the_source_of_what_it_quotes() -> None:
    gateway, sent, _ = one_flow()
    other = next(host for host in POOL4 if host != IP(sent).src)
    assert gateway.receive(error(4, 0, ROUTER, other, sent))[0] == Verdict.UNMATCHED_ICMP_ERROR


def test_an_error_about_an_expired_flow_is_dropped_and_ends_nothing() -> None:
    gateway, sent, _ = one_flow()
    before = gateway.octets()
    assert gateway.receive(error(4, 0, ROUTER, IP(sent).src, sent), 300)[0] == Verdict.UNMATCHED_ICMP_ERROR
    assert gateway.octets() == before


def test_an_error_does_not_prolong_a_flow() -> None:
    gateway, sent, _ = one_flow()
    assert gateway.receive(error(4, 0, ROUTER, IP(sent).src, sent), 299)[0] == Verdict.PASS
    assert gateway.receive(error(4, 0, ROUTER, IP(sent).src, sent), 300)[0] == Verdict.UNMATCHED_ICMP_ERROR


def test_an_error_from_inside_goes_only_to_where_the_quoted_packet_came_from() -> None:
    gateway, sent, _ = one_flow()
    reply = IP(src=REMOTE, dst=IP(sent).src) / UDP(sport=80, dport=IP(sent)[UDP].sport)
    _, _, received = gateway.receive(reply)
    assert gateway.send(1, error(4, 0, INSIDE, "198.51.100.8", received))[0] == Verdict.UNMATCHED_ICMP_ERROR
    assert gateway.send(3, error(4, 0, INSIDE, REMOTE, received))[0] == Verdict.UNMATCHED_ICMP_ERROR  # another's flow
    assert gateway.send(1, error(4, 0, INSIDE, REMOTE, received))[0] == Verdict.PASS


@pytest.mark.parametrize("kind", [4, 5])
def test_quench_and_redirect_are_refused(kind: int) -> None:
    gateway, sent, _ = one_flow()
    packet = IP(src=ROUTER, dst=IP(sent).src) / ICMP(type=kind) / Raw(sent)
    assert gateway.receive(packet)[0] == Verdict.UNSUPPORTED_PROTOCOL
    assert gateway.send(1, packet)[0] == Verdict.UNSUPPORTED_PROTOCOL


@given(st.binary(max_size=80), st.sampled_from([4, 6]), st.booleans(), st.integers(0, 3))
@settings(max_examples=150)
def test_an_error_that_quotes_anything_never_crashes_and_changes_nothing(octets: bytes, version: int, whole: bool, choice: int) -> None:
    gateway, sent, _ = one_flow()
    inside, remote, router = ENDS[version]
    before = gateway.octets()
    quote = (sent[:20] if whole else b"") + octets
    pool = IP(sent).src if version == 4 else Gateway.external6(1)
    assert gateway.receive(error(version, choice, router, pool, quote))[0] != Verdict.PASS or whole
    assert gateway.send(1, error(version, choice, inside, remote, quote))[0] != Verdict.PASS or whole
    assert gateway.octets() == before
    assert_consistent(gateway.nat)


def one_flow() -> tuple[Gateway, bytes, bytes]:
    """A gateway with one UDP flow: the packet as it left, and as its device sent it."""
    gateway = Gateway()
    packet = IP(src=INSIDE, dst=REMOTE, id=7) / UDP(sport=4000, dport=80) / Raw(b"question")
    verdict, _, sent = gateway.send(1, packet)
    assert verdict == Verdict.PASS
    return gateway, sent, raw(packet)
