"""Network paths as everybody here writes them: socket addresses as the kernel's own bytes, IP addresses as two words."""

import ipaddress
import socket
import struct
from dataclasses import dataclass

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Path:
    """How a datagram came, which is how its answer goes: remote socket address, local address, and which of our sockets.

    `remote` is a struct sockaddr_in (16 bytes) or sockaddr_in6 (28 bytes); `local` is the whole PKTINFO control message
    to hand back to sendmsg (32 or 40 bytes), or empty when the kernel may choose; `socket` indexes the gateway's UDP sockets.
    """

    remote: bytes
    local: bytes = b""
    socket: int = 0

    def __str__(self) -> str:
        host, port = unpack_sockaddr(self.remote)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def pack_sockaddr(host: str, port: int) -> bytes:
    """A struct sockaddr_in or sockaddr_in6 for a literal address, "fe80::1%eth0" too. Raises ValueError when `host` is not one."""
    address = ipaddress.ip_address(host)
    if address.version == 4:
        return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + address.packed + bytes(8)
    try:
        scope = socket.if_nametoindex(address.scope_id) if address.scope_id else 0
    except OSError:
        raise ValueError(f"there is no interface {address.scope_id}") from None
    return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, 0) + address.packed + struct.pack("=I", scope)


def unpack_sockaddr(raw: bytes) -> tuple[str, int]:
    """The literal address and port in a struct sockaddr_in or sockaddr_in6."""
    (family,) = struct.unpack_from("=H", raw)
    (port,) = struct.unpack_from("!H", raw, 2)
    if family == socket.AF_INET:
        return str(ipaddress.IPv4Address(raw[4:8])), port
    (scope,) = struct.unpack_from("=I", raw, 24)
    return f"{ipaddress.IPv6Address(raw[8:24])}{_scope(scope)}", port


def _scope(index: int) -> str:
    """How the interface of a link-local address is written."""
    if index == 0:
        return ""
    try:
        return f"%{socket.if_indextoname(index)}"
    except OSError:  # it is gone
        return f"%{index}"


def words(address: IPAddress) -> tuple[int, int]:
    """(high, low): an IPv6 address as two signed 64-bit words, an IPv4 address as (0, its 32 bits)."""
    if address.version == 4:
        return 0, int(address)
    high, low = struct.unpack("!qq", address.packed)
    return high, low


def from_words(version: int, high: int, low: int) -> IPAddress:
    """The inverse of `words`."""
    if version == 4:
        return ipaddress.IPv4Address(low)
    return ipaddress.IPv6Address(struct.pack("!qq", high, low))
