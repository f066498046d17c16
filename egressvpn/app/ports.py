"""UDP sockets that share a port, as WireGuard's `listen_port` means it: all addresses of the interface move together.

A gateway may be told to listen on further ports: those stay where the configuration has them.
"""

import contextlib
import dataclasses
import socket
from collections.abc import Sequence
from typing import Final

from egressvpn.control.values import SocketAddress
from egressvpn.errors import OperatorError
from egressvpn.netio.udp import SO_MARK, UdpSocket, open_udp

ATTEMPTS: Final = 20  # to find a port that is free on every address


def open_on(hosts: Sequence[str], port: int, mark: int = 0) -> list[UdpSocket]:
    """Bind every literal address to one port, all or none; 0: one that is free on all of them. Raises OperatorError."""
    for attempt in range(1, ATTEMPTS + 1):
        (first,) = open_udp([_listen(hosts[0], port)], mark)
        try:
            others = open_udp([_listen(host, first.port) for host in hosts[1:]], mark)
        except OperatorError:
            first.close()
            if port or attempt == ATTEMPTS:
                raise
            continue
        return [dataclasses.replace(first, listen=_listen(hosts[0], first.port)), *others]
    raise AssertionError("the last attempt raises")


def open_listeners(listens: Sequence[SocketAddress], port: int, mark: int) -> list[UdpSocket]:
    """The sockets of a configuration, in its order; those on the port of the first one are on `port`. Raises OperatorError."""
    moving = _moving(listens)
    with contextlib.ExitStack() as on_failure:
        opened = dict(zip(moving, open_on([str(listens[n].address) for n in moving], port, mark), strict=True))
        for udp in opened.values():
            on_failure.callback(udp.close)
        for number, listen in enumerate(listens):
            if number not in opened:
                (opened[number],) = open_udp([str(listen)], mark)
                on_failure.callback(opened[number].close)
        on_failure.pop_all()
    return [opened[number] for number in range(len(listens))]


def open_elsewhere(sockets: Sequence[UdpSocket], listens: Sequence[SocketAddress], port: int, mark: int) -> list[UdpSocket]:
    """The sockets of `open_listeners`, with fresh ones on `port` for those that move. Raises OperatorError."""
    moving = _moving(listens)
    opened = open_on([str(listens[number].address) for number in moving], port, mark)
    fresh = dict(zip(moving, opened, strict=True))
    return [fresh.get(number, udp) for number, udp in enumerate(sockets)]


def set_mark(sockets: Sequence[UdpSocket], mark: int) -> None:
    """SO_MARK on all of them, which the worker's copies of the descriptors share. Raises OSError."""
    for udp in sockets:
        udp.socket.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)


def _moving(listens: Sequence[SocketAddress]) -> list[int]:
    return [number for number, listen in enumerate(listens) if listen.port == listens[0].port]


def _listen(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
