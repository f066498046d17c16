"""WireGuard without the wires: handshakes of all peers of one interface, as initiator and as responder (whitepaper 5.4, 6).

Bytes, moments and `now` go in; `poll` gives what to send and to install, in order; `next_deadline` says when to call
`advance`. No socket, no clock, no randomness of its own. Transport data is the worker's: sessions leave through Install and are
not kept here, only their indexes are held until `on_sessions_freed`.

Order of judgement for what comes in (each step may end in silence and a counted verdict):
shape, MAC1, [first Diffie-Hellman] known peer, authentic, newer than before, not too fast. Until all have passed nothing changes.
Cookies are asked for and sources are limited before a datagram gets here, by the data path (dataplane/door.py).
"""

import heapq
from collections.abc import Callable, Iterable
from typing import Final

from egressvpn.addresses import Path
from egressvpn.verdict import Verdict
from egressvpn.wireguard.constants import (
    DUE_HANDSHAKE,
    DUE_KEEPALIVE,
    DUE_PERSISTENT,
    DUE_ZERO,
    REKEY_TIMEOUT,
    REKEY_TIMEOUT_JITTER_MAX,
)
from egressvpn.wireguard.identity import LocalIdentity
from egressvpn.wireguard.indexes import SessionIndexes
from egressvpn.wireguard.mac import mac1_valid
from egressvpn.wireguard.messages import (
    COOKIE_REPLY,
    INITIATION,
    RESPONSE,
    Initiation,
    Response,
    kind_of,
    unpack_cookie_reply,
    unpack_initiation,
    unpack_response,
)
from egressvpn.wireguard.noise import KEY_BYTES, NO_PRESHARED_KEY, Initiator, InvalidHandshake, Responder
from egressvpn.wireguard.outputs import Clear, DropStaged, Install, KeepTimestamp, Output, SendKeepalive, Transmit
from egressvpn.wireguard.peer import Outstanding, Peer
from egressvpn.wireguard.timestamps import NO_TIMESTAMP, TimestampClock

__all__ = ["Clear", "DropStaged", "Install", "Interface", "KeepTimestamp", "Output", "SendKeepalive", "Transmit"]

EPHEMERAL_BYTES: Final = KEY_BYTES


class Interface:
    """Handshakes with every peer. Devices are named by their slot.

    Without a private key it answers nobody and begins nothing. `newest_timestamp` is the mark of the last KeepTimestamp before
    a restart.
    """

    def __init__(
        self, private_key: bytes | None, indexes: SessionIndexes, random: Callable[[int], bytes], newest_timestamp: bytes = NO_TIMESTAMP
    ) -> None:
        self._identities: tuple[LocalIdentity, ...] = () if private_key is None else (LocalIdentity.from_private(private_key),)
        self._indexes = indexes
        self._random = random
        self._clock = TimestampClock(newest_timestamp)
        self._peers: dict[int, Peer] = {}
        self._by_key: dict[bytes, Peer] = {}
        self._by_index: dict[int, Peer] = {}  # of outstanding initiations
        self._by_mac1: dict[int, Peer] = {}  # by the index in the last message to each, until a cookie reply to it came
        self._deadlines: list[tuple[int, int]] = []  # heap of (due, device); an entry counts while it equals the peer's due
        self._outputs: list[Output] = []

    @property
    def identities(self) -> tuple[LocalIdentity, ...]:
        """Our own keys, the one that begins handshakes first; empty while there is none."""
        return self._identities

    @property
    def public_key(self) -> bytes:
        """Of the identity that begins handshakes; empty while there is none."""
        return self._identities[0].public_key if self._identities else b""

    def peer(self, device: int) -> Peer | None:
        """What is known of a peer; to look at, not to change."""
        return self._peers.get(device)

    # configuration

    def add_peer(
        self,
        device: int,
        public_key: bytes,
        preshared_key: bytes = NO_PRESHARED_KEY,
        path: Path | None = None,
        persistent_keepalive: int = 0,
        newest_timestamp: bytes = NO_TIMESTAMP,
    ) -> None:
        """Make a peer known, or change all but the key of one that is. `newest_timestamp` guards a restart against replays.

        Raises ValueError for a key that is ours or another device's, and for another key than the device has.
        """
        if any(public_key == identity.public_key for identity in self._identities):
            raise ValueError("a peer cannot have the interface's own key")
        known = self._by_key.get(public_key)
        if known is not self._peers.get(device):
            raise ValueError(f"device {device} or its key is in use")
        if known is None:
            known = self._peers[device] = self._by_key[public_key] = Peer(device, public_key)
        known.preshared_key = preshared_key
        known.path = path or known.path
        known.persistent_keepalive = persistent_keepalive
        known.newest_timestamp = max(newest_timestamp, known.newest_timestamp)

    def remove_peer(self, device: int) -> None:
        """Forget a peer at once and have its sessions wiped."""
        peer = self._peers.pop(device, None)
        if peer is None:
            return
        del self._by_key[peer.public_key]
        self._end_handshake(peer)
        self._forget_mac1(peer)
        self._outputs.append(Clear(device))

    def set_path(self, device: int, path: Path) -> None:
        """The worker has heard authenticated data from somewhere else, or the operator has said where the peer is."""
        peer = self._peers.get(device)
        if peer is not None:
            peer.path = path

    def change_private_key(self, private_key: bytes) -> list[int]:
        """Another identity: all sessions and handshakes end, new ones may begin at once. The key it has already changes nothing.

        A peer with that very key is removed; returns such devices.
        """
        identity = LocalIdentity.from_private(private_key)
        if self._identities == (identity,):
            return []
        ours = self._by_key.get(identity.public_key)
        if ours is not None:
            self.remove_peer(ours.device)
        self._change_identities((identity,))
        return [] if ours is None else [ours.device]

    def clear_private_key(self) -> None:
        """No identity: all sessions and handshakes end, and none begins until there is a key again."""
        if self._identities:
            self._change_identities(())

    def _change_identities(self, identities: tuple[LocalIdentity, ...]) -> None:
        self._identities = identities
        for peer in self._peers.values():
            self._end_handshake(peer)
            peer.on_identity_changed()
            self._outputs.append(Clear(peer.device))

    # what happened

    def receive(self, datagram: bytes, path: Path, now: int, wall_ns: int) -> Verdict:
        """A handshake datagram came, from anybody. PASS when it did something."""
        del wall_ns  # events of every kind bring it; answers need none
        kind = kind_of(datagram)
        try:
            if kind == INITIATION:
                return self._receive_initiation(datagram, path, now)
            if kind == RESPONSE:
                return self._receive_response(datagram, path)
            if kind == COOKIE_REPLY:
                return self._receive_cookie_reply(datagram, now)
        except InvalidHandshake:
            return Verdict.INVALID_HANDSHAKE
        return Verdict.MALFORMED_MESSAGE

    def on_session_wanted(self, device: int, now: int, wall_ns: int) -> None:
        """The worker has data for a device but no usable session, or its session is getting old."""
        peer = self._peers.get(device)
        if peer is None or peer.path is None or not self._identities:
            return
        peer.attempts = 0  # there is new data: try for the full time again (kernel: send.c)
        if peer.due is not None:
            return
        at = peer.earliest_initiation(now)
        if at > now:
            self._postpone(peer, at)
        else:
            self._initiate(peer, now, wall_ns)

    def on_session_confirmed(self, device: int) -> None:
        """First data came on a session we answered for: an initiation of our own is needless."""
        peer = self._peers.get(device)
        if peer is not None:
            self._end_handshake(peer)

    def on_timer(self, device: int, due_bits: int, now: int, wall_ns: int) -> None:
        """The worker's sweep found deadlines of a device passed (DUE_ bits)."""
        peer = self._peers.get(device)
        if peer is None:
            return
        if due_bits & DUE_ZERO:  # the worker has wiped the sessions; if we are trying for a new one we go on, with fresh keys
            self._release_outstanding(peer)
        if due_bits & DUE_HANDSHAKE:
            peer.let_kernel_choose_source()
            self.on_session_wanted(device, now, wall_ns)
        if due_bits & (DUE_KEEPALIVE | DUE_PERSISTENT):
            self._outputs.append(SendKeepalive(device))

    def on_sessions_freed(self, index: int) -> None:
        """The worker has wiped the session with this index."""
        if index not in self._by_index:
            self._indexes.release(index)

    def retain_sessions(self, indexes: Iterable[int]) -> None:
        """Only these sessions are in the table, which was read afresh: everything else but our handshakes is free."""
        self._indexes.retain({*indexes, *self._by_index})

    # time

    def next_deadline(self) -> int | None:
        """When to call `advance`; None while nothing waits."""
        while self._deadlines:
            due, device = self._deadlines[0]
            peer = self._peers.get(device)
            if peer is not None and peer.due == due:
                return due
            heapq.heappop(self._deadlines)
        return None

    def advance(self, now: int, wall_ns: int) -> None:
        """Time has passed: repeat or give up the handshakes that are due. A call too early does nothing."""
        while (due := self.next_deadline()) is not None and due <= now:
            _, device = heapq.heappop(self._deadlines)
            self._repeat(self._peers[device], now, wall_ns)

    def poll(self) -> list[Output]:
        """What is to be done since the last call, in order."""
        outputs, self._outputs = self._outputs, []
        return outputs

    # as responder

    def _identity_meant(self, datagram: bytes) -> LocalIdentity | None:
        for identity in self._identities:
            if mac1_valid(identity.mac1_key, datagram):
                return identity
        return None

    def _receive_initiation(self, datagram: bytes, path: Path, now: int) -> Verdict:
        identity = self._identity_meant(datagram)
        if identity is None:
            return Verdict.BAD_MAC1
        message = unpack_initiation(datagram)
        noise = Responder(identity.private_key, identity.public_key)
        peer = self._by_key.get(noise.read_static(message.ephemeral, message.static))
        if peer is None:
            return Verdict.UNKNOWN_PEER
        timestamp = noise.read_payload(peer.static_static(identity), message.timestamp)
        verdict = peer.judge_initiation(timestamp, now)
        if verdict != Verdict.PASS:
            return verdict
        peer.on_initiation_consumed(timestamp, path, now)
        return self._respond(peer, noise, message.sender, path, now)

    def _respond(self, peer: Peer, noise: Responder, remote_index: int, path: Path, now: int) -> Verdict:
        index = self._indexes.allocate()
        if index == 0:
            return Verdict.HANDSHAKE_FLOOD  # only known peers get here, faster than the worker frees their sessions
        ephemeral, empty = noise.write_response(self._random(EPHEMERAL_BYTES), peer.preshared_key)
        response = self._complete(peer, Response(index, remote_index, ephemeral, empty).pack(), index, now)
        receive_key, send_key = noise.keys()
        peer.on_response_sent(now)
        self._outputs.append(Install(peer.device, index, remote_index, receive_key, send_key, False, path, response))
        return Verdict.PASS

    # as initiator

    def _initiate(self, peer: Peer, now: int, wall_ns: int) -> None:
        """Send a fresh initiation, in place of an outstanding one."""
        self._release_outstanding(peer)
        if peer.path is None:
            return
        index = self._indexes.allocate()
        if index == 0:
            self._postpone(peer, now + REKEY_TIMEOUT)
            return
        identity = self._identities[0]
        timestamp = self._clock.next(wall_ns, peer.sent_timestamp)
        noise = Initiator(identity.private_key, identity.public_key, peer.public_key)
        try:
            parts = noise.write_initiation(self._random(EPHEMERAL_BYTES), peer.static_static(identity), timestamp)
        except InvalidHandshake:  # the peer's public key is a low-order point: nothing can ever be sent to it
            self._indexes.release(index)
            self._give_up(peer)
            return
        peer.sent_timestamp = timestamp
        mark = self._clock.mark_for(timestamp)
        if mark is not None:
            self._outputs.append(KeepTimestamp(mark))
        peer.on_initiation_sent(Outstanding(index, noise), self._jitter(), now)
        self._by_index[index] = peer
        self._schedule(peer)
        datagram = self._complete(peer, Initiation(index, *parts).pack(), index, now)
        self._outputs.append(Transmit(peer.device, datagram, peer.path))

    def _receive_response(self, datagram: bytes, path: Path) -> Verdict:
        if self._identity_meant(datagram) is None:
            return Verdict.BAD_MAC1
        message = unpack_response(datagram)
        peer = self._by_index.get(message.receiver)
        if peer is None or peer.outstanding is None:
            return Verdict.UNEXPECTED_RESPONSE
        noise = peer.outstanding.noise
        noise.read_response(message.ephemeral, message.empty, peer.preshared_key)
        del self._by_index[message.receiver]  # the index is the session's from here on
        receive_key, send_key = noise.keys()
        peer.on_handshake_over()
        peer.path = path
        self._outputs.append(Install(peer.device, message.receiver, message.sender, receive_key, send_key, True, path))
        self._outputs.append(SendKeepalive(peer.device))
        return Verdict.PASS

    # macs and cookies

    def _complete(self, peer: Peer, message: bytes, index: int, now: int) -> bytes:
        """Add the MACs; from now on a cookie reply to this message, and to none before it, is expected."""
        self._forget_mac1(peer)
        self._by_mac1[index] = peer
        return peer.macs.complete(message, index, now)

    def _receive_cookie_reply(self, datagram: bytes, now: int) -> Verdict:
        reply = unpack_cookie_reply(datagram)
        peer = self._by_mac1.get(reply.receiver)
        if peer is None:
            return Verdict.UNEXPECTED_COOKIE_REPLY
        if not peer.macs.take_cookie(reply, now):
            return Verdict.INVALID_COOKIE_REPLY
        del self._by_mac1[reply.receiver]
        return Verdict.PASS

    def _forget_mac1(self, peer: Peer) -> None:
        if self._by_mac1.get(peer.macs.index) is peer:
            del self._by_mac1[peer.macs.index]

    # repetition

    def _repeat(self, peer: Peer, now: int, wall_ns: int) -> None:
        at = peer.earliest_initiation(now)
        if at > now:  # we have answered the peer's own initiation in the meantime
            self._postpone(peer, at)
        elif peer.exhausted or peer.path is None:
            self._give_up(peer)
        else:
            peer.attempts += 1
            peer.let_kernel_choose_source()
            self._initiate(peer, now, wall_ns)

    def _give_up(self, peer: Peer) -> None:
        self._end_handshake(peer)
        self._outputs.append(DropStaged(peer.device))

    def _end_handshake(self, peer: Peer) -> None:
        self._release_outstanding(peer)
        peer.on_handshake_over()

    def _release_outstanding(self, peer: Peer) -> None:
        if peer.outstanding is not None:
            del self._by_index[peer.outstanding.index]
            self._indexes.release(peer.outstanding.index)
            peer.outstanding = None

    def _postpone(self, peer: Peer, at: int) -> None:
        peer.due = at
        self._schedule(peer)

    def _schedule(self, peer: Peer) -> None:
        if peer.due is not None:
            heapq.heappush(self._deadlines, (peer.due, peer.device))

    def _jitter(self) -> int:
        return int.from_bytes(self._random(8), "little") % REKEY_TIMEOUT_JITTER_MAX
