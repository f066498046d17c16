"""What an operator does with devices: names, tunnel addresses, adding one, and the file that a client runs with.

The first host address of each tunnel network is the gateway's own (its ICMP errors come from there); devices get the lowest free
address from the second on, as /32 and /128. Works on the store alone, whether or not the gateway runs.
"""

import dataclasses
import ipaddress
import re
from collections.abc import Sequence
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


def allocate(networks: Sequence[IPNetwork], taken: set[str]) -> list[IPAddress]:
    """The lowest free device address of each network. `taken` holds addresses as text. Raises OperatorError."""
    return [_lowest_free(network, taken) for network in networks]


def _lowest_free(network: IPNetwork, taken: set[str]) -> IPAddress:
    first = int(network.network_address) + 2
    last = int(network.broadcast_address) - (network.version == 4)  # IPv6 has no broadcast address
    kind = ipaddress.IPv4Address if network.version == 4 else ipaddress.IPv6Address
    for number in range(first, last + 1):
        candidate = kind(number)
        if str(candidate) not in taken:
            return candidate
    raise OperatorError(f"every address of {network} is in use", "add a network to tunnel.networks, or remove devices")


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
        lines.append(f"Address = {addresses}")
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
