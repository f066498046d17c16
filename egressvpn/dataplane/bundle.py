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
    nat: NatTables


def bundle(local: Local, arena: Arena) -> Bundle:
    """The arena's tables together with a process's own memory."""
    tables = arena.tables
    return Bundle(
        local, arena.bundle(WorkerTables), arena.bundle(WireGuardTables), tables["prefixes"], tables["denied"], arena.bundle(NatTables)
    )
