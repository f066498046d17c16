"""netns.sh, cases 7 to 10 and 12: the endpoint follows what authenticates, keys may change, and a loop ends when it is mended."""

import socket
import time
from collections.abc import Callable

from pair import INSIDE4, INSIDE6, Pair
from triangle import socket_in

ELSEWHERE = "127.212.121.99"
PORT = 1111
PATIENCE = 3.0  # s


def until(met: Callable[[], bool]) -> bool:
    """Whether it is met before patience ends."""
    deadline = time.monotonic() + PATIENCE
    while not met():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_cases_7_and_8_an_endpoint_roams_over_ipv4_and_then_to_ipv6(together: Pair) -> None:
    one, two = together.one, together.two
    together.meet("127.0.0.1:2", "127.0.0.1:1")
    assert two.ping(INSIDE4[1]) == 1
    together.lab.ip(together.lab.namespace(0), "address delete 127.0.0.1/8 dev lo", f"address add {ELSEWHERE}/8 dev lo")
    one.set("listen-port", "9999")
    one.set("peer", together.key2.public, "endpoint", "127.0.0.1:2")
    assert one.ping(INSIDE6[2]) == 1
    assert two.endpoint(together.key1) == f"{ELSEWHERE}:9999"
    one.set("listen-port", "9998")
    one.set("peer", together.key2.public, "endpoint", "[::1]:2")
    assert one.ping(INSIDE4[2]) == 1
    assert two.endpoint(together.key1) == "[::1]:9998"


def test_case_9_a_packet_from_anothers_address_is_dropped_and_yet_moves_the_endpoint(together: Pair) -> None:
    one, two = together.one, together.two
    together.meet("[::1]:2", "[::1]:1")
    one.set("peer", together.key2.public, "allowed-ips", "192.168.241.0/24")
    with (
        socket_in(one.place, socket.AF_INET, socket.SOCK_DGRAM) as here,
        socket_in(two.place, socket.AF_INET, socket.SOCK_DGRAM) as there,
    ):
        here.bind((INSIDE4[1], PORT))
        here.settimeout(PATIENCE)
        there.connect((INSIDE4[1], PORT))
        there.send(b"W")
        assert here.recv(9) == b"W"
        stranger = together.lab.keys()
        one.set("peer", stranger.public, "allowed-ips", f"{INSIDE4[2]}/32")
        two.set("listen-port", "9997")
        there.send(b"X")
        assert until(lambda: one.endpoint(together.key2) == "[::1]:9997")
        one.set("peer", stranger.public, "remove")
        there.send(b"Y")
        assert here.recv(9) == b"Y", "X was for nobody"


def test_case_10_a_changed_private_key_shakes_hands_at_once(together: Pair) -> None:
    one, two = together.one, together.two
    together.meet("127.0.0.1:2", "127.0.0.1:1")
    assert one.ping(INSIDE4[2]) == 1
    one.set("private-key", str(together.key3.file))
    two.set(
        "peer", together.key3.public, "preshared-key", str(together.psk), "allowed-ips", f"{INSIDE4[1]}/32",
        "peer", together.key1.public, "remove",
    )  # fmt: skip
    assert one.ping(INSIDE4[2]) == 1
    assert two.handshake(together.key3) != 0
    assert [peer for (peer,) in two.show("peers")] == [together.key3.public]


def test_case_10_the_node_whose_key_did_not_change_shakes_hands_at_once_too(together: Pair) -> None:
    one, two = together.one, together.two
    together.meet("127.0.0.1:2", "127.0.0.1:1")
    assert one.ping(INSIDE4[2]) == 1
    one.set("private-key", str(together.key3.file))
    two.set(
        "peer", together.key3.public, "preshared-key", str(together.psk), "allowed-ips", f"{INSIDE4[1]}/32",
        "endpoint", "127.0.0.1:1", "peer", together.key1.public, "remove",
    )  # fmt: skip
    assert two.ping(INSIDE4[1]) == 1


def test_case_12_a_routing_loop_ends_when_it_is_mended(together: Pair) -> None:
    """Node 1's wg0 sends its datagrams in n0 to an address that leads into wg1, which sends its own through wg0.

    The kernel counts how deep a packet is nested; in user space each datagram is a new one. It must not hang or crash anything.
    """
    lab, one, two = together.lab, together.one, together.two
    together.meet("127.0.0.1:2", "127.0.0.1:1")
    with together.second("wg1") as (inner1, inner2):
        keys = (together.key3, together.key4)
        for node, own, other in zip((inner1, inner2), keys, reversed(keys), strict=True):
            far = 3 - node.number
            node.set("listen-port", "5", "private-key", str(own.file), "peer", other.public, "allowed-ips", "192.168.240.0/24")
            node.set("peer", other.public, "endpoint", f"[{INSIDE6[far]}]:5")
        inner1.move(0)
        for node in (inner1, inner2):
            node.ip(f"address add 192.168.240.{node.number}/24 dev wg1", "link set wg1 mtu 1340 up")
        assert inner1.ping("192.168.240.2") == 1
        one.set("peer", together.key2.public, "endpoint", "192.168.240.2:7")
        assert inner1.ping("192.168.240.2", 3, "-i", "0.01") == 0
        lab.ip(lab.namespace(0), "link set wg1 down")
        one.set("peer", together.key2.public, "endpoint", "127.0.0.1:2")
        assert until(lambda: one.ping(INSIDE4[2]) == 1)
        assert two.ping(INSIDE4[1]) == 1
        assert inner1.running()
