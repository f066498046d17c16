"""The lines of a `set` of WireGuard's configuration protocol: key=value, first the interface's, then a block for each peer.

wireguard.com/xplatform, "Configuration Protocol"; where it leaves something open, as wireguard-go does it. A block begins with
the peer's public_key; a peer may have several. What a block says of a peer that is to be removed, or that is not there and only
to be updated, means nothing but must be well formed. No text of a mistake holds anything of the line, which may be a secret.
"""

import binascii
import contextlib
import errno
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from egressvpn.addresses import IPNetwork
from egressvpn.control.peers import PeerChange
from egressvpn.errors import OperatorError
from egressvpn.netio.udp import split_listen

T = TypeVar("T")

KEY_BYTES: Final = 32

PROTOCOL: Final = -errno.EPROTO
INVALID: Final = -errno.EINVAL
PORT_IN_USE: Final = -errno.EADDRINUSE
IO: Final = -errno.EIO
UNKNOWN: Final = -errno.ENOANO


class RefusedError(Exception):
    """Why an operation ends, and the errno it is answered with."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """None: the interface has no identity any more."""

    key: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class ListenPort:
    """0: any that is free."""

    port: int


@dataclass(frozen=True, slots=True)
class Fwmark:
    """0: none."""

    mark: int


Setting = PrivateKey | ListenPort | Fwmark


@dataclass(frozen=True, slots=True)
class Set:
    """A part of a `set`, to be carried out in the order of the fields. `code`: the answer then; None when more follows."""

    settings: tuple[Setting, ...] = ()
    replace_peers: bool = False
    peers: tuple[PeerChange, ...] = ()
    code: int | None = None
    why: str = ""  # of a code that is not 0


class Part:
    """What a `set` has said since the last part was taken."""

    def __init__(self) -> None:
        self.size = 0  # settings, peers and allowed IPs in it
        self._settings: list[Setting] = []
        self._replace_peers = False
        self._peers: list[PeerChange] = []
        self._peer: _Peer | None = None

    def add(self, line: str) -> None:
        """One line. Raises RefusedError."""
        key, equals, value = line.partition("=")
        if not equals:
            raise RefusedError(PROTOCOL, "a line without '='")
        if key in _ENTRIES:
            self.size += 1
        if key == "public_key":
            self._finish_peer()
            self._peer = _Peer(_checked(_key, key, value))
        elif self._peer is not None:
            if key == "replace_allowed_ips" and self._peer.allowed_ips:
                self._finish_peer()  # what has moved here from another peer is not the other's again
            self._peer.add(key, value)
        elif key in _SETTINGS:
            self._settings.append(_checked(_SETTINGS[key], key, value))
        elif key == "replace_peers":
            self._replace_peers = _checked(_true, key, value)
        else:
            raise RefusedError(INVALID, "no such key of an interface")

    def take(self, code: int | None, why: str = "") -> Set:
        """All of it, and its answer. The peer that is being described goes on in the next part."""
        self._finish_peer()
        taken = Set(tuple(self._settings), self._replace_peers, tuple(self._peers), code, why)
        self.size, self._settings, self._replace_peers, self._peers = 0, [], False, []
        return taken

    def _finish_peer(self) -> None:
        if self._peer is not None and self._peer.says_something:
            self._peers.append(self._peer.change())
            self._peer = _Peer(self._peer.public_key, begun=True)


class _Peer:
    """One block. `begun`: what it said before has been handed on, so it makes no peer any more."""

    def __init__(self, public_key: bytes, *, begun: bool = False) -> None:
        self.public_key = public_key
        self.says_something = not begun
        self.allowed_ips: list[tuple[bool, IPNetwork]] = []
        self._update_only = begun
        self._remove = False
        self._replace_allowed_ips = False
        self._preshared_key: bytes | None = None
        self._endpoint: str | None = None
        self._persistent_keepalive: int | None = None

    def add(self, key: str, value: str) -> None:
        """One line. Raises RefusedError."""
        self.says_something = True
        if key == "allowed_ip":  # first: there can be a hundred thousand of them
            self.allowed_ips.append((not value.startswith("-"), _checked(_network, key, value.removeprefix("-"))))
        elif key == "preshared_key":
            self._preshared_key = _checked(_key, key, value)
        elif key == "endpoint":
            self._endpoint = _checked(_endpoint, key, value)
        elif key == "persistent_keepalive_interval":
            self._persistent_keepalive = _checked(_word, key, value)
        elif key == "replace_allowed_ips":
            self._replace_allowed_ips = _checked(_true, key, value)
        elif key == "update_only":
            self._update_only = _checked(_true, key, value)
        elif key == "remove":
            self._remove = _checked(_true, key, value)
        elif key == "protocol_version":
            _checked(_version, key, value)
        else:
            raise RefusedError(INVALID, "no such key of a peer")

    def change(self) -> PeerChange:
        return PeerChange(
            self.public_key,
            self._remove,
            self._update_only,
            self._preshared_key,
            self._endpoint,
            self._persistent_keepalive,
            self._replace_allowed_ips,
            tuple(self.allowed_ips),
        )


# values: each raises ValueError


def _checked(convert: Callable[[str], T], key: str, value: str) -> T:
    with contextlib.suppress(ValueError):
        return convert(value)
    raise RefusedError(INVALID, f"{key}: not a value it can have")


def _key(value: str) -> bytes:
    key = binascii.unhexlify(value)
    if len(key) != KEY_BYTES:
        raise ValueError("not 32 octets")
    return key


def _number(value: str, highest: int) -> int:
    if not (value.isdigit() and len(value) <= 20 and int(value) <= highest):
        raise ValueError("not a number of that size")
    return int(value)


def _word(value: str) -> int:
    return _number(value, 0xFFFF)


def _true(value: str) -> bool:
    if value != "true":
        raise ValueError("only true can be said")
    return True


def _version(value: str) -> None:
    if value != "1":
        raise ValueError("there is one version")


def _network(value: str) -> IPNetwork:
    """Bits behind the prefix are cut off."""
    _, _, length = value.rpartition("/")
    if not length.isdigit() or "%" in value:
        raise ValueError("not ADDRESS/LENGTH")
    return ipaddress.ip_network(value, strict=False)


def _endpoint(value: str) -> str:
    """A literal address and a port, in the one way to write them."""
    try:
        host, port = split_listen(value)
    except OperatorError:
        raise ValueError("not ADDRESS:PORT") from None
    if port == 0:
        raise ValueError("nobody listens on port 0")
    address = ipaddress.ip_address(host)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _private_key(value: str) -> PrivateKey:
    key = _key(value)
    return PrivateKey(key if any(key) else None)


_ENTRIES: Final = frozenset({"public_key", "allowed_ip", "private_key", "listen_port", "fwmark"})  # lines that add to a part

_SETTINGS: Final[dict[str, Callable[[str], Setting]]] = {
    "private_key": _private_key,
    "listen_port": lambda value: ListenPort(_word(value)),
    "fwmark": lambda value: Fwmark(_number(value, 0xFFFFFFFF)),
}
