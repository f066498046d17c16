"""Keeps a worker running on its arena: starts it, hands it its descriptors, hears its events, starts the next one when it dies.

Control holds the arena, the TUN, the UDP sockets and both ends of the channel open all the time, so a dying worker closes
nothing that its successor or the kernel's steering counts on; what waits in the channel or the sockets is still there.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Final

import structlog
import trio

from egressvpn.dataplane.arena import Arena
from egressvpn.dataplane.channel import COMMAND, EVENT, Command, Event, Happened, pack_command, unpack_event
from egressvpn.dataplane.layout import Limits
from egressvpn.errors import OperatorError

log = structlog.get_logger(__name__)

RESTART_PAUSE: Final = 0.05  # s, doubled for every death within STEADY up to RESTART_PAUSE_MAX
RESTART_PAUSE_MAX: Final = 5.0
STEADY: Final = 30.0  # s after which a worker counts as healthy
QUEUED: Final = 8  # commands per device that may wait for a worker, which is a start's worth; more is a bug
CHANNEL_BYTES: Final = 4 << 20
TURN_TIME: Final = 2_000_000  # ns of events before the other tasks have their turn
SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h


class Supervisor:
    """One worker process. What it reports is handed to the callback, event by event."""

    def __init__(self, arena: Arena, limits: Limits, tun: int, sockets: list[int], jit: bool = True) -> None:
        self.arena = arena
        self._environment = dict(os.environ) if jit else {**os.environ, "EGRESSVPN_JIT": "0"}
        self._limits = limits
        self._tun = tun
        self._sockets = sockets
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, self._theirs):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHANNEL_BYTES)
            with contextlib.suppress(PermissionError):  # beyond net.core.wmem_max
                end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, CHANNEL_BYTES)
        self._ours = ours
        self._waiting: deque[tuple[bytes, int]] = deque()  # commands, with a descriptor or -1, that the channel had no room for
        self._capacity = QUEUED * (limits.max_devices + 10_000) + limits.max_prefixes
        self._more = trio.Event()
        self.process: trio.Process | None = None
        self.ready = trio.Event()
        self.restarts = 0
        self.aead = ""
        self.jit = True

    def close(self) -> None:
        """Give the channel up; the worker, if there is one, ends."""
        self._ours.close()
        self._theirs.close()
        for _, descriptor in self._waiting:
            if descriptor >= 0:
                os.close(descriptor)
        self._waiting.clear()

    @property
    def pid(self) -> int:
        """Of the running worker; 0 between two of them."""
        return self.process.pid if self.process is not None and self.process.returncode is None else 0

    def command(self, octets: bytes, descriptor: int = -1) -> None:
        """Hand a command to the worker, in order; with a descriptor that it gets a copy of. After `close` nobody hears it."""
        if len(octets) != COMMAND.itemsize:
            raise ValueError("not a command")
        if self._ours.fileno() < 0:
            return
        if self._waiting or not self._send(octets, descriptor):
            if len(self._waiting) >= self._capacity:
                raise RuntimeError("more commands wait than a worker can have")
            self._waiting.append((octets, -1 if descriptor < 0 else os.dup(descriptor)))
            self._more.set()

    def replace_sockets(self, sockets: list[int]) -> None:
        """Other UDP sockets, as many as before, for this worker and those to come."""
        if len(sockets) != len(self._sockets):
            raise ValueError("another number of sockets")
        self._sockets = sockets
        for number, descriptor in enumerate(sockets):
            self.command(pack_command(Command.SET_SOCKET, socket=number), descriptor)

    async def run(self, handle: Callable[[Happened], None], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
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

    def _send(self, octets: bytes, descriptor: int) -> bool:
        """Whether the channel had room."""
        try:
            if descriptor < 0:
                self._ours.send(octets)
            else:
                socket.send_fds(self._ours, [octets], [descriptor])
        except BlockingIOError:
            return False
        return True

    async def _pump_commands(self) -> None:
        while True:
            await self._more.wait()
            self._more = trio.Event()
            while self._waiting:
                await trio.lowlevel.wait_writable(self._ours)
                while self._waiting and self._send(*self._waiting[0]):
                    _, descriptor = self._waiting.popleft()
                    if descriptor >= 0:
                        os.close(descriptor)

    async def _pump_events(self, handle: Callable[[Happened], None]) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._ours)
            began = time.monotonic_ns()
            while (event := self._receive()) is not None:
                if self._heed(event):
                    handle(event)
                if time.monotonic_ns() - began > TURN_TIME:
                    break

    def _receive(self) -> Happened | None:
        try:
            return unpack_event(self._ours.recv(EVENT.itemsize))
        except BlockingIOError:
            return None

    def _heed(self, event: Happened) -> bool:
        """What concerns the worker as such. Whether the event is for others too."""
        if event.kind is Event.PROGRESS:
            kernel = event.octets.decode(errors="replace")
            log.info("compiling the data path; later starts skip this", kernel=kernel, done=event.first, of=event.second)
            return False
        if event.kind is Event.FAILED:
            log.error("worker failed", traceback=event.octets.decode(errors="replace"))
            return False
        if event.kind is Event.READY:
            self.aead, self.jit = ("libcrypto" if event.first else "libsodium"), bool(event.second)
            log.info("worker ready", pid=self.pid, aead=self.aead, jit=self.jit)
            if not self.jit:
                log.warning("the data path runs interpreted, a hundred times slower; it wants numba and [dataplane] jit = true")
            self.ready.set()
        return True

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
