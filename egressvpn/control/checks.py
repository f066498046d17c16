"""What a configuration must not contradict, once every key by itself is well-formed; and what an operator should know before starting it.

The one that matters most: an egress address is never an address the gateway itself listens on. Else a device could take the
gateway's own port from inside the tunnel and receive what others send to it (port shadow, CVE-2021-3773).
"""

import ipaddress
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network
from typing import Final

from egressvpn.addresses import IPAddress, IPNetwork
from egressvpn.control.schema import Config, Dataplane, Pool
from egressvpn.control.values import SocketAddress
from egressvpn.nat.deterministic import Deterministic

Key = tuple[str | int, ...]  # ("pool", 0, "ports"): the way to a value in the file
Finding = tuple[Key, str, str]  # key, what, mend

MAX_POOL_ADDRESSES: Final = 4096  # IPv4, all pools together: each has a port bitmap of 8 KiB per protocol
MAX_LISTEN: Final = 8  # UDP sockets of the data path
MAX_DENIED: Final = 4000  # networks; the data path has room for 4096, its own addresses and networks included
MAX_EXEMPT: Final = 1000  # networks; the data path has room for 1024
LEAST_FIXED: Final = 8  # ports of a predefined block
LONGEST_TIMEOUT: Final = 7 * 86_400  # s; flows tell the time with 32 bits of milliseconds
LEAST_TIMEOUTS: Final = {  # key of [nat.timeouts] -> seconds, and who says so
    "udp": (120, "RFC 4787 REQ-5"),
    "tcp_established": (7440, "RFC 5382 REQ-5"),
    "tcp_transitory": (240, "RFC 5382 REQ-5"),
    "opening": (6, "RFC 5382 REQ-4"),  # RFC 7857 2.1 allows less than 240 s here
    "closing": (240, "RFC 5382 REQ-5"),
    "icmp": (60, "RFC 5508 REQ-2"),
}


def contradictions(config: Config) -> list[Finding]:
    """Everything that must be mended before the gateway may start."""
    checks = (
        _listeners,
        _tunnel_networks,
        _pools,
        _overlaps,
        _deterministic_pools,
        _shadowed_listeners,
        _timeouts,
        _exempt,
        _policy,
        _api,
        _store,
    )
    return [finding for check in checks for finding in check(config)]


def _listeners(config: Config) -> Iterator[Finding]:
    if not config.wireguard.listen:
        yield ("wireguard", "listen"), "there is nothing to listen on", 'add an address, like "0.0.0.0:51820"'
    if len(config.wireguard.listen) > MAX_LISTEN:
        what = f"{len(config.wireguard.listen)} addresses are more than the {MAX_LISTEN} there is room for"
        yield ("wireguard", "listen"), what, 'listen on "0.0.0.0:PORT" and "[::]:PORT", which take every address'
    if not config.api.listen:
        yield ("api", "listen"), "there is nothing to listen on", 'add a socket, like "unix:/run/egressvpn/api.sock"'


def _tunnel_networks(config: Config) -> Iterator[Finding]:
    key = ("tunnel", "networks")
    if not config.tunnel.networks:
        yield key, "there are no networks", 'add one, like "100.64.0.0/16"'
    for network in config.tunnel.networks:
        if network.prefixlen > network.max_prefixlen - 2:
            yield key, f"{network} has no room for a device", f"use /{network.max_prefixlen - 2} or larger"
        if not _unicast(network):
            yield key, f"{network} is not for devices", 'use a private or shared network, like "100.64.0.0/16" or "fd64::/64"'


def _unicast(network: IPNetwork) -> bool:
    special = ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", "::/96", "::ffff:0:0/96", "fe80::/10", "ff00::/8")
    return not any(_overlap(network, ipaddress.ip_network(other)) for other in special)


def _pools(config: Config) -> Iterator[Finding]:
    room = MAX_POOL_ADDRESSES
    for number, pool in enumerate(config.pools):
        key = ("pool", number)
        if pool.name in {other.name for other in config.pools[:number]}:
            yield (*key, "name"), f'there are two pools named "{pool.name}"', "give each pool a name of its own"
        if not pool.addresses:
            yield (*key, "addresses"), "the pool has no addresses", 'add a network, like "203.0.113.0/28"'
        if pool.block_size > len(pool.ports):
            yield (*key, "block_size"), f"{pool.block_size} ports do not fit into {pool.ports}", f"use at most {len(pool.ports)}"
        for network in pool.addresses:
            if not _unicast(network):
                yield (*key, "addresses"), f"{network} cannot be an egress address", "use unicast addresses that are routed to this gateway"
            room -= network.num_addresses if network.version == 4 else 0
        if room < 0:
            yield (
                (*key, "addresses"),
                f"more than {MAX_POOL_ADDRESSES} IPv4 addresses in all pools",
                "use smaller networks, or another gateway",
            )
            return


def deterministic(pool: Pool, config: Config) -> Deterministic | None:
    """How a pool's ports belong to inside addresses beforehand (RFC 7422). Raises ValueError when that cannot be."""
    inside = pool.inside or next((network for network in config.tunnel.networks if network.version == 4), None)
    if pool.allocation != "deterministic" or not isinstance(inside, IPv4Network):
        return None
    outside = [network for network in pool.addresses if isinstance(network, IPv4Network)]
    ports = (pool.ports.low, pool.ports.high)
    plan = Deterministic(inside, outside, pool.dynamic_factor, ports)
    return replace(plan, max_ports=plan.ports_per_user + pool.max_blocks * pool.block_size)


def _deterministic_pools(config: Config) -> Iterator[Finding]:
    for number, pool in enumerate(config.pools):
        key, inside = ("pool", number), pool.inside
        if pool.allocation != "deterministic":
            continue
        if inside is not None and not any(inside.version == 4 and _within(inside, network) for network in config.tunnel.networks):
            yield (*key, "inside"), f"{inside} is not in an IPv4 network of the tunnel", "name a part of tunnel.networks"
            continue
        try:
            plan = deterministic(pool, config)
        except ValueError as error:
            yield (*key, "allocation"), str(error), "name fewer inside addresses with inside, or use another allocation"
            continue
        if plan is None:
            yield (*key, "allocation"), "there is no IPv4 network in the tunnel", 'use allocation = "dynamic"'
        elif plan.ports_per_user < LEAST_FIXED:
            what = f"{plan.ports_per_user} ports for each of {plan.compression} devices per address are too few"
            yield (*key, "allocation"), what, "name fewer inside addresses with inside, or add pool addresses"


def _within(network: IPNetwork, other: IPNetwork) -> bool:
    return _overlap(network, other) and network.prefixlen >= other.prefixlen


def _overlap(one: IPNetwork, other: IPNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)


def _overlaps(config: Config) -> Iterator[Finding]:
    """Tunnel networks and pools share no address, with each other or among themselves."""
    places: list[tuple[Key, str, IPNetwork]] = [(("tunnel", "networks"), "the tunnel", network) for network in config.tunnel.networks]
    for number, pool in enumerate(config.pools):
        places += [(("pool", number, "addresses"), f'pool "{pool.name}"', network) for network in pool.addresses]
    for position, (key, _, network) in enumerate(places):
        for _, other_place, other in places[:position]:
            if _overlap(network, other):
                yield key, f"{network} overlaps {other} of {other_place}", "make the networks disjoint"


def _shadowed_listeners(config: Config) -> Iterator[Finding]:
    """CVE-2021-3773: no listen address, and no address devices are told, lies in a pool."""
    own: list[tuple[Key, IPAddress]] = [(("wireguard", "listen"), at.address) for at in config.wireguard.listen]
    own += [(("api", "listen"), at.address) for at in config.api.listen if isinstance(at, SocketAddress)]
    if config.metrics.listen is not None:
        own.append((("metrics", "listen"), config.metrics.listen.address))
    told = config.wireguard.endpoint.address if config.wireguard.endpoint else None
    if told is not None:
        own.append((("wireguard", "endpoint"), told))
    for key, address in own:
        pool = pool_with(config, address)
        if pool is not None:
            what = f'{address} is an egress address of pool "{pool.name}" (port shadow, CVE-2021-3773)'
            yield key, what, "use an address outside every pool, or take it out of the pool"


def pool_with(config: Config, address: IPAddress) -> Pool | None:
    """The pool that contains this address."""
    return next((pool for pool in config.pools if any(address in network for network in pool.addresses)), None)


def _timeouts(config: Config) -> Iterator[Finding]:
    for name, (least, source) in LEAST_TIMEOUTS.items():
        seconds = getattr(config.nat.timeouts, name)
        key = ("nat", "timeouts", f"tcp_{name}" if name in ("opening", "closing") else name)
        if seconds < least and name not in _repeated(config):
            yield key, f"{seconds}s is below the {least}s of {source}", f'use "{least}s" or more'
        if seconds > LONGEST_TIMEOUT and name not in _repeated(config):
            yield key, f"{seconds}s is more than the data path can measure", 'use "7d" or less'


def _repeated(config: Config) -> set[str]:
    """Timeouts that are tcp_transitory's, where any mistake is told already."""
    timeouts = config.nat.timeouts
    return {name for name in ("opening", "closing") if getattr(timeouts, f"tcp_{name}") is None}


def _exempt(config: Config) -> Iterator[Finding]:
    """Destinations that are not translated for (RFC 6888 REQ-6)."""
    key = ("nat", "exempt")
    if len(config.nat.exempt) > MAX_EXEMPT:
        yield key, f"{len(config.nat.exempt)} networks are more than the {MAX_EXEMPT} there is room for", "merge some of them"
    own = [network for pool in config.pools for network in pool.addresses] + list(config.tunnel.networks)
    for network in config.nat.exempt:
        if not _unicast(network) or network.prefixlen == 0:
            yield key, f"{network} cannot be exempt from translation", "name the networks that devices reach with their own addresses"
            continue
        for other in own:
            if _overlap(network, other):
                yield key, f"{network} overlaps {other}, a network of this gateway", "take it out"


def _policy(config: Config) -> Iterator[Finding]:
    if len(config.policy.deny) > MAX_DENIED:
        yield (
            ("policy", "deny"),
            f"{len(config.policy.deny)} networks are more than the {MAX_DENIED} there is room for",
            "merge some of them",
        )


def _api(config: Config) -> Iterator[Finding]:
    api = config.api
    if bool(api.tls_cert_file) != bool(api.tls_key_file):
        missing = "tls_key_file" if api.tls_cert_file else "tls_cert_file"
        yield ("api",), f"TLS needs both files, {missing} is not set", f"set {missing} as well, or neither"
    for at in api.listen:
        if isinstance(at, SocketAddress) and not at.address.is_loopback and not api.tls_cert_file:
            yield ("api", "listen"), f"{at} is off loopback and has no TLS", "set tls_cert_file and tls_key_file, or listen on 127.0.0.1"
    for name, path in zip(("tls_cert_file", "tls_key_file"), config.tls_files or (), strict=False):
        if not path.is_file():
            yield ("api", name), f"there is no file {path}", "name the PEM file; a relative path starts at this file's directory"


def _store(config: Config) -> Iterator[Finding]:
    if config.store.url.startswith("postgresql"):
        yield ("store", "url"), "PostgreSQL is not supported by this version", 'use "sqlite:///egressvpn.db"'
    elif not config.store.url.startswith("sqlite:///") or config.store.url == "sqlite:///":
        yield ("store", "url"), f'"{config.store.url}" is not a store', 'use "sqlite:///egressvpn.db"'


def notes(config: Config) -> list[str]:
    """What is allowed but worth knowing."""
    found = []
    if any(at.address.is_unspecified for at in config.wireguard.listen):
        pools = ", ".join(str(network) for pool in config.pools for network in pool.addresses)
        found.append(f"wireguard.listen takes every local address: none of {pools} may be an address of this machine")
    if config.wireguard.endpoint is None:
        found.append("wireguard.endpoint is not set: `peer add` cannot write client configurations")
    denied = [str(network) for network in config.nat.exempt if any(_within(other, network) for other in config.policy.deny)]
    if denied:
        found.append(f"nat.exempt {', '.join(denied)} is denied, or a part of it: of policy.deny and nat.exempt the longer prefix decides")
    if not config.log.nat_log:
        found.append("log.nat_log is off: nobody can tell later which device had an address, and ports are not held over a restart")
    unreachable = [str(resolver) for resolver in config.tunnel.dns if any(resolver in network for network in config.policy.deny)]
    if unreachable:
        found.append(f"tunnel.dns {', '.join(unreachable)} is denied by policy.deny: devices could not resolve names there")
    for version in (4, 6):
        inside = any(network.version == version for network in config.tunnel.networks)
        lacking = [pool.name for pool in config.pools if not any(network.version == version for network in pool.addresses)]
        if inside and lacking:
            found.append(f"pool {', '.join(lacking)} has no IPv{version} addresses: its devices have no IPv{version} Internet")
    metrics = config.metrics.listen
    if metrics is not None and not metrics.address.is_loopback:
        found.append(f"metrics.listen {metrics} is readable by everyone who reaches it: traffic and public keys of devices")
    found += [f"{key} is set, but takes effect in a later release only" for key in _reserved(config)]
    return found


def _reserved(config: Config) -> Iterator[str]:
    """Keys away from their defaults that the data path does not use yet."""
    if config.dataplane.workers != Dataplane().workers:
        yield "dataplane.workers"
