"""The lines of the NAT log: who held which external address and ports, and when. One JSON object a line (RFC 6888 section 4, RFC 7422).

Times are UTC, RFC 3339 with milliseconds, always written the same way, so that they sort as text. A *holding* is a block of ports
of an IPv4 address, or a whole IPv6 address. What is written about one:

- `block-allocated`, `block-released`, `address-allocated`, `address-released`: as they happen. A released one repeats all it was.
- `checkpoint`, then `live` lines `block-live` and `address-live`: everything held in that moment; nothing else was. Every file
  begins with one, so that it stands alone, and its `file` counts the files. It has `was` when the clock was set back: the file before goes
  on until then. Inside a file times only rise.
- `start` and `stop` of the gateway: nothing is held across a start. Each has an `epoch` of its own.
- `device-changed`: a device that holds something has another name or other internal addresses from here on.
- `clock`: the clock was set; `was` is what it would show otherwise.
- `lost`: `count` events since `since` could not be written. A checkpoint follows.
- `deterministic`: from here on this is how a deterministic pool is computed (the variables of RFC 7422).
"""

from datetime import UTC, datetime
from typing import Final

import msgspec

SCHEMA: Final = 1
MILLISECOND: Final = 1_000_000  # ns
PROTOCOLS: Final = ("tcp", "udp", "icmp")  # a block covers the ports of all of them alike

BLOCK_ALLOCATED: Final = "block-allocated"
BLOCK_RELEASED: Final = "block-released"
BLOCK_LIVE: Final = "block-live"
ADDRESS_ALLOCATED: Final = "address-allocated"
ADDRESS_RELEASED: Final = "address-released"
ADDRESS_LIVE: Final = "address-live"
CHECKPOINT: Final = "checkpoint"
START: Final = "start"
STOP: Final = "stop"
DEVICE_CHANGED: Final = "device-changed"
CLOCK: Final = "clock"
LOST: Final = "lost"
DETERMINISTIC: Final = "deterministic"

ALLOCATED: Final = frozenset({BLOCK_ALLOCATED, ADDRESS_ALLOCATED})
RELEASED: Final = frozenset({BLOCK_RELEASED, ADDRESS_RELEASED})
LIVE: Final = frozenset({BLOCK_LIVE, ADDRESS_LIVE})


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line. What an event does not have keeps its default and is not written."""

    schema: int
    time: str
    event: str
    epoch: int
    device: str = ""
    device_id: int = 0
    internal: tuple[str, ...] = ()  # the device's addresses inside the tunnel
    external: str = ""
    ports: tuple[int, int] | None = None  # ends included; None for a whole address
    protocols: tuple[str, ...] = ()
    pool: str = ""
    since: str = ""  # when it was allocated, or when losing began
    was: str = ""
    count: int = 0
    live: int | None = None
    file: int = 0
    gateway: str = ""
    version: str = ""
    inside: str = ""
    outside: tuple[str, ...] = ()
    dynamic_factor: int | None = None
    algorithm: int | None = None
    max_ports: int = 0

    @property
    def key(self) -> tuple[str, int]:
        """What at most one device holds at a time."""
        return self.external, -1 if self.ports is None else self.ports[0]


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


def encode(record: Record) -> bytes:
    """A line, its end included."""
    return _encoder.encode(record) + b"\n"


def decode(line: bytes) -> Record | None:
    """The record of a whole line; None when it is none (torn by a crash, of a later schema, or damaged)."""
    try:
        record = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return record if record.schema == SCHEMA and line.endswith(b"\n") and len(record.time) == TIME_LENGTH else None


def as_live(record: Record, time: str) -> Record:
    """What was allocated, as a checkpoint names it."""
    event = ADDRESS_LIVE if record.ports is None else BLOCK_LIVE
    return msgspec.structs.replace(record, event=event, time=time, since=record.time)


def written(wall_ns: int) -> str:
    """A time since the epoch as the log has it."""
    seconds, rest = divmod(wall_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // MILLISECOND:03d}Z"


TIME_LENGTH: Final = len(written(0))


def wall_ns(time: str) -> int:
    """The inverse of `written`. Raises ValueError."""
    moment = datetime.fromisoformat(time)
    return int(moment.replace(microsecond=0).timestamp()) * 1_000_000_000 + moment.microsecond * 1000
