"""A change to one peer as WireGuard's tools ask for it: the gateway's store and the reference client carry it out."""

from dataclasses import dataclass, field

from egressvpn.addresses import IPNetwork


@dataclass(frozen=True, slots=True)
class PeerChange:
    """What is None, False or empty stays as it is."""

    public_key: bytes
    remove: bool = False
    update_only: bool = False  # a peer that is not there is not made
    preshared_key: bytes | None = field(default=None, repr=False)  # 32 zeros: none
    endpoint: str | None = None  # "192.0.2.1:51820" or "[2001:db8::1]:51820"
    persistent_keepalive: int | None = None  # s, 0: off
    replace_allowed_ips: bool = False
    allowed_ips: tuple[tuple[bool, IPNetwork], ...] = ()  # in order; True adds (and takes it from its owner), False removes
