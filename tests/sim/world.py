"""Two nodes, a wire that loses, doubles and reorders, and a clock that only moves when told to.

A node is an Interface with a stand-in for its worker: the very kernels of sessions, timers and replay over small tables, and
AEAD per packet. A Door stands before each interface. The world runs events in order of their time; a seed decides everything
that is random.
"""

import heapq
import itertools
import random
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from egressvpn.addresses import Path, pack_sockaddr
from egressvpn.verdict import Verdict
from egressvpn.wireguard import keypairs, timers
from egressvpn.wireguard.constants import COOKIE_REFRESH_TIME, DUE_HANDSHAKE, DUE_ZERO, MILLISECOND, SECOND
from egressvpn.wireguard.indexes import SessionIndexes
from egressvpn.wireguard.interface import Clear, DropStaged, Install, Interface, KeepTimestamp, Output, SendKeepalive, Transmit
from egressvpn.wireguard.noise import InvalidHandshake, open_sealed, seal
from egressvpn.wireguard.replay import accept, counter_usable
from egressvpn.wireguard.tables import ENABLED, WireGuardTables, tables
from egressvpn.wireguard.timestamps import NO_TIMESTAMP

from .door import Door

DEVICE: Final = 1  # each node has one peer, its device 1
WALL_AT_0: Final = 1_700_000_000 * SECOND
SWEEP: Final = 100 * MILLISECOND
SOURCES: Final = 16  # the rate limiter's
TRANSPORT = struct.Struct("<IIq")


@dataclass
class Wire:
    """What happens to datagrams. Shares are probabilities, delays nanoseconds."""

    loss: float = 0.0
    doubling: float = 0.0
    delay_min: int = 10 * MILLISECOND
    delay_max: int = 10 * MILLISECOND


class World:
    """Two nodes named 0 and 1, and everything that is going to happen to them."""

    def __init__(self, wire: Wire | None = None, seed: int = 1, psk: bytes = bytes(32)) -> None:
        self.dice = random.Random(seed)
        self.wire = wire or Wire()
        self.now = 1_000 * SECOND + self.dice.randrange(SECOND)
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.log: list[tuple[int, int, int]] = []  # (when, who sent, message type) of every datagram, lost or not
        self.datagrams: list[bytes] = []  # the same ones
        self.nodes = [Node(self, number) for number in (0, 1)]
        for node, other in (self.nodes, self.nodes[::-1]):
            node.interface.add_peer(DEVICE, other.interface.public_key, psk, other.path)
            node.endpoint = other.path
            self.after(self.dice.randrange(SWEEP), node.sweep)  # nobody's clock ticks with another's
            node.rotate()

    def after(self, delay: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), action))

    def run(self, duration: int) -> None:
        end = self.now + duration
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = end

    def carry(self, sender: "Node", datagram: bytes, to: Path) -> None:
        """Put a datagram on the wire. It reaches the other node if that is still there when it comes."""
        self.log.append((self.now, sender.number, datagram[0]))
        self.datagrams.append(datagram)
        receiver, origin = self.nodes[1 - sender.number], sender.path
        if self.dice.random() < self.wire.loss:
            return

        def arrive() -> None:
            if receiver.path.remote == to.remote:
                receiver.receive(datagram, origin)

        for _ in range(2 if self.dice.random() < self.wire.doubling else 1):
            self.after(self.dice.randint(self.wire.delay_min, self.wire.delay_max), arrive)

    def sent(self, kind: int, number: int | None = None) -> list[int]:
        """When messages of a type were sent, by one node or by either."""
        return [when for when, sender, sort in self.log if sort == kind and number in (None, sender)]


@dataclass
class Node:
    """One endpoint."""

    world: World
    number: int
    delivered: list[bytes] = field(default_factory=list)
    keepalives: list[int] = field(default_factory=list)  # when they came
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    nonces: Counter[tuple[bytes, int]] = field(default_factory=Counter)
    outputs: list[Output] = field(default_factory=list)
    staged: list[bytes] = field(default_factory=list)
    dropped: int = 0
    kept: bytes = NO_TIMESTAMP  # the mark on disk
    wall_offset: int = 0  # of a clock that is wrong

    def __post_init__(self) -> None:
        arrays: dict[str, Any] = {name: np.zeros(count, dtype).view(np.recarray) for name, (dtype, count) in tables(1, SOURCES).items()}
        self.wg = WireGuardTables(**arrays)
        self.device = self.wg.devices[DEVICE]
        self.device.state = ENABLED
        self.freed = np.zeros(keypairs.FREED_MAX, np.int64)
        self.path = self.endpoint = Path(pack_sockaddr(f"192.0.2.{self.number + 1}", 51820))
        self.indexes = SessionIndexes(self.wg.sessions.size, self.number, self.world.dice.randbytes)
        self.private_key = self.world.dice.randbytes(32)
        self.interface = Interface(self.private_key, self.indexes, self.world.dice.randbytes)
        self.door = Door(self.wg)
        self.door.set_identities(self.interface.identities)

    @property
    def wall_ns(self) -> int:
        return WALL_AT_0 + self.world.now + self.wall_offset

    def restart(self) -> None:
        """Lose everything but the private key, the configuration and the mark on disk."""
        self._clear()
        self.staged.clear()
        self.indexes = SessionIndexes(self.wg.sessions.size, self.number, self.world.dice.randbytes)
        other = self.world.nodes[1 - self.number]
        self.interface = Interface(self.private_key, self.indexes, self.world.dice.randbytes, self.kept)
        self.interface.add_peer(DEVICE, other.interface.public_key, path=other.path)
        self.device.handshake_asked = 0

    def send(self, payload: bytes) -> None:
        """The user has a packet for the other side."""
        self.staged.append(payload)
        self._flush()

    def want(self) -> None:
        """Begin a handshake."""
        self.interface.on_session_wanted(DEVICE, self.world.now, self.wall_ns)
        self.carry_out()

    def receive(self, datagram: bytes, origin: Path) -> None:
        if datagram[0] == 4:
            self.verdicts[self._open(datagram, origin)] += 1
        else:
            self.verdicts[self._knock(datagram, origin)] += 1
        self.carry_out()

    def sweep(self) -> None:
        """Every 100 ms: the worker's timers, then the handshakes'."""
        bits = int(timers.due(self.device, self.world.now))
        if bits & DUE_ZERO:
            self._clear()
        if bits:
            self.interface.on_timer(DEVICE, bits, self.world.now, self.wall_ns)
        self.interface.advance(self.world.now, self.wall_ns)
        self.carry_out()
        self.world.after(SWEEP, self.sweep)

    def rotate(self) -> None:
        """A new secret behind the cookies, and so on."""
        self.door.set_secret(self.world.dice.randbytes(32))
        self.world.after(COOKIE_REFRESH_TIME, self.rotate)

    def keys_left(self) -> bool:
        return any(self.wg.sessions[name].any() for name in ("receive_key", "send_key"))

    def sessions(self) -> int:
        return int(np.count_nonzero(self.wg.sessions["index"]))

    def _knock(self, datagram: bytes, origin: Path) -> Verdict:
        verdict, reply = self.door.knock(datagram, origin, self.world.dice.randbytes(24), self.world.now)
        if reply:
            self.world.carry(self, reply, origin)
        if verdict is not Verdict.PASS:
            return verdict
        return self.interface.receive(datagram, origin, self.world.now, self.wall_ns)

    def carry_out(self) -> None:
        """Do what the interface decided."""
        while outputs := self.interface.poll():
            for output in outputs:
                self.outputs.append(output)
                self._apply(output)

    def _apply(self, output: Output) -> None:
        match output:
            case KeepTimestamp():
                self.kept = output.mark
            case Transmit():
                self.world.carry(self, output.datagram, output.path)
                timers.on_authenticated_sent(self.device, self.world.now)
            case Install():
                self._install(output)
            case SendKeepalive():
                self._flush(keepalive=True)
            case Clear():
                self._clear()
            case DropStaged():
                timers.on_handshake_given_up(self.device)
                self.dropped += len(self.staged)
                self.staged.clear()

    def _install(self, output: Install) -> None:
        receive_key, send_key = (np.frombuffer(key, np.uint8).copy() for key in (output.receive_key, output.send_key))
        count = keypairs.install(
            self.wg,
            DEVICE,
            output.index,
            output.remote_index,
            int(output.initiator),
            receive_key,
            send_key,
            self.freed,
            self.world.now,
        )
        self._release(count)
        self.endpoint = output.path
        timers.on_session_installed(self.device, self.world.now)
        if output.initiator:
            timers.on_handshake_complete(self.device, self.world.now)
        if output.response:
            self.world.carry(self, output.response, self.endpoint)
            timers.on_authenticated_sent(self.device, self.world.now)

    def _clear(self) -> None:
        self._release(keypairs.clear(self.wg, DEVICE, self.freed))
        timers.on_sessions_cleared(self.device)

    def _release(self, count: int) -> None:
        for index in self.freed[:count].tolist():
            self.interface.on_sessions_freed(index)

    def _flush(self, keepalive: bool = False) -> None:
        """Send what is staged, or else a keepalive when one is wanted, if there is a session for it."""
        if not self.staged and not keepalive:
            return
        slot = int(self.device.current)
        if not slot or not timers.session_usable_to_send(self.wg.sessions[slot], self.world.now):
            if timers.ask_for_session(self.device, self.world.now):
                self.want()
            return
        for payload in self.staged or [b""]:
            self._seal(slot, payload)
        self.staged.clear()
        if timers.rekey_wanted_on_send(self.wg.sessions[slot], self.world.now) and timers.ask_for_session(self.device, self.world.now):
            self.want()

    def _seal(self, slot: int, payload: bytes) -> None:
        session = self.wg.sessions[slot]
        counter = int(session.send_counter)
        session.send_counter += 1
        key = session.send_key.tobytes()
        self.nonces[key, counter] += 1
        timers.on_authenticated_sent(self.device, self.world.now)
        if payload:
            timers.on_data_sent(self.device, self.world.now)
        self.world.carry(self, TRANSPORT.pack(4, int(session.remote_index), counter) + seal(key, counter, payload), self.endpoint)

    def _open(self, datagram: bytes, origin: Path) -> Verdict:
        _, index, counter = TRANSPORT.unpack_from(datagram)
        slot = int(keypairs.find(self.wg, index))
        if not slot:
            return Verdict.UNKNOWN_INDEX
        session = self.wg.sessions[slot]
        if not timers.session_usable_to_receive(session, self.world.now):
            return Verdict.EXPIRED_SESSION
        if not counter_usable(counter):
            return Verdict.COUNTER_EXHAUSTED
        try:
            payload = open_sealed(session.receive_key.tobytes(), counter, datagram[16:])
        except InvalidHandshake:
            return Verdict.AUTHENTICATION_FAILED
        if not accept(session, counter):
            return Verdict.REPLAYED
        self._opened(slot, payload, origin)
        return Verdict.PASS

    def _opened(self, slot: int, payload: bytes, origin: Path) -> None:
        self.endpoint = origin
        self.interface.set_path(DEVICE, origin)
        timers.on_authenticated_received(self.device, self.world.now)
        if slot == self.device.next:
            self._release(keypairs.promote_next(self.wg, DEVICE, self.freed))
            timers.on_handshake_complete(self.device, self.world.now)
            self.interface.on_session_confirmed(DEVICE)
            self._flush()
        if payload:
            timers.on_data_received(self.device, self.world.now)
            self.delivered.append(payload)
        else:
            self.keepalives.append(self.world.now)
        if timers.rekey_wanted_on_receive(self.wg.sessions[int(self.device.current)], self.world.now):
            self.interface.on_timer(DEVICE, DUE_HANDSHAKE, self.world.now, self.wall_ns)
