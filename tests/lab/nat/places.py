"""A lab, a gateway in it and connected clients, whichever gateway it is: the same question can be put to ours and to the kernel's NAT.

Questions are asked with sockets of this process that live in the lab's namespaces.
"""

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import traffic
from clients import WireGuardGo
from gateways import Gateway
from topology import INTERNET4, Lab
from triangle import socket_in

UNIQUE_PORT = 40_000  # first of the ports that tests bind in clients and servers
PATIENCE = 2.0  # s for what should arrive
SILENCE = 0.4  # s for what should not


@dataclass
class Place:
    """`clients` are connected; the first is client 1."""

    lab: Lab
    gateway: Gateway
    clients: list[WireGuardGo]

    def inner(self, number: int) -> str:
        """The tunnel's IPv4 address of a client."""
        return self.clients[number - 1].quick.addresses[0].partition("/")[0]

    def outer(self, number: int) -> str:
        """The IPv4 address of a client on the access network."""
        return f"192.0.2.{10 + number}"

    @contextmanager
    def sockets(self, *wanted: tuple[str, str, int], kind: socket.SocketKind = socket.SOCK_DGRAM) -> Iterator[list[socket.socket]]:
        """IPv4 sockets bound to (namespace, address, port); they wait PATIENCE."""
        made = []
        try:
            for namespace, address, port in wanted:
                made.append(socket_in(namespace, socket.AF_INET, kind))
                made[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                made[-1].bind((address, port))
                made[-1].settimeout(PATIENCE)
            yield made
        finally:
            for each in made:
                each.close()

    def stop(self) -> None:
        for client in self.clients:
            client.stop()
        self.gateway.stop()


def connected(lab: Lab, gateway: Gateway, clients: int) -> Place:
    """Start a prepared gateway of either kind and its clients."""
    files = gateway.prepare(clients)
    gateway.start()
    place = Place(lab, gateway, [WireGuardGo(lab, number, quick) for number, quick in enumerate(files, 1)])
    for client in place.clients:
        client.start()
    for client in place.clients:
        traffic.first_answer(lab, client.namespace, INTERNET4[0])
    return place


def heard(receiver: socket.socket, seconds: float = PATIENCE) -> tuple[bytes, tuple[str, int]] | None:
    """The next datagram and where it came from; None when there was none within `seconds`."""
    receiver.settimeout(seconds)
    with suppress(TimeoutError, ConnectionError):
        return receiver.recvfrom(65_535)
    return None


def seen(sender: socket.socket, server: socket.socket, text: bytes = b"who am I") -> tuple[str, int]:
    """The external endpoint that a server sees of a client's socket. Raises AssertionError when nothing arrives."""
    sender.sendto(text, server.getsockname())
    while arrived := heard(server):
        if arrived[0] == text:
            return arrived[1]
    raise AssertionError(f"nothing from {sender.getsockname()} arrived at {server.getsockname()}")


def in_network(address: str, network: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(network)
