"""Target of the door: sequences of handshake messages against a model of its rules in plain Python, cookies included.

Sources are sockets of our own on 127.0.0.1, and IPv6 addresses to which the IPv4 socket can send nothing: what would have been
sent is read from its place.
"""

import hashlib
import socket
import struct
from collections import Counter as Count
from dataclasses import dataclass, field
from functools import cache

from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt

from egressvpn.addresses import pack_sockaddr
from egressvpn.dataplane import door as rules
from egressvpn.dataplane.local import REPLY
from egressvpn.dataplane.receive import _datagram
from egressvpn.dataplane.tables import CLIENT, Counter
from egressvpn.verdict import Verdict
from egressvpn.wireguard.mac import cookie_key, mac, mac1_key
from egressvpn.wireguard.ratelimiter import COST, SHARE_BURST, SHARE_INTERVAL, TOKENS_MAX
from egressvpn.wireguard.tables import SHARES
from tests.dataplane.rig import PUBLIC_KEY, START
from tests.fuzz.datapath import Bench, bench
from tests.fuzz.harness import Reader, target

SECRET = bytes([9]) * 32  # the bench's cookie secret
STEPS = 48
SIZES = (0, 148, 92, 64)
MILLISECOND = 1_000_000


@cache
def _sources() -> tuple[list[bytes], list[socket.socket]]:
    """Socket addresses to knock from, and the sockets that keep some of them ours."""
    kept = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for end in kept:
        end.bind(("127.0.0.1", 0))
        end.setblocking(False)
    names = [end.getsockname() for end in kept] + [("2001:db8::1", 9), ("2001:db8::1", 10), ("2001:db8::2", 9), ("2001:db8:0:1::1", 9)]
    return [pack_sockaddr(*name) for name in names], kept


@dataclass
class _Model:
    """What the door allows itself, and what it knows of sources."""

    cookie_replies: int
    share_tokens: int
    cookie_up_tokens: int
    under_load_until: int = 0
    buckets: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    shares: dict[int, int] = field(default_factory=dict)

    def refill(self) -> None:
        self.cookie_up_tokens = rules.COOKIE_REPLIES_UP_PER_SWEEP
        self.cookie_replies = rules.COOKIE_REPLIES_PER_SWEEP
        self.share_tokens = rules.SHARES_PER_SWEEP

    def judge(self, datagram: bytes, source: bytes, now: int) -> Verdict:
        if datagram[0] == 3:
            self.cookie_up_tokens -= 1
            return Verdict.PASS if self.cookie_up_tokens >= 0 else Verdict.HANDSHAKE_OVERLOAD
        if mac(mac1_key(PUBLIC_KEY), datagram[:-32]) != datagram[-32:-16]:
            return Verdict.BAD_MAC1
        if now >= self.under_load_until:
            return Verdict.PASS
        if mac(cookie_of(source), datagram[:-16]) == datagram[-16:]:
            return Verdict.PASS if self._spend(source, now) else Verdict.RATE_LIMITED
        if self.share_tokens > 0 and self._share(source, now):
            self.share_tokens -= 1
            return Verdict.PASS
        if self.cookie_replies <= 0:
            return Verdict.HANDSHAKE_OVERLOAD
        self.cookie_replies -= 1
        return Verdict.COOKIE_REQUIRED

    def _share(self, source: bytes, now: int) -> bool:
        """Of an IPv4 /16 or IPv6 /32; networks that fall together share one."""
        network, version = (source[4:6], 4) if source[0] == socket.AF_INET else (source[8:12], 6)
        spread = int.from_bytes(network, "big").to_bytes(8, "little") + bytes([version])
        bucket = int.from_bytes(hashlib.blake2s(spread, key=SECRET).digest()[:4], "little") % SHARES
        spent = self.shares.get(bucket, 0)
        if spent > now + (SHARE_BURST - 1) * SHARE_INTERVAL:
            return False
        self.shares[bucket] = max(spent, now) + SHARE_INTERVAL
        return True

    def _spend(self, source: bytes, now: int) -> bool:
        bucket = source[4:8] if source[0] == socket.AF_INET else source[8:16]
        tokens, seen = self.buckets.get(bucket, (TOKENS_MAX, now))
        tokens = min(TOKENS_MAX, tokens + now - seen)
        self.buckets[bucket] = (tokens - COST if tokens >= COST else tokens, now)
        return tokens >= COST


def cookie_of(source: bytes) -> bytes:
    """W6: bound to address and port."""
    address = source[4:8] if source[0] == socket.AF_INET else source[8:24]
    return hashlib.blake2s(address + source[2:4], digest_size=16, key=SECRET).digest()


@target
def door(octets: bytes) -> None:
    """Each message meets the verdict that the model gives; a cookie reply is sealed for who asked, and is worth something."""
    made, reader, sources = bench(CLIENT), Reader(octets), _sources()[0]
    made.reset(0)
    worker, now = made.rig.b.work.worker[0], START
    model = _Model(reader.number(), reader.number(), reader.number())
    worker.cookie_replies, worker.share_tokens, worker.cookie_up_tokens = model.cookie_replies, model.share_tokens, model.cookie_up_tokens
    for _ in range(STEPS):
        if not reader:
            break
        shape, now = reader.number(), now + reader.number() * 10 * MILLISECOND
        if shape & 0x80:
            rules.refill(made.rig.b, now)
            model.refill()
        if shape & 0x40:  # as when too many handshakes wait for control
            worker.under_load_until = model.under_load_until = now + rules.LOAD_LASTS
        source = sources[reader.number() % len(sources)]
        datagram = _message(reader, shape, source, sources)
        expected = model.judge(datagram, source, now)
        _knock(made, datagram, source, expected, now)


def _message(reader: Reader, shape: int, source: bytes, sources: list[bytes]) -> bytes:
    """Type 1, 2 or 3 with MACs that are right, or right for another, or anything."""
    kind = 1 + shape % 3
    size = SIZES[kind]
    datagram = (struct.pack("<I", kind) + reader.block()).ljust(size, b"\0")[:size]
    if kind == 3:
        return datagram
    if shape & 0x08:
        datagram = datagram[:-32] + mac(mac1_key(PUBLIC_KEY), datagram[:-32]) + datagram[-16:]
    if shape & 0x10:
        other = sources[reader.number() % len(sources)] if shape & 0x20 else source
        datagram = datagram[:-16] + mac(cookie_of(other), datagram[:-16])
    elif shape & 0x20:
        datagram = datagram[:-16] + bytes(16)
    return datagram


def _knock(made: Bench, datagram: bytes, source: bytes, expected: Verdict, now: int) -> None:
    counted, up = Count(made.rig.drops()), made.rig.counter(Counter.HANDSHAKES_UP)
    made.put(0, datagram, source, b"", 0)
    _datagram(made.rig.b, 0, 0, now)
    dropped = Count(made.rig.drops()) - counted
    assert dropped == ({} if expected is Verdict.PASS else {expected.label: 1})
    assert made.rig.counter(Counter.HANDSHAKES_UP) - up == (expected is Verdict.PASS)
    events = made.rig.events()
    assert len(events) == (expected is Verdict.PASS)
    if events:
        (event,) = events
        assert bytes(event.octets[: int(event.length)]) == datagram
        assert bytes(event.remote[: int(event.remote_length)]) == source
    _check_replies(made, datagram, source, expected is Verdict.COOKIE_REQUIRED)


def _check_replies(made: Bench, datagram: bytes, source: bytes, answered: bool) -> None:
    """One to whoever asked and none to anybody else, of 64 octets, opening to his cookie under the MAC1 he sent."""
    for name, end in zip(*_sources(), strict=False):
        try:
            came = end.recv(256)
        except BlockingIOError:
            assert not (answered and name == source)
            continue
        assert answered
        assert name == source
        assert came == bytes(made.rig.b.local.octets[REPLY : REPLY + 64])
    if answered:
        reply = bytes(made.rig.b.local.octets[REPLY : REPLY + 64])
        assert reply[:8] == struct.pack("<I", 3) + datagram[4:8]
        opened = crypto_aead_xchacha20poly1305_ietf_decrypt(reply[32:], datagram[-32:-16], reply[8:32], cookie_key(PUBLIC_KEY))
        assert opened == cookie_of(source)
