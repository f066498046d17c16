"""The interface of a TUN, wherever somebody has put it: its MTU, and when something about it changes.

An interface may be moved to another network namespace (netns.sh does, and whoever gives a container its tunnel); the process
stays where it is. Sockets belong to the namespace that their thread was in when they were made, so those that ask and listen are
made by a thread that goes there (setns(2)) and ends.
"""

import contextlib
import ctypes
import fcntl
import os
import socket
import sys
import threading
from typing import Final

from egressvpn.netio.tun import IFNAMSIZ, IFREQ_BYTES, Tun

TUNGETDEVNETNS: Final = 0x54E3  # linux/if_tun.h, since Linux 5.2: a descriptor of the interface's namespace
SIOCGIFMTU: Final = 0x8921
CLONE_NEWNET: Final = 0x40000000
RTMGRP_LINK_AND_ADDRESSES: Final = 0x1 | 0x10 | 0x100
ENOUGH: Final = 65_536

libc = ctypes.CDLL(None, use_errno=True)


class Link:
    """`changes` is readable when links or addresses in the interface's namespace have changed since the last `settle`."""

    def __init__(self, tun: Tun) -> None:
        self._tun = tun
        self._namespace = 0
        self.changes, self._asking = _sockets(-1)

    def close(self) -> None:
        self.changes.close()
        self._asking.close()

    def settle(self) -> None:
        """Forget the changes so far, and follow the interface to where it is now."""
        with contextlib.suppress(OSError):
            while self.changes.recv(ENOUGH):
                pass
        with contextlib.suppress(OSError):
            there = fcntl.ioctl(self._tun.fd, TUNGETDEVNETNS)
            try:
                if (number := os.fstat(there).st_ino) != self._namespace:
                    fresh = _made_in(there)
                    self.close()
                    self.changes, self._asking = fresh
                    self._namespace = number
            finally:
                os.close(there)

    def mtu(self) -> int:
        """As it is now; 0 when it cannot be told."""
        with contextlib.suppress(OSError):
            answer = fcntl.ioctl(self._asking, SIOCGIFMTU, self._tun.current_name().ljust(IFREQ_BYTES, b"\0"))
            return int.from_bytes(answer[IFNAMSIZ : IFNAMSIZ + 4], sys.byteorder)
        return 0


def _made_in(namespace: int) -> tuple[socket.socket, socket.socket]:
    """Both sockets, of that namespace. Raises OSError."""
    made: list[tuple[socket.socket, socket.socket] | OSError] = []

    def go() -> None:
        try:
            made.append(_sockets(namespace))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


def _sockets(namespace: int) -> tuple[socket.socket, socket.socket]:
    """One that hears of changes and one to ask with; of the namespace with this descriptor, of our own when it is negative."""
    if namespace >= 0 and libc.setns(namespace, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    with contextlib.ExitStack() as on_failure:
        changes = on_failure.enter_context(
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        )
        changes.bind((0, RTMGRP_LINK_AND_ADDRESSES))
        asking = on_failure.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC))
        on_failure.pop_all()
    return changes, asking
