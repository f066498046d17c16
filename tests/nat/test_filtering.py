"""What the filter lets pass (RFC 4787 5), and what makes a flow or a permit live on (RFC 4787 6, RFC 7857 7)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.packet import Raw

from egressvpn.nat.tables import ADDRESS_AND_PORT_DEPENDENT, ENDPOINT_INDEPENDENT
from egressvpn.verdict import Verdict
from tests.nat.packets import INSIDE6, OTHER, REMOTE, REMOTE6, into, out, tcp
from tests.nat.support import POOL4, Gateway, assert_consistent


@pytest.mark.parametrize(
    ("filtering", "other_port", "other_host"),
    [
        (ENDPOINT_INDEPENDENT, Verdict.PASS, Verdict.PASS),
        (None, Verdict.PASS, Verdict.FILTERED),
        (ADDRESS_AND_PORT_DEPENDENT, Verdict.FILTERED, Verdict.FILTERED),
    ],
    ids=["endpoint-independent", "address-dependent by default", "address-and-port-dependent"],
)
@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_the_filter_lets_pass_what_it_says(kind: str, filtering: int | None, other_port: Verdict, other_host: Verdict) -> None:
    gateway = Gateway(**({} if filtering is None else {"filtering": filtering}))
    external = gateway.external(1, out(kind))
    assert gateway.receive(into(kind, external, flags="SA"))[0] == Verdict.PASS
    assert gateway.receive(into(kind, external, rport=81, flags="S"))[0] == other_port
    assert gateway.receive(into(kind, external, remote=OTHER, flags="S"))[0] == other_host
    assert_consistent(gateway.nat)


def test_what_was_filtered_changes_nothing() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("udp"))
    before = gateway.octets()
    assert gateway.receive(into("udp", external, remote=OTHER), 100)[0] == Verdict.FILTERED
    assert gateway.receive(into("udp", (external[0], external[1] ^ 1)), 100)[0] == Verdict.NO_MAPPING
    assert gateway.octets() == before


def test_only_a_syn_opens_a_connection_from_outside() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("tcp"))
    for flags in ("A", "F", "R", "SR"):
        assert gateway.receive(into("tcp", external, rport=81, flags=flags))[0] == Verdict.FILTERED
    assert gateway.receive(into("tcp", external, rport=81, flags="S"))[0] == Verdict.PASS


def test_a_contacted_address_may_call_only_while_a_flow_with_it_lives() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("udp"))
    gateway.external(1, out("udp", remote=OTHER), 200)
    assert gateway.receive(into("udp", external, rport=81), 299.9)[0] == Verdict.PASS
    assert gateway.receive(into("udp", external, rport=82), 300.2)[0] == Verdict.FILTERED  # a call permits none
    assert gateway.receive(into("udp", external, remote=OTHER, rport=82))[0] == Verdict.PASS
    assert gateway.receive(into("udp", external, rport=80), 700)[0] == Verdict.NO_MAPPING
    gateway.expire(900)
    assert gateway.nat.settings[0].flows == 0
    assert_consistent(gateway.nat)


def test_one_of_many_flows_to_an_address_is_enough_to_be_called_from_it() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("udp", remote=OTHER))
    for moment, port in enumerate((80, 81, 82)):
        gateway.external(1, out("udp", rport=port), 10.0 * moment)
    gateway.external(1, out("udp", rport=81), 200)
    assert gateway.receive(into("udp", external, rport=99), 325)[0] == Verdict.PASS
    assert gateway.receive(into("udp", external, remote=OTHER))[0] == Verdict.FILTERED
    assert gateway.receive(into("udp", external, rport=98), 500.2)[0] == Verdict.NO_MAPPING
    assert_consistent(gateway.nat)


def test_an_address_contacted_long_ago_is_filtered_though_the_mapping_lives_on() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("udp"))
    gateway.external(1, out("udp", remote=OTHER), 200)
    gateway.external(1, out("udp", port=5), 200)
    assert gateway.receive(into("udp", external, rport=81), 310)[0] == Verdict.FILTERED
    assert gateway.receive(into("udp", external, remote=OTHER, rport=81), 310)[0] == Verdict.PASS
    assert_consistent(gateway.nat)


def test_what_comes_from_outside_alone_prolongs_nothing() -> None:
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT)
    external = gateway.external(1, out("udp"))
    for moment in (100, 200, 299.9):
        assert gateway.receive(into("udp", external, remote=OTHER), moment)[0] == Verdict.PASS
    assert gateway.receive(into("udp", external, remote=OTHER), 300.2)[0] == Verdict.NO_MAPPING
    assert gateway.receive(into("udp", external))[0] == Verdict.NO_MAPPING
    assert gateway.nat.settings[0].mappings == 0
    gateway.expire(400.2)
    assert gateway.nat.settings[0].flows == 0
    assert_consistent(gateway.nat)


def test_an_unanswered_flow_from_outside_ends_in_its_time_though_its_mapping_lives() -> None:
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT)
    external = gateway.external(1, out("udp"))
    for moment in (100, 200, 299, 399.9):
        assert gateway.receive(into("udp", external, remote=OTHER), moment)[0] == Verdict.PASS
        gateway.external(1, out("udp"))
    assert gateway.expire(400.2) == 1
    assert gateway.nat.settings[0].flows == 1
    assert_consistent(gateway.nat)


def test_an_answer_from_inside_makes_a_flow_from_outside_count() -> None:
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT)
    external = gateway.external(1, out("udp"))
    gateway.receive(into("udp", external, remote=OTHER), 100)
    gateway.external(1, out("udp", remote=OTHER), 200)
    assert gateway.receive(into("udp", external, remote=OTHER), 499.9)[0] == Verdict.PASS
    assert gateway.receive(into("udp", external, remote=OTHER), 799.8)[0] == Verdict.PASS
    assert_consistent(gateway.nat)


def test_a_reset_from_inside_does_not_make_a_connection_from_outside_count() -> None:
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT)
    external = gateway.external(1, out("tcp"))
    gateway.receive(into("tcp", external, remote=OTHER, flags="S"), 100)
    assert gateway.send(1, tcp("RA", remote=OTHER, ack=1), 200)[0] == Verdict.PASS
    assert gateway.receive(into("tcp", external, remote=OTHER, rport=81, flags="S"), 240.2)[0] == Verdict.NO_MAPPING
    assert_consistent(gateway.nat)


def test_unanswered_flows_from_outside_take_a_quarter_of_a_devices_flows_at_most() -> None:
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT, max_flows_per_device=12)
    external = gateway.external(1, out("udp"))
    verdicts = [gateway.receive(into("udp", external, rport=port))[0] for port in range(1000, 1004)]
    assert verdicts == [Verdict.PASS, Verdict.PASS, Verdict.PASS, Verdict.QUOTA_EXCEEDED]
    gateway.external(1, out("udp", rport=1000))  # an answer makes room for one more
    assert gateway.receive(into("udp", external, rport=1003))[0] == Verdict.PASS
    assert gateway.receive(into("udp", external, rport=1004))[0] == Verdict.QUOTA_EXCEEDED
    assert gateway.receive(into("udp", external))[0] == Verdict.PASS
    assert_consistent(gateway.nat)


def test_unanswered_flows_from_outside_take_a_quarter_of_all_flows_at_most() -> None:
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT, max_flows=40)
    ends = [gateway.external(device, out("udp")) for device in (1, 2, 3)]
    passed = [gateway.receive(into("udp", end, rport=port))[0] == Verdict.PASS for port in range(1000, 1010) for end in ends]
    assert sum(passed) == 11
    assert_consistent(gateway.nat)


def test_an_echo_request_from_outside_reaches_nobody() -> None:
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT)
    external = gateway.external(1, out("icmp"))
    assert gateway.receive(IP(src=REMOTE, dst=external[0]) / ICMP(type=8, id=external[1]))[0] == Verdict.FILTERED
    gateway.external(1, IPv6(src=INSIDE6, dst=REMOTE6) / ICMPv6EchoRequest(id=9))
    assert gateway.receive(IPv6(src=REMOTE6, dst=Gateway.external6(1)) / ICMPv6EchoRequest(id=9))[0] == Verdict.FILTERED


@given(st.binary(min_size=20, max_size=60), st.integers(0, 5))
@settings(max_examples=100)
def test_arbitrary_packets_from_outside_change_nothing(octets: bytes, choice: int) -> None:
    gateway = Gateway()
    gateway.external(1, out("udp"))
    before = gateway.octets()
    protocol = [6, 17, 1, 58, 0, 44][choice]
    packet = IP(src=REMOTE, dst=POOL4[1], proto=protocol) if choice < 4 else IPv6(src=REMOTE6, dst=Gateway.external6(1), nh=protocol)
    try:
        verdict, _, _ = gateway.receive(packet / Raw(octets), 1.0)
    except AssertionError:
        return  # parse said no
    if verdict != Verdict.PASS:
        assert gateway.octets() == before
