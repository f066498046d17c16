"""How the arena of a worker is laid out. Control creates it and the worker attaches, so nothing here needs a kernel."""

from dataclasses import dataclass
from typing import Final

from egressvpn import prefix_tables
from egressvpn.dataplane import tables as worker_tables
from egressvpn.dataplane.arena import Layout
from egressvpn.nat import tables as nat_tables
from egressvpn.wireguard import tables as wireguard_tables

MAX_DENIED: Final = 4096  # prefixes of the deny list
MAX_EXEMPT: Final = 1024  # prefixes that are reached untranslated
MAX_EGRESS: Final = 256  # IPv6 networks that external addresses are taken from
MAX_PREFIXES: Final = 262_144  # allowed IPs in all, at least; rows that are not used cost no memory


@dataclass(frozen=True)
class Limits:
    """What the arena is dimensioned for. Control and worker must agree: control hands them over as JSON."""

    max_devices: int = 16_384
    max_prefixes: int = 65_536
    max_flows: int = 1_048_576
    pool_addresses: int = 16
    blocks_per_address: int = 252
    mtu: int = 1420


def layout(limits: Limits) -> Layout:
    """Name, record type and count of every table."""
    return {
        **worker_tables.tables(limits.mtu, limits.pool_addresses),
        **wireguard_tables.tables(limits.max_devices),
        **prefix_tables.tables(limits.max_prefixes),
        **prefix_tables.tables(MAX_DENIED, "denied"),
        **prefix_tables.tables(MAX_EXEMPT, "exempt"),
        **prefix_tables.tables(MAX_EGRESS, "egress"),
        **nat_tables.tables(limits.max_flows, limits.max_devices, limits.pool_addresses, limits.blocks_per_address),
    }
