"""The journal of port blocks: who was given which range when, and when it came back (RFC 6888 section 4).

A ring with one writer. An entry is complete before `settings.journal` counts it, and a block is journalled before one of its
ports is used. Control reads behind the writer (pool_view.read) and counts what was overwritten before it came.
"""

import numpy as np

from egressvpn.kernel import Word, kernel
from egressvpn.nat.tables import NatTables


@kernel
def record(nat: NatTables, kind: Word, identity: Word, pool: Word, port_low: Word, port_high: Word, now: Word) -> None:
    """Append one entry: BLOCK_GIVEN or BLOCK_TAKEN_BACK."""
    settings = nat.settings[0]
    sequence = settings.journal + 1
    entry = nat.journal[np.int64(sequence - 1) % nat.journal.size]
    entry.kind = kind
    entry.identity = identity
    entry.pool = pool
    entry.address = nat.pool[pool].address
    entry.port_low = port_low
    entry.port_high = port_high
    entry.when = now
    entry.sequence = sequence
    settings.journal = sequence
