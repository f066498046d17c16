"""Keeps a worker running on its arena: starts it, hands it its descriptors, hears its events, starts the next one when it dies.

Control holds the arena, the TUN, the UDP sockets and both ends of the channel open all the time, so a dying worker closes
nothing that its successor or the kernel's steering counts on; what waits in the channel or the sockets is still there.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import structlog
import trio

from egressvpn.dataplane.arena import Arena
from egressvpn.dataplane.channel import COMMAND, EVENT, Event
from egressvpn.dataplane.layout import Limits
from egressvpn.errors import OperatorError

log = structlog.get_logger(__name__)

RESTART_PAUSE: Final = 0.05  # s, doubled for every death within STEADY up to RESTART_PAUSE_MAX
RESTART_PAUSE_MAX: Final = 5.0
STEADY: Final = 30.0  # s after which a worker counts as healthy
QUEUED: Final = 8  # commands per device that may wait for a worker, which is a start's worth; more is a bug


class Supervisor:
    """One worker process. `events` are handed to the callback as records of dtype EVENT."""

    def __init__(self, arena: Arena, limits: Limits, tun: int, sockets: list[int], jit: bool = True) -> None:
        self.arena = arena
        self._environment = dict(os.environ) if jit else {**os.environ, "EGRESSVPN_JIT": "0"}
        self._limits = limits
        self._tun = tun
        self._sockets = sockets
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, self._theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self._ours = trio.socket.from_stdlib_socket(ours)
        self._queue_in, self._queue_out = trio.open_memory_channel[bytes](QUEUED * (limits.max_devices + 10_000))
        self.process: trio.Process | None = None
        self.ready = trio.Event()
        self.restarts = 0
        self.aead = ""
        self.jit = True

    def close(self) -> None:
        """Give the channel up; the worker, if there is one, ends."""
        self._ours.close()
        self._theirs.close()

    @property
    def pid(self) -> int:
        """Of the running worker; 0 between two of them."""
        return self.process.pid if self.process is not None and self.process.returncode is None else 0

    def command(self, record: Any) -> None:
        """Queue a record of dtype COMMAND (shape (1,)) for the worker, in order."""
        if record.nbytes != COMMAND.itemsize:
            raise ValueError("not a command")
        self._queue_in.send_nowait(record.tobytes())

    async def run(self, handle: Callable[[Any], None], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run workers until cancelled. `task_status.started` is called when the first one is ready for packets."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump_commands)
                nursery.start_soon(self._pump_events, handle)
                nursery.start_soon(self._keep_running)
                await self.ready.wait()
                task_status.started()
        finally:
            self.close()

    async def _pump_commands(self) -> None:
        async for octets in self._queue_out:
            await self._ours.send(octets)

    async def _pump_events(self, handle: Callable[[Any], None]) -> None:
        while True:
            octets = await self._ours.recv(EVENT.itemsize)
            event = np.frombuffer(octets, EVENT).view(np.recarray)[0]
            kind = Event(int(event.kind))
            text = bytes(event.octets[: int(event.length)]).decode(errors="replace") if kind in (Event.PROGRESS, Event.FAILED) else ""
            if kind is Event.PROGRESS:
                log.info("compiling the data path; later starts skip this", kernel=text, done=int(event.first), of=int(event.second))
            elif kind is Event.READY:
                self.aead, self.jit = ("libcrypto" if event.first else "libsodium"), bool(event.second)
                log.info("worker ready", pid=self.pid, aead=self.aead, jit=self.jit)
                if not self.jit:
                    log.warning("the data path runs interpreted, a hundred times slower; it wants numba and [dataplane] jit = true")
                self.ready.set()
                handle(event)
            elif kind is Event.FAILED:
                log.error("worker failed", traceback=text)
            else:
                handle(event)

    async def _keep_running(self) -> None:
        pause = RESTART_PAUSE
        while True:
            started = trio.current_time()
            self.process = await self._spawn()
            try:
                code = await self.process.wait()
            except trio.Cancelled:
                await self._stop()
                raise
            if not self.ready.is_set() and trio.current_time() - started < STEADY and self.restarts >= 3:
                raise OperatorError(f"the worker ended {self.restarts + 1} times before it was ready (exit {code})", "see the lines above")
            self.restarts += 1
            pause = RESTART_PAUSE if trio.current_time() - started > STEADY else min(2 * pause, RESTART_PAUSE_MAX)
            log.warning("worker ended, starting another on its arena", exit=code, restarts=self.restarts)
            await trio.sleep(pause)

    async def _spawn(self) -> trio.Process:
        descriptors = [self.arena.fd, self._theirs.fileno(), self._tun, *self._sockets]
        arguments = [
            *("--arena", str(self.arena.fd)),
            *("--channel", str(self._theirs.fileno())),
            *("--tun", str(self._tun)),
            *("--udp", ",".join(map(str, self._sockets))),
            *("--limits", json.dumps(asdict(self._limits))),
        ]
        command = [sys.executable, "-m", "egressvpn.dataplane.worker", *arguments]
        return await trio.lowlevel.open_process(command, pass_fds=descriptors, stdin=subprocess.DEVNULL, env=self._environment)

    async def _stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            with trio.move_on_after(2, shield=True) as patience:
                await self.process.wait()
            if patience.cancelled_caught:
                self.process.kill()
                with trio.move_on_after(2, shield=True):
                    await self.process.wait()
