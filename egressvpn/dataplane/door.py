"""The door for handshakes: what comes from anybody is judged here, before control spends a Diffie-Hellman on it (whitepaper 5.3, W2 to W7).

    type 1, 2    a MAC1 of ours?  no: BAD_MAC1
                 under load?      no: up to control
                 a MAC2 under the sender's cookie?  no: up to control if the sender's network has not had its share,
                                                        else a cookie reply, COOKIE_REQUIRED
                 fewer than 20 a second from there? no: RATE_LIMITED, else up to control
    type 3       up to control, few at a time

Everything is bounded: what waits for control, what is answered, what the rate limiter forgets. Nobody gets more octets than
he sent: 64 for 148 or 92. Load is when more handshakes wait for control than LOAD_BACKLOG, or when the channel to it was
full; it lasts a second more (kernel: receive.c), and as long as handshakes keep coming so fast that it would begin anew. Then the
work per spoofed datagram is six hashes and one small sealing.
The share is because a WireGuard client comes back with its cookie only after REKEY_TIMEOUT: who is not in a network that
takes part in the flood need not wait for that.
"""

from typing import Any, Final

import numpy as np

from egressvpn.dataplane.aead import seal_cookie
from egressvpn.dataplane.bundle import Bundle
from egressvpn.dataplane.channel import Event
from egressvpn.dataplane.datagrams import HANDSHAKE_TOS, send_along
from egressvpn.dataplane.local import (
    BACKLOG,
    CHANNEL_FD,
    LOCAL_STRIDE,
    LOCALS,
    MESSAGE_WORDS,
    MESSAGES,
    NAME_STRIDE,
    NAMES,
    NONCES,
    NONCES_BYTES,
    NONCES_LEFT,
    REPLY,
)
from egressvpn.dataplane.syscalls import copy, getrandom, ioctl
from egressvpn.dataplane.tables import Counter
from egressvpn.dataplane.transmit import NONE, report
from egressvpn.kernel import Row, Word, inlined, kernel
from egressvpn.verdict import Verdict
from egressvpn.wireguard import cookie
from egressvpn.wireguard.cookie import COOKIE_BYTES, MACS_BYTES, REPLY_BYTES, REPLY_COOKIE, REPLY_NONCE, begin_reply, identity_meant, judge
from egressvpn.wireguard.ratelimiter import collect, share
from egressvpn.wireguard.tables import MAX_IDENTITIES

PASS: Final = int(Verdict.PASS)
BAD_MAC1: Final = int(Verdict.BAD_MAC1)
COOKIE_REQUIRED: Final = int(Verdict.COOKIE_REQUIRED)
HANDSHAKE_OVERLOAD: Final = int(Verdict.HANDSHAKE_OVERLOAD)
DROPS: Final = int(Counter.DROPS)
HANDSHAKES_UP: Final = int(Counter.HANDSHAKES_UP)
HANDSHAKE: Final = np.int64(Event.HANDSHAKE)

COOKIE_REPLY: Final = 3
NONCE_BYTES: Final = 24
LOAD_BACKLOG: Final = 128  # events that wait for control: some 40 ms of its time (kernel: an eighth of a queue of 4096)
LOAD_KNOCKS: Final = 50  # handshakes in a sweep that keep the load up
MAX_BACKLOG: Final = 1024  # no more handshakes above this: room for other events must be left
EVENT_MEMORY: Final = 1280  # octets that the kernel charges a socket for a waiting EVENT
SIOCOUTQ: Final = 0x5411
LOAD_LASTS: Final = 1_000_000_000  # ns (kernel: receive.c)
COOKIE_REPLIES_PER_SWEEP: Final = 5000  # 50 000 in a second take up to half a core, with what the kernel does for each
COOKIE_REPLIES_UP_PER_SWEEP: Final = 20  # nothing but an AEAD shows that one is genuine
SHARES_PER_SWEEP: Final = 20  # messages without a cookie that go up under load, over all networks


@inlined
def knock(b: Bundle, socket: Word, slot: Word, offset: Word, size: Word, now: Word) -> None:
    """A message of type 1, 2 or 3, and of its size, at `offset` of the received datagram `slot`."""
    octets, worker = b.local.octets, b.work.worker[0]
    verdict = np.int64(PASS)
    if octets[offset] == COOKIE_REPLY:
        if worker.cookie_up_tokens <= 0:
            verdict = np.int64(HANDSHAKE_OVERLOAD)
        worker.cookie_up_tokens -= 1
    else:
        identity = identity_meant(b.wg, b.local.scratch, octets, offset, size)
        if identity < 0:
            verdict = np.int64(BAD_MAC1)
        else:
            verdict = _under_load(b, socket, slot, offset, size, identity, now)
    if verdict == PASS:
        _hand_up(b, socket, slot, offset, size, now)
    if verdict != PASS:
        b.work.counters[DROPS + verdict] += 1


@kernel
def refill(b: Bundle, now: Word) -> None:
    """What the door may let through until the next sweep, 100 ms from now."""
    worker = b.work.worker[0]
    worker.cookie_up_tokens = COOKIE_REPLIES_UP_PER_SWEEP
    worker.cookie_replies = COOKIE_REPLIES_PER_SWEEP
    worker.share_tokens = SHARES_PER_SWEEP
    if now < worker.under_load_until and worker.knocks > LOAD_KNOCKS:
        worker.under_load_until = now + LOAD_LASTS
    worker.knocks = 0
    collect(b.wg, now)


def set_identity(b: Bundle, command: Row, number: int, now: int) -> None:
    """SET_IDENTITY: answer for another public key, or for none any more."""
    index: Any = int(command.index)
    if not 0 <= index < MAX_IDENTITIES:
        raise ValueError(f"no identity number {index}")
    if command.state:
        cookie.set_identity(b.wg, b.local.scratch, index, command.receive_key, command.send_key)
    else:
        cookie.clear_identity(b.wg, index)


def set_cookie_secret(b: Bundle, command: Row, number: int, now: int) -> None:
    """SET_COOKIE_SECRET: cookies given out so far are worth nothing any more."""
    cookie.set_secret(b.wg, b.local.scratch, command.receive_key)


@kernel
def _under_load(b: Bundle, socket: Word, slot: Word, offset: Word, size: Word, identity: Word, now: Word) -> Word:
    """The verdict on a message with a MAC1 of ours: PASS without load, else what MAC2 and the source say."""
    worker, octets, name = b.work.worker[0], b.local.octets, NAMES + slot * NAME_STRIDE
    worker.knocks += 1
    backlog = _backlog(b)
    if backlog >= LOAD_BACKLOG:
        worker.under_load_until = now + LOAD_LASTS
    if now >= worker.under_load_until:
        return PASS
    if backlog >= MAX_BACKLOG:
        return HANDSHAKE_OVERLOAD
    verdict = np.int64(judge(b.wg, b.local.scratch, octets, offset, size, octets, name, now))
    if verdict != COOKIE_REQUIRED:
        return verdict
    if worker.share_tokens > 0 and share(b.wg, b.local.scratch, octets, name, now) == 1:
        worker.share_tokens -= 1
        return PASS
    return _answer(b, socket, slot, offset, size, identity)


@kernel
def _backlog(b: Bundle) -> Word:
    """How many events wait for control."""
    words = b.local.words
    words[BACKLOG] = 0
    ioctl(b.local.fds[CHANNEL_FD], SIOCOUTQ, words.ctypes.data + 8 * BACKLOG)
    return words[BACKLOG] // EVENT_MEMORY


@kernel
def _answer(b: Bundle, socket: Word, slot: Word, offset: Word, size: Word, identity: Word) -> Word:
    """Send a cookie reply to the sender of the message, from where he wrote to. The verdict on the message."""
    octets, worker = b.local.octets, b.work.worker[0]
    if worker.cookie_replies <= 0 or not _next_nonce(b):
        return HANDSHAKE_OVERLOAD
    worker.cookie_replies -= 1
    name, local = NAMES + slot * NAME_STRIDE, LOCALS + slot * LOCAL_STRIDE
    begin_reply(b.wg, b.local.scratch, octets, offset, octets, name, octets, REPLY)
    mac1 = offset + size - MACS_BYTES
    key = b.wg.identities[identity].cookie_key
    if seal_cookie(key, octets, REPLY + REPLY_COOKIE, COOKIE_BYTES, REPLY + REPLY_NONCE, mac1, COOKIE_BYTES) != 1:
        return HANDSHAKE_OVERLOAD
    name_length = b.local.words[MESSAGES + slot * MESSAGE_WORDS + 1] & 0xFFFFFFFF
    send_along(
        b, socket, octets, name, name_length, octets, local + 8, np.int64(octets[local]), REPLY, REPLY_BYTES, np.int64(0), HANDSHAKE_TOS
    )
    return COOKIE_REQUIRED


@kernel
def _next_nonce(b: Bundle) -> bool:
    """Put a fresh random nonce in its place in the reply. The kernel makes them 170 at a time."""
    octets, words = b.local.octets, b.local.words
    if words[NONCES_LEFT] < NONCE_BYTES:
        if np.int64(getrandom(octets.ctypes.data + NONCES, NONCES_BYTES, 0)) != NONCES_BYTES:
            return False
        words[NONCES_LEFT] = NONCES_BYTES
    words[NONCES_LEFT] -= NONCE_BYTES
    copy(octets, REPLY + REPLY_NONCE, octets, NONCES + words[NONCES_LEFT], NONCE_BYTES)
    return True


@kernel
def _hand_up(b: Bundle, socket: Word, slot: Word, offset: Word, size: Word, now: Word) -> None:
    """The datagram and its path to control. A full channel counts by itself, and is load."""
    worker, event, octets = b.work.worker[0], b.local.events[0], b.local.octets
    name, local = NAMES + slot * NAME_STRIDE, LOCALS + slot * LOCAL_STRIDE
    event.socket = socket
    event.remote_length = b.local.words[MESSAGES + slot * MESSAGE_WORDS + 1] & 0xFFFFFFFF
    copy(event.remote, 0, octets, name, 32)
    event.local_length = np.int64(octets[local])
    copy(event.local, 0, octets, local + 8, 40)
    event.length = size
    copy(event.octets, 0, octets, offset, size)
    if report(b, HANDSHAKE, NONE, NONE, NONE) == 1:
        b.work.counters[HANDSHAKES_UP] += 1
    else:
        worker.under_load_until = now + LOAD_LASTS
