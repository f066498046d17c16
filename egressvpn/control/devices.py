"""What an operator does with devices: names, tunnel addresses, adding one, and the file that a client runs with.

The first host address of each tunnel network is the gateway's own (its ICMP errors come from there); devices get the lowest free
address from the second on, as /32 and /128. Works on the store alone, whether or not the gateway runs.
"""

import dataclasses
import re
import socket
from collections.abc import Iterable, Sequence
from typing import Final

from egressvpn.addresses import IPAddress, IPNetwork
from egressvpn.control.keys import decode_key, encode_key
from egressvpn.control.schema import Config
from egressvpn.control.store import Device, DeviceKey, Store
from egressvpn.errors import OperatorError

PERSISTENT_KEEPALIVE: Final = 25  # s, wg(8): keeps a NAT in front of the client open
MAX_TAGS: Final = 32  # per device

_NAME = re.compile(r"[a-z0-9._-]{1,63}")
_TAG = re.compile(r"[A-Za-z0-9._:/=-]{1,63}")


def gateway_address(network: IPNetwork) -> IPAddress:
    """The gateway's own address inside a tunnel network: its first host address."""
    return network.network_address + 1


def allocate(networks: Sequence[IPNetwork], taken: Iterable[str]) -> list[IPAddress]:
    """The lowest free device address of each network. `taken` are other devices' networks as text. Raises OperatorError.

    A network that holds all of ours ("0.0.0.0/0", say) is somebody's way out, not their addresses: it does not count.
    """
    spans = [_span(network) for network in taken]
    return [_lowest_free(network, spans) for network in networks]


def _span(network: str) -> tuple[int, int, int]:
    """(version, first, last address) of a network as the store writes it. Thousands are read for one new device."""
    address, _, length = network.partition("/")
    family, bits, version = (socket.AF_INET6, 128, 6) if ":" in address else (socket.AF_INET, 32, 4)
    first = int.from_bytes(socket.inet_pton(family, address), "big")
    return version, first, first + (1 << bits - int(length)) - 1


def _lowest_free(network: IPNetwork, taken: Sequence[tuple[int, int, int]]) -> IPAddress:
    begin, end = int(network.network_address), int(network.broadcast_address)
    inside = [
        (first, last)
        for version, first, last in taken
        if version == network.version and first <= end and last >= begin and not (first <= begin and last >= end)
    ]
    lowest = begin + 2
    for first, last in sorted(inside):
        if first > lowest:
            break
        lowest = max(lowest, last + 1)
    if lowest > end - (network.version == 4):  # IPv6 has no broadcast address
        raise OperatorError(f"every address of {network} is in use", "add a network to tunnel.networks, or remove devices")
    return network[lowest - begin]


def check_name(name: str) -> str:
    """A device's name as it may be. Raises OperatorError."""
    if _NAME.fullmatch(name) is None:
        raise OperatorError(f"{name!r} cannot be a name", "use 1 to 63 of a-z 0-9 . _ -")
    return name


def check_tags(tags: Sequence[str]) -> tuple[str, ...]:
    for tag in tags:
        if _TAG.fullmatch(tag) is None:
            raise OperatorError(f"{tag!r} cannot be a tag", "use 1 to 63 of A-Z a-z 0-9 . _ : / = -")
    if len(tags) > MAX_TAGS:
        raise OperatorError(f"{len(tags)} tags are too many", f"use at most {MAX_TAGS}")
    return tuple(tags)


def check_public_key(written: str, gateway_public_key: bytes) -> bytes:
    """The bytes of a device's public key. Raises OperatorError."""
    key = decode_key(written)
    if key is None:
        raise OperatorError("this is not a WireGuard public key", "it is 44 characters of base64, as `wg pubkey` prints")
    if key == gateway_public_key:
        raise OperatorError("this is the gateway's own public key", "give the device's: `wg pubkey < its private key`")
    return key


def add(
    store: Store,
    config: Config,
    name: str,
    key: DeviceKey,
    *,
    tags: Sequence[str] = (),
    pool: str | None = None,
    now: int,
) -> Device:
    """Add a device to a pool (the first one when not said). `now` is in seconds since the epoch. Raises OperatorError."""
    pools = [known.name for known in config.pools]
    pool = pools[0] if pool is None else pool
    if pool not in pools:
        raise OperatorError(f"there is no pool named {pool}", f"the configuration has: {', '.join(pools)}")
    return store.add_device(
        check_name(name),
        key,
        tags=check_tags(tags),
        pool=pool,
        allocate=lambda taken: allocate(config.tunnel.networks, taken),
        limit=config.wireguard.max_devices,
        now=now,
    )


def require_endpoint(config: Config) -> None:
    """Refuse to write a client's configuration that leads nowhere."""
    if config.wireguard.endpoint is None:
        raise OperatorError(
            "wireguard.endpoint is not set, so devices cannot be told where to connect",
            f'add endpoint = "HOST:PORT" under [wireguard] in {config.path}',
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ClientConfiguration:
    """Everything a client needs. `private_key` is there only in the moment it was made."""

    device: Device
    config: Config
    gateway_public_key: bytes
    private_key: bytes | None = dataclasses.field(default=None, repr=False)

    def wg_quick(self) -> str:
        """The file for wg-quick(8) and every WireGuard app."""
        return "\n".join(line for section in (self._interface(), [""], self._peer()) for line in section) + "\n"

    def _interface(self) -> list[str]:
        addresses = ", ".join(f"{address}/{address.max_prefixlen}" for address in self.device.addresses)
        dns = ", ".join(map(str, self.config.tunnel.dns))
        lines = ["[Interface]", f"# {self.device.name}"]
        if self.private_key is None:
            lines += ["# Only the device knows its private key: put it here.", "# PrivateKey = "]
        else:
            lines.append(f"PrivateKey = {encode_key(self.private_key)}")
        lines += [f"Address = {addresses}"] if addresses else []
        lines += [f"DNS = {dns}"] if dns else []
        return [*lines, f"MTU = {self.config.wireguard.mtu}"]

    def _peer(self) -> list[str]:
        secret = self.device.preshared_key
        return [
            "[Peer]",
            f"PublicKey = {encode_key(self.gateway_public_key)}",
            *([f"PresharedKey = {encode_key(secret)}"] if secret else []),
            f"Endpoint = {self.config.wireguard.endpoint}",
            "AllowedIPs = 0.0.0.0/0, ::/0",
            f"PersistentKeepalive = {PERSISTENT_KEEPALIVE}",
        ]
