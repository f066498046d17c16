"""RFC 7857, updates to NAT behaviour: one test per section that the translator decides; RFC 5961 9 with it."""

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.packet import Raw

from egressvpn.nat.tables import ENDPOINT_INDEPENDENT
from egressvpn.nat.tcp import CLIENT, ESTABLISHED, SERVER, STATE_NAMES, TABLE, TRANS
from egressvpn.verdict import Verdict
from tests.nat.connection import Connection
from tests.nat.exchange import INSIDE, OTHER, back, connect, out, passes
from tests.nat.support import POOL4, Gateway

SECOND = 10**9


@pytest.mark.parametrize(("state", "side"), sorted(TABLE))
def test_rfc7857_2_every_segment_in_every_state_leads_where_the_table_says(state: int, side: int) -> None:
    """With sequence numbers that count; segments: SYN, SYN+ACK, FIN, RST, data."""
    for segment, flags in enumerate(("S", "SA", "FA", "RA", "PA")):
        connection = Connection(state)
        connection.flow.scale[:] = 0x20  # both sides' next numbers are known, and nothing is acknowledged
        connection.flow.next_sequence[:] = (1001, 5001)
        connection.segment(side, flags, 1, None if flags == "S" else 1, size=10 if flags == "PA" else 0)
        assert STATE_NAMES[connection.state] == STATE_NAMES[TABLE[state, side][segment]], flags


def test_rfc7857_2_1_opening_and_closing_have_timers_of_their_own() -> None:
    gateway = Gateway(tcp_opening=30 * SECOND, tcp_closing=300 * SECOND)
    external = gateway.external(1, out("tcp", seq=1000, port=5), 0)
    assert passes(gateway, back("tcp", external, seq=5000, ack=1001), 29.9)
    external = gateway.external(1, out("tcp", seq=1000, port=6), 100)
    assert not passes(gateway, back("tcp", external, seq=5000, ack=1001), 130)
    external = connect(gateway, now=200, port=7)
    assert passes(gateway, back("tcp", external, flags="R", seq=5001))
    assert passes(gateway, back("tcp", external, flags="A", seq=5001, ack=1001), 499)


def test_rfc7857_2_1_both_are_240_seconds_by_default() -> None:
    settings = Gateway().nat.settings[0]
    assert (settings.tcp_opening, settings.tcp_closing) == (240_000, 240_000)


@pytest.mark.parametrize("inside", [False, True])
def test_rfc7857_2_2_a_reset_is_translated_and_the_session_stays_for_4_minutes(inside: bool) -> None:
    gateway = Gateway()
    external = connect(gateway, now=0)
    if inside:
        verdict, row, octets = gateway.send(1, out("tcp", flags="R", seq=1001), 10)
        assert (IP(octets).src, IP(octets)[TCP].sport) == external
    else:
        verdict, row, octets = gateway.receive(back("tcp", external, flags="R", seq=5001), 10)
        assert IP(octets).dst == INSIDE
    assert verdict == Verdict.PASS
    assert gateway.nat.flows[row.flow].state == TRANS
    gateway.expire(249.5)
    assert gateway.nat.settings[0].flows == 1
    gateway.expire(250.5)
    assert gateway.nat.settings[0].flows == 0


@pytest.mark.parametrize(
    ("at", "verdict"), [(5000, Verdict.TCP_OUT_OF_WINDOW), (5002, Verdict.PASS), (5001 + 70_000, Verdict.TCP_OUT_OF_WINDOW)]
)
def test_rfc7857_2_2_a_reset_that_does_not_belong_to_the_connection_ends_nothing(at: int, verdict: Verdict) -> None:
    gateway = Gateway()
    external = connect(gateway, now=0)
    before = gateway.octets()
    assert gateway.receive(back("tcp", external, flags="R", seq=at), 10)[0] == verdict
    assert gateway.nat.flows[1].state == ESTABLISHED
    if verdict != Verdict.PASS:
        assert gateway.octets() == before
    assert passes(gateway, back("tcp", external, flags="A", seq=5001, ack=1001), 7439)


def test_rfc7857_2_2_data_after_a_reset_brings_the_connection_back() -> None:
    gateway = Gateway()
    external = connect(gateway, now=0)
    assert passes(gateway, back("tcp", external, flags="R", seq=5001))
    assert passes(gateway, back("tcp", external, flags="PA", seq=5001, ack=1001) / Raw(b"more"), 100)
    assert passes(gateway, back("tcp", external, flags="PA", seq=5005, ack=1001), 7539)


def test_rfc5961_9_an_inexact_reset_and_the_challenge_ack_pass_and_clear_nothing() -> None:
    gateway = Gateway()
    external = connect(gateway, now=0)
    assert passes(gateway, back("tcp", external, flags="R", seq=5100), 10)
    assert gateway.nat.flows[1].state == ESTABLISHED
    assert gateway.send(1, out("tcp", flags="A", seq=1001, ack=5001))[0] == Verdict.PASS
    assert passes(gateway, back("tcp", external, flags="R", seq=5001))
    assert gateway.nat.flows[1].state == TRANS


def test_rfc7857_3_ports_do_not_overlap_even_for_different_destinations() -> None:
    gateway = Gateway(ports=(2000, 2001), block_size=1, pool=(POOL4[0],))
    seen = {gateway.external(device, out("tcp", remote=f"198.51.100.{device}")) for device in (1, 2)}
    assert len(seen) == 2
    assert gateway.send(3, out("tcp", remote="198.51.100.3"))[0] == Verdict.PORTS_EXHAUSTED


@pytest.mark.parametrize("kind", ["tcp", "udp", "icmp"])
def test_rfc7857_4_a_device_whose_address_has_no_ports_left_is_refused(kind: str) -> None:
    """The other address of the pool has ports; the pairing counts more."""
    gateway = Gateway(ports=(2000, 2003), block_size=4)
    for port in range(4):
        gateway.external(1, out(kind, port=port))
    assert gateway.send(1, out(kind, port=9))[0] == Verdict.PORTS_EXHAUSTED
    assert gateway.external(2, out(kind))[0] == Gateway.external4(2)


def test_rfc7857_5_mappings_are_of_one_protocol() -> None:
    gateway = Gateway()
    gateway.external(1, out("udp"))
    gateway.external(1, out("tcp"))
    assert gateway.nat.settings[0].mappings == 2


def test_rfc7857_6_a_mapping_of_one_protocol_admits_no_other() -> None:
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT)
    external = gateway.external(1, out("udp"))
    assert gateway.receive(back("tcp", external, flags="S"))[0] == Verdict.NO_MAPPING
    assert gateway.receive(back("icmp", external))[0] == Verdict.NO_MAPPING


@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_rfc7857_7_what_the_filter_drops_refreshes_nothing(kind: str) -> None:
    gateway = Gateway()
    external = gateway.external(1, out(kind), 0)
    before = gateway.octets()
    end = 300 if kind == "udp" else 240
    for now in range(10, end, 10):
        assert gateway.receive(back(kind, external, remote=OTHER, flags="S"), now)[0] == Verdict.FILTERED
    assert gateway.octets() == before
    assert gateway.receive(back(kind, external), end)[0] == Verdict.NO_MAPPING


def test_rfc7857_7_1_errors_from_inside_about_inbound_packets_refresh_nothing() -> None:
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT)
    external = gateway.external(1, out("udp"), 0)
    for now in range(10, 300, 10):
        verdict, _, received = gateway.receive(back("udp", external, remote=OTHER), now)
        assert verdict == Verdict.PASS
        assert gateway.send(1, IP(src=INSIDE, dst=OTHER) / ICMP(type=3, code=3) / Raw(received))[0] == Verdict.PASS
    assert gateway.receive(back("udp", external, remote=OTHER), 300.5)[0] == Verdict.NO_MAPPING


def test_rfc7857_7_1_resets_from_inside_about_inbound_packets_refresh_nothing() -> None:
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT)
    external = gateway.external(1, out("tcp"), 0)
    for now in range(10, 240, 10):
        assert passes(gateway, back("tcp", external, remote=OTHER, flags="S", seq=now), now)
        assert gateway.send(1, out("tcp", remote=OTHER, flags="RA", ack=now + 1))[0] == Verdict.PASS
    assert gateway.receive(back("tcp", external, remote=OTHER, flags="S"), 240.5)[0] == Verdict.NO_MAPPING


def test_rfc7857_8_parity_is_preserved() -> None:
    gateway = Gateway(max_flows=128)
    for kind in ("tcp", "udp"):
        assert all(gateway.external(1, out(kind, port=port))[1] % 2 == port % 2 for port in range(7000, 7030))


def test_rfc7857_11_a_query_mapping_ends_with_its_last_session() -> None:
    gateway = Gateway()
    gateway.external(1, out("icmp"), 0)
    gateway.external(1, out("icmp", remote=OTHER), 30)
    gateway.expire(61)
    assert (gateway.nat.settings[0].flows, gateway.nat.settings[0].mappings) == (1, 1)
    gateway.expire(91)
    assert (gateway.nat.settings[0].flows, gateway.nat.settings[0].mappings) == (0, 0)


@pytest.mark.parametrize("side", [CLIENT, SERVER])
def test_rfc7857_2_one_syn_after_both_fins_does_not_reopen(side: int) -> None:
    gateway = Gateway()
    external = connect(gateway, now=0)
    assert passes(gateway, back("tcp", external, flags="FA", seq=5001, ack=1001))
    assert gateway.send(1, out("tcp", flags="FA", seq=1001, ack=5002))[0] == Verdict.PASS
    if side == CLIENT:
        assert gateway.send(1, out("tcp", seq=90_000), 100)[0] == Verdict.PASS
    else:
        assert passes(gateway, back("tcp", external, flags="S", seq=90_000), 100)
    assert gateway.send(1, out("tcp", flags="A", seq=1002, ack=5002), 101)[0] == Verdict.PASS
    assert passes(gateway, back("tcp", external, flags="A", seq=5002, ack=1002), 101)
    gateway.expire(342)
    assert gateway.nat.settings[0].flows == 0


def test_rfc7857_2_syns_of_both_sides_after_both_fins_reopen() -> None:
    gateway = Gateway()
    external = connect(gateway, now=0)
    assert passes(gateway, back("tcp", external, flags="FA", seq=5001, ack=1001))
    assert gateway.send(1, out("tcp", flags="FA", seq=1001, ack=5002))[0] == Verdict.PASS
    assert gateway.send(1, out("tcp", seq=90_000), 100)[0] == Verdict.PASS
    assert passes(gateway, back("tcp", external, flags="SA", seq=190_000, ack=90_001), 100)
    gateway.expire(7000)
    assert gateway.nat.flows[1].state == ESTABLISHED
