"""Between the sans-I/O WireGuard interface and a worker: events go in, its outputs become commands and datagrams.

The gateway and the reference client share it. All sessions are sealed and opened by the worker; what is here happens per
handshake, per timer or per change of configuration.
"""

import math
import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import structlog
import trio

from egressvpn.addresses import Path
from egressvpn.control.supervisor import Supervisor
from egressvpn.dataplane.channel import COMMAND, Command, Event
from egressvpn.netio.udp import UdpSocket
from egressvpn.netio.udp import send as send_datagram
from egressvpn.verdict import Verdict
from egressvpn.wireguard.interface import Clear, DropStaged, Install, Interface, SendKeepalive, Transmit
from egressvpn.wireguard.tables import WireGuardTables

log = structlog.get_logger(__name__)

NANOSECOND: Final = 1_000_000_000
SYNC_INTERVAL: Final = 60.0  # s
SOCKADDR_BYTES: Final = {int(socket.AF_INET): 16, int(socket.AF_INET6): 28}
HANDSHAKE_BUCKETS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25)  # s, upper bounds of the histogram


class Tunnel:
    """Owns the WireGuard interface; the worker's tables are only read here."""

    def __init__(self, supervisor: Supervisor, interface: Interface, sockets: list[UdpSocket]) -> None:
        self.supervisor = supervisor
        self.interface = interface
        self.wg: Any = supervisor.arena.bundle(WireGuardTables)
        self._worker: Any = supervisor.arena.tables["worker"][0]
        self.handshakes: Counter[str] = Counter()
        self.handshake_counts = [0] * (len(HANDSHAKE_BUCKETS) + 1)
        self.handshake_seconds = 0.0  # sum over all
        self._sockets = sockets
        self._wake = trio.Event()
        self.failures = 0  # events whose handling met a bug
        self.refused: set[str] = set()  # kinds of commands that the worker could not carry out
        self._syncs = 0
        self._installing: set[int] = set()  # session indexes handed to the worker since the last SYNC
        self._on: dict[Event, Callable[[Any, int, int], None]] = {
            Event.HANDSHAKE: self._on_handshake,
            Event.WANTED: self._on_wanted,
            Event.DUE: self._on_due,
            Event.FREED: self._on_freed,
            Event.CONFIRMED: self._on_confirmed,
            Event.READY: self._on_ready,
            Event.SYNCED: self._on_synced,
            Event.REFUSED: self._on_refused,
        }

    def handle(self, event: Any) -> None:
        """An event of the worker, a record of dtype EVENT. What goes wrong with one is logged and ends nothing else."""
        try:
            self._on[Event(int(event.kind))](event, time.monotonic_ns(), time.time_ns())
            self.flush()
        except Exception:
            self.failures += 1
            log.exception("event failed", kind=int(event.kind))

    async def run(self) -> None:
        """Wake the interface at its deadlines."""
        while True:
            deadline = self.interface.next_deadline()
            until = math.inf if deadline is None else max(0.0, (deadline - time.monotonic_ns()) / NANOSECOND)
            with trio.move_on_after(until):
                await self._wake.wait()
            self._wake = trio.Event()
            self.interface.advance(time.monotonic_ns(), time.time_ns())
            self._carry_out()

    async def keep_in_step(self) -> None:
        """Now and then ask which sessions there are: a report that did not fit into the channel must not hold an index for ever."""
        while True:
            await trio.sleep(SYNC_INTERVAL)
            self._sync()

    def sessions(self) -> set[int]:
        """The receiver indexes of all sessions that devices have."""
        devices = self.wg.devices[: int(self._worker.device_limit)]
        # in the direction sessions move, so that one that moves meanwhile is seen
        slots = np.concatenate([devices["next"], devices["current"], devices["previous"]])
        return set(self.wg.sessions["index"][slots[slots != 0]].tolist()) - {0}

    def flush(self) -> None:
        """Carry out what the interface decided, and look at its deadlines again."""
        self._carry_out()
        self._wake.set()

    def _carry_out(self) -> None:
        for output in self.interface.poll():
            if isinstance(output, Transmit):
                self._transmit(output)
            elif isinstance(output, Install):
                self.command(self._install(output))
            elif isinstance(output, SendKeepalive):
                self.send(Command.KEEPALIVE, output.device)
            elif isinstance(output, Clear):
                self.send(Command.CLEAR, output.device)
            elif isinstance(output, DropStaged):
                self.send(Command.DROP_STAGED, output.device)

    def send(self, kind: Command, device: int) -> None:
        """A command that needs no more than a device."""
        record = np.zeros(1, COMMAND)
        record["kind"], record["owner"] = kind, device
        self.command(record)

    def command(self, record: Any) -> None:
        self.supervisor.command(record)

    def path(self, device: int) -> Path | None:
        """Where the worker last heard the device; None before it ever did."""
        row = self.wg.devices[device].copy()  # the worker may be writing it: what does not fit together is nothing
        remote = bytes(row.remote[: int(row.remote_length)])
        if len(remote) != SOCKADDR_BYTES.get(int.from_bytes(remote[:2], "little")):
            return None
        return Path(remote, bytes(row.local[: int(row.local_length)]), int(row.socket))

    def _transmit(self, output: Transmit) -> None:
        failure = send_datagram(self._sockets[output.path.socket], output.datagram, output.path)
        if failure:
            log.warning("handshake not sent", to=str(output.path), error=os.strerror(failure))

    def _install(self, output: Install) -> Any:
        self._installing.add(output.index)
        record = np.zeros(1, COMMAND)
        record["kind"], record["owner"], record["index"], record["remote_index"] = (
            Command.INSTALL,
            output.device,
            output.index,
            output.remote_index,
        )
        record["initiator"], record["wall"] = output.initiator, time.time_ns()
        record["receive_key"][0] = np.frombuffer(output.receive_key, np.uint8)
        record["send_key"][0] = np.frombuffer(output.send_key, np.uint8)
        put_path(record, output.path)
        record["length"] = len(output.response)
        record["octets"][0, : len(output.response)] = np.frombuffer(output.response, np.uint8)
        return record

    def _on_handshake(self, event: Any, now: int, wall_ns: int) -> None:
        path = Path(bytes(event.remote[: int(event.remote_length)]), bytes(event.local[: int(event.local_length)]), int(event.socket))
        began = time.perf_counter()
        verdict = self.interface.receive(bytes(event.octets[: int(event.length)]), path, now, wall_ns)
        seconds = time.perf_counter() - began
        self.handshakes["completed" if verdict is Verdict.PASS else verdict.label] += 1
        if verdict is Verdict.PASS:
            bucket = next((i for i, bound in enumerate(HANDSHAKE_BUCKETS) if seconds <= bound), len(HANDSHAKE_BUCKETS))
            self.handshake_counts[bucket] += 1
            self.handshake_seconds += seconds
        else:
            log.debug("handshake refused", source=str(path), reason=verdict.label)

    def _on_wanted(self, event: Any, now: int, wall_ns: int) -> None:
        self._refresh_path(int(event.owner))
        self.interface.on_session_wanted(int(event.owner), now, wall_ns)

    def _on_due(self, event: Any, now: int, wall_ns: int) -> None:
        self._refresh_path(int(event.owner))
        self.interface.on_timer(int(event.owner), int(event.first), now, wall_ns)

    def _on_ready(self, event: Any, now: int, wall_ns: int) -> None:
        self._sync()

    def _on_synced(self, event: Any, now: int, wall_ns: int) -> None:
        if int(event.first) == self._syncs:  # an older question's answer does not know of the newer installations
            self.interface.retain_sessions(self.sessions() | self._installing)

    def _on_refused(self, event: Any, now: int, wall_ns: int) -> None:
        kind = Command(int(event.first))
        log.error("the data path refused a command", command=kind.name.lower(), device=int(event.owner))
        self.refused.add(kind.name.lower().replace("_", " "))

    def _sync(self) -> None:
        self._syncs += 1
        self._installing.clear()
        record = np.zeros(1, COMMAND)
        record["kind"], record["index"] = Command.SYNC, self._syncs
        self.command(record)

    def _on_freed(self, event: Any, now: int, wall_ns: int) -> None:
        self.interface.on_sessions_freed(int(event.index))

    def _on_confirmed(self, event: Any, now: int, wall_ns: int) -> None:
        self.interface.on_session_confirmed(int(event.owner))

    def _refresh_path(self, device: int) -> None:
        """The worker follows roaming devices packet by packet; the interface learns of it when it is about to write."""
        path = self.path(device)
        if path is not None:
            self.interface.set_path(device, path)


def put_path(record: Any, path: Path | None) -> None:
    """Fill the path fields of an EVENT or COMMAND array of shape (1,)."""
    if path is None:
        return
    record["socket"], record["remote_length"], record["local_length"] = path.socket, len(path.remote), len(path.local)
    record["remote"][0, : len(path.remote)] = np.frombuffer(path.remote, np.uint8)
    record["local"][0, : len(path.local)] = np.frombuffer(path.local, np.uint8)
