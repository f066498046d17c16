"""Which egress address a device has: the same one as long as the pool stays the same, spread evenly, decided without state.

IPv4: one address of the pool for all protocols (paired pooling, RFC 4787 REQ-2), its ports shared with other devices.
IPv6: an address of its own in the pool's prefix, stable (RFC 6888 style accountability without ports).
"""

import hashlib
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from egressvpn.addresses import IPNetwork


def pool_addresses(networks: Iterable[IPNetwork]) -> list[IPv4Address]:
    """Every IPv4 address of a pool; a routed pool has no network or broadcast address to leave out."""
    return [address for network in networks if isinstance(network, IPv4Network) for address in network]


def external4(identity: str, addresses: Sequence[IPv4Address]) -> int | None:
    """Position of the device's address in the pool; None when the pool has no IPv4."""
    return int.from_bytes(_hash(identity), "big") % len(addresses) if addresses else None


def external6(identity: str, networks: Iterable[IPNetwork], taken: set[IPv6Address]) -> IPv6Address | None:
    """The device's own address in the pool's first IPv6 prefix, never one in `taken`."""
    network = next((network for network in networks if isinstance(network, IPv6Network)), None)
    if network is None or network.num_addresses <= len(taken) + 1:
        return None
    size = network.num_addresses
    for attempt in range(1 << 16):
        offset = int.from_bytes(_hash(f"{identity}|{network}|{attempt}"), "big") % size
        address = network[offset]
        if offset != 0 and address not in taken:
            return address
    return None


def _hash(text: str) -> bytes:
    return hashlib.blake2s(text.encode(), digest_size=16).digest()
