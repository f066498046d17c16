"""After a worker died at any instruction: make the arena consistent again before its successor touches a packet."""

import numpy as np

from egressvpn import prefixes
from egressvpn.dataplane.arena import Arena
from egressvpn.dataplane.bundle import Bundle
from egressvpn.dataplane.tables import STAGED_SLOTS
from egressvpn.kernel import Word, kernel
from egressvpn.nat.recovery import recover as recover_nat
from egressvpn.nat.tables import DERIVED
from egressvpn.wireguard import ratelimiter
from egressvpn.wireguard.keypairs import recover_devices, recover_sessions


@kernel
def recover(b: Bundle, now: Word) -> None:
    """Mend what a death in mid-write can leave behind, all but the sessions. The translator's DERIVED tables are empty."""
    recover_devices(b.wg, np.int64(b.work.worker[0].device_limit))
    prefixes.recover(b.prefixes)
    prefixes.recover(b.denied)
    prefixes.recover(b.exempt)
    prefixes.recover(b.egress)
    recover_nat(b.nat, now)
    b.work.worker[0].endings = b.work.endings.size  # at the most: `end_some` counts them
    ratelimiter.reset(b.wg)
    for number in range(1, b.work.worker[0].device_limit):
        b.wg.devices[number].staged = 0
    worker = b.work.worker[0]
    for slot in range(STAGED_SLOTS):
        entry = b.work.staged[slot]
        if entry.owner != 0 and (worker.staged_tail - 1 - slot) // STAGED_SLOTS < 0:
            entry.owner = 0  # its sequence number was never given out
        if entry.owner != 0:
            b.wg.devices[entry.owner].staged += 1


def recover_all(b: Bundle, memory: Arena, now: int) -> None:
    """Mend everything."""
    for name in DERIVED:
        memory.clear(name)
    recover(b, now)
    for first, end in memory.written("sessions"):
        recover_sessions(b.wg, first, end)
