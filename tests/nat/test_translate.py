"""Translation against scapy octet for octet, and the behaviour that RFC 4787, 5382 and 5508 ask for."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6ND_NS, IPv6
from scapy.packet import Raw

from egressvpn.nat.expiry import end_address
from egressvpn.nat.pools import set_pool
from egressvpn.nat.tables import subscribe
from egressvpn.nat.translate import may_open
from egressvpn.packet.checksum import fill_transport_checksum, pseudo_sum
from egressvpn.packet.octets import put_be16
from egressvpn.verdict import Verdict
from tests.nat.packets import INSIDE, INSIDE6, OTHER, REMOTE, REMOTE6, into, out, packet, tcp
from tests.nat.support import GROUP, POOL4, Gateway, assert_consistent, loaded, ns
from tests.packet.support import address, as_words, networks, raw, taken, transport, transports, with_endpoint


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
    gateway = Gateway(ports=(5000, 5015), block_size=8)
    ends = {gateway.external(1, out("udp", port=port)) for port in range(16)}
    assert {port for _, port in ends} == set(range(5000, 5016))
    assert gateway.send(1, out("udp", port=99))[0] == Verdict.PORTS_EXHAUSTED
    assert gateway.send(1, out("udp", port=3, remote=OTHER))[0] == Verdict.PASS  # an old endpoint may have new remotes
    assert gateway.send(1, out("tcp"))[0] == Verdict.PASS
    assert gateway.send(1, out("icmp"))[0] == Verdict.PASS
    assert_consistent(gateway.nat)


def test_a_device_has_no_more_flows_than_its_quota_and_others_have_theirs() -> None:
    gateway = Gateway(max_flows_per_device=3)
    for port in range(3):
        gateway.external(1, out("udp", port=port))
    assert gateway.send(1, out("udp", port=9))[0] == Verdict.QUOTA_EXCEEDED
    assert gateway.send(1, out("udp", port=0, remote=OTHER))[0] == Verdict.QUOTA_EXCEEDED
    assert gateway.send(1, out("udp", port=0))[0] == Verdict.PASS
    assert gateway.send(2, out("udp"))[0] == Verdict.PASS
    assert gateway.nat.settings[0].quota_exceeded == gateway.nat.subscribers[1].refused == 2
    assert gateway.send(1, out("udp", port=9), 301)[0] == Verdict.PASS


def test_every_address_gives_ports_of_its_own_slice() -> None:
    gateway = Gateway(ports=(3000, 3099))
    assert end_address(gateway.nat, 1, 100, ns(0)) == 1
    assert set_pool(gateway.nat, 1, as_words(POOL4[0])[1], GROUP, 4000, 4009, 5, 2, 0, 0) == 1
    subscribe(gateway.nat, 2, 102, 1, *as_words(Gateway.external6(2)), 0)
    ports = [gateway.external(device, out("tcp", port=port))[1] for device in (1, 2) for port in range(10)]
    assert all(3000 <= port <= 3099 for port in ports[:10])
    assert set(ports[10:]) == set(range(4000, 4010))
    assert gateway.nat.settings[0].slice_violations == 0


def test_a_packet_of_a_flow_that_left_the_slice_is_stopped_and_counted() -> None:
    gateway = Gateway(ports=(3000, 3099))
    gateway.external(2, out("udp"))
    gateway.nat.pool[1].port_high = 2999
    assert gateway.send(2, out("udp"))[0] == Verdict.SLICE_VIOLATION
    assert gateway.nat.settings[0].slice_violations == 1


def test_a_device_without_an_external_address_gets_nothing_out() -> None:
    gateway = Gateway()
    subscribe(gateway.nat, 1, 101, 0, 0, 0, 0)
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
    assert gateway.external(1, IPv6(src="fd64::6", dst=REMOTE6) / UDP(sport=7), 300.2) == (Gateway.external6(1), 7)  # once it is idle


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


def test_fragments_are_not_translated_yet() -> None:
    gateway = Gateway()
    assert gateway.send(1, IP(src=INSIDE, dst=REMOTE, flags="MF") / UDP() / Raw(bytes(16)))[0] == Verdict.FRAGMENT
    assert gateway.receive(IP(src=REMOTE, dst=POOL4[0], frag=2, proto=17) / Raw(bytes(16)))[0] == Verdict.FRAGMENT


def test_packets_and_octets_are_counted_each_way_super_packets_by_their_segments() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("tcp"))
    gateway.receive(into("tcp", external, flags="SA"))
    gateway.receive(into("tcp", external, flags="A", size=3000, seq=1), segments=3)
    gateway.send(1, out("tcp"))
    flow = gateway.nat.flows[1]
    assert [list(map(int, flow[name])) for name in ("packets", "octets")] == [[2, 4], [80, 3080]]


def test_a_segment_that_tracking_drops_counts_for_nothing() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("tcp"))
    gateway.receive(into("tcp", external, flags="SA"))
    gateway.send(1, tcp("A", seq=1, ack=1))
    before = gateway.octets()
    assert gateway.receive(into("tcp", external, flags="R", seq=1 << 30), 5)[0] == Verdict.TCP_OUT_OF_WINDOW
    assert gateway.octets() == before


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


@pytest.mark.parametrize("version", [4, 6])
def test_may_open_says_what_opening_would_and_changes_nothing(version: int) -> None:
    gateway = Gateway(ports=(2000, 2000), block_size=1, max_flows=2)
    first, second, third = (packet(version, port) for port in (1, 1 if version == 6 else 2, 3))
    second = IPv6(src="fd64::6", dst=REMOTE6) / UDP(sport=1) if version == 6 else second
    for device, one, expected in [
        (9, first, Verdict.NO_EXTERNAL_ADDRESS),
        (1, first, Verdict.PASS),
        (1, first, Verdict.PASS),
        (1, second, Verdict.PORTS_EXHAUSTED),
        (2, first, Verdict.PASS),
        (2, third, Verdict.FLOW_TABLE_FULL),
    ]:
        before = gateway.octets()
        assert may_open(gateway.nat, device, loaded(one)[1], ns(0)) == expected
        assert gateway.octets() == before
        assert gateway.send(device, one)[0] == expected
    assert_consistent(gateway.nat)


def test_a_device_keeps_its_external_address_as_long_as_it_has_ports_there() -> None:
    gateway = Gateway()
    before = gateway.external(1, out("udp"))
    subscribe(gateway.nat, 1, 101, 1, 0, 0, 0)
    assert gateway.external(1, out("udp")) == before
    assert gateway.external(1, out("udp", port=9))[0] == before[0]
    gateway.expire(500)
    subscribe(gateway.nat, 1, 101, 1, 0, 0, 0)
    assert gateway.external(1, out("udp", port=9), 700)[0] in POOL4
