"""Between the sans-I/O WireGuard interface and a worker: events go in, its outputs become commands and datagrams.

The gateway and the reference client share it. All sessions are sealed and opened by the worker; what is here happens per
handshake, per timer or per change of configuration.
"""

import itertools
import math
import secrets
import socket
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any, Final

import numpy as np
import structlog
import trio

from egressvpn.addresses import IPAddress, IPNetwork, Path, words
from egressvpn.control.supervisor import Supervisor
from egressvpn.dataplane.channel import Command, Event, Happened, pack_command, pack_prefixes
from egressvpn.netio.routes import Routes
from egressvpn.netio.udp import SO_MARK, UdpSocket
from egressvpn.verdict import Verdict
from egressvpn.wireguard.constants import COOKIE_REFRESH_TIME, SECOND
from egressvpn.wireguard.interface import Clear, DropStaged, Install, Interface, KeepTimestamp, SendKeepalive, Transmit
from egressvpn.wireguard.messages import COOKIE_REPLY
from egressvpn.wireguard.tables import MAX_IDENTITIES, WireGuardTables

log = structlog.get_logger(__name__)

NANOSECOND: Final = SECOND  # of these a second has
SYNC_INTERVAL: Final = 60.0  # s
SETTLE_PATIENCE: Final = 5.0  # s; a hundred thousand networks take one or two
DEVICES_PER_TURN: Final = 64  # looked at before other tasks have their turn, some 20 us each
PKTINFO_BYTES: Final = 32  # of an IPv4 path: struct cmsghdr, in_pktinfo and padding
SOCKADDR_BYTES: Final = {int(socket.AF_INET): 16, int(socket.AF_INET6): 28}
HANDSHAKE_BUCKETS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25)  # s, upper bounds of the histogram


class Tunnel:
    """Owns the WireGuard interface; the worker's tables are only read here.

    `keep_timestamp` writes the mark of a KeepTimestamp where the next start finds it.
    """

    def __init__(
        self, supervisor: Supervisor, interface: Interface, sockets: list[UdpSocket], keep_timestamp: Callable[[bytes], None] | None = None
    ) -> None:
        self.supervisor = supervisor
        self.interface = interface
        self.sockets = sockets
        self.wg: Any = supervisor.arena.bundle(WireGuardTables)
        self._worker: Any = supervisor.arena.tables["worker"][0]
        self.handshakes: Counter[str] = Counter()
        self.handshake_counts, self.handshake_seconds = [0] * (len(HANDSHAKE_BUCKETS) + 1), 0.0  # by duration, and the sum over all
        self._keep_timestamp = keep_timestamp
        self._wake = trio.Event()
        self._sleeps_until = math.inf
        self.failures = 0  # events whose handling met a bug
        self.refused: set[str] = set()  # kinds of commands that the worker could not carry out
        self._syncs, self._synced = 0, 0  # how many SYNCs were sent, and the newest that the worker has answered
        self._answered = trio.Event()  # the next one
        self._questions = itertools.count(1)
        self._asked: dict[int, tuple[trio.Event, list[Happened]]] = {}  # EXPLAIN commands that are not answered yet
        self._installing: set[int] = set()  # session indexes handed to the worker since the last SYNC
        self._on: dict[Event, Callable[[Happened, int, int], None]] = {
            Event.HANDSHAKE: self._on_handshake,
            Event.WANTED: self._on_wanted,
            Event.DUE: self._on_due,
            Event.FREED: self._on_freed,
            Event.CONFIRMED: self._on_confirmed,
            Event.READY: self._on_ready,
            Event.SYNCED: self._on_synced,
            Event.REFUSED: self._on_refused,
            Event.EXPLAINED: self._on_explained,
            Event.POOL_REMOVED: lambda *_: None,  # the tables tell it, too, and never lose it
        }
        self._carry: dict[type, Callable[[Any], None]] = {
            KeepTimestamp: self._keep,
            Transmit: self._transmit,
            Install: self._install,
            SendKeepalive: lambda output: self.send(Command.KEEPALIVE, output.device),
            Clear: lambda output: self.send(Command.CLEAR, output.device),
            DropStaged: lambda output: self.send(Command.DROP_STAGED, output.device),
        }

    def handle(self, event: Happened) -> None:
        """An event of the worker. What goes wrong with one is logged and ends nothing else."""
        try:
            self._on[event.kind](event, time.monotonic_ns(), time.time_ns())
            self.flush()
        except Exception:
            self.failures += 1
            log.exception("event failed", kind=event.kind.name)

    async def run(self) -> None:
        """Wake the interface at its deadlines."""
        while True:
            deadline = self.interface.next_deadline()
            self._sleeps_until = math.inf if deadline is None else deadline
            with trio.move_on_after(max(0.0, (self._sleeps_until - time.monotonic_ns()) / NANOSECOND)):
                await self._wake.wait()
            self._wake = trio.Event()
            self.interface.advance(time.monotonic_ns(), time.time_ns())
            self._carry_out()

    async def keep_in_step(self) -> None:
        """Now and then ask which sessions there are: a report that did not fit into the channel must not hold an index for ever."""
        while True:
            await trio.sleep(SYNC_INTERVAL)
            self._sync()

    async def settled(self) -> None:
        """Until the worker has applied every command so far; not for ever, should there be no worker in this moment."""
        self._sync()
        number = self._syncs
        with trio.move_on_after(SETTLE_PATIENCE):
            while self._synced < number:
                await self._answered.wait()

    async def explain(self, device: int, destination: IPAddress, port: int, protocol: int) -> Happened | None:
        """What the worker would do with the first packet of such a flow; None when there is no worker to answer."""
        number, answered, answers = next(self._questions), trio.Event(), list[Happened]()
        self._asked[number] = answered, answers
        high, low = words(destination)
        version = destination.version
        self.command(
            pack_command(Command.EXPLAIN, device, index=number, version=version, high=high, low=low, port_low=port, state=protocol)
        )
        try:
            with trio.move_on_after(SETTLE_PATIENCE):
                await answered.wait()
        finally:
            del self._asked[number]
        return answers[0] if answers else None

    async def rotate_cookies(self) -> None:
        """A secret behind the cookies we give out, now, and another one before anybody could have learnt much about it."""
        while True:
            self.command(pack_command(Command.SET_COOKIE_SECRET, receive_key=secrets.token_bytes(32)))
            await trio.sleep(COOKIE_REFRESH_TIME / NANOSECOND)

    async def follow_routes(self) -> None:
        """A better route may have come up: nobody is written to any more from the address of an interface that is not the way to him.

        So does the kernel (socket.c, send4), which looks with every datagram.
        """
        with closing(Routes()) as routes:
            while True:
                await trio.lowlevel.wait_readable(routes.changes)
                routes.settle()
                for device in range(1, int(self._worker.device_limit)):
                    self._check_source(device, routes)
                    if device % DEVICES_PER_TURN == 0:
                        await trio.lowlevel.checkpoint()

    def _check_source(self, device: int, routes: Routes) -> None:
        path = self.path(device)
        if path is None or len(path.local) != PKTINFO_BYTES:
            return
        came_by = int.from_bytes(path.local[28:32], "little")  # the data path notes it in the padding
        mark = self.sockets[path.socket].socket.getsockopt(socket.SOL_SOCKET, SO_MARK)
        if came_by and routes.interface_to(path.remote[4:8], path.local[20:24], mark) != came_by:
            self.command(pack_command(Command.FORGET_SOURCE, device, path=path))

    def sessions(self) -> set[int]:
        """The receiver indexes of all sessions that devices have."""
        devices = self.wg.devices[: int(self._worker.device_limit)]
        # in the direction sessions move, so that one that moves meanwhile is seen
        slots = np.concatenate([devices["next"], devices["current"], devices["previous"]])
        return set(self.wg.sessions["index"][slots[slots != 0]].tolist()) - {0}

    def flush(self) -> None:
        """Carry out what the interface decided, and look at its deadlines again."""
        self._carry_out()
        deadline = self.interface.next_deadline()
        if deadline is not None and deadline < self._sleeps_until:
            self._wake.set()

    def _carry_out(self) -> None:
        for output in self.interface.poll():
            self._carry[type(output)](output)

    def send(self, kind: Command, device: int) -> None:
        """A command that needs no more than a device."""
        self.command(pack_command(kind, device))

    def command(self, octets: bytes) -> None:
        """A command made by `pack_command`."""
        self.supervisor.command(octets)

    def add_prefixes(self, device: int, networks: Iterable[IPNetwork]) -> None:
        """Allowed IPs of a device; those of another become this one's."""
        for octets in pack_prefixes(networks):
            self.command(pack_command(Command.ADD_PREFIXES, device, octets=octets))

    def remove_prefixes(self, device: int, networks: Iterable[IPNetwork]) -> None:
        """No longer allowed IPs of the device; what has become another's stays."""
        for octets in pack_prefixes(networks):
            self.command(pack_command(Command.REMOVE_PREFIXES, device, octets=octets))

    def set_identities(self) -> None:
        """Tell the worker by which keys it knows that a handshake is meant for us. To be called at the start and after every change."""
        identities = self.interface.identities
        for number in range(MAX_IDENTITIES):
            if number < len(identities):
                keys = identities[number]
                record = pack_command(Command.SET_IDENTITY, index=number, state=1, receive_key=keys.mac1_key, send_key=keys.cookie_key)
            else:
                record = pack_command(Command.SET_IDENTITY, index=number)
            self.command(record)

    def on_endpoint_set(self, device: int) -> None:
        """The operator has said where a device is: packets that wait for a session may have a way now (kernel: netlink.c)."""
        if self.wg.devices[device].staged:
            self.interface.on_session_wanted(device, time.monotonic_ns(), time.time_ns())
            self.flush()

    def replace_sockets(self, sockets: list[UdpSocket]) -> None:
        """Go on with other UDP sockets, of the same families in the same order. The old ones are the caller's to close."""
        self.supervisor.replace_sockets([udp.fd for udp in sockets])
        self.sockets = sockets

    def path(self, device: int) -> Path | None:
        """Where the worker last heard the device; None before it ever did."""
        row = self.wg.devices[device].copy()  # the worker may be writing it: what does not fit together is nothing
        remote = bytes(row.remote[: int(row.remote_length)])
        if len(remote) != SOCKADDR_BYTES.get(int.from_bytes(remote[:2], "little")):
            return None
        return Path(remote, bytes(row.local[: int(row.local_length)]), int(row.socket))

    def _keep(self, output: KeepTimestamp) -> None:
        if self._keep_timestamp is None:
            return
        try:
            self._keep_timestamp(output.mark)
        except OSError as error:  # to be silent is worse than to be refused after a restart with a clock gone back
            log.error("the time of our handshakes cannot be kept", error=str(error))

    def _transmit(self, output: Transmit) -> None:
        self.command(pack_command(Command.TRANSMIT, output.device, path=output.path, octets=output.datagram))

    def _install(self, output: Install) -> None:
        self._installing.add(output.index)
        self.command(
            pack_command(
                Command.INSTALL,
                output.device,
                index=output.index,
                remote_index=output.remote_index,
                initiator=output.initiator,
                wall=time.time_ns(),
                receive_key=output.receive_key,
                send_key=output.send_key,
                path=output.path,
                octets=output.response,
            )
        )

    def _on_handshake(self, event: Happened, now: int, wall_ns: int) -> None:
        if event.path is None:
            return
        began = time.perf_counter()
        verdict = self.interface.receive(event.octets, event.path, now, wall_ns)
        seconds = time.perf_counter() - began
        if verdict is not Verdict.PASS:
            self.handshakes[verdict.label] += 1
            log.debug("handshake refused", source=event.path, reason=verdict.label)
            return
        if event.octets[0] == COOKIE_REPLY:
            return  # taken, and no handshake yet
        self.handshakes["completed"] += 1
        self.handshake_counts[bisect_left(HANDSHAKE_BUCKETS, seconds)] += 1
        self.handshake_seconds += seconds

    def _on_wanted(self, event: Happened, now: int, wall_ns: int) -> None:
        self._refresh_path(event.owner)
        self.interface.on_session_wanted(event.owner, now, wall_ns)

    def _on_due(self, event: Happened, now: int, wall_ns: int) -> None:
        self._refresh_path(event.owner)
        self.interface.on_timer(event.owner, event.first, now, wall_ns)

    def _on_ready(self, event: Happened, now: int, wall_ns: int) -> None:
        self._sync()

    def _on_synced(self, event: Happened, now: int, wall_ns: int) -> None:
        self._synced = max(self._synced, event.first)
        self._answered.set()
        self._answered = trio.Event()
        if event.first == self._syncs:  # an older question's answer does not know of the newer installations
            self.interface.retain_sessions(self.sessions() | self._installing)

    def _on_refused(self, event: Happened, now: int, wall_ns: int) -> None:
        kind = Command(event.first)
        log.error("the data path refused a command", command=kind.name.lower(), device=event.owner)
        self.refused.add(kind.name.lower().replace("_", " "))

    def _on_explained(self, event: Happened, now: int, wall_ns: int) -> None:
        if event.index in self._asked:
            answered, answers = self._asked[event.index]
            answers.append(event)
            answered.set()

    def _sync(self) -> None:
        self._syncs += 1
        self._installing.clear()
        self.command(pack_command(Command.SYNC, index=self._syncs))

    def _on_freed(self, event: Happened, now: int, wall_ns: int) -> None:
        self.interface.on_sessions_freed(event.index)

    def _on_confirmed(self, event: Happened, now: int, wall_ns: int) -> None:
        self.interface.on_session_confirmed(event.owner)

    def _refresh_path(self, device: int) -> None:
        """The worker follows roaming devices packet by packet; the interface learns of it when it is about to write."""
        path = self.path(device)
        if path is not None:
            self.interface.set_path(device, path)
