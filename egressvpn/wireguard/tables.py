"""The arena tables of the WireGuard layer: devices, sessions, and what judges handshakes at the door.

One worker writes them. Slot 0 of each is never used, so 0 means none.

All times are CLOCK_MONOTONIC nanoseconds (shared by all processes of a machine, so they survive a worker); 0 means never or not armed.
"""

from typing import Any, Final, NamedTuple

import numpy as np

WINDOW_WORDS: Final = 128  # 8192 bits of replay window, 8128 usable (RFC 6479)

FREE: Final = 0
ENABLED: Final = 1
DISABLED: Final = 2

SESSION = np.dtype(
    [
        ("index", "i8"),  # our receiver index; 0: the slot is free
        ("remote_index", "i8"),
        ("owner", "i8"),
        ("created", "i8"),
        ("initiator", "i8"),  # 1 when we began the handshake
        ("send_counter", "i8"),  # the next nonce; advanced before a packet is sealed
        ("newest", "i8"),  # highest counter received
        ("rekey_asked", "i8"),  # a new handshake was asked for on behalf of this session
        ("receive_key", "u1", (32,)),
        ("send_key", "u1", (32,)),
        ("window", "i8", (WINDOW_WORDS,)),
    ],
    align=True,
)

DEVICE = np.dtype(
    [
        ("state", "i8"),  # FREE, ENABLED, DISABLED
        ("current", "i8"),  # session slots
        ("previous", "i8"),
        ("next", "i8"),
        ("internal4", "i8"),  # the device's first tunnel address; -1: none
        ("internal6_hi", "i8"),
        ("internal6_lo", "i8"),
        # endpoint: where to send, from which local address, through which socket
        ("socket", "i8"),  # index of our UDP socket
        ("remote_length", "i8"),  # 0: no endpoint known, else 16 (sockaddr_in) or 28 (sockaddr_in6)
        ("remote", "u1", (32,)),
        ("local_length", "i8"),  # 0, or the length of the PKTINFO control message in `local`
        ("local", "u1", (40,)),
        ("plain_sends", "i8"),  # 1: UDP_SEGMENT failed for this endpoint, send one by one
        # timers (whitepaper 6): a deadline each, 0 when not armed
        ("keepalive_due", "i8"),
        ("handshake_due", "i8"),
        ("persistent_due", "i8"),
        ("zero_due", "i8"),
        ("persistent_interval", "i8"),  # ns, 0: off
        ("handshake_asked", "i8"),  # time of the last NEEDS_SESSION event, so that it is not repeated per packet
        ("last_sent", "i8"),
        ("last_received", "i8"),
        ("last_handshake", "i8"),
        ("last_handshake_wall", "i8"),  # ns since the epoch, for `wg show` and metrics
        ("next_wall", "i8"),  # what it becomes when the session in `next` is confirmed
        ("received_bytes", "i8"),
        ("sent_bytes", "i8"),
        ("staged", "i8"),  # packets waiting for a session
    ],
    align=True,
)


HASH_WORDS: Final = 8  # the state of a BLAKE2s
MAX_IDENTITIES: Final = 4  # private keys in use at once; unlike elsewhere row 0 is one of them
LIMITER_HEADS: Final = 8192  # chains of the rate limiter (kernel: at least so many)
SHARES: Final = 4096  # buckets of networks' shares
LIMITER_SOURCES: Final = 65_536  # sources it knows at once (kernel: 8 per chain); beyond them a new one is refused

IDENTITY = np.dtype(
    [
        ("used", "i8"),
        ("mac1_state", "i8", (HASH_WORDS,)),  # BLAKE2s after its key block, H("mac1----" || public key): half of each check is done
        ("cookie_key", "u1", (32,)),  # H("cookie--" || public key)
    ],
    align=True,
)

COOKIE = np.dtype(
    [
        ("known", "i8"),  # 0: no secret was ever set
        ("state", "i8", (HASH_WORDS,)),  # BLAKE2s after its key block, the secret
    ],
    align=True,
)

LIMITER = np.dtype(
    [
        ("version", "i8"),  # of the address: 4, 6, or 0 when the row is free
        ("source", "i8"),  # the IPv4 address, or the upper half of the IPv6 address
        ("tokens", "i8"),  # ns: 50 ms let one handshake through
        ("seen", "i8"),  # when
        ("chain", "i8"),  # whose list the row is in
        ("after", "i8"),  # the next row of the chain, or of the free list
    ],
    align=True,
)

LIMITER_HEAD = np.dtype([("first", "i8")], align=True)

SHARE = np.dtype([("spent_until", "i8")], align=True)  # ns: the networks of this bucket have spent their share until then

LIMITER_STATE = np.dtype(
    [
        ("keyed", "i8"),
        ("state", "i8", (HASH_WORDS,)),  # keyed BLAKE2s by which sources are spread over the chains
        ("free", "i8"),  # first row of the free list
        ("high", "i8"),  # rows above this one were never used
        ("used", "i8"),  # how many sources are known
        ("hand", "i8"),  # the last row that the collection of idle sources looked at
    ],
    align=True,
)


class WireGuardTables(NamedTuple):
    """The arrays of this layer, as kernels take them."""

    sessions: Any
    devices: Any
    identities: Any
    cookie: Any
    limiter: Any
    limiter_heads: Any
    limiter_state: Any
    shares: Any


def session_slots(max_devices: int) -> int:
    """A power of two with room for previous, current, next and a handshake per device."""
    return 1 << (4 * (max_devices + 1) - 1).bit_length()


def tables(max_devices: int, max_sources: int = LIMITER_SOURCES) -> dict[str, tuple[np.dtype[Any], int]]:
    """The layout of this module's tables; device slots are 1 to `max_devices`, rows of the rate limiter 1 to `max_sources`."""
    return {
        "sessions": (SESSION, session_slots(max_devices)),
        "devices": (DEVICE, max_devices + 1),
        "identities": (IDENTITY, MAX_IDENTITIES),
        "cookie": (COOKIE, 1),
        "limiter": (LIMITER, max_sources + 1),
        "limiter_heads": (LIMITER_HEAD, LIMITER_HEADS),
        "limiter_state": (LIMITER_STATE, 1),
        "shares": (SHARE, SHARES),
    }
