"""What control and a worker say to each other: fixed-size messages over one SEQPACKET socket pair.

Commands go down, events come up. The worker peeks at a command, applies it, then takes it off the socket: killed in
between, its successor applies it again, so every command is idempotent. Events that do not fit are dropped and counted;
data never waits for them.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np

from egressvpn.addresses import IPNetwork, Path

DATAGRAM_BYTES: Final = 192  # the longest handshake message is 148
PREFIX_RECORD: Final = struct.Struct("BB16s")  # version, length, address (IPv4 in the first four octets)
PREFIXES_PER_COMMAND: Final = DATAGRAM_BYTES // PREFIX_RECORD.size


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
    EXPLAINED = 11  # the answer to EXPLAIN number `index`: `first` and `second` as explain.py says
    POOL_REMOVED = 12  # nothing of the address in pool slot `first` is left


class Command(IntEnum):
    """Control to worker."""

    OPEN = 1  # configuration is complete: packets may flow
    INSTALL = 2  # a session of `device`; then send the datagram in `octets`, if any, along the path
    KEEPALIVE = 3  # send what is staged for `device`, or else a keepalive
    CLEAR = 4  # wipe the sessions of `device`
    DROP_STAGED = 5
    SET_DEVICE = 6
    REMOVE_DEVICE = 7
    ADD_PREFIXES = 8  # allowed IPs of `device`: PREFIX_RECORDs in `octets`
    ADD_DENIED = 9
    ADD_POOL = 10  # the IPv4 address `low` in pool slot `external4`, or (version 6) a network that external addresses are taken from
    SET_PATH = 11  # where `device` is, when it has not been heard yet
    SYNC = 12  # answer with SYNCED
    TRANSMIT = 13  # send the handshake datagram in `octets` for `device` along the path
    REMOVE_PREFIXES = 14  # those of the PREFIX_RECORDs in `octets` that are `device`'s
    SET_IDENTITY = 15  # identity number `index`: `receive_key` is its MAC1 key, `send_key` its cookie key; `state` 0: none
    SET_COOKIE_SECRET = 16  # `receive_key`, until the next one comes
    SET_SOCKET = 17  # UDP socket number `socket` is replaced by the descriptor that travels with the command
    FORGET_SOURCE = 18  # let routing choose where we write to `device` from, if that is still the local address of the path
    SET_MTU = 19  # of the tunnel, `index` octets
    REMOVE_POOL = 20  # what ADD_POOL added; the flows on an address end step by step, then POOL_REMOVED
    HOLD_BLOCK = 21  # the block of pool slot `external4` that begins at `port_low` is nobody's but `identity`'s until `wall` (monotonic ns)
    EXPLAIN = (
        22  # what would be done with a packet of `owner` to this address, port `port_low`, protocol `state`; `index` names the request
    )
    ADD_EXEMPT = 23  # a prefix that is reached untranslated (RFC 6888 REQ-6)


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
        # SET_DEVICE, ADD_POOL, HOLD_BLOCK
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
        ("group", "i8"),  # of the pool address: which [[pool]] it belongs to
        ("block_size", "i8"),
        ("max_blocks", "i8"),  # per device
        ("fixed_blocks", "i8"),  # predefined blocks of `fixed_size` ports
        ("fixed_size", "i8"),
        ("identity", "i8"),  # the device's id in the store
        ("fixed", "i8"),  # number of its predefined block + 1; 0: none
        *_PATH,
    ],
    align=True,
)

_COMMAND: Final = struct.Struct("=6q32s32s21q2q32sq40sq192s")
_EVENT: Final = struct.Struct("=7q32sq40sq192s")
_EVENT_HEAD: Final = struct.Struct("=5q")
_WITH_OCTETS: Final = frozenset({Event.PROGRESS, Event.HANDSHAKE, Event.FAILED})


def pack_command(
    kind: Command,
    owner: int = 0,
    *,
    index: int = 0,
    remote_index: int = 0,
    initiator: int = 0,
    wall: int = 0,
    receive_key: bytes = b"",
    send_key: bytes = b"",
    version: int = 0,
    high: int = 0,
    low: int = 0,
    prefix_length: int = 0,
    state: int = 0,
    internal4: int = 0,
    internal6_hi: int = 0,
    internal6_lo: int = 0,
    external4: int = 0,
    external6_hi: int = 0,
    external6_lo: int = 0,
    persistent_interval: int = 0,
    port_low: int = 0,
    port_high: int = 0,
    group: int = 0,
    block_size: int = 0,
    max_blocks: int = 0,
    fixed_blocks: int = 0,
    fixed_size: int = 0,
    identity: int = 0,
    fixed: int = 0,
    path: Path | None = None,
    socket: int = 0,
    octets: bytes = b"",
) -> bytes:
    """A command as it goes down the channel, a record of dtype COMMAND. Fields as there."""
    remote, local, socket = (b"", b"", socket) if path is None else (path.remote, path.local, path.socket)
    return _COMMAND.pack(
        *(kind, owner, index, remote_index, initiator, wall, receive_key, send_key),
        *(version, high, low, prefix_length, state, internal4, internal6_hi, internal6_lo),
        *(external4, external6_hi, external6_lo, persistent_interval, port_low, port_high),
        *(group, block_size, max_blocks, fixed_blocks, fixed_size, identity, fixed),
        *(socket, len(remote), remote, len(local), local, len(octets), octets),
    )


def pack_prefixes(networks: Iterable[IPNetwork]) -> Iterator[bytes]:
    """The `octets` of as many ADD_PREFIXES or REMOVE_PREFIXES as these networks need."""
    records = [PREFIX_RECORD.pack(network.version, network.prefixlen, network.network_address.packed) for network in networks]
    for first in range(0, len(records), PREFIXES_PER_COMMAND):
        yield b"".join(records[first : first + PREFIXES_PER_COMMAND])


@dataclass(slots=True)
class Happened:
    """An event as control reads it."""

    kind: Event
    owner: int
    index: int
    first: int
    second: int
    path: Path | None = None
    octets: bytes = b""


def unpack_event(record: bytes) -> Happened:
    """An event as it came up the channel, a record of dtype EVENT."""
    kind, owner, index, first, second = _EVENT_HEAD.unpack_from(record)
    if kind not in _WITH_OCTETS:
        return Happened(Event(kind), owner, index, first, second)
    *_, socket, remote_length, remote, local_length, local, length, octets = _EVENT.unpack(record)
    path = Path(remote[:remote_length], local[:local_length], socket) if remote_length else None
    return Happened(Event(kind), owner, index, first, second, path, octets[:length])
