"""What operators see of the tables."""

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from egressvpn.nat import view
from tests.nat.support import Gateway, ns


def test_a_flow_is_shown_with_its_endpoints_state_age_and_traffic() -> None:
    gateway = Gateway()
    host, port = gateway.external(1, IP(src="100.64.0.5", dst="198.51.100.7") / TCP(sport=4000, dport=443, flags="S"))
    gateway.receive(IP(src="198.51.100.7", dst=host) / TCP(sport=443, dport=port, flags="SA"), 1)
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


def test_pool_usage_and_counts_add_up() -> None:
    gateway = Gateway(ports=(2000, 2999))
    for port in range(3):
        gateway.external(1, IP(src="100.64.0.5", dst="198.51.100.7") / UDP(sport=port))
    gateway.external(1, IP(src="100.64.0.5", dst="198.51.100.7") / TCP(flags="S"))
    usage = {entry["address"]: entry for entry in view.pool_usage(gateway.nat)}
    mine = usage[Gateway.external4(1)]
    assert (mine["udp"], mine["tcp"], mine["icmp"], mine["size"], mine["devices"]) == (3, 1, 0, 1000, 2)
    assert usage[Gateway.external4(2)]["udp"] == 0
    counts = view.counts(gateway.nat)
    assert (counts["flows"], counts["mappings"], counts["permits"], counts["max_flows"], counts["slice_violations"]) == (4, 4, 4, 64, 0)
    assert view.device_counts(gateway.nat, 1) == {"flows": 4, "mappings": 4}
