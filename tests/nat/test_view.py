"""What operators see of the tables."""

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from egressvpn.nat import view
from egressvpn.nat.tables import ENDPOINT_INDEPENDENT
from tests.nat.support import Gateway, ns


def test_a_flow_is_shown_with_its_endpoints_state_age_and_traffic() -> None:
    gateway = Gateway()
    host, port = gateway.external(1, IP(src="100.64.0.5", dst="198.51.100.7") / TCP(sport=4000, dport=443, flags="S"))
    gateway.receive(IP(src="198.51.100.7", dst=host) / TCP(sport=443, dport=port, flags="SA", ack=1), 1)
    assert view.flows(gateway.nat, ns(3)) == [
        {
            "device": 1,
            "protocol": "tcp",
            "internal": {"address": "100.64.0.5", "port": 4000},
            "external": {"address": host, "port": port},
            "remote": {"address": "198.51.100.7", "port": 443},
            "state": "established",
            "idle_seconds": 2.0,
            "age_seconds": 3.0,
            "packets_out": 1,
            "bytes_out": 40,
            "packets_in": 1,
            "bytes_in": 40,
        }
    ]


def test_ipv6_flows_are_shown_with_ipv6_addresses() -> None:
    gateway = Gateway()
    gateway.external(2, IPv6(src="fd64::5", dst="2001:db8:51::7") / UDP(sport=5000, dport=53))
    (flow,) = view.flows(gateway.nat, ns(0))
    assert (flow["protocol"], flow["state"]) == ("udp", "active")
    assert flow["internal"] == {"address": "fd64::5", "port": 5000}
    assert flow["external"] == {"address": Gateway.external6(2), "port": 5000}
    assert flow["remote"] == {"address": "2001:db8:51::7", "port": 53}


def test_the_flows_seen_last_come_first_and_the_limit_holds() -> None:
    gateway = Gateway()
    for second, port in enumerate([7, 3, 9, 1]):
        gateway.external(1, IP(src="100.64.0.5", dst="198.51.100.7") / UDP(sport=port), second)
    assert [flow["internal"]["port"] for flow in view.flows(gateway.nat, ns(10))] == [1, 9, 3, 7]
    assert [flow["internal"]["port"] for flow in view.flows(gateway.nat, ns(10), limit=2)] == [1, 9]


def test_expired_flows_and_those_of_other_devices_are_not_shown() -> None:
    gateway = Gateway()
    gateway.external(1, IP(src="100.64.0.5", dst="198.51.100.7") / UDP())
    gateway.external(3, IP(src="100.64.0.5", dst="198.51.100.7") / UDP(), 5)
    assert [flow["device"] for flow in view.flows(gateway.nat, ns(10), device=3)] == [3]
    assert [flow["device"] for flow in view.flows(gateway.nat, ns(302))] == [3]
    assert view.flows(gateway.nat, ns(305)) == []


def test_a_flow_whose_mapping_has_ended_is_not_shown() -> None:
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT)
    host, port = gateway.external(1, IP(src="100.64.0.5", dst="198.51.100.7") / UDP())
    gateway.receive(IP(src="198.51.100.9", dst=host) / UDP(sport=7, dport=port), 200)
    assert len(view.flows(gateway.nat, ns(200))) == 2
    gateway.expire(301)
    assert gateway.nat.settings[0].flows == 1
    assert view.flows(gateway.nat, ns(301)) == []


def test_each_protocol_and_state_is_shown_for_its_own_time() -> None:
    gateway = Gateway()
    gateway.external(1, IP(src="100.64.0.5", dst="198.51.100.7") / ICMP(type=8, id=5))
    gateway.external(1, IP(src="100.64.0.5", dst="198.51.100.7") / UDP())
    gateway.external(1, IP(src="100.64.0.5", dst="198.51.100.7") / TCP(sport=1, flags="S"))
    host, port = gateway.external(1, IP(src="100.64.0.5", dst="198.51.100.7") / TCP(sport=2, flags="S"))
    gateway.receive(IP(src="198.51.100.7", dst=host) / TCP(sport=80, dport=port, flags="SA", ack=1))
    shown = [sorted(flow["protocol"] for flow in view.flows(gateway.nat, ns(moment))) for moment in (59.9, 60, 240, 300, 7440)]
    assert shown == [["icmp", "tcp", "tcp", "udp"], ["tcp", "tcp", "udp"], ["tcp", "udp"], ["tcp"], []]


def test_counts_add_up() -> None:
    gateway = Gateway(ports=(2000, 2999))
    for port in range(3):
        gateway.external(1, IP(src="100.64.0.5", dst="198.51.100.7") / UDP(sport=port))
    gateway.external(1, IP(src="100.64.0.5", dst="198.51.100.8") / UDP(sport=0))
    counts = view.counts(gateway.nat)
    assert (counts["flows"], counts["mappings"], counts["records"], counts["max_flows"], counts["slice_violations"]) == (4, 3, 4, 64, 0)
    assert (counts["flows_created"], counts["mappings_created"], counts["blocks_given"], counts["unconfirmed"]) == (4, 3, 1, 0)
    assert view.device_counts(gateway.nat, 1) == {"flows": 4, "mappings": 3, "blocks": 1, "refused": 0}
