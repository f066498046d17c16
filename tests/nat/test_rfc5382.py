"""RFC 5382, NAT behaviour for TCP: one test per requirement that the translator decides."""

from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.packet import Raw

from egressvpn.nat.tables import ADDRESS_AND_PORT_DEPENDENT, ADDRESS_DEPENDENT, ENDPOINT_INDEPENDENT
from egressvpn.nat.tcp import ESTABLISHED, STATE_NAMES
from egressvpn.verdict import Verdict
from tests.nat.exchange import INSIDE, OTHER, REMOTE, about, answers, back, connect, out, passes, syn, with_mapping
from tests.nat.support import Gateway
from tests.packet.support import raw


def test_rfc5382_req1_mapping_is_endpoint_independent() -> None:
    gateway = Gateway()
    assert len({gateway.external(1, out("tcp", remote=remote, rport=port)) for remote in (REMOTE, OTHER) for port in (80, 443)}) == 1


@pytest.mark.parametrize(
    "exchange",
    [
        [
            "S> 0",
            "SA< 0 1",
            "A> 1 1",
            "PA> 1 1 100",
            "A< 1 101",
            "FA> 101 1",
            "A< 1 102",
            "PA< 1 102 50",
            "A> 102 51",
            "FA< 51 102",
            "A> 102 52",
        ],
        ["S> 0", "SA< 0 1", "A> 1 1", "FA< 1 1", "FA> 1 2", "A< 2 2"],
        ["S> 0 - 400", "SA< 0 401", "PA< 1 401 30", "A> 401 31"],  # data on the SYN (RFC 7413)
        ["SFP> 0 - 100", "SFA< 0 102 40", "A> 102 42"],  # T/TCP
        ["S> 0", "SA< 0 1", "SA< 0 1", "A> 1 1", "S> 0", "A< 1 1"],  # repetitions
        ["S> 0", "RA< 0 1"],
        ["S> 0", "SA< 0 1", "A> 1 1", "R> 1"],
        ["S> 0", "SA< 0 1", "A> 1 1", "FA> 1 1", "FA< 1 1", "A> 2 2", "A< 2 2"],  # both close at once
    ],
)
def test_rfc5382_req2_every_valid_sequence_of_segments_passes(exchange: list[str]) -> None:
    gateway = Gateway()
    play(gateway, exchange)


def test_rfc5382_req2a_simultaneous_open() -> None:
    gateway = Gateway()
    play(gateway, ["S> 0", "S< 0", "SA> 0 1", "SA< 0 1", "A> 1 1", "A< 1 1", "PA< 1 1 10"])
    assert STATE_NAMES[gateway.nat.flows[1].state] == STATE_NAMES[ESTABLISHED]


@pytest.mark.parametrize(
    ("filtering", "same_host", "stranger"),
    [
        (ENDPOINT_INDEPENDENT, Verdict.PASS, Verdict.PASS),
        (ADDRESS_DEPENDENT, Verdict.PASS, Verdict.FILTERED),
        (ADDRESS_AND_PORT_DEPENDENT, Verdict.FILTERED, Verdict.FILTERED),
    ],
)
def test_rfc5382_req3_filtering_is_as_configured(filtering: int, same_host: Verdict, stranger: Verdict) -> None:
    gateway = Gateway(filtering=filtering)
    external = connect(gateway)
    assert gateway.receive(back("tcp", external, rport=9, flags="S"))[0] == same_host
    assert gateway.receive(back("tcp", external, remote=OTHER, flags="S"))[0] == stranger


def test_rfc5382_req4_an_unsolicited_syn_gets_no_answer_for_6_seconds() -> None:
    gateway, external = with_mapping()
    assert gateway.receive(syn(external), 10)[0] == Verdict.FILTERED
    assert answers(gateway, 15.99) == []
    (answer,) = answers(gateway, 16)
    assert (answer[20], answer[21]) == (3, 3)


def test_rfc5382_req4_an_outbound_syn_meanwhile_silences_the_answer() -> None:
    gateway, external = with_mapping()
    call = syn(external)
    assert gateway.receive(call, 10)[0] == Verdict.FILTERED
    assert gateway.send(1, out("tcp", remote=call.src, rport=call[TCP].sport), 13)[0] == Verdict.PASS
    assert answers(gateway, 60) == []


def test_rfc5382_req4a_a_syn_to_nobody_is_dropped_in_silence() -> None:
    gateway, external = with_mapping()
    before = gateway.octets()
    assert gateway.receive(syn((external[0], external[1] ^ 1)), 10)[0] == Verdict.NO_MAPPING
    assert answers(gateway, 60) == []
    assert gateway.octets() == before


def test_rfc5382_req5_an_established_connection_may_be_idle_for_7440_seconds() -> None:
    gateway = Gateway()
    external = connect(gateway, now=0)
    assert passes(gateway, back("tcp", external, flags="A", seq=5001, ack=1001), 7439.9)
    assert passes(gateway, back("tcp", external, flags="A", seq=5001, ack=1001), 7439.9 * 2)
    gateway = Gateway()
    external = connect(gateway, now=0)
    assert not passes(gateway, back("tcp", external, flags="A", seq=5001, ack=1001), 7440)


@pytest.mark.parametrize("phase", ["opening", "closing", "reset"])
def test_rfc5382_req5_a_connection_that_opens_or_closes_may_be_idle_for_240_seconds(phase: str) -> None:
    for idle, alive in ((239.9, True), (240, False)):
        gateway = Gateway()
        if phase == "opening":
            external = gateway.external(1, out("tcp", seq=1000), 0)
            answer = back("tcp", external, seq=5000, ack=1001)
        else:
            external = connect(gateway, now=0)
            answer = back("tcp", external, flags="A", seq=5002, ack=1002)
            if phase == "closing":
                assert passes(gateway, back("tcp", external, flags="FA", seq=5001, ack=1001))
                assert gateway.send(1, out("tcp", flags="FA", seq=1001, ack=5002))[0] == Verdict.PASS
            else:
                assert passes(gateway, back("tcp", external, flags="R", seq=5001))
        assert passes(gateway, answer, idle) is alive


def test_rfc5382_req5_the_timers_are_configurable() -> None:
    second = 10**9
    gateway = Gateway(tcp_established=8000 * second, tcp_opening=250 * second, tcp_closing=260 * second)
    external = connect(gateway, now=0)
    assert passes(gateway, back("tcp", external, flags="R", seq=5001), 7999)
    assert passes(gateway, back("tcp", external, flags="A", seq=5001, ack=1001), 7999 + 259)
    other = gateway.external(1, out("tcp", port=5), 9000)
    assert passes(gateway, back("tcp", other, ack=1), 9249)


def test_rfc5382_req6_no_application_is_looked_into() -> None:
    """FTP's control connection included; tests of more protocols are those of RFC 4787 REQ-10."""
    gateway = Gateway()
    connect(gateway, rport=21)
    payload = b"PORT 100,64,0,5,15,161\r\n"
    _, _, sent = gateway.send(1, out("tcp", rport=21, flags="PA", seq=1001, ack=5001) / Raw(payload))
    assert sent.endswith(payload)
    assert gateway.nat.settings[0].mappings == 1


def test_rfc5382_req7_no_two_endpoints_share_an_external_one() -> None:
    gateway = Gateway(max_flows=256)
    seen = [gateway.external(device, out("tcp", port=port, remote=f"198.51.100.{device}")) for device in (1, 3) for port in range(50)]
    assert len(set(seen)) == 100


@pytest.mark.parametrize("code", range(16))
def test_rfc5382_req9_destination_unreachable_is_translated(code: int) -> None:
    gateway = Gateway()
    connect(gateway)
    packet = out("tcp", flags="PA", seq=1001, ack=5001) / Raw(bytes(1200))
    _, _, sent = gateway.send(1, packet)
    verdict, row, octets = gateway.receive(about(sent[:100], code=code, nexthopmtu=1000))
    assert (verdict, row.owner) == (Verdict.PASS, 1)
    expected = about(raw(packet)[:100], code=code, nexthopmtu=1000)
    expected.dst = INSIDE
    assert octets == raw(expected)


def test_rfc5382_req10_icmp_ends_no_connection() -> None:
    gateway = Gateway()
    external = connect(gateway)
    _, _, sent = gateway.send(1, out("tcp", flags="PA", seq=1001, ack=5001) / Raw(bytes(100)))
    before = gateway.octets()
    for kind in (3, 4, 5, 11, 12):
        for code in range(16):
            gateway.receive(about(sent, kind=kind, code=code, nexthopmtu=1400))
    assert gateway.octets() == before
    assert passes(gateway, back("tcp", external, flags="A", seq=5001, ack=1101))


def play(gateway: Gateway, exchange: list[str]) -> None:
    """Each step: flags and side, sequence number, acknowledgment or "-", octets. All must pass."""
    external = ("", 0)
    for step in exchange:
        segment, at, ack, size = (step.split() + ["-", "0"][len(step.split()) - 2 :])[:4]
        numbers: dict[str, Any] = {"seq": int(at) + 1000, "ack": 0 if ack == "-" else int(ack) + 1000}
        if segment.endswith(">"):
            verdict, row, sent = gateway.send(1, out("tcp", flags=segment[:-1], **numbers) / Raw(bytes(int(size))))
            external = (IP(sent).src, int(row.source_port))
        else:
            verdict, *_ = gateway.receive(back("tcp", external, flags=segment[:-1], **numbers) / Raw(bytes(int(size))))
        assert verdict == Verdict.PASS, step
