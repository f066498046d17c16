"""A journal of settings: what a value was before we changed it, on disk before the change, so that a crash loses nothing.

One JSON file in the gateway's state directory. It names the boot and the network namespace it is about: after a reboot, or
in another namespace, the kernel has long forgotten our change and the journal is dropped unused.
"""

import json
import os
from pathlib import Path
from typing import Final

from egressvpn.errors import OperatorError

SCHEMA: Final = 1
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE: Final = Path("/proc/thread-self/ns/net")


def scope() -> dict[str, str | int]:
    """This boot and this network namespace."""
    return {"boot": BOOT_ID.read_text().strip(), "namespace": NAMESPACE.stat().st_ino}


def write(path: Path, values: list[tuple[str, str]]) -> None:
    """Put (key, value before) on disk, all or nothing, in the order they are to be restored. Mode 0600."""
    text = json.dumps({"schema": SCHEMA, **scope(), "values": values}, indent=1)
    draft = path.with_name(f".{path.name}.draft")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise OperatorError(f"cannot write {path}: {error.strerror}", "check [gateway] state_dir and the free space there") from error


def read(path: Path) -> list[tuple[str, str]]:
    """What to restore; nothing when there is no journal or it is about another boot or namespace."""
    try:
        journal = json.loads(path.read_text())
        here = {key: journal[key] for key in ("boot", "namespace")} == scope() and journal["schema"] == SCHEMA
        return [(str(key), str(value)) for key, value in journal["values"]] if here else []
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OperatorError(f"cannot read {path}: {error.strerror}", "check its owner and mode") from error
    except (ValueError, KeyError, TypeError) as error:
        raise OperatorError(f"{path} is damaged", "check the sysctls it may have been about, then delete it") from error


def discard(path: Path) -> None:
    path.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
