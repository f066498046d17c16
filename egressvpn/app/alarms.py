"""Says in the log when devices are refused: which device met a limit of its own, and which pool has no ports left.

The data path only counts. The counts are looked at once a second, and a device or pool is named at most once a minute, a few
at a time: a thousand devices that are refused must not fill a disk.
"""

from typing import Any, Final

import numpy as np
import structlog
import trio

from egressvpn.app.fleet import Fleet

log = structlog.get_logger(__name__)

INTERVAL: Final = 1.0  # s
QUIET: Final = 60.0  # s between two lines about the same
AT_ONCE: Final = 10  # lines a look


class Alarms:
    """Reads the translator's tables; writes nothing but log lines."""

    def __init__(self, nat: Any, fleet: Fleet) -> None:
        self._nat = nat
        self._fleet = fleet
        self._refused: Any = nat.subscribers["refused"].copy()
        self._exhausted: Any = nat.pool["exhausted"].copy()
        self._said: dict[tuple[str, int], float] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(INTERVAL)
            self.look(trio.current_time())

    def look(self, now: float) -> None:
        """Name who was refused since the last look. `now` in seconds."""
        self._said = {what: when for what, when in self._said.items() if now - when < QUIET}
        exhausted, refused = self._nat.pool["exhausted"].copy(), self._nat.subscribers["refused"].copy()
        more, self._exhausted = exhausted - self._exhausted, exhausted
        for slot in self._news("pool", more, now):
            address = self._fleet.pools.address_of(slot)
            log.warning("no ports left", pool=self._fleet.pools.pool_of(slot), address=str(address), refused=int(more[slot]))
        more, self._refused = refused - self._refused, refused
        for slot in self._news("device", more, now):
            member = self._fleet.by_slot.get(slot)
            log.warning("flows refused", device="" if member is None else member.device.name, refused=int(more[slot]))

    def _news(self, kind: str, more: Any, now: float) -> list[int]:
        """The rows that have grown most, of those that nothing was said about lately."""
        grown = [int(slot) for slot in np.nonzero(more > 0)[0] if (kind, int(slot)) not in self._said]
        chosen = sorted(grown, key=lambda slot: -int(more[slot]))[:AT_ONCE]
        self._said |= {(kind, slot): now for slot in chosen}
        return chosen
