"""The values a configuration is made of: durations, port ranges, socket addresses, networks. Text in, one typed value out.

Every parser takes what TOML gave (any type) and raises `UnacceptableError` with what is wrong and how to mend it.
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from egressvpn.addresses import IPAddress, IPNetwork

T = TypeVar("T")

LOWEST_PORT: Final = 1024  # RFC 6056 and RFC 4787 section 4.2.1: a NAT keeps out of the well-known ports
HIGHEST_PORT: Final = 65535
LONGEST_DURATION: Final = 365 * 86_400  # s; anything longer is a slip of the pen

_DURATION = re.compile(r"(\d+)\s*(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_HOST_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?)*\.?")


class UnacceptableError(ValueError):
    """A value that cannot be used, and the mend."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """A literal address and a port to listen on."""

    address: IPAddress
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """The path of a unix socket to listen on."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where devices find the gateway: a name or a literal address, and a port."""

    host: str
    port: int

    @property
    def address(self) -> IPAddress | None:
        """The host when it is a literal address."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class PortRange:
    """This gateway's slice of the ports of each pool address, both ends included."""

    low: int
    high: int

    def __len__(self) -> int:
        return self.high - self.low + 1

    def __str__(self) -> str:
        return f"{self.low}-{self.high}"


def text(value: object) -> str:
    """A string."""
    if not isinstance(value, str):
        raise UnacceptableError(f"{value!r} is not a string", "put it in quotes")
    return value


def list_of(parse: Callable[[object], T]) -> Callable[[object], tuple[T, ...]]:
    """A parser of arrays whose items `parse` reads; refuses an item that is there twice."""

    def parse_all(value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise UnacceptableError(f"{value!r} is not an array", "put it in square brackets, its items in quotes")
        parsed = tuple(parse(item) for item in value)
        seen: set[T] = set()
        for item in parsed:
            if item in seen:
                raise UnacceptableError(f"{item} is there twice", "remove one of them")
            seen.add(item)
        return parsed

    return parse_all


def duration(value: object) -> int:
    """Seconds from "90s", "5m", "2h", "7d" or a plain number of seconds."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UnacceptableError(f"{value!r} is not a duration", 'write it like "300s", "5m", "2h" or "7d"')
    seconds = value
    if isinstance(seconds, str):
        match = _DURATION.fullmatch(seconds.strip())
        if match is None:
            raise UnacceptableError(f"{value!r} is not a duration", 'write it like "300s", "5m", "2h" or "7d"')
        seconds = int(match[1]) * _SECONDS[match[2]]
    if not 0 <= seconds <= LONGEST_DURATION:
        raise UnacceptableError(f"{value!r} is out of range", "use a duration from 0s to 365d")
    return seconds


def optional_duration(value: object) -> int | None:
    """Seconds, or nothing when empty."""
    return None if value == "" else duration(value)


def ports(value: object) -> PortRange:
    """A slice like "1024-65535"; a single port is a slice of one."""
    match = re.fullmatch(r"\s*(\d{1,5})\s*(?:-\s*(\d{1,5})\s*)?", text(value))
    if match is None:
        raise UnacceptableError(f"{value!r} is not a range of ports", 'write it like "1024-65535"')
    low, high = int(match[1]), int(match[2] or match[1])
    if low > high:
        raise UnacceptableError(f"the range {value!r} begins above its end", f'write "{high}-{low}"')
    if low < LOWEST_PORT:
        raise UnacceptableError(f"port {low} is below {LOWEST_PORT}", f"begin the slice at {LOWEST_PORT} or above")
    if high > HIGHEST_PORT:
        raise UnacceptableError(f"port {high} is above {HIGHEST_PORT}", f"end the slice at {HIGHEST_PORT} or below")
    return PortRange(low, high)


def address(value: object) -> IPAddress:
    """A literal IPv4 or IPv6 address."""
    try:
        parsed = ipaddress.ip_address(text(value))
    except ValueError:
        parsed = None
    if parsed is None or getattr(parsed, "scope_id", None):
        raise UnacceptableError(f"{value!r} is not an IP address", 'write it like "1.1.1.1" or "2606:4700:4700::1111"')
    return parsed


def network(value: object) -> IPNetwork:
    """A network in CIDR form, with all host bits zero."""
    written = text(value)
    try:
        return ipaddress.ip_network(written)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(written, strict=False)
    except ValueError:
        raise UnacceptableError(f"{value!r} is not a network", 'write it in CIDR form, like "203.0.113.0/28"') from None
    raise UnacceptableError(
        f"{written} has host bits set", f'write "{meant}", or "{written.split("/")[0]}/{meant.max_prefixlen}" for one address'
    )


def optional_network(value: object) -> IPNetwork | None:
    """A network in CIDR form, or nothing when empty."""
    return None if value == "" else network(value)


def _split_port(written: str, example: str) -> tuple[str, int]:
    """The host (brackets removed) and port of HOST:PORT."""
    host, colon, port = written.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or (":" in host and not bracketed):
        raise UnacceptableError(f"{written!r} has no port", f'write it like "{example}"')
    if not re.fullmatch(r"\d{1,5}", port) or not 1 <= int(port) <= HIGHEST_PORT:
        raise UnacceptableError(f"{port!r} in {written!r} is not a port", f"use a port from 1 to {HIGHEST_PORT}")
    return host[1:-1] if bracketed else host, int(port)


def socket_address(value: object) -> SocketAddress:
    """ADDR:PORT with a literal address; IPv6 in brackets."""
    host, port = _split_port(text(value), "0.0.0.0:51820")
    try:
        return SocketAddress(address(host), port)
    except UnacceptableError:
        raise UnacceptableError(
            f"{host!r} is not an IP address", 'listen on a literal address, like "0.0.0.0:51820" or "[::]:51820"'
        ) from None


def listener(value: object) -> SocketAddress | UnixSocket:
    """ADDR:PORT, or unix:PATH."""
    written = text(value)
    if not written.startswith("unix:"):
        return socket_address(written)
    path = written.removeprefix("unix:")
    if not path.strip("/"):
        raise UnacceptableError(f"{written!r} names no socket", 'write it like "unix:/run/egressvpn/api.sock"')
    return UnixSocket(path)


def optional_socket_address(value: object) -> SocketAddress | None:
    """ADDR:PORT, or nothing for "off"."""
    return None if text(value) == "" else socket_address(value)


def endpoint(value: object) -> Endpoint | None:
    """HOST:PORT as devices are told, or nothing when empty."""
    written = text(value)
    if not written:
        return None
    host, port = _split_port(written, "vpn.example.net:51820")
    told = Endpoint(host, port)
    if told.address is None and (_HOST_NAME.fullmatch(host) is None or host.rsplit(".", 1)[-1].isdigit()):
        raise UnacceptableError(
            f"{host!r} is neither a host name nor an IP address", 'write it like "vpn.example.net:51820" or "[2001:db8::1]:51820"'
        )
    if told.address is not None and told.address.is_unspecified:
        raise UnacceptableError(f"devices cannot connect to {host}", "write the name or address under which devices reach this gateway")
    return told
