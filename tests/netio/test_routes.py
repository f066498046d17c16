"""Routes change, and the kernel's answer to where a datagram would go follows."""

import select
import socket
from ipaddress import IPv4Address

from egressvpn.netio.routes import Routes
from tests.netio.namespace import ip, isolated


def packed(address: str) -> bytes:
    return IPv4Address(address).packed


def links() -> tuple[int, int]:
    for number in (1, 3):
        ip(f"link add up{number} type veth peer name far{number}")
        ip(f"address add 10.0.0.{number}/24 dev up{number} noprefixroute")
        ip(f"link set far{number} up")
        ip(f"link set up{number} up")
    return socket.if_nametoindex("up1"), socket.if_nametoindex("up3")


@isolated
def test_a_better_route_is_a_change_and_the_way_from_then_on() -> None:
    first, better = links()
    ip("route add 10.0.0.0/24 dev up1 src 10.0.0.1 metric 2")
    routes = Routes()
    assert routes.interface_to(packed("10.0.0.2"), packed("10.0.0.1"), 0) == first
    assert not select.select([routes.changes], [], [], 0)[0]
    ip("route add 10.0.0.0/24 dev up3 src 10.0.0.3 metric 1")
    assert select.select([routes.changes], [], [], 1)[0]
    assert routes.interface_to(packed("10.0.0.2"), packed("10.0.0.1"), 0) == better
    routes.settle()
    assert not select.select([routes.changes], [], [], 0)[0]
    routes.close()


@isolated
def test_a_mark_may_lead_another_way() -> None:
    first, marked = links()
    ip("route add 10.0.0.0/24 dev up1")
    ip("route add 10.0.0.0/24 dev up3 table 7")
    ip("rule add fwmark 9 table 7")
    routes = Routes()
    assert routes.interface_to(packed("10.0.0.2"), packed("10.0.0.1"), 0) == first
    assert routes.interface_to(packed("10.0.0.2"), packed("10.0.0.1"), 9) == marked
    routes.close()


@isolated
def test_without_a_route_or_with_an_address_that_is_not_ours_there_is_no_way() -> None:
    links()
    routes = Routes()
    assert routes.interface_to(packed("10.0.0.2"), packed("10.0.0.1"), 0) == 0
    ip("route add 10.0.0.0/24 dev up1")
    assert routes.interface_to(packed("10.0.0.2"), packed("192.0.2.1"), 0) == 0
    routes.close()


@isolated
def test_more_changes_than_fit_are_changes_and_no_error() -> None:
    links()
    routes = Routes()
    routes.changes.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for number in range(40):
        ip(f"route add 192.0.{number}.0/24 dev up1")
    assert select.select([routes.changes], [], [], 1)[0]
    routes.settle()
    assert not select.select([routes.changes], [], [], 0)[0]
    routes.close()
