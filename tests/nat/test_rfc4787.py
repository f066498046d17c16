"""RFC 4787, NAT behaviour for UDP: one test per requirement that the translator alone decides. The data path's are in tests/dataplane."""

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from egressvpn.nat.tables import ADDRESS_AND_PORT_DEPENDENT, ADDRESS_DEPENDENT, ENDPOINT_INDEPENDENT
from egressvpn.verdict import Verdict
from tests.nat.exchange import INSIDE, OTHER, REMOTE, about, back, out, passes
from tests.nat.support import POOL4, Gateway
from tests.packet.support import raw

FILTERS = [ENDPOINT_INDEPENDENT, ADDRESS_DEPENDENT, ADDRESS_AND_PORT_DEPENDENT]


@pytest.mark.parametrize("filtering", FILTERS)
def test_rfc4787_req1_mapping_is_endpoint_independent(filtering: int) -> None:
    gateway = Gateway(filtering=filtering)
    seen = {gateway.external(1, out("udp", remote=remote, rport=port)) for remote in (REMOTE, OTHER) for port in (1, 2)}
    assert len(seen) == 1


def test_rfc4787_req2_pooling_is_paired() -> None:
    gateway = Gateway(max_flows=256)
    kinds = ("udp", "tcp", "icmp")
    addresses = {gateway.external(1, out(kinds[n % 3], port=2000 + n, remote=f"198.51.100.{n + 1}"))[0] for n in range(200)}
    assert addresses == {Gateway.external4(1)}


@pytest.mark.parametrize("kind", ["udp", "tcp", "icmp"])
def test_rfc4787_req3_no_two_endpoints_share_an_external_one(kind: str) -> None:
    """Also when their destinations differ, and when both ask for the same port."""
    gateway = Gateway(max_flows=256)
    seen = [
        gateway.external(device, out(kind, port=port, remote=f"198.51.100.{device}")) for device in (1, 3) for port in range(4000, 4050)
    ]
    assert len(set(seen)) == 100


def test_rfc4787_req3a_unprivileged_ports_stay_unprivileged() -> None:
    gateway = Gateway(max_flows=256)
    assert all(gateway.external(1, out("udp", port=1024 + n * 100))[1] >= 1024 for n in range(200))


def test_rfc4787_req4_parity_is_preserved() -> None:
    gateway = Gateway(max_flows=256)
    assert all(gateway.external(1, out("udp", port=port))[1] % 2 == port % 2 for port in range(3000, 3200))


def test_rfc4787_req5_udp_mapping_lives_at_least_120_seconds() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("udp"), 0)
    assert passes(gateway, back("udp", external), 119.9)


def test_rfc4787_req5a_well_known_ports_get_no_shorter_timer() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("udp", rport=53), 0)
    assert passes(gateway, back("udp", external, rport=53), 299.9)


def test_rfc4787_req5b_the_udp_timer_is_configurable() -> None:
    gateway = Gateway(udp=150 * 10**9)
    external = gateway.external(1, out("udp"), 0)
    assert passes(gateway, back("udp", external), 149.9)
    assert not passes(gateway, back("udp", external), 300)


def test_rfc4787_req5c_udp_mapping_lives_300_seconds() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("udp"), 0)
    assert passes(gateway, back("udp", external), 299.9)
    gateway = Gateway()
    external = gateway.external(1, out("udp"), 0)
    assert gateway.receive(back("udp", external), 300)[0] == Verdict.NO_MAPPING


def test_rfc4787_req6_outbound_packets_refresh() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("udp"), 0)
    assert gateway.external(1, out("udp"), 299) == external
    assert passes(gateway, back("udp", external), 598)


def test_rfc4787_req6_outbound_packets_of_any_session_keep_the_mapping() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("udp"), 0)
    assert gateway.external(1, out("udp", remote=OTHER), 200) == external
    assert passes(gateway, back("udp", external, remote=OTHER), 499)
    assert gateway.external(1, out("udp"), 500) == external


def test_rfc4787_req6a_inbound_packets_refresh_a_session_the_inside_has_sent_on() -> None:
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT)
    external = gateway.external(1, out("udp"), 0)
    for now in range(250, 2000, 250):
        assert passes(gateway, back("udp", external), now)


def test_rfc4787_req6a_inbound_packets_alone_keep_nothing() -> None:
    """A stranger whom endpoint-independent filtering lets in holds the mapping no longer than the inside does."""
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT)
    external = gateway.external(1, out("udp"), 0)
    for now in range(50, 300, 50):
        assert passes(gateway, back("udp", external, remote=OTHER), now)
    assert gateway.receive(back("udp", external, remote=OTHER), 300.5)[0] == Verdict.NO_MAPPING


def test_rfc4787_req7_internal_and_external_addresses_may_overlap() -> None:
    """Which side a packet is from is told by the interface, never by its addresses."""
    gateway = Gateway()
    external = gateway.external(1, out("udp", remote="100.64.0.6"))
    verdict, row, octets = gateway.receive(back("udp", external, remote="100.64.0.6"))
    assert (verdict, row.owner) == (Verdict.PASS, 1)
    assert (IP(octets).src, IP(octets).dst) == ("100.64.0.6", INSIDE)
    same = gateway.external(1, out("udp", remote=INSIDE))
    assert IP(gateway.receive(back("udp", same, remote=INSIDE))[2]).src == INSIDE


@pytest.mark.parametrize(
    ("filtering", "same_host", "stranger"),
    [
        (ENDPOINT_INDEPENDENT, Verdict.PASS, Verdict.PASS),
        (ADDRESS_DEPENDENT, Verdict.PASS, Verdict.FILTERED),
        (ADDRESS_AND_PORT_DEPENDENT, Verdict.FILTERED, Verdict.FILTERED),
    ],
)
def test_rfc4787_req8_filtering_is_as_configured(filtering: int, same_host: Verdict, stranger: Verdict) -> None:
    gateway = Gateway(filtering=filtering)
    external = gateway.external(1, out("udp"))
    assert gateway.receive(back("udp", external))[0] == Verdict.PASS
    assert gateway.receive(back("udp", external, rport=9))[0] == same_host
    assert gateway.receive(back("udp", external, remote=OTHER))[0] == stranger


def test_rfc4787_req8_filtering_is_address_dependent_by_default() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("udp"))
    assert gateway.receive(back("udp", external, rport=9))[0] == Verdict.PASS
    assert gateway.receive(back("udp", external, remote=OTHER))[0] == Verdict.FILTERED


@pytest.mark.parametrize(
    ("port", "payload"),
    [
        (21, b"PORT 100,64,0,5,15,161\r\n"),
        (5060, b"REGISTER sip:x SIP/2.0\r\nVia: SIP/2.0/UDP 100.64.0.5:4001\r\nContact: <sip:a@100.64.0.5:4001>\r\n\r\n"),
        (6667, b"PRIVMSG a :\x01DCC SEND f 1681915909 4001\x01\r\n"),
        (1720, bytes.fromhex("0300001c0880") + bytes((100, 64, 0, 5, 15, 161))),
        (3478, bytes.fromhex("000100080000000000000000000000000000000000200008000105a1") + bytes((100, 64, 0, 5))),
    ],
)
@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_rfc4787_req10_no_application_is_looked_into(kind: str, port: int, payload: bytes) -> None:
    gateway = Gateway()
    packet = out(kind, rport=port)
    if kind == "udp":
        packet[UDP].remove_payload()
    verdict, row, sent = gateway.send(1, packet / Raw(payload))
    assert verdict == Verdict.PASS
    assert sent.endswith(payload)
    assert gateway.nat.settings[0].mappings == gateway.nat.settings[0].flows == 1
    external = (IP(sent).src, int(row.source_port))
    reply = back(kind, external, rport=port, ack=1 + len(payload)) / Raw(payload)
    assert gateway.receive(reply)[2].endswith(payload)
    assert gateway.nat.settings[0].flows == 1


@pytest.mark.parametrize("fill", [0, 50, 99, 100])
def test_rfc4787_req11_behaviour_does_not_change_under_load(fill: int) -> None:
    """At any fill of the slice: the same mapping for every destination, the same filter; and full means refused, not shared."""
    gateway = Gateway(max_flows=600, ports=(2000, 2255), block_size=16, pool=(POOL4[0],))
    external = gateway.external(1, out("udp"))
    for port in range(240 * fill // 100):  # all but the block of device 1
        gateway.external(2, out("udp", port=5000 + port))
    for remote in (REMOTE, OTHER):
        for port in (443, 444):
            assert gateway.external(1, out("udp", remote=remote, rport=port)) == external
    assert gateway.receive(back("udp", external, remote="198.51.100.77"))[0] == Verdict.FILTERED
    assert gateway.receive(back("udp", external, remote=OTHER, rport=9))[0] == Verdict.PASS
    if fill == 100:
        assert gateway.send(2, out("udp", port=9000))[0] == Verdict.PORTS_EXHAUSTED
    assert gateway.external(1, out("udp")) == external


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12])
def test_rfc4787_req12_icmp_ends_no_mapping(kind: int) -> None:
    gateway = Gateway()
    _, row, sent = gateway.send(1, out("udp"))
    external = (IP(sent).src, int(row.source_port))
    before = gateway.octets()
    for code in range(16):
        gateway.receive(about(sent, kind=kind, code=code))
    assert gateway.octets() == before
    assert passes(gateway, back("udp", external))


def test_rfc4787_req12a_an_error_may_come_from_any_router() -> None:
    gateway = Gateway()
    _, _, sent = gateway.send(1, out("udp"))
    for router in ("192.0.2.1", "203.0.113.200", "10.0.0.1", REMOTE):
        assert passes(gateway, about(sent, router=router))


@pytest.mark.parametrize("code", range(16))
def test_rfc4787_req12b_destination_unreachable_is_translated(code: int) -> None:
    gateway = Gateway()
    packet = out("udp")
    _, _, sent = gateway.send(1, packet)
    verdict, row, octets = gateway.receive(about(sent, code=code, nexthopmtu=1400))
    assert (verdict, row.owner) == (Verdict.PASS, 1)
    expected = about(raw(packet), code=code, nexthopmtu=1400)
    expected.dst = INSIDE
    assert octets == raw(expected)
