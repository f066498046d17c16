"""What the gateway changes in the kernel's network: link state, addresses, routes, rules; and the way back.

rtnetlink(7), through pyroute2. Each operation opens and closes its own IPRoute: one object used from several threads keeps
a socket for each of them. All calls block for about a millisecond, so they belong to start, exit, or a thread.

A `Netlink` remembers how to undo what it did. As a context manager it undoes on the way out, last first, whether the
block ended well or not; a step that failed half way leaves nothing of its own behind. What a crash left is recognised by
PROTOCOL, which marks every route and rule of ours (`ip route show proto 222`).
"""

import contextlib
import errno
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from egressvpn.addresses import IPAddress, IPNetwork
from egressvpn.errors import OperatorError

PROTOCOL: Final = 222  # rtm_protocol: who made a route. linux/rtnetlink.h assigns none above 200 but 246 and 254
TABLE_MAIN: Final = 254
FIB_RULE_INVERT: Final = 2  # linux/fib_rules.h: "not"
IFA_F_NODAD: Final = 2  # linux/if_addr.h: nobody else is on a point-to-point link
ANY_SCOPE: Final = 255  # RT_SCOPE_NOWHERE: a route to remove, of whatever scope
IPPROTO_UDP: Final = 17
SIOCGIFFLAGS: Final = 0x8913  # linux/sockios.h
IFF_UP: Final = 1
FAMILIES: Final = {int(socket.AF_INET): "0.0.0.0", int(socket.AF_INET6): "::"}  # noqa: S104  (with the destination of a default route)

# What undoing may find: the interface, route, address or rule is gone already.
GONE: Final = (errno.ENODEV, errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL)

IPInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """An address of this machine with its prefix length."""

    address: IPInterface
    ifindex: int
    interface: str


@dataclass(frozen=True, slots=True)
class Route:
    """Where the kernel would send a packet. `gateway` is None on the link itself."""

    interface: str
    ifindex: int
    gateway: IPAddress | None
    source: IPAddress | None


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy routing rule of ours: which packets look into which table."""

    version: int
    priority: int
    table: int
    not_mark: int = 0  # packets without this fwmark
    suppress_default: bool = False  # ignore what the table says about default routes
    endpoint: tuple[IPAddress, int] | None = None  # UDP to this address and port

    def attributes(self) -> dict[str, Any]:
        """The rule as pyroute2 writes it."""
        attributes: dict[str, Any] = {"family": _family(self.version), "priority": self.priority, "table": self.table, "protocol": PROTOCOL}
        if self.not_mark:
            attributes |= {"fwmark": self.not_mark, "flags": FIB_RULE_INVERT}
        if self.suppress_default:
            attributes["suppress_prefixlen"] = 0
        if self.endpoint:
            address, port = self.endpoint
            attributes |= {"dst": f"{address}/{address.max_prefixlen}", "ip_proto": IPPROTO_UDP, "dport_range": f"{port}:{port}"}
        return attributes


class Netlink:
    """Changes with their undo steps. Raises OperatorError when the kernel refuses or something is there already."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.undo()

    def undo(self) -> None:
        """Take back everything, last first. Every step is tried; the first that failed is raised after that."""
        failures = []
        while self._undo:
            try:
                self._undo.pop()()
            except (NetlinkError, OSError) as error:
                failures.append(error)
        if failures:
            raise OperatorError(
                f"not everything could be removed from the kernel's network: {_reason(failures[0])}", "see `ip route; ip rule`"
            )

    # links and addresses

    def link_up(self, ifindex: int, mtu: int) -> None:
        """Set MTU and state. Undone by setting it down (a TUN vanishes with its descriptors anyway)."""
        with _ipr(f"bring up interface {_name(ifindex)}") as ipr:
            ipr.link("set", index=ifindex, mtu=mtu, state="up")
        self._undo.append(lambda: _undo("link", "set", index=ifindex, state="down"))

    def add_address(self, ifindex: int, address: IPInterface) -> None:
        """Give the interface an address; one that it has already stays as it is."""
        if any(known.address == address and known.ifindex == ifindex for known in local_addresses()):
            return
        attributes = {
            "index": ifindex,
            "address": str(address.ip),
            "prefixlen": address.network.prefixlen,
            "family": _family(address.version),
        }
        with _ipr(f"add address {address} to {_name(ifindex)}") as ipr:
            ipr.addr("add", **attributes, **({"flags": IFA_F_NODAD} if address.version == 6 else {}))
        self._undo.append(lambda: _undo("addr", "del", **attributes))

    # routes

    def add_route(self, prefix: IPNetwork, ifindex: int, table: int = TABLE_MAIN) -> None:
        """Route `prefix` to the interface. A route for exactly this prefix that leads elsewhere is an error."""
        for known in _routes(prefix, table):
            if known == ifindex:
                return
            where = f"{prefix} leads to {_name(known)}" if known else f"{prefix} is routed already"
            mend = f"remove it (`ip route del {prefix}{_table(table)}`), or change the prefix in the configuration"
            raise OperatorError(f"pool route already there: {where}" if table == TABLE_MAIN else f"table {table} is in use: {where}", mend)
        attributes = {"dst": str(prefix), "oif": ifindex, "table": table, "family": _family(prefix.version)}
        with _ipr(f"route {prefix} to {_name(ifindex)}") as ipr:
            ipr.route("add", **attributes, proto=PROTOCOL)
        self._undo.append(lambda: _undo("route", "del", **attributes))

    def add_pool_route(self, prefix: IPNetwork, ifindex: int) -> None:
        """Route an egress pool to the TUN. An address of this machine inside it would swallow the replies: an error."""
        for local in local_addresses():
            if local.address.ip in prefix:
                raise OperatorError(
                    f"the pool {prefix} holds {local.address.ip}, which is an address of this machine ({local.interface})",
                    "a pool needs addresses of its own, routed to this machine: change [[pool]] addresses",
                )
        self.add_route(prefix, ifindex)

    def add_rule(self, rule: Rule) -> None:
        with _ipr(f"add a routing rule for table {rule.table}") as ipr:
            ipr.rule("add", **rule.attributes())
        self._undo.append(lambda: _undo("rule", "del", **rule.attributes()))


def interface_exists(name: str) -> bool:
    with contextlib.suppress(OSError):
        return socket.if_nametoindex(name) > 0
    return False


def link_is_up(name: str) -> bool:
    """Whether the interface is there and set up (IFF_UP)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket, contextlib.suppress(OSError):
        answer = fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16sH22x", name.encode(), 0))
        return bool(struct.unpack_from("=H", answer, 16)[0] & IFF_UP)
    return False


def local_addresses() -> list[LocalAddress]:
    """Every address of this machine (of this network namespace)."""
    with _ipr("list addresses") as ipr:
        found = [(message["index"], message["prefixlen"], message["attrs"]) for message in ipr.addr("dump")]
    # IFA_LOCAL is ours; IFA_ADDRESS is the far end of a point-to-point link, and ours where there is no IFA_LOCAL.
    addresses = [(index, length, dict(attributes)) for index, length, attributes in found]
    return [
        LocalAddress(ipaddress.ip_interface(f"{known.get('IFA_LOCAL') or known['IFA_ADDRESS']}/{length}"), index, _name(index))
        for index, length, known in addresses
    ]


def route_to(address: IPAddress, mark: int = 0) -> Route | None:
    """How the kernel would send to `address`, or None when it would not."""
    with contextlib.suppress(NetlinkError), IPRoute() as ipr:
        (message,) = ipr.route("get", dst=str(address), family=_family(address.version), **({"mark": mark} if mark else {}))
        known = dict(message["attrs"])
        if "RTA_OIF" in known:
            gateway = known.get("RTA_GATEWAY") or (known.get("RTA_VIA") or {}).get("addr")
            source = known.get("RTA_PREFSRC")
            addresses = [ipaddress.ip_address(text) if text else None for text in (gateway, source)]
            return Route(_name(known["RTA_OIF"]), known["RTA_OIF"], *addresses)
    return None


def remove_route(prefix: IPNetwork, ifindex: int, table: int = TABLE_MAIN) -> None:
    """Remove a route; one that is gone already is no error."""
    _undo("route", "del", dst=str(prefix), oif=ifindex, table=table, family=_family(prefix.version))


def remove_stale(tables: set[int], priorities: range) -> int:
    """Remove what a crash left: our rules of these priorities, and our routes in these tables. Returns how many."""
    with _ipr("remove stale routes and rules") as ipr:
        return sum(_remove_rules(ipr, family, priorities) + _remove_routes(ipr, family, tables) for family in FAMILIES)


def _remove_rules(ipr: Any, family: int, priorities: range) -> int:
    known = [dict(message["attrs"]) for message in ipr.rule("dump", family=family)]
    stale = [rule for rule in known if rule.get("FRA_PROTOCOL") == PROTOCOL and rule.get("FRA_PRIORITY") in priorities]
    for rule in stale:
        ipr.rule("del", family=family, priority=rule["FRA_PRIORITY"], table=rule["FRA_TABLE"], protocol=PROTOCOL)
    return len(stale)


def _remove_routes(ipr: Any, family: int, tables: set[int]) -> int:
    found = [(message, dict(message["attrs"])) for message in ipr.route("dump", family=family) if message["proto"] == PROTOCOL]
    stale = [
        (known.get("RTA_DST", FAMILIES[family]), message["dst_len"], known) for message, known in found if known["RTA_TABLE"] in tables
    ]
    for target, length, known in stale:
        ipr.route("del", family=family, dst=f"{target}/{length}", oif=known.get("RTA_OIF"), table=known["RTA_TABLE"], scope=ANY_SCOPE)
    return len(stale)


def _routes(prefix: IPNetwork, table: int) -> Iterator[int]:
    """The interfaces (0: none) of the routes for exactly this prefix."""
    with _ipr("list routes") as ipr:
        messages = list(ipr.route("dump", family=_family(prefix.version)))
    for message in messages:
        known = dict(message["attrs"])
        target = known.get("RTA_DST", str(prefix.network_address) if message["dst_len"] == prefix.prefixlen == 0 else None)
        same = target and ipaddress.ip_address(target) == prefix.network_address and message["dst_len"] == prefix.prefixlen
        if same and known.get("RTA_TABLE") == table:
            yield known.get("RTA_OIF", 0)


@contextlib.contextmanager
def _ipr(what: str) -> Iterator[Any]:
    """An IPRoute for one group of operations; its refusal is the operator's to mend."""
    try:
        with IPRoute() as ipr:
            yield ipr
    except NetlinkError as error:
        if error.code == errno.EPERM:
            raise OperatorError(f"no permission to {what}", "run as root, or with CAP_NET_ADMIN in this network namespace") from error
        raise OperatorError(f"cannot {what}: {_reason(error)}", "see `ip address; ip route; ip rule` for what is in the way") from error


def _undo(kind: str, verb: str, **attributes: Any) -> None:
    try:
        with IPRoute() as ipr:
            getattr(ipr, kind)(verb, **attributes)
    except NetlinkError as error:
        if error.code not in GONE:
            raise


def _reason(error: Exception) -> str:
    return str(error.args[1]) if len(error.args) > 1 else str(error)


def _family(version: int) -> int:
    return int(socket.AF_INET6 if version == 6 else socket.AF_INET)


def _name(ifindex: int) -> str:
    with contextlib.suppress(OSError):
        return socket.if_indextoname(ifindex)
    return f"interface {ifindex}"


def _table(table: int) -> str:
    return "" if table == TABLE_MAIN else f" table {table}"
