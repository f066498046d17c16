"""Unsolicited SYNs: silence for 6 s, then port unreachable, unless the inside called meanwhile (RFC 5382 REQ-4)."""

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.packet import Raw

from egressvpn.nat.tables import WAITING_SYNS
from egressvpn.verdict import Verdict
from tests.nat.exchange import INSIDE, OPTIONS, STRANGER, answers, syn, with_mapping
from tests.nat.support import Gateway
from tests.packet.support import raw


def test_a_filtered_syn_is_answered_after_6_seconds_and_not_before() -> None:
    gateway, external = with_mapping()
    call = syn(external)
    assert gateway.receive(call, 10)[0] == Verdict.FILTERED
    assert answers(gateway, 15.999) == []
    (answer,) = answers(gateway, 16)
    assert answers(gateway, 100) == []
    expected = IP(src=external[0], dst=STRANGER, tos=0xC0, id=0, flags="DF", ttl=64) / ICMP(type=3, code=3) / Raw(raw(call)[:32])
    assert answer == raw(expected)
    assert len(answer) == len(raw(call))


def test_a_syn_that_is_overtaken_by_one_from_inside_is_dropped_in_silence() -> None:
    gateway, external = with_mapping()
    assert gateway.receive(syn(external), 10)[0] == Verdict.FILTERED
    out = IP(src=INSIDE, dst=STRANGER) / TCP(sport=4000, dport=5555, flags="S")
    assert gateway.send(1, out, 13)[0] == Verdict.PASS
    assert answers(gateway, 16) == []
    assert gateway.receive(syn(external), 17)[0] == Verdict.PASS


def test_a_syn_of_the_same_stranger_from_another_port_is_still_answered() -> None:
    gateway, external = with_mapping()
    gateway.receive(syn(external), 10)
    gateway.receive(syn(external, sport=5556), 10)
    gateway.send(1, IP(src=INSIDE, dst=STRANGER) / TCP(sport=4000, dport=5555, flags="S"), 13)
    (answer,) = answers(gateway, 16)
    assert IP(answer)[ICMP].payload[TCP].sport == 5556 if TCP in IP(answer)[ICMP].payload else b"\x15\xb4" in answer


@pytest.mark.parametrize("flags", ["SA", "A", "R", "SR", "F"])
def test_only_a_syn_waits(flags: str) -> None:
    gateway, external = with_mapping()
    gateway.receive(syn(external, flags=flags), 10)
    assert answers(gateway, 100) == []


def test_a_syn_to_nobody_gets_no_answer() -> None:
    gateway, external = with_mapping()
    assert gateway.receive(syn((external[0], external[1] ^ 1)), 10)[0] == Verdict.NO_MAPPING
    assert answers(gateway, 100) == []


def test_a_syn_whose_mapping_is_gone_by_then_gets_no_answer() -> None:
    gateway, external = with_mapping()
    gateway.receive(syn(external), 238)
    gateway.expire(241)
    assert answers(gateway, 244) == []


def test_an_answer_is_never_longer_than_the_syn() -> None:
    gateway, external = with_mapping()
    assert gateway.receive(syn(external, options=[]), 10)[0] == Verdict.FILTERED  # 40 octets: no room for a quote
    assert answers(gateway, 100) == []
    for count in range(4):
        call = syn(external, options=OPTIONS[: 2 + count]) / Raw(bytes(500 * count))
        gateway.receive(call, 100)
        for answer in answers(gateway, 106):
            assert 56 <= len(answer) <= len(raw(call))
            assert IP(answer).len == len(answer)


def test_an_ipv6_syn_is_answered_when_there_is_room() -> None:
    gateway = Gateway()
    external = gateway.external(1, IPv6(src="fd64::5", dst="2001:db8:51::7") / TCP(sport=4000, dport=443, flags="S"))
    call = IPv6(src="2001:db8:99::1", dst=external[0]) / TCP(sport=5555, dport=external[1], flags="S", options=OPTIONS)
    assert gateway.receive(call, 10)[0] == Verdict.FILTERED
    assert answers(gateway, 16) == []
    call = call / Raw(bytes(20))
    assert gateway.receive(call, 20)[0] == Verdict.FILTERED
    (answer,) = answers(gateway, 26)
    assert answer == raw(IPv6(src=external[0], dst="2001:db8:99::1", hlim=64) / ICMPv6DestUnreach(code=4) / Raw(raw(call)[:52]))


def test_the_ring_is_bounded_and_goes_round() -> None:
    gateway, external = with_mapping()
    for turn in range(3):
        for port in range(WAITING_SYNS + 10):
            gateway.receive(syn(external, sport=1 + port), 10 + turn * 10)
        assert len(answers(gateway, 16 + turn * 10)) == WAITING_SYNS
