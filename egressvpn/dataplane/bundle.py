"""Every table of a worker in one value."""

from typing import Any, NamedTuple

from egressvpn.dataplane.arena import Arena
from egressvpn.dataplane.local import Local
from egressvpn.dataplane.tables import WorkerTables
from egressvpn.nat.tables import NatTables
from egressvpn.wireguard.tables import WireGuardTables


class Bundle(NamedTuple):
    """What the packet loop works on. `local` is the process's own; the rest lives in the arena."""

    local: Local
    work: WorkerTables
    wg: WireGuardTables
    prefixes: Any  # allowed IPs: whose address it is
    denied: Any  # destinations nobody may reach
    exempt: Any  # destinations that are reached untranslated
    egress: Any  # IPv6 networks that external addresses are taken from
    nat: NatTables


def bundle(local: Local, arena: Arena) -> Bundle:
    """The arena's tables together with a process's own memory."""
    prefixes, denied, exempt, egress = (arena.tables[name] for name in ("prefixes", "denied", "exempt", "egress"))
    work, wg, nat = arena.bundle(WorkerTables), arena.bundle(WireGuardTables), arena.bundle(NatTables)
    return Bundle(local, work, wg, prefixes, denied, exempt, egress, nat)
