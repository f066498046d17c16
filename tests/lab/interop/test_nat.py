"""netns.sh, cases 13 to 17: node 1 is behind a NAT with short timeouts, and the ways packets may be routed into the tunnel.

n1: vethc 192.168.1.100 ── vethrc 192.168.1.1 :n0: vethrs 10.0.0.1 ── veths 10.0.0.100 :n2
"""

import time
from collections.abc import Iterator

import pytest
from pair import INSIDE4, INSIDE6, SIDES, Pair
from triangle import EGRESS

TIMEOUT = 2  # s, of the NAT's entries
OURS_SECOND = {name: kinds for name, kinds in SIDES.items() if kinds[1] == EGRESS} or SIDES
SNAT = "table ip nat { chain post { type nat hook postrouting priority srcnat; %s; }; }"


@pytest.fixture
def behind_nat(apart: Pair) -> Iterator[Pair]:
    """The picture above. Node 1 knows where node 2 is."""
    lab, n0 = apart.lab, apart.lab.namespace(0)
    lab.link(0, "vethrc", 1, "vethc")
    lab.link(0, "vethrs", 2, "veths")
    lab.ip(n0, "address add 192.168.1.1/24 dev vethrc", "address add 10.0.0.1/24 dev vethrs")
    lab.ip(lab.namespace(1), "address add 192.168.1.100/24 dev vethc", "route add default via 192.168.1.1")
    lab.ip(lab.namespace(2), "address add 10.0.0.100/24 dev veths")
    lab.nft(0, SNAT % "ip saddr 192.168.1.0/24 ip daddr 10.0.0.0/24 snat to 10.0.0.1")
    lab.sysctl(n0, net__ipv4__ip_forward=1)
    lab.sysctl(
        n0, net__netfilter__nf_conntrack_udp_timeout=TIMEOUT, net__netfilter__nf_conntrack_udp_timeout_stream=TIMEOUT
    )  # once there are rules
    apart.one.set("peer", apart.key2.public, "endpoint", "10.0.0.100:2")
    yield apart
    for version in (4, 6):
        apart.one.ip("route flush table 51820", version=version)


def test_case_13_persistent_keepalives_hold_the_nats_mapping(behind_nat: Pair) -> None:
    one, two = behind_nat.one, behind_nat.two
    one.set("peer", behind_nat.key2.public, "persistent-keepalive", "1")
    assert one.ping(INSIDE4[2]) == 1
    assert two.ping(INSIDE4[1]) == 1
    assert two.endpoint(behind_nat.key1) == "10.0.0.1:1"
    time.sleep(TIMEOUT + 1)  # the mapping would be gone
    assert two.ping(INSIDE4[1]) == 1
    one.set("peer", behind_nat.key2.public, "persistent-keepalive", "0")
    assert one.show("persistent-keepalive") == [[behind_nat.key2.public, "off"]]


def test_case_14_a_packet_bound_to_the_interface_or_marked_on_its_way_enters_the_tunnel(behind_nat: Pair) -> None:
    one = behind_nat.one
    assert one.ping(INSIDE4[2]) == 1
    assert one.ping(INSIDE4[2], 1, "-I", one.device) == 1
    behind_nat.lab.nft(1, "table ip mangle { chain out { type route hook output priority mangle; meta mark set meta mark | 1; }; }")
    assert one.ping(INSIDE4[2]) == 1
    assert one.ping(INSIDE4[2], 1, "-I", one.device) == 1


def test_case_15_onion_routing_works_and_a_peer_inside_itself_hurts_nobody(behind_nat: Pair) -> None:
    """Peer 3 of node 1's wg0 is reached through peer 2 of the same interface."""
    one = behind_nat.one
    one.set("peer", behind_nat.key3.public, "allowed-ips", "192.168.242.2/32", "endpoint", f"{INSIDE4[2]}:5")
    one.ip(f"address add 192.168.242.1/24 dev {one.device}")
    with behind_nat.second("wg1", (2,)) as (inner,):
        inner.set("private-key", str(behind_nat.key3.file), "listen-port", "5")
        inner.set("peer", behind_nat.key1.public, "allowed-ips", "192.168.242.1/32")
        inner.ip("address add 192.168.242.2/24 dev wg1", "link set wg1 up")
        assert one.ping("192.168.242.2") == 1
    one.set("peer", behind_nat.key3.public, "endpoint", "192.168.242.2:5")
    assert one.ping("192.168.242.2") == 0
    one.set("peer", behind_nat.key3.public, "remove")
    assert one.ping(INSIDE4[2]) == 1


def test_case_16_policy_routing_as_wg_quick_does_it(behind_nat: Pair) -> None:
    lab, one, two = behind_nat.lab, behind_nat.one, behind_nat.two
    one.ip("address add fc00::9/96 dev vethc nodad", "route add default via fc00::1", version=6)
    two.ip("address add 192.168.99.7/32 dev wg0", "address add abab::1111/128 dev wg0 nodad")
    one.set("fwmark", "51820", "peer", behind_nat.key2.public, "allowed-ips", "192.168.99.7,abab::1111")
    two.set("peer", behind_nat.key1.public, "allowed-ips", f"{INSIDE4[1]}/32,{INSIDE6[1]}/128,192.168.1.100/32,fc00::9/128")
    for version in (4, 6):
        one.ip(
            "route add default dev wg0 table 51820",
            "rule add not fwmark 51820 table 51820",
            "rule add table main suppress_prefixlength 0",
            version=version,
        )
    lab.sysctl(one.place, net__ipv4__conf__vethc__rp_filter=0)
    assert one.ping("192.168.99.7", 100) == 100
    assert one.ping("abab::1111", 100) == 100


@pytest.mark.parametrize("_apart", OURS_SECOND.values(), ids=OURS_SECOND, indirect=True)
def test_case_17_the_error_about_a_packet_nobody_may_have_goes_back_through_a_nat(behind_nat: Pair) -> None:
    """n0 pings into n2's tunnel and is translated there; node 2 knows no peer for the address and says so.

    The kernel's error comes from an address of the interface it leaves by. A TUN cannot write such a packet, the kernel would take it
    for a forgery; ours comes from the address that cannot be reached. wireguard-go sends none, so node 2 is ours.
    """
    lab, two = behind_nat.lab, behind_nat.two
    lab.nft(2, SNAT % f"ip saddr 10.0.0.0/24 ip daddr 192.168.241.0/24 snat to {INSIDE4[2]}")
    lab.sysctl(two.place, net__ipv4__ip_forward=1)
    lab.ip(lab.namespace(0), f"route add {INSIDE4[1]} via 10.0.0.100")
    two.set("peer", behind_nat.key1.public, "remove")
    said = lab.run(lab.namespace(0), "ping", "-n", "-W", "1", "-c", "1", INSIDE4[1], check=False).stdout
    assert f"From {INSIDE4[1]} icmp_seq=1 Destination Host Unreachable" in said
