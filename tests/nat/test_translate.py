"""Translation against scapy octet for octet, and the behaviour that RFC 4787, 5382 and 5508 ask for."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, ICMPv6ND_NS, IPv6
from scapy.packet import Raw

from egressvpn.nat.expiry import drop_flows, remove_device, sweep
from egressvpn.nat.tables import ADDRESS_AND_PORT_DEPENDENT, ENDPOINT_INDEPENDENT, set_pool, subscribe
from egressvpn.packet.checksum import fill_transport_checksum, pseudo_sum
from egressvpn.packet.octets import put_be16
from egressvpn.verdict import Verdict
from tests.nat.support import POOL4, Gateway, assert_consistent, loaded, ns
from tests.packet.support import address, network, networks, raw, taken, transport, transports, with_endpoint

INSIDE, REMOTE, OTHER = "100.64.0.5", "198.51.100.7", "198.51.100.8"
INSIDE6, REMOTE6 = "fd64::5", "2001:db8:51::7"


@given(st.sampled_from([4, 6]), st.data())
@settings(max_examples=120)
def test_any_packet_goes_out_and_its_reply_comes_back_as_scapy_would_build_them(version: int, data: Any) -> None:
    gateway = Gateway()
    inside, remote = (INSIDE, REMOTE) if version == 4 else (INSIDE6, REMOTE6)
    packet = data.draw(networks(version, inside, remote)) / data.draw(transports(version, ("tcp", "udp", "request")))
    verdict, row, sent = gateway.send(1, packet)
    assert verdict == Verdict.PASS
    external, port = address(version, row.source_hi, row.source_lo), int(row.source_port)
    assert sent == raw(with_endpoint(packet, "s", external, port))
    assert external == (Gateway.external4(1) if version == 4 else Gateway.external6(1))
    layer = transport(packet)
    if version == 6:
        assert port == (layer.sport if isinstance(layer, TCP | UDP) else layer.id)

    kinds = {TCP: "tcp", UDP: "udp"}.get(type(layer), "reply")
    reply = data.draw(networks(version, remote, external)) / data.draw(transports(version, (kinds,)))
    inner = transport(reply)
    if isinstance(layer, TCP | UDP):
        inner.sport, inner.dport = layer.dport, port
        back = layer.sport
    else:
        inner.id, back = port, layer.id
    verdict, row, received = gateway.receive(reply)
    assert verdict == Verdict.PASS
    assert received == raw(with_endpoint(reply, "d", inside, back))
    assert row.owner == 1
    assert_consistent(gateway.nat)


@pytest.mark.parametrize("kind", ["tcp", "udp", "icmp"])
def test_an_endpoint_has_one_external_endpoint_for_all_remotes(kind: str) -> None:
    gateway = Gateway()
    assert len({gateway.external(1, out(kind, remote=remote, rport=port)) for remote in (REMOTE, OTHER) for port in (80, 81)}) == 1


def test_a_device_has_one_external_address_for_all_its_traffic() -> None:
    gateway = Gateway(max_flows=200)
    seen = {gateway.external(2, out(kind, port=port))[0] for kind in ("tcp", "udp", "icmp") for port in range(1000, 1020)}
    assert seen == {Gateway.external4(2)}


def test_no_two_endpoints_share_an_external_one() -> None:
    gateway = Gateway(max_flows=200, ports=(1024, 1123))
    for device in (1, 3):
        for port in range(40):
            gateway.external(device, out("udp", port=port, remote=f"198.51.100.{port}"))
    assert_consistent(gateway.nat)
    assert gateway.nat.settings[0].mappings == 80


def test_two_devices_may_have_the_same_inner_address() -> None:
    gateway = Gateway()
    first, second = gateway.external(1, out("udp")), gateway.external(3, out("udp"))
    assert first != second
    assert gateway.receive(into("udp", first))[1].owner == 1
    assert gateway.receive(into("udp", second))[1].owner == 3


def test_a_mapping_of_one_protocol_admits_no_other() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("udp"))
    assert gateway.receive(into("tcp", external, flags="SA"))[0] == Verdict.NO_MAPPING


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
    assert gateway.receive(into("udp", external, rport=82), 300)[0] == Verdict.PASS  # by the flow that 81 opened
    assert gateway.receive(into("udp", external, rport=80), 700)[0] == Verdict.NO_MAPPING
    assert gateway.nat.settings[0].flows == 0
    assert_consistent(gateway.nat)


def test_an_address_contacted_long_ago_is_filtered_though_the_mapping_lives_on() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("udp"))
    gateway.external(1, out("udp", remote=OTHER), 200)
    gateway.external(1, out("udp", port=5), 200)
    assert gateway.receive(into("udp", external, rport=81), 310)[0] == Verdict.FILTERED
    assert gateway.receive(into("udp", external, remote=OTHER, rport=81), 310)[0] == Verdict.PASS
    assert_consistent(gateway.nat)


@pytest.mark.parametrize(("kind", "timeout"), [("udp", 300), ("icmp", 60)])
def test_a_flow_lives_its_timeout_and_both_directions_prolong_it(kind: str, timeout: int) -> None:
    gateway = Gateway()
    external = gateway.external(1, out(kind))
    assert gateway.receive(into(kind, external), timeout - 0.1)[0] == Verdict.PASS
    assert gateway.external(1, out(kind), 2 * timeout - 0.3) == external
    assert gateway.receive(into(kind, external), 3 * timeout - 0.4)[0] == Verdict.PASS
    assert gateway.receive(into(kind, external), 4 * timeout - 0.4)[0] == Verdict.NO_MAPPING


def test_the_port_of_an_expired_mapping_is_free_again() -> None:
    gateway = Gateway(ports=(2000, 2000))
    assert gateway.external(1, out("udp")) == (Gateway.external4(1), 2000)
    assert gateway.send(1, out("udp", port=5))[0] == Verdict.PORTS_EXHAUSTED
    assert sweep(gateway.nat, 100, ns(299)) == 0
    assert sweep(gateway.nat, 100, ns(300)) == 1
    assert gateway.external(1, out("udp", port=5), 300) == (Gateway.external4(1), 2000)
    assert_consistent(gateway.nat)


def test_the_sweep_visits_no_more_than_its_budget_and_comes_round() -> None:
    gateway = Gateway()
    for port in range(10):
        gateway.external(1, out("udp", port=port))
    assert [sweep(gateway.nat, 4, ns(400)) for _ in range(4)] == [4, 4, 2, 0]
    assert gateway.nat.settings[0].flows_expired == 10
    assert_consistent(gateway.nat)


def test_a_full_table_refuses_the_new_and_keeps_the_old() -> None:
    gateway = Gateway(max_flows=5)
    ends = [gateway.external(1, out("udp", port=port)) for port in range(5)]
    before = gateway.live()
    assert gateway.send(1, out("udp", port=9))[0] == Verdict.FLOW_TABLE_FULL
    assert gateway.send(2, out("tcp"))[0] == Verdict.FLOW_TABLE_FULL
    assert gateway.receive(into("udp", ends[0], rport=99))[0] == Verdict.FLOW_TABLE_FULL
    assert gateway.live() == before
    assert [gateway.external(1, out("udp", port=port)) for port in range(5)] == ends
    assert_consistent(gateway.nat)


def test_ports_run_out_for_one_protocol_alone_and_nothing_is_taken_from_the_old() -> None:
    gateway = Gateway(ports=(5000, 5015))
    ends = {gateway.external(1, out("udp", port=port)) for port in range(16)}
    assert {port for _, port in ends} == set(range(5000, 5016))
    assert gateway.send(1, out("udp", port=99))[0] == Verdict.PORTS_EXHAUSTED
    assert gateway.send(1, out("udp", port=3, remote=OTHER))[0] == Verdict.PASS  # an old endpoint may have new remotes
    assert gateway.send(1, out("tcp"))[0] == Verdict.PASS
    assert gateway.send(1, out("icmp"))[0] == Verdict.PASS
    assert_consistent(gateway.nat)


def test_no_packet_leaves_with_a_port_outside_the_slice() -> None:
    gateway = Gateway(ports=(3000, 3099))
    set_pool(gateway.nat, 1, int(gateway.nat.pool[1].address), 4000, 4009)
    ports = [gateway.external(device, out("tcp", port=port))[1] for device in (1, 2) for port in range(10)]
    assert all(3000 <= port <= 3099 for port in ports[:10])
    assert set(ports[10:]) == set(range(4000, 4010))
    assert gateway.nat.settings[0].slice_violations == 0


def test_a_packet_of_a_flow_that_left_the_slice_is_stopped_and_counted() -> None:
    gateway = Gateway(ports=(3000, 3099))
    gateway.external(2, out("udp"))
    set_pool(gateway.nat, 1, int(gateway.nat.pool[1].address), 4000, 4099)
    assert gateway.send(2, out("udp"))[0] == Verdict.SLICE_VIOLATION
    assert gateway.nat.settings[0].slice_violations == 1


def test_ports_are_drawn_evenly_over_the_slice_and_otherwise_with_another_secret() -> None:
    gateway = Gateway(max_flows=1000, ports=(1024, 65535))
    drawn = [gateway.external(1, out("udp", port=port))[1] for port in range(400)]
    eighths = np.bincount([(port - 1024) * 8 // 64512 for port in drawn], minlength=8)
    assert ((eighths - 50) ** 2 / 50).sum() < 24.3  # chi-square, 7 degrees of freedom, 0.1 %
    other = Gateway(max_flows=1000)
    other.nat.settings[0].key0 = 5
    assert [other.external(1, out("udp", port=port))[1] for port in range(20)] != drawn[:20]


def test_a_nearly_full_slice_still_gives_its_last_ports_in_no_order() -> None:
    gateway = Gateway(max_flows=400, ports=(1000, 1299))
    drawn = [gateway.external(1, out("udp", port=port))[1] for port in range(300)]
    assert sorted(drawn) == list(range(1000, 1300))
    assert drawn[-50:] != sorted(drawn[-50:])


def test_a_device_without_an_external_address_gets_nothing_out() -> None:
    gateway = Gateway()
    subscribe(gateway.nat, 1, 0, 0, 0)
    assert gateway.send(1, out("udp"))[0] == Verdict.NO_EXTERNAL_ADDRESS
    assert gateway.send(1, IPv6(src=INSIDE6, dst=REMOTE6) / UDP())[0] == Verdict.NO_EXTERNAL_ADDRESS
    for device in (0, -1, 5, 1 << 20):
        assert gateway.send(device, out("udp"))[0] == Verdict.NO_EXTERNAL_ADDRESS
    assert gateway.nat.settings[0].flows == gateway.nat.settings[0].mappings == 0


def test_ipv6_never_gives_one_external_endpoint_to_two_inner_addresses() -> None:
    gateway = Gateway()
    assert gateway.external(1, IPv6(src="fd64::5", dst=REMOTE6) / UDP(sport=7)) == (Gateway.external6(1), 7)
    assert gateway.send(1, IPv6(src="fd64::6", dst=REMOTE6) / UDP(sport=7))[0] == Verdict.PORTS_EXHAUSTED
    assert gateway.external(1, IPv6(src="fd64::6", dst=REMOTE6) / UDP(sport=8)) == (Gateway.external6(1), 8)
    assert gateway.external(1, IPv6(src="fd64::6", dst=REMOTE6) / UDP(sport=7), 300) == (Gateway.external6(1), 7)  # once it is idle


def test_pings_of_one_identifier_to_many_hosts_share_one_external_identifier() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("icmp", port=77))
    assert gateway.external(1, out("icmp", port=77, remote=OTHER)) == external
    assert gateway.external(1, out("icmp", port=78)) != external
    verdict, row, octets = gateway.receive(into("icmp", external, remote=OTHER))
    assert verdict == Verdict.PASS
    assert IP(octets)[ICMP].id == row.destination_port == 77


@pytest.mark.parametrize(
    "packet",
    [
        IP(src=INSIDE, dst=REMOTE, proto=47) / Raw(bytes(20)),
        IP(src=INSIDE, dst=REMOTE, proto=132) / Raw(bytes(20)),
        IP(src=INSIDE, dst=REMOTE) / ICMP(type=0, id=5),
        IP(src=INSIDE, dst=REMOTE) / ICMP(type=13, id=5),
        IP(src=INSIDE, dst=REMOTE, proto=58) / Raw(b"\x80" + bytes(20)),
        IPv6(src=INSIDE6, dst=REMOTE6) / ICMPv6EchoReply(id=5),
        IPv6(src=INSIDE6, dst=REMOTE6) / ICMPv6ND_NS(),
        IPv6(src=INSIDE6, dst=REMOTE6, nh=59),
    ],
    ids=lambda packet: packet.summary(),
)
def test_what_is_not_translated_is_refused_and_leaves_nothing(packet: Any) -> None:
    gateway = Gateway()
    assert gateway.send(1, packet)[0] == Verdict.UNSUPPORTED_PROTOCOL
    assert gateway.nat.settings[0].flows == 0


@pytest.mark.parametrize("packet", [IP(src=REMOTE, dst=POOL4[1], proto=47) / Raw(bytes(20)), IPv6(src=REMOTE6, nh=59)])
def test_unknown_protocols_from_outside_are_refused(packet: Any) -> None:
    assert Gateway().receive(packet)[0] == Verdict.UNSUPPORTED_PROTOCOL


def test_an_echo_request_from_outside_reaches_nobody() -> None:
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT)
    external = gateway.external(1, out("icmp"))
    assert gateway.receive(IP(src=REMOTE, dst=external[0]) / ICMP(type=8, id=external[1]))[0] == Verdict.FILTERED
    gateway.external(1, IPv6(src=INSIDE6, dst=REMOTE6) / ICMPv6EchoRequest(id=9))
    assert gateway.receive(IPv6(src=REMOTE6, dst=Gateway.external6(1)) / ICMPv6EchoRequest(id=9))[0] == Verdict.FILTERED


def test_fragments_are_not_translated_yet() -> None:
    gateway = Gateway()
    assert gateway.send(1, IP(src=INSIDE, dst=REMOTE, flags="MF") / UDP() / Raw(bytes(16)))[0] == Verdict.FRAGMENT
    assert gateway.receive(IP(src=REMOTE, dst=POOL4[0], frag=2, proto=17) / Raw(bytes(16)))[0] == Verdict.FRAGMENT


def test_packets_and_octets_are_counted_each_way_super_packets_by_their_segments() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("tcp"))
    gateway.receive(into("tcp", external, flags="SA"))
    gateway.receive(into("tcp", external, flags="A", size=3000), segments=3)
    gateway.send(1, out("tcp"))
    flow = gateway.nat.flows[1]
    assert [int(flow[name]) for name in ("packets_out", "bytes_out", "packets_in", "bytes_in")] == [2, 80, 4, 3080]


@pytest.mark.parametrize("size", [0, 1, 1400, 65_000])
def test_a_super_packet_with_a_partial_checksum_comes_through_whole(size: int) -> None:
    gateway = Gateway()
    external = gateway.external(1, out("tcp"))
    packet = into("tcp", external, flags="A", size=size)
    buffer, row = loaded(packet)
    put_be16(buffer, row.transport + 16, pseudo_sum(buffer, row, row.start + row.length - row.transport))
    partial = taken(buffer, row)
    verdict, row, octets = gateway.receive(partial, partial=1, segments=47)
    assert verdict == Verdict.PASS
    buffer, row = loaded(octets)
    row.partial = 1
    fill_transport_checksum(buffer, row)
    assert taken(buffer, row) == raw(with_endpoint(packet, "d", INSIDE, 4000))


def test_removing_a_device_ends_its_flows_and_no_others() -> None:
    gateway = Gateway()
    mine, others = gateway.external(1, out("udp")), gateway.external(3, out("udp"))
    gateway.external(1, out("tcp"))
    assert remove_device(gateway.nat, 1) == 2
    assert gateway.receive(into("udp", mine))[0] == Verdict.NO_MAPPING
    assert gateway.receive(into("udp", others))[0] == Verdict.PASS
    assert gateway.send(1, out("udp"))[0] == Verdict.NO_EXTERNAL_ADDRESS
    assert remove_device(gateway.nat, 1) == remove_device(gateway.nat, 0) == remove_device(gateway.nat, 99) == 0
    assert_consistent(gateway.nat)


def test_dropping_the_flows_of_a_device_leaves_it_its_addresses() -> None:
    gateway = Gateway()
    gateway.external(1, out("udp"))
    assert drop_flows(gateway.nat, 1) == 1
    gateway.external(1, out("udp"))
    assert_consistent(gateway.nat)


def test_a_flow_keeps_its_external_address_when_the_device_is_given_another() -> None:
    gateway = Gateway()
    before = gateway.external(1, out("udp"))
    subscribe(gateway.nat, 1, 1, 0, 0)
    assert gateway.external(1, out("udp")) == before
    assert gateway.external(1, out("udp", port=9))[0] == POOL4[0]


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


def out(kind: str, port: int = 4000, remote: str = REMOTE, rport: int = 80) -> Any:
    """A packet from inside; a TCP one is a SYN."""
    inner = {"tcp": TCP(sport=port, dport=rport, flags="S"), "udp": UDP(sport=port, dport=rport), "icmp": ICMP(type=8, id=port)}[kind]
    return IP(src=INSIDE, dst=remote) / inner


def into(kind: str, external: tuple[str, int], remote: str = REMOTE, rport: int = 80, flags: str = "A", size: int = 0) -> Any:
    """A packet from outside to an external endpoint."""
    host, port = external
    inner = {"tcp": TCP(sport=rport, dport=port, flags=flags), "udp": UDP(sport=rport, dport=port), "icmp": ICMP(type=0, id=port)}[kind]
    return network(IP(src=remote, dst=host)) / inner / Raw(bytes(range(256)) * (size // 256) + bytes(size % 256))
