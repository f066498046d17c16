"""The interpreter's garbage collector in the control process, so that a large configuration costs no pauses.

A full collection looks at every object there is: with a hundred thousand networks it would hold up handshakes for a second,
and making them would set it off again and again. What a configuration is made of lives long and has no cycles, so it is taken
out of the collector's sight (`gc.freeze`; it is freed as ever when nothing refers to it); full collections, for the few
cycles that tasks and errors leave, are made now and then.
"""

import gc
from collections.abc import Sequence
from typing import Final

import trio

from egressvpn.control.peers import PeerChange

YOUNG: Final = 700  # objects more since the last collection of young ones: the interpreter's own choice
MIDDLE: Final = 10
NEVER: Final = 1 << 30
MANY: Final = 4096  # peers and networks of one change
INTERVAL: Final = 600.0  # s between two full collections


def begin() -> None:
    """No full collection by itself from now on."""
    gc.set_threshold(YOUNG, MIDDLE, NEVER)
    gc.freeze()


def keep() -> None:
    """What there is now is there to stay: a configuration was loaded."""
    gc.freeze()


def on_changes(changes: Sequence[PeerChange]) -> None:
    """Peers were changed; many of them are a configuration. (Not the few: garbage that is kept with them stays for ever.)"""
    if sum(1 + len(change.allowed_ips) for change in changes) >= MANY:
        keep()


async def run() -> None:
    """Collect what has become of tasks and errors."""
    while True:
        await trio.sleep(INTERVAL)
        gc.collect()
