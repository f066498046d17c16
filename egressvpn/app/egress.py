"""Which egress address a device has: the same one as long as the pool stays the same, spread evenly, decided without state.

IPv4: one address of the pool for all protocols (paired pooling, RFC 4787 REQ-2), its ports shared with other devices.
IPv6: an address of its own in the pool's prefix, stable (RFC 6888 style accountability without ports). Where the prefix leaves 32
bits or more, its last word makes it checksum-neutral to the device's tunnel address, after the idea of RFC 6296: the sum of all
16-bit words of both is the same in ones' complement, which is the value modulo 0xFFFF.
"""

import hashlib
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, Protocol

from egressvpn.addresses import IPNetwork

WORD: Final = 0xFFFF
NEUTRAL_PREFIX: Final = 96  # a word for the checksum, and another for addresses to differ in


class Taken(Protocol):
    """Addresses that cannot be given."""

    def __contains__(self, address: IPv6Address, /) -> bool: ...

    def __len__(self) -> int: ...


def pool_addresses(networks: Iterable[IPNetwork]) -> list[IPv4Address]:
    """Every IPv4 address of a pool; a routed pool has no network or broadcast address to leave out."""
    return [address for network in networks if isinstance(network, IPv4Network) for address in network]


def external4(identity: str, addresses: Sequence[IPv4Address]) -> int | None:
    """Position of the device's address in the pool; None when the pool has no IPv4."""
    return int.from_bytes(_hash(identity), "big") % len(addresses) if addresses else None


def external6(identity: str, networks: Iterable[IPNetwork], taken: Taken, internal: IPv6Address | None = None) -> IPv6Address | None:
    """The device's own address in the pool's first IPv6 prefix, never one in `taken`; checksum-neutral to `internal` if there is room."""
    network = next((network for network in networks if isinstance(network, IPv6Network)), None)
    if network is None or network.num_addresses <= len(taken) + 1:
        return None
    neutral = internal is not None and network.prefixlen <= NEUTRAL_PREFIX
    for attempt in range(1 << 16):
        offset = int.from_bytes(_hash(f"{identity}|{network}|{attempt}"), "big") % network.num_addresses
        address = network[offset]
        if neutral and internal is not None:
            address = _neutral(address, internal)
        if address != network.network_address and address not in taken:
            return address
    return None


def _neutral(address: IPv6Address, internal: IPv6Address) -> IPv6Address:
    """The address with its last 16 bits such that no transport checksum changes when it takes the place of `internal` (RFC 6296 2.6)."""
    rest = int(address) & ~WORD
    return IPv6Address(rest | (int(internal) - rest) % WORD)


def _hash(text: str) -> bytes:
    return hashlib.blake2s(text.encode(), digest_size=16).digest()
