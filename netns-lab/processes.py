"""Processes of the lab: started in the background, remembered in pid files, ended by pid.

A pid file holds the pid and the start time that /proc gives for it, so that a pid the kernel has handed to somebody else
is never signalled. Invariant: `stop` returns only when the process and every descendant it had are gone.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
POLL = 0.02  # s
PATIENCE = 10.0  # s between SIGTERM and SIGKILL


@dataclass(frozen=True)
class Identity:
    """A pid together with its start time in clock ticks after boot: what makes it unique."""

    pid: int
    started: int

    def alive(self) -> bool:
        return start_time(self.pid) == self.started

    def signal(self, number: signal.Signals) -> None:
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from `state` (field 3) on; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def start_time(pid: int) -> int:
    """Clock ticks after boot; 0 when the process is gone or a zombie."""
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] != "Z" else 0


def tree(root: int) -> list[int]:
    """`root` and every process below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_seconds(root: int) -> float:
    """User and system time of the tree under `root`, those of its descendants included that have ended and were waited for."""
    ticks = 0
    for pid in tree(root):
        if fields := _stat(pid):
            ticks += sum(int(fields[i]) for i in (11, 12, 13, 14))  # utime stime cutime cstime
    return ticks / TICKS


def memory_bytes(root: int) -> int:
    """Proportional set size of the tree under `root`: shared pages are counted once among those that share them."""
    total = 0
    for pid in tree(root):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def wait_gone(identities: Iterable[Identity], seconds: float) -> bool:
    """Whether all of them ended within `seconds`."""
    deadline = time.monotonic() + seconds
    remaining = list(identities)
    while remaining := [i for i in remaining if i.alive()]:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True


def end(roots: Iterable[int], patience: float = PATIENCE) -> None:
    """Ask every tree under `roots` to end; make what has not ended after `patience` seconds."""
    roots = list(roots)
    all_of_them = [Identity(pid, start_time(pid)) for root in roots for pid in tree(root) if start_time(pid)]
    for identity in all_of_them:
        if identity.pid in roots:
            identity.signal(signal.SIGTERM)
    if not wait_gone(all_of_them, patience):
        for identity in all_of_them:
            identity.signal(signal.SIGKILL)
        wait_gone(all_of_them, PATIENCE)


class Processes:
    """The background processes of one lab, by name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
        """Start `argv` as `name`; its output goes to NAME.out and NAME.err. Returns the pid."""
        with (self.directory / f"{name}.out").open("wb") as out, (self.directory / f"{name}.err").open("wb") as err:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self._children[name] = child
        (self.directory / f"{name}.pid").write_text(f"{child.pid} {start_time(child.pid)}\n")
        return child.pid

    def identity(self, name: str) -> Identity | None:
        """The process called `name`, if it still runs."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            identity = Identity(*map(int, (self.directory / f"{name}.pid").read_text().split()))
            if identity.alive():
                return identity
        return None

    def returncode(self, name: str) -> int | None:
        """Its exit status when it was started by this object and has ended."""
        child = self._children.get(name)
        return child.poll() if child else None

    def names(self) -> list[str]:
        return sorted(path.stem for path in self.directory.glob("*.pid"))

    def output(self, name: str, stream: str = "out") -> str:
        return (self.directory / f"{name}.{stream}").read_text(errors="replace")

    def stop(self, name: str, patience: float = PATIENCE) -> int | None:
        """End it and everything below it. Returns the exit status when this object had started it."""
        if identity := self.identity(name):
            end([identity.pid], patience)
        (self.directory / f"{name}.pid").unlink(missing_ok=True)
        child = self._children.pop(name, None)
        return child.wait() if child else None

    def stop_all(self) -> None:
        for name in self.names():
            self.stop(name)
