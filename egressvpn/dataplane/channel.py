"""What control and a worker say to each other: fixed-size messages over one SEQPACKET socket pair.

Commands go down, events come up. The worker peeks at a command, applies it, then takes it off the socket: killed in
between, its successor applies it again, so every command is idempotent. Events that do not fit are dropped and counted;
data never waits for them.
"""

from enum import IntEnum
from typing import Final

import numpy as np

DATAGRAM_BYTES: Final = 192  # the longest handshake message is 148


class Event(IntEnum):
    """Worker to control."""

    PROGRESS = 1  # `first` of `second` kernels compiled
    READY = 2
    HANDSHAKE = 3  # a handshake datagram, with its path
    WANTED = 4  # `device` has data to send and no fresh session
    DUE = 5  # timers of `device`: bits in `first`
    FREED = 6  # session index `index` is free again
    CONFIRMED = 7  # first data came on a session that `device` began
    SYNCED = 8  # every command before SYNC has been applied
    REFUSED = 9  # the command of kind `first` could not be carried out: a table is full
    FAILED = 10  # the worker met a bug; text in `octets`


class Command(IntEnum):
    """Control to worker."""

    OPEN = 1  # configuration is complete: packets may flow
    INSTALL = 2  # a session of `device`; then send the datagram in `octets`, if any, along the path
    KEEPALIVE = 3  # send what is staged for `device`, or else a keepalive
    CLEAR = 4  # wipe the sessions of `device`
    DROP_STAGED = 5
    SET_DEVICE = 6
    REMOVE_DEVICE = 7
    ADD_PREFIX = 8  # allowed IPs of `device`
    ADD_DENIED = 9
    ADD_POOL = 10
    SET_PATH = 11  # where `device` is, when it has not been heard yet
    SYNC = 12  # answer with SYNCED


_PATH = [
    ("socket", "i8"),
    ("remote_length", "i8"),
    ("remote", "u1", (32,)),
    ("local_length", "i8"),
    ("local", "u1", (40,)),
    ("length", "i8"),
    ("octets", "u1", (DATAGRAM_BYTES,)),
]

EVENT = np.dtype([("kind", "i8"), ("owner", "i8"), ("index", "i8"), ("first", "i8"), ("second", "i8"), *_PATH], align=True)

COMMAND = np.dtype(
    [
        ("kind", "i8"),
        ("owner", "i8"),
        ("index", "i8"),
        ("remote_index", "i8"),
        ("initiator", "i8"),
        ("wall", "i8"),
        ("receive_key", "u1", (32,)),
        ("send_key", "u1", (32,)),
        # a prefix or an address
        ("version", "i8"),
        ("high", "i8"),
        ("low", "i8"),
        ("prefix_length", "i8"),
        # SET_DEVICE, ADD_POOL
        ("state", "i8"),
        ("internal4", "i8"),
        ("internal6_hi", "i8"),
        ("internal6_lo", "i8"),
        ("external4", "i8"),  # slot of the pool address
        ("external6_hi", "i8"),
        ("external6_lo", "i8"),
        ("persistent_interval", "i8"),
        ("port_low", "i8"),
        ("port_high", "i8"),
        *_PATH,
    ],
    align=True,
)
