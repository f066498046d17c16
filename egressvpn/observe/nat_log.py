"""Writing the NAT log: a bounded queue of records, and a thread that puts them on disk. Whoever appends never waits.

A batch of lines is written whole and reaches the disk (fdatasync) before the next one; what could only be written in part, as on a
full disk, is taken back and tried again every RETRY seconds. Meanwhile the queue fills; what has no room is refused, which the
caller counts and mends with a checkpoint. A new file appears under its name with its whole first checkpoint, or not at all, and never
in the place of another. A line that a crash has cut off is closed by the next start with an end of line.
"""

import contextlib
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
import trio

from egressvpn.observe.nat_history import first_record, last_record, log_files
from egressvpn.observe.nat_records import Record, as_live, encode, written

log = structlog.get_logger(__name__)

MAX_QUEUED: Final = 65_536  # records that wait for the disk, some 20 MB of memory
RETRY: Final = 1.0  # s
MOST_OF_A_NAME: Final = 10_000  # files with the same name and a number


@dataclass(frozen=True, slots=True)
class _Batch:
    records: Sequence[Record]
    live: Sequence[Record]  # what is held at the checkpoint that `records` end with
    name: str  # of the file to begin with it; "": it belongs to the file that there is

    def __len__(self) -> int:
        return len(self.records) + len(self.live)

    def octets(self) -> bytes:
        time = self.records[-1].time
        return b"".join([*map(encode, self.records), *(encode(as_live(record, time)) for record in self.live)])


class NatLog:
    """The files of one log. `append` and `begin_file` are called in the thread of trio only."""

    def __init__(self, directory: Path, pattern: str) -> None:
        self._directory = directory
        self._pattern = pattern
        self._queue: deque[_Batch] = deque()
        self._queued = 0
        self._more = trio.Event()
        self._descriptor = -1
        self._size = 0  # of what is written whole
        self._path = directory
        self.trouble = ""  # why nothing can be written
        self.current = ""  # the name the current file was begun for
        self.began = ""  # its first line's time
        self.file = 0  # its number
        self.last = ""  # the time of the last line that was there before

    @property
    def moved(self) -> bool:
        """Somebody has moved or removed the file: another one must be begun."""
        if self._descriptor < 0:
            return False
        try:
            return self._path.stat().st_ino != os.fstat(self._descriptor).st_ino
        except OSError:
            return True

    def name(self, wall_ns: int) -> str:
        """The name of the file for this time."""
        return datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC).strftime(self._pattern)

    def files(self) -> list[Path]:
        """All there are, oldest first."""
        return log_files(self._directory, self._pattern)

    def resume(self, wall_ns: int) -> bool:
        """Go on with the newest file, if it is the one for this time. False: a file must be begun. Raises OSError."""
        files = self.files()
        head, last = (first_record(files[-1]), last_record(files[-1])) if files else (None, None)
        if head is None or last is None:
            return False
        self.file, self.last = head.file, last.time
        if files[-1].name != self.name(wall_ns) or written(wall_ns) < last.time:
            return False
        self._open(files[-1])
        self.current, self.began = files[-1].name, head.time
        return True

    def append(self, records: Sequence[Record], live: Sequence[Record] = ()) -> bool:
        """Have these written after everything before, the last a checkpoint if `live` is what is held. False: the queue has no room."""
        return self._put(_Batch(records, live, ""))

    def begin_file(self, checkpoint: Record, live: Sequence[Record], name: str) -> bool:
        """Have a file begun. False when the queue has no room."""
        if not self._put(_Batch([checkpoint], live, name)):
            return False
        self.current, self.began, self.file = name, checkpoint.time, checkpoint.file
        return True

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._more.wait()
            self._more = trio.Event()
            await self.flush()

    async def flush(self) -> None:
        """Write until there is nothing to write; not while `run` runs."""
        while self._queue:
            await self._write_next()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _put(self, batch: _Batch) -> bool:
        if self._queued and self._queued + len(batch) > MAX_QUEUED:
            return False
        self._queue.append(batch)
        self._queued += len(batch)
        self._more.set()
        return True

    async def _write_next(self) -> None:
        """The oldest batch, or that and those that go on in the same file."""
        batches = [self._queue[0]]
        for batch in list(self._queue)[1:]:
            if batch.name:
                break
            batches.append(batch)
        try:
            await trio.to_thread.run_sync(self._persist, batches)
        except OSError as error:
            if not self.trouble:
                log.error("the NAT log cannot be written; trying again", directory=str(self._directory), error=str(error))
            self.trouble = f"the NAT log cannot be written: {error.strerror or error}"
            await trio.sleep(RETRY)
            return
        if self.trouble:
            log.info("the NAT log is written again")
        self.trouble = ""
        for batch in batches:
            self._queue.popleft()
            self._queued -= len(batch)

    # in the thread

    def _persist(self, batches: Sequence[_Batch]) -> None:
        octets = b"".join(batch.octets() for batch in batches)
        if batches[0].name:
            self._begin(octets, batches[0].name)
        else:
            self._extend(octets)

    def _begin(self, octets: bytes, name: str) -> None:
        draft = self._directory / f".{name}.new"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_whole(descriptor, octets)
            os.fsync(descriptor)
            path = self._place(draft, name)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise
        finally:
            os.close(descriptor)
        _sync_directory(self._directory)
        self._open(path)

    def _place(self, draft: Path, name: str) -> Path:
        """Give the file its name, with a number behind it when there is one of that name."""
        for number in range(1, MOST_OF_A_NAME):
            path = self._directory / (name if number == 1 else f"{name}.{number}")
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
                draft.unlink()
                return path
        raise OSError(f"there are {MOST_OF_A_NAME} files named {name}")

    def _open(self, path: Path) -> None:
        """For what follows; a line without an end gets one."""
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            try:
                _write_whole(descriptor, b"\n")
            except OSError:
                os.close(descriptor)
                raise
            size += 1
        self.close()
        self._descriptor, self._path, self._size = descriptor, path, size

    def _extend(self, octets: bytes) -> None:
        if os.fstat(self._descriptor).st_size != self._size:  # it could not be taken back before
            os.ftruncate(self._descriptor, self._size)
        try:
            _write_whole(self._descriptor, octets)
            os.fdatasync(self._descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(octets)


def _write_whole(descriptor: int, octets: bytes) -> None:
    view = memoryview(octets)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
