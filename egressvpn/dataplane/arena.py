"""One shared memory file holds every table of a worker, so that its successor can go on where it stopped.

Layout: a page-aligned header (magic, version, length of a JSON description, the description), then the tables, each
aligned to a page. No pointers: only slot numbers. A zero-filled table is an empty one, so creating the arena touches
no memory, and only what is used becomes resident.
"""

import json
import mmap
import os
import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

MAGIC: Final = b"egressVPNarena\0\0"
VERSION: Final = 1
HEADER_BYTES: Final = 64 * 1024
_PREFIX = struct.Struct("=16sII")
MADV_DONTDUMP: Final = 16  # keys live here: keep them out of core dumps

Layout = dict[str, tuple[np.dtype[Any], int]]


@dataclass(frozen=True)
class Arena:
    """The file and its tables by name. `tables[name]` is a recarray (or a plain array for scalar types)."""

    fd: int
    tables: dict[str, Any]
    offsets: dict[str, int]
    memory: mmap.mmap

    def clear(self, name: str) -> None:
        """Make a table empty, and give its memory back."""
        length = -(-self.tables[name].nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.memory.madvise(mmap.MADV_REMOVE, self.offsets[name], length)

    def bundle(self, kind: Any) -> Any:
        """A NamedTuple class filled with the tables its fields name."""
        return kind(**{name: self.tables[name] for name in kind._fields})

    def written(self, name: str) -> list[tuple[int, int]]:
        """Ranges (first, end) of the rows of a table that memory was ever given to; all others are zero."""
        table, offset = self.tables[name], self.offsets[name]
        last = offset + table.size * table.itemsize
        ranges, at = [], offset
        while at < last:
            try:
                data = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole follows
                break
            at = os.lseek(self.fd, data, os.SEEK_HOLE)
            if data < last:
                ranges.append(((data - offset) // table.itemsize, min(table.size, -(-(at - offset) // table.itemsize))))
        return ranges


def create(layout: Layout) -> Arena:
    """A new, zero-filled arena. The fd is close-on-exec; hand it to a child with pass_fds."""
    fd = os.memfd_create("egressvpn-arena", os.MFD_CLOEXEC)
    description, total = _describe(layout)
    os.ftruncate(fd, total)
    os.pwrite(fd, _PREFIX.pack(MAGIC, VERSION, len(description)) + description, 0)
    return attach(fd, layout)


def attach(fd: int, layout: Layout) -> Arena:
    """The tables of an existing arena. Raises ValueError when it was made by an incompatible version."""
    magic, version, size = _PREFIX.unpack(os.pread(fd, _PREFIX.size, 0))
    if magic != MAGIC or version != VERSION:
        raise ValueError(f"not an arena of version {VERSION}")
    description, total = _describe(layout)
    if os.pread(fd, size, _PREFIX.size) != description:
        raise ValueError("the arena's tables differ from this version's")
    memory = mmap.mmap(fd, total)
    memory.madvise(MADV_DONTDUMP)
    tables, offsets = {}, {}
    for entry in json.loads(description):
        dtype, count = layout[entry["name"]]
        table = np.frombuffer(memory, dtype, count, entry["offset"])
        tables[entry["name"]] = table.view(np.recarray) if dtype.names else table
        offsets[entry["name"]] = entry["offset"]
    return Arena(fd, tables, offsets, memory)


def _describe(layout: Layout) -> tuple[bytes, int]:
    entries, offset = [], HEADER_BYTES
    for name, (dtype, count) in layout.items():
        entries.append({"name": name, "offset": offset, "count": count, "type": str(dtype.descr)})
        offset += -(-dtype.itemsize * count // mmap.PAGESIZE) * mmap.PAGESIZE
    description = json.dumps(entries).encode()
    if len(description) + _PREFIX.size > HEADER_BYTES:
        raise ValueError("the description of the tables outgrew the header")
    return description, offset
