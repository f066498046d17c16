"""Reading the NAT log: what was held when, from the files alone, whatever happened to the gateway that wrote them.

Lines are replayed in the order they were written. What is held ends by its release, by a start of the gateway (nothing is held
across one, though who was killed could not say so), by a checkpoint that does not name it, or by another allocation of the same ports.
A checkpoint counts when all of its lines are there: one that a crash has cut off changes nothing. Lines that are no records are left
out and named; an answer about a time that such a line or a loss may be about is not `sure`.
"""

import dataclasses
import gzip
import itertools
import mmap
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from egressvpn.observe.nat_records import (
    ALLOCATED,
    CHECKPOINT,
    CLOCK,
    DEVICE_CHANGED,
    LIVE,
    LOST,
    RELEASED,
    START,
    STOP,
    TIME_LENGTH,
    Record,
    decode,
    wall_ns,
    written,
)

EVER: Final = "9999"  # later than every time that is written
TIME_AT: Final = len('{"schema":1,"time":"')  # where a line has its time
EVENT_AT: Final = TIME_AT + TIME_LENGTH + len('","event":"')
TAIL: Final = 65_536  # octets, many lines
MOST_OF_A_TAIL: Final = 256  # lines
CHECKPOINT_TEXT: Final = b'","event":"checkpoint"'
LATE: Final = 10_000_000_000  # ns
OF_AN_ADDRESS: Final = frozenset({b"block-", b"addres"})  # how events begin that are not worth decoding when it is another one


@dataclasses.dataclass(slots=True)
class Holding:
    """A device had an external address, or some of its ports, from `begin` until `end`."""

    record: Record
    begin: str
    end: str = ""  # "": it still has it
    clean: bool = True  # False: it ended because the gateway did, without a word

    @property
    def since(self) -> str:
        """When it was allocated."""
        return self.record.since or self.record.time


@dataclasses.dataclass(frozen=True, slots=True)
class Gap:
    """Something happened in this time that the log does not know of."""

    begin: str
    end: str
    why: str


class Replay:
    """Holdings by what the lines say. `wanted` chooses which of them; `finish` after the last line."""

    def __init__(self, wanted: Callable[[Record], bool] = lambda _: True) -> None:
        self._wanted = wanted
        self.live: dict[tuple[str, int], Holding] = {}
        self.ended: list[Holding] = []
        self.gaps: list[Gap] = []
        self.epoch = 0
        self.file = 0
        self.time = ""  # of the last line
        self._checkpoint: list[Record] | None = None  # its lines so far
        self._missing = 0
        self._damage: tuple[str, str] | None = None  # time before it, where
        self._passed = b""  # the last line that was passed over
        self._on: Final = {
            START: self._on_start,
            STOP: self._on_start,
            CHECKPOINT: self._on_checkpoint,
            CLOCK: self._on_clock,
            LOST: lambda record: self.gaps.append(Gap(record.since, record.time, f"{record.count} events were lost")),
            DEVICE_CHANGED: self._on_device_changed,
        }

    def feed(self, record: Record) -> None:
        """The next line."""
        self._close_damage(record.time)
        self.epoch = record.epoch
        event = record.event
        if event in LIVE:
            self._on_live(record)
        elif event in self._on:
            self._on[event](record)
        elif event in ALLOCATED and self._wanted(record):
            self._end(record.key, record.time)
            self.live[record.key] = Holding(record, record.time)
        elif event in RELEASED and self._wanted(record):
            self._end(record.key, record.time)
        self.time, self._passed = record.time, b""

    def on_damaged(self, where: str) -> None:
        """A line that is no record."""
        if self._damage is None:
            self._damage = self.time, f"{where} is damaged and was left out"

    def pass_over(self, line: bytes) -> None:
        """A line about an address that is not wanted."""
        self._passed = line
        if b'-live"' in line[EVENT_AT : EVENT_AT + 16]:
            self._missing -= 1
            if self._missing == 0:
                self._complete(_time_of(line))

    def finish(self) -> None:
        self._close_damage(EVER)

    def holdings(self) -> Iterator[Holding]:
        """All of them, in the order they ended; those that have not are last."""
        yield from self.ended
        yield from self.live.values()

    def _close_damage(self, time: str) -> None:
        if self._damage is not None:
            before, why = self._damage
            self.gaps.append(Gap(before, time, why))
            self._damage = None

    def _end(self, key: tuple[str, int], time: str, clean: bool = True) -> None:
        held = self.live.pop(key, None)
        if held is not None:
            held.end, held.clean = max(time, held.begin), clean
            self.ended.append(held)

    def _on_start(self, record: Record) -> None:
        self._checkpoint = None
        last = max(record.time, _time_of(self._passed) or self.time)  # the clock may have gone back while nobody ran
        for key in list(self.live):
            self._end(key, last, clean=False)

    def _on_checkpoint(self, record: Record) -> None:
        self.file = record.file or self.file
        self._checkpoint, self._missing = [], record.live or 0
        self._complete(record.time)

    def _on_live(self, record: Record) -> None:
        if self._checkpoint is None:
            return
        self._missing -= 1
        if self._wanted(record):
            self._checkpoint.append(record)
        self._complete(record.time)

    def _complete(self, time: str) -> None:
        """Once a checkpoint's lines are there, they are what is held."""
        if self._checkpoint is None or self._missing > 0:
            return
        named = {record.key: record for record in self._checkpoint}
        self._checkpoint = None
        for key, held in list(self.live.items()):
            record = named.get(key)
            if record is None or (record.device_id, record.since) != (held.record.device_id, held.since):
                self._end(key, time)
            elif (record.device, record.internal) != (held.record.device, held.record.internal):
                self._end(key, time)
                self.live[key] = Holding(record, time)
        for key, record in named.items():
            if key not in self.live:
                self.live[key] = Holding(record, min(record.since, time))  # the clock may have been set back since

    def _on_clock(self, record: Record) -> None:
        """What was held goes on at what the clock shows now."""
        for key, held in list(self.live.items()):
            self._end(key, record.was)
            self.live[key] = Holding(held.record, record.time)

    def _on_device_changed(self, record: Record) -> None:
        for key, held in list(self.live.items()):
            if held.record.device_id == record.device_id:
                self._end(key, record.time)
                self.live[key] = Holding(_renamed(held, record), record.time)


def _renamed(held: Holding, record: Record) -> Record:
    return msgspec.structs.replace(held.record, device=record.device, internal=record.internal, since=held.since)


def _time_of(line: bytes) -> str:
    """Of a line that was not decoded."""
    return line[TIME_AT : TIME_AT + TIME_LENGTH].decode("ascii", "replace")


# files


def log_files(directory: Path, pattern: str) -> list[Path]:
    """The files of a log whose names are made from this strftime pattern, oldest first. Compressed ones (.gz) count."""
    if not pattern:
        return []
    glob = re.sub(r"(%.)+", "*", re.sub(r"([\[\]?*])", r"[\1]", pattern)).rstrip("*") + "*"
    return in_order(path for path in directory.glob(glob) if path.is_file() and not path.name.startswith("."))


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Files of one log, oldest first, by what their first line says."""
    heads = [(head.file, head.epoch, head.time, path) for path in paths if (head := first_record(path)) is not None]
    return [path for *_, path in sorted(heads)]


def first_record(path: Path) -> Record | None:
    """What a file begins with; None when that is no line of ours."""
    return next((decode(line) for line in _lines(path)), None)


def last_record(path: Path) -> Record | None:
    """The last whole line of a file."""
    try:
        if path.suffix == ".gz":
            records = [decode(line) for line in deque(_lines(path), MOST_OF_A_TAIL)]
        else:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - TAIL))
                records = [decode(line) for line in file]
    except OSError:
        return None
    return next((record for record in reversed(records) if record is not None), None)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error):
        return  # as much of it as can be read


def replay(paths: Sequence[Path], into: Replay, address: str = "") -> Replay:
    """Feed files, oldest first. With an address, lines about others are passed over quickly."""
    needle = f'"{address}"'.encode()
    for path in paths:
        for number, line in enumerate(_lines(path), 1):
            if address and needle not in line and line[EVENT_AT : EVENT_AT + 6] in OF_AN_ADDRESS and line.endswith(b"}\n"):
                into.pass_over(line)
            elif (record := decode(line)) is None:
                into.on_damaged(f"{path.name}:{number}")
            else:
                into.feed(record)
    into.finish()
    return into


def replay_end(path: Path, into: Replay, begin: str) -> Replay:
    """Feed what is needed of a file to know what was held from `begin` on: from the last checkpoint before that."""
    for line in _compressed_end(path, begin) if path.suffix == ".gz" else _end(path, begin):
        record = decode(line)
        if record is not None:
            into.feed(record)
    into.finish()
    return into


def _end(path: Path, begin: str) -> Iterator[bytes]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as octets:
            file.seek(_checkpoint_before(octets, begin))
            yield from file
    except (OSError, ValueError):  # it is gone, or empty
        return


def _compressed_end(path: Path, begin: str) -> Sequence[bytes]:
    """There is no way but to read all of it; what is kept is what follows one checkpoint."""
    kept: list[bytes] = []
    for line in _lines(path):
        if line.startswith(CHECKPOINT_TEXT, TIME_AT + TIME_LENGTH) and _time_of(line) < begin:
            kept.clear()
        kept.append(line)
    return kept


def _checkpoint_before(octets: mmap.mmap, begin: str) -> int:
    """Where the last checkpoint from before a time begins; else the first line does."""
    end = len(octets)
    while (at := octets.rfind(CHECKPOINT_TEXT, 0, end)) >= 0:
        start = at - TIME_LENGTH - TIME_AT
        if start >= 0 and octets[at - TIME_LENGTH : at].decode("ascii", "replace") < begin:
            return start
        end = at
    return 0


# whois


@dataclasses.dataclass(frozen=True, slots=True)
class Whois:
    """Who held an address and port in a span of time."""

    holdings: list[Holding]
    gaps: list[Gap]  # that may hide something about this time

    @property
    def sure(self) -> bool:
        return not self.gaps


def whois(paths: Sequence[Path], address: str, port: int | None, begin: str, end: str) -> Whois:
    """Who held the port (None: the address) at any moment from `begin` until before `end`. `paths`: oldest first."""

    def wanted(record: Record) -> bool:
        if record.external != address:
            return False
        return record.ports is None or (port is not None and record.ports[0] <= port <= record.ports[1])

    heads = [head for path in paths if (head := first_record(path)) is not None]
    seen = replay(about(paths, heads, begin, end), Replay(wanted), address)
    holdings = [held for held in seen.holdings() if _overlaps(held.begin, held.end or EVER, begin, end)]
    gaps = [gap for gap in (*_missing(heads), *seen.gaps) if _overlaps(gap.begin, gap.end, begin, end)]
    return Whois(holdings, gaps)


def _overlaps(begin: str, end: str, first: str, last: str) -> bool:
    """Whether something from `begin` until `end` was there between `first` and `last`; if it lasted no millisecond, it was at its begin."""
    return begin < last and (end > first or begin == end >= first)


def about(paths: Sequence[Path], heads: Sequence[Record], begin: str, end: str) -> Sequence[Path]:
    """The files that can tell of a time: each begins with all that is held and ends where the next begins, or says that it `was`.

    (An allocation may be written LATE after it was made.)
    """
    if not heads or len(heads) < len(paths):
        return paths
    ends = [max(head.time, head.was) for head in heads[1:]] + [EVER]
    late = written(wall_ns(end) + LATE) if end < EVER else EVER
    chosen = [number for number, (head, last) in enumerate(zip(heads, ends, strict=True)) if head.time < late and last >= begin]
    return paths[chosen[0] : chosen[-1] + 1] if chosen else paths[:1]  # what lies between them, too, if the clock was set back


def _missing(heads: Sequence[Record]) -> Iterator[Gap]:
    """What files that are not there any more would tell of."""
    if heads:
        yield Gap("", heads[0].time, f"the log begins at {heads[0].time}")
    for head, following in itertools.pairwise(heads):
        if following.file > head.file + 1:
            yield Gap(head.time, following.time, f"{following.file - head.file - 1} files of the log are not here")
