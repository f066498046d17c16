"""The gateway's UDP sockets, and what they are to tell the data path about each datagram.

RFC 3542 sections 6.1 and 6.2 and ip(7): a datagram arrives with a PKTINFO control message that says which of our addresses
the client wrote to. Handing it back with the answer makes the answer leave from there, which a client behind a NAT or a
machine with several addresses needs. Another says its TOS, for ECN. udp(7): with UDP_GRO one read brings many datagrams of one
sender.
"""

import contextlib
import errno
import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path as File
from typing import Final

from egressvpn.errors import OperatorError

# linux/udp.h
SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
# linux/in.h and linux/in6.h
IP_PKTINFO: Final = 8
IP_MTU_DISCOVER: Final = 10
IP_RECVTOS: Final = 13
IP_PMTUDISC_DONT: Final = 0
IPV6_MTU_DISCOVER: Final = 23
IPV6_PMTUDISC_DONT: Final = 0
# asm-generic/socket.h
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
SO_MARK: Final = 36

BUFFER_BYTES: Final = 8 << 20  # some 60 ms of one direction at 1 Gbit/s; the kernel doubles it for its own overhead


@dataclass(frozen=True, slots=True)
class UdpSocket:
    """A bound, non-blocking UDP socket. `listen` is how the configuration writes it."""

    listen: str
    socket: socket.socket

    @property
    def fd(self) -> int:
        return self.socket.fileno()

    @property
    def family(self) -> int:
        return self.socket.family

    @property
    def port(self) -> int:
        """The port it is bound to, also when the configuration said 0."""
        return int(self.socket.getsockname()[1])

    def close(self) -> None:
        self.socket.close()


def split_listen(listen: str) -> tuple[str, int]:
    """'192.0.2.1:51820' or '[2001:db8::1]:51820' as (address, port). Raises OperatorError for anything else."""
    host, colon, port = listen.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    address = host[1:-1] if bracketed else host
    with contextlib.suppress(ValueError):
        version = ipaddress.ip_address(address).version
        if colon and port.isascii() and port.isdigit() and int(port) <= 0xFFFF and bracketed == (version == 6):
            return address, int(port)
    raise OperatorError(f"{listen!r} is no address and port", "write '192.0.2.1:51820' or '[2001:db8::1]:51820' in [wireguard] listen")


def open_udp(listen: list[str], mark: int = 0) -> list[UdpSocket]:
    """Bind them all or none. `mark` (SO_MARK) lets policy routing tell our own datagrams from the traffic inside the tunnel."""
    with contextlib.ExitStack() as on_failure:
        sockets = []
        for text in listen:
            opened = UdpSocket(text, _bound(text, mark))
            on_failure.callback(opened.close)
            sockets.append(opened)
        on_failure.pop_all()
    return sockets


def _bound(listen: str, mark: int) -> socket.socket:
    host, port = split_listen(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as on_failure:
        try:
            bound = on_failure.enter_context(socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC))
            _set_options(bound, family)
            if mark:
                bound.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
            bound.bind(socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM, 0, socket.AI_NUMERICHOST)[0][4])
        except OSError as error:
            raise _explained(listen, port, error) from error
        on_failure.pop_all()
    return bound


def _set_options(bound: socket.socket, family: int) -> None:
    if family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        bound.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DONT)
    else:
        bound.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        bound.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
        # The tunnel's MTU assumes 1500 outside; on a narrower path the kernel may fragment rather than lose the datagram.
        bound.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
    with contextlib.suppress(OSError):  # before Linux 5.0: one datagram a read, nothing else changes
        bound.setsockopt(SOL_UDP, UDP_GRO, 1)
    for forced, capped in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            bound.setsockopt(socket.SOL_SOCKET, forced, BUFFER_BYTES)
        except PermissionError:
            bound.setsockopt(socket.SOL_SOCKET, capped, BUFFER_BYTES)  # cut to net.core.[rw]mem_max


def _explained(listen: str, port: int, error: OSError) -> OperatorError:
    if error.errno == errno.EADDRINUSE:
        holder = _holder(port)
        return OperatorError(
            f"port taken: {listen}" + (f" is held by {holder}" if holder else ""), "change [wireguard] listen or stop what holds it"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return OperatorError(f"{listen} is no address of this machine", "`ip address` lists them; change [wireguard] listen")
    if error.errno == errno.EAFNOSUPPORT:
        return OperatorError(f"cannot listen on {listen}: this kernel has no IPv6", "take it out of [wireguard] listen")
    if error.errno in (errno.EACCES, errno.EPERM):
        mend = "run as root, or with CAP_NET_BIND_SERVICE (port below 1024) and CAP_NET_ADMIN (fwmark); or change [wireguard] listen"
        return OperatorError(f"no permission to listen on {listen}", mend)
    return OperatorError(f"cannot listen on {listen}: {error.strerror or error}", "change [wireguard] listen")


def _holder(port: int) -> str:
    """'NAME (pid N)' of a process with a UDP socket on this port, as far as /proc shows it to us; else empty."""
    inodes = set()
    for table in ("/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"):
        with contextlib.suppress(OSError):
            rows = [line.split() for line in File(table).read_text().splitlines()[1:]]
            inodes |= {f"socket:[{row[9]}]" for row in rows if int(row[1].rpartition(":")[2], 16) == port}
    for process in File("/proc").glob("[0-9]*") if inodes else ():
        with contextlib.suppress(OSError):
            if any(str(fd.readlink()) in inodes for fd in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return ""
