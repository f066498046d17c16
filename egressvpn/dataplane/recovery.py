"""After a worker died at any instruction: make the arena consistent again before its successor touches a packet."""

from collections.abc import Iterable

import numpy as np

from egressvpn import prefixes
from egressvpn.dataplane.bundle import Bundle
from egressvpn.dataplane.tables import STAGED_SLOTS
from egressvpn.kernel import kernel
from egressvpn.nat.recovery import recover as recover_nat
from egressvpn.wireguard import ratelimiter
from egressvpn.wireguard.keypairs import recover_devices, recover_sessions


@kernel
def recover(b: Bundle) -> None:
    """Mend what a death in mid-write can leave behind, all but the sessions."""
    recover_devices(b.wg, np.int64(b.work.worker[0].device_limit))
    prefixes.recover(b.prefixes)
    prefixes.recover(b.denied)
    recover_nat(b.nat)
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


def recover_all(b: Bundle, written: Iterable[tuple[int, int]]) -> None:
    """Mend everything. `written` are the ranges of session rows that were ever written (`Arena.written`)."""
    recover(b)
    for first, end in written:
        recover_sessions(b.wg, first, end)
