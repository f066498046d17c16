"""The yardstick itself is tried: nftables masquerade is known to miss three requirements, and these tests must say so of it.

Each question is put to both gateways by the same code. What takes time is waited for once, for both together. (Timers as long as the
RFCs' own are tried with a virtual clock in tests/nat.)
"""

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from discovery import PORT as STUN_PORT
from discovery import Discovered, command, natdiscovery
from gateways import Egress
from topology import INTERNET4, Lab
from triangle import socket_in

from tests.lab.nat.places import Place, connected, heard, seen

PORT = 45_000
AGE = 34  # s: conntrack forgets unanswered UDP, and ICMP, after 30; RFC 4787 asks for 120, RFC 5508 for 60
ECHO_REPLY, ECHO = 0, 8
LIFETIME = "natdiscovery-lifetime"


@pytest.fixture(scope="module")
def ours(judged: Lab) -> Iterator[Place]:
    gateway = Egress(judged, "gateway-calibration")
    gateway.init()
    place = connected(judged, gateway, 2)
    yield place
    place.stop()


def mapping_when_the_port_is_taken(place: Place) -> Discovered:
    """What natdiscovery says of client 1's port when client 2 uses the same port towards the second server that is asked."""
    with place.sockets((place.clients[1].namespace, place.inner(2), PORT)) as (other,):
        other.sendto(bytes(20), (INTERNET4[1], STUN_PORT))
        time.sleep(0.1)
        return natdiscovery(place.lab, place.clients[0].namespace, place.inner(1), "-m", port=PORT)


def test_4787_1_ours_maps_independently_of_the_endpoint_also_when_the_port_is_taken(ours: Place) -> None:
    assert mapping_when_the_port_is_taken(ours).mapping == "Endpoint Independent"


def test_4787_1_masquerade_does_not(masquerade: Place) -> None:
    """Without the second client it keeps every port and looks endpoint-independent."""
    alone = natdiscovery(masquerade.lab, masquerade.clients[0].namespace, masquerade.inner(1), "-m")
    assert alone.mapping == "Endpoint Independent"
    assert "Dependent" in mapping_when_the_port_is_taken(masquerade).mapping


def tcp_endpoints(place: Place) -> list[tuple[str, int]]:
    """The external endpoints of connections from one internal endpoint to two servers, when client 2 has the port to the second."""
    ends = [(place.lab.internet, address, PORT + 1) for address in INTERNET4]
    seen_by = []
    with place.sockets(*ends, kind=socket.SOCK_STREAM) as servers:
        for server in servers:
            server.listen()
        connections = [(2, 1), (1, 0), (1, 1)]
        for number, server in connections:
            local = (place.clients[number - 1].namespace, place.inner(number), PORT + 2)
            client = socket_in(local[0], socket.AF_INET, socket.SOCK_STREAM)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind(local[1:])
            client.settimeout(5)
            client.connect(servers[server].getsockname())
            accepted, remote = servers[server].accept()
            seen_by.append((remote, client, accepted))
        for _, client, accepted in seen_by:
            client.close()
            accepted.close()
    return [remote for remote, _, _ in seen_by[1:]]


def test_5382_1_ours_maps_tcp_independently_of_the_endpoint(ours: Place) -> None:
    first, second = tcp_endpoints(ours)
    assert first == second


def test_5382_1_masquerade_does_not(masquerade: Place) -> None:
    first, second = tcp_endpoints(masquerade)
    assert first != second


def test_4787_9_masquerade_does_not_hairpin(masquerade: Place) -> None:
    """(Ours does: test_natdiscovery.py.)"""
    place = masquerade
    wanted = [(place.clients[n - 1].namespace, place.inner(n), PORT + 3) for n in (1, 2)]
    with place.sockets(*wanted, (place.lab.internet, INTERNET4[0], PORT + 3)) as (one, two, server):
        external_one, external_two = seen(one, server), seen(two, server)
        one.sendto(b"?", external_two)
        two.sendto(b"?", external_one)
        assert heard(one, 0.5) is None


@dataclass(frozen=True)
class Aged:
    """What still worked AGE seconds after the last packet from inside."""

    udp: Discovered
    icmp: bool


@pytest.fixture(scope="module")
def aged(ours: Place, masquerade: Place) -> dict[str, Aged]:
    places = {"ours": ours, "masquerade": masquerade}
    with pings(ours) as first, pings(masquerade) as second:
        for place in places.values():
            place.lab.start(LIFETIME, place.clients[0].namespace, *command(place.inner(1), "-t", "-T", str(AGE)))
        time.sleep(AGE)
        answered = {"ours": first.answer(), "masquerade": second.answer()}
    deadline = time.monotonic() + 5
    while any(place.lab.processes.returncode(LIFETIME) is None for place in places.values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return {name: Aged(Discovered(place.lab.processes.output(LIFETIME)), answered[name]) for name, place in places.items()}


@dataclass
class Query:
    """An echo request that a server has received and not answered yet."""

    client: socket.socket
    server: socket.socket
    external: str
    identifier: bytes
    rest: bytes

    def answer(self) -> bool:
        """Answer it now; whether that arrives."""
        message = bytes([ECHO_REPLY, 0, 0, 0]) + self.identifier + self.rest
        self.server.sendto(message[:2] + checksum(message) + message[4:], (self.external, 0))
        while arrived := heard(self.client, 1.0):
            inner = arrived[0][20:]
            if inner[0] == ECHO_REPLY and inner[6:] == self.rest:
                return True
        return False


@contextmanager
def pings(place: Place) -> Iterator[Query]:
    """An echo request from client 1 whose answer is up to the test: meanwhile the server's kernel answers none."""
    namespace, lab = place.clients[0].namespace, place.lab
    payload = os.urandom(16)
    message = bytes([ECHO, 0, 0, 0]) + struct.pack("!HH", 0x4711, 1) + payload
    lab.sysctl(lab.internet, net__ipv4__icmp_echo_ignore_all=1)
    try:
        with (
            socket_in(namespace, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as client,
            socket_in(lab.internet, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as server,
        ):
            client.sendto(message[:2] + checksum(message) + message[4:], (INTERNET4[0], 0))
            while arrived := heard(server):
                if arrived[0][28:] == payload:
                    break
            assert arrived, "the echo request did not arrive"
            yield Query(client, server, arrived[1][0], arrived[0][24:26], arrived[0][26:])
    finally:
        lab.sysctl(lab.internet, net__ipv4__icmp_echo_ignore_all=0)


def checksum(message: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(message) // 2}H", message))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)


def test_4787_5_a_udp_mapping_of_ours_outlives_that_of_masquerade(aged: dict[str, Aged]) -> None:
    """natdiscovery has the server answer to the old port a second request, from another port."""
    ours, theirs = aged["ours"].udp, aged["masquerade"].udp
    assert (len(ours.seen), ours.timeouts) == (2, 0), ours.text
    assert (len(theirs.seen), theirs.timeouts) == (1, 1), theirs.text


def test_5508_2_an_icmp_query_of_ours_outlives_that_of_masquerade(aged: dict[str, Aged]) -> None:
    assert aged["ours"].icmp
    assert not aged["masquerade"].icmp
