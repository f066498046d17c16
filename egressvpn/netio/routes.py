"""When the machine's IPv4 routes change, and by which interface the kernel would then send (rtnetlink(7)).

Spoken with the kernel directly: the question is asked for every peer at every change, and pyroute2 takes a hundred times as long.
"""

import contextlib
import socket
import struct
from typing import Final

RTMGRP_IPV4_ROUTE: Final = 0x40
RTM_NEWROUTE: Final = 24
RTM_GETROUTE: Final = 26
NLM_F_REQUEST: Final = 1
RTA_DST: Final = 1
RTA_SRC: Final = 2
RTA_OIF: Final = 4
RTA_MARK: Final = 16
HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
ROUTE: Final = struct.Struct("=8BI")  # struct rtmsg: family, lengths of destination and source, ...
ATTRIBUTE: Final = struct.Struct("=HH")  # struct rtattr: length, type
ENOUGH: Final = 65_536


class Routes:
    """`changes` is readable when routes have changed since the last `settle`."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as on_failure:
            self.changes = on_failure.enter_context(_netlink())
            self.changes.bind((0, RTMGRP_IPV4_ROUTE))
            self._questions = on_failure.enter_context(_netlink())
            on_failure.pop_all()

    def close(self) -> None:
        self.changes.close()
        self._questions.close()

    def settle(self) -> None:
        """Forget the changes so far. (What they were does not matter; more than fit into the socket are changes, too.)"""
        while True:
            try:
                self.changes.recv(ENOUGH)
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: some were lost
                continue

    def interface_to(self, destination: bytes, source: bytes, mark: int) -> int:
        """The index of the interface by which a datagram from and to these IPv4 addresses would leave; 0 for none."""
        attributes = b"".join(
            ATTRIBUTE.pack(ATTRIBUTE.size + 4, kind) + value
            for kind, value in ((RTA_DST, destination), (RTA_SRC, source), (RTA_MARK, struct.pack("=I", mark)))
        )
        body = ROUTE.pack(socket.AF_INET, 32, 32, 0, 0, 0, 0, 0, 0) + attributes
        self._questions.send(HEADER.pack(HEADER.size + len(body), RTM_GETROUTE, NLM_F_REQUEST, 0, 0) + body)
        return _interface_in(self._questions.recv(ENOUGH))  # the kernel has answered before send returns


def _netlink() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)


def _interface_in(answer: bytes) -> int:
    length, kind, _, _, _ = HEADER.unpack_from(answer)
    at = HEADER.size + ROUTE.size
    while kind == RTM_NEWROUTE and at + ATTRIBUTE.size <= length:
        size, attribute = ATTRIBUTE.unpack_from(answer, at)
        if attribute == RTA_OIF:
            return int.from_bytes(answer[at + 4 : at + 8], "little")
        at += max(size, ATTRIBUTE.size) + 3 & ~3
    return 0
