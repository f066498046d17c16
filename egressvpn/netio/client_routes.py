"""What the reference client changes in the kernel: its addresses on the TUN, and routes for what goes through the tunnel.

The technique of wg-quick(8) for a default route: it lives in a table of its own, and policy rules send there whatever does
not carry our fwmark (the encrypted datagrams carry it, so they cannot loop), unless the main table knows a route more
specific than a default one. In order of priority:

    PRIORITY      UDP to the gateway's endpoint: main table   (so that a strict rp_filter outside accepts its answers)
    PRIORITY + 1  main table, its default routes ignored
    PRIORITY + 2  not our fwmark: our table

The kernel's own routing is never edited, so the way back is to remove the rules; routes and addresses go with the TUN.
Rules that a crash left are removed first, which makes a restart work like a start.
"""

from dataclasses import dataclass
from typing import Final

from egressvpn.addresses import IPAddress, IPNetwork
from egressvpn.errors import OperatorError
from egressvpn.netio.netlink import TABLE_MAIN, IPInterface, Netlink, Rule, remove_stale

MARK: Final = 51820  # SO_MARK of the client's UDP sockets and the number of its table, as in wg-quick
PRIORITY: Final = 31820  # before the main table's 32766
PRIORITIES: Final = range(PRIORITY, PRIORITY + 3)


@dataclass(frozen=True, slots=True)
class ClientRoutes:
    """What to bring up. `mark` names the table too; `table`: None as above, 0 no routes at all, else plain routes in that table."""

    addresses: tuple[IPInterface, ...]
    allowed_ips: tuple[IPNetwork, ...]
    endpoints: tuple[tuple[IPAddress, int], ...]
    mtu: int
    mark: int = MARK
    table: int | None = None


def bring_up(netlink: Netlink, ifindex: int, wanted: ClientRoutes) -> None:
    """Addresses, MTU, state, routes and rules. The caller's `Netlink` takes all of it back when it is left."""
    remove_stale({wanted.mark}, PRIORITIES)
    netlink.link_up(ifindex, wanted.mtu)
    for address in wanted.addresses:
        _refuse_narrow(address, wanted.mtu)
        netlink.add_address(ifindex, address)
    if wanted.table == 0:
        return
    by_policy = [prefix for prefix in wanted.allowed_ips if prefix.prefixlen == 0 and wanted.table is None]
    for prefix in wanted.allowed_ips:
        table = wanted.mark if prefix in by_policy else wanted.table or TABLE_MAIN
        netlink.add_route(prefix, ifindex, table)
    for version in sorted({prefix.version for prefix in by_policy}):
        for rule in _rules(version, wanted):
            netlink.add_rule(rule)


def tear_down(mark: int = MARK) -> int:
    """Remove what a crash left, without starting. Returns how many rules and routes there were."""
    return remove_stale({mark}, PRIORITIES)


def _rules(version: int, wanted: ClientRoutes) -> list[Rule]:
    """In the order they are added: the one that diverts traffic comes last, when the exceptions are in place."""
    endpoints = dict.fromkeys(endpoint for endpoint in wanted.endpoints if endpoint[0].version == version)
    return [
        *(Rule(version, PRIORITY, TABLE_MAIN, endpoint=endpoint) for endpoint in endpoints),
        Rule(version, PRIORITY + 1, TABLE_MAIN, suppress_default=True),
        Rule(version, PRIORITY + 2, wanted.mark, not_mark=wanted.mark),
    ]


def _refuse_narrow(address: IPInterface, mtu: int) -> None:
    if address.version == 6 and mtu < 1280:
        raise OperatorError(
            f"an MTU of {mtu} is too small for the IPv6 address {address}", "use at least 1280 (RFC 8200), or remove the address"
        )
