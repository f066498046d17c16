"""Sockets that share a port: all of them move, or none."""

import socket

import pytest

from egressvpn.app.ports import open_elsewhere, open_listeners, open_on, set_mark
from egressvpn.control.values import SocketAddress, socket_address
from egressvpn.errors import OperatorError
from egressvpn.netio.udp import SO_MARK, UdpSocket

LOCAL = ("127.0.0.1", "::1")


def close(*sockets: UdpSocket) -> None:
    for udp in sockets:
        udp.close()


def free_port() -> int:
    (udp,) = open_on(LOCAL[:1], 0)
    close(udp)
    return udp_port(udp)


def udp_port(udp: UdpSocket) -> int:
    return int(udp.listen.rpartition(":")[2])


def listens(*texts: str) -> tuple[SocketAddress, ...]:
    return tuple(map(socket_address, texts))


def test_port_0_is_one_port_that_is_free_on_every_address() -> None:
    four, six = open_on(LOCAL, 0)
    assert four.port == six.port > 0
    assert [four.listen, six.listen] == [f"127.0.0.1:{four.port}", f"[::1]:{four.port}"]
    close(four, six)


def test_a_port_that_is_taken_on_one_address_is_taken_on_all() -> None:
    (six,) = open_on(LOCAL[1:], 0)
    with pytest.raises(OperatorError, match="port taken"):
        open_on(LOCAL, six.port)
    (four,) = open_on(LOCAL[:1], six.port)  # nothing was left bound
    close(four, six)


def test_listeners_on_the_first_ones_port_move_and_others_stay() -> None:
    first, second, other, to = (free_port() for _ in range(4))
    configured = listens(f"127.0.0.1:{first}", f"127.0.0.2:{other}", f"127.0.0.3:{first}")
    sockets = open_listeners(configured, second, 0)
    assert [udp.listen for udp in sockets] == [f"127.0.0.1:{second}", f"127.0.0.2:{other}", f"127.0.0.3:{second}"]
    moved = open_elsewhere(sockets, configured, to, 0)
    assert [udp.listen for udp in moved] == [f"127.0.0.1:{to}", f"127.0.0.2:{other}", f"127.0.0.3:{to}"]
    assert moved[1] is sockets[1]
    close(*sockets, *moved)


def test_listeners_are_bound_all_or_none() -> None:
    first, other = free_port(), free_port()
    (blocker,) = open_on(("127.0.0.2",), other)
    with pytest.raises(OperatorError, match="port taken"):
        open_listeners(listens(f"127.0.0.1:{first}", f"127.0.0.2:{other}"), first, 0)
    close(blocker, *open_on(("127.0.0.1",), first))


def test_the_mark_is_on_every_socket() -> None:
    sockets = open_on(LOCAL, 0)
    try:
        set_mark(sockets, 77)
    except PermissionError:
        pytest.skip("needs CAP_NET_ADMIN")
    assert [udp.socket.getsockopt(socket.SOL_SOCKET, SO_MARK) for udp in sockets] == [77, 77]
    close(*sockets)
