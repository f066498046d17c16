"""netns.sh, cases 1 to 5 and 11: octets are counted as the kernel counts them, and every kind of traffic passes."""

import pytest
from pair import BIG_MTU, INSIDE4, INSIDE6, Pair
from triangle import Node

INITIATION, RESPONSE, KEEPALIVE = 148, 92, 32
PING = 128  # 84 octets, padded to 96, in a data message
TCP_BYTES, UDP_BYTES = 8_000_000, 4_000_000
OUTER = {"IPv4": ("127.0.0.1:2", "127.0.0.1:1"), "IPv6": ("[::1]:2", "[::1]:1")}


def test_case_1_octets_are_counted_exactly_as_the_kernel_counts_them(together: Pair) -> None:
    together.meet(*OUTER["IPv4"])
    assert together.two.ping(INSIDE4[1], 10) == 10
    received = RESPONSE + 10 * PING
    sent = INITIATION + 10 * PING
    assert received == 1372
    for rx, tx in (together.two.transfer(together.key1), reversed(together.one.transfer(together.key2))):
        assert rx == received
        assert tx in {sent, sent + KEEPALIVE}
    assert together.one.handshake(together.key2) != 0
    assert together.two.handshake(together.key1) != 0


@pytest.mark.parametrize("mtu", [1420, BIG_MTU])
@pytest.mark.parametrize("outer", OUTER)
def test_cases_2_to_5_pings_tcp_and_udp_pass_over_either_outer_protocol_and_mtu(together: Pair, outer: str, mtu: int) -> None:
    together.meet(*OUTER[outer])
    together.set_mtu(mtu)
    whole = str(mtu - 28)  # with the headers of IPv4 and ICMP as large as the interface lets it be, and never to be cut
    assert together.one.ping(INSIDE4[2], 1, "-s", whole, "-M", "do") == 1
    all_traffic(together.one, together.two)


def test_case_11_wireguard_passes_through_wireguard(together: Pair) -> None:
    """The outer tunnel has only IPv6 inside, and carries the datagrams of the inner one."""
    one, two = together.one, together.two
    together.meet(*OUTER["IPv4"])
    for node, number, peer in ((one, 1, together.key2), (two, 2, together.key1)):
        node.ip(f"address flush dev {node.device}", f"address add fd00::5:{number}/112 dev {node.device} nodad")
        node.set("peer", peer.public, "allowed-ips", f"fd00::5:{3 - number}/128")
    with together.second("wg1") as inner:
        keys = (together.key3, together.key4)
        for node, own, other in zip(inner, keys, reversed(keys), strict=True):
            far = 3 - node.number
            node.set("listen-port", "5", "private-key", str(own.file), "peer", other.public)
            node.set("peer", other.public, "allowed-ips", f"{INSIDE4[far]}/32,{INSIDE6[far]}/128", "endpoint", f"[fd00::5:{far}]:5")
            node.ip(
                f"address add {INSIDE4[node.number]}/24 dev wg1",
                "link set wg1 mtu 1340 up",
                f"address add {INSIDE6[node.number]}/112 dev wg1 nodad",
            )
        all_traffic(*inner)
        assert inner[0].transfer(together.key4)[0] > TCP_BYTES / 4


def all_traffic(one: Node, two: Node) -> None:
    """What the function `tests` of netns.sh does, with a fixed size in place of three seconds each."""
    assert two.ping(INSIDE4[1], 10) == 10
    assert one.ping(INSIDE4[2], 10) == 10
    assert two.ping(INSIDE6[1], 10) == 10
    assert one.ping(INSIDE6[2], 10) == 10
    for source, target in ((one, INSIDE4[2]), (two, INSIDE6[1])):
        done = source.iperf3(target, "-Z", "-n", str(TCP_BYTES))
        assert done["sum_received"]["bytes"] >= TCP_BYTES / 4  # the rest was on its way when the sender ended
    for source, target in ((two, INSIDE4[1]), (one, INSIDE6[2])):
        done = source.iperf3(target, "-Z", "-u", "-b", "0", "-n", str(UDP_BYTES))
        assert done["sum"]["packets"] > 0
        assert done["sum"]["lost_percent"] < 100
