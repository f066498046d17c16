"""Small files that must be whole or as before, whatever happens while they are written, and that only their owner reads."""

import os
from collections.abc import Callable
from pathlib import Path

import structlog

from egressvpn.wireguard.timestamps import NO_TIMESTAMP, TimestampClock

log = structlog.get_logger(__name__)


def replace_private(path: Path, content: bytes) -> None:
    """Put `content` in the place of `path`, 0600. Raises OSError, and then nothing has changed."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def kept_timestamp(path: Path) -> bytes:
    """The mark that `timestamp_keeper` wrote before a restart; NO_TIMESTAMP when there is none."""
    try:
        mark = bytes.fromhex(path.read_text("ascii"))
        TimestampClock(mark)
    except FileNotFoundError:
        return NO_TIMESTAMP
    except (OSError, ValueError) as error:
        log.warning("the last timestamp cannot be read; should the clock have gone back, peers refuse us", file=str(path), error=str(error))
        return NO_TIMESTAMP
    return mark


def timestamp_keeper(path: Path) -> Callable[[bytes], None]:
    """What writes a mark down: no initiation after a restart may carry an older TAI64N (conformance W11). It raises OSError."""
    return lambda mark: replace_private(path, mark.hex().encode())
