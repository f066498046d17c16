"""After a worker died at any instruction: make the arena consistent again before its successor touches a packet."""

import numpy as np

from egressvpn import prefixes
from egressvpn.dataplane.bundle import Bundle
from egressvpn.dataplane.tables import STAGED_SLOTS
from egressvpn.kernel import Word, kernel
from egressvpn.nat.recovery import recover as recover_nat
from egressvpn.wireguard.keypairs import recover as recover_sessions


@kernel
def recover(b: Bundle) -> Word:
    """Mend what a death in mid-write can leave behind. Returns how many sessions there are."""
    sessions = np.int64(recover_sessions(b.wg))
    prefixes.recover(b.prefixes)
    prefixes.recover(b.denied)
    recover_nat(b.nat)
    for number in range(1, b.work.worker[0].device_limit):
        b.wg.devices[number].staged = 0
    for slot in range(STAGED_SLOTS):
        number = b.work.staged[slot].owner
        if number != 0:
            b.wg.devices[number].staged += 1
    return sessions
