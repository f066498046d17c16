"""Targets of the handshake: what an interface makes of messages from strangers, from its peers, and of altered ones."""

import random
import struct
from collections.abc import Callable
from typing import Any

from egressvpn.addresses import Path, pack_sockaddr
from egressvpn.verdict import Verdict
from egressvpn.wireguard.constants import MILLISECOND, SECOND
from egressvpn.wireguard.mac import add_macs, mac1_key
from egressvpn.wireguard.messages import COOKIE_REPLY_BYTES, INITIATION_BYTES, RESPONSE_BYTES, Initiation
from egressvpn.wireguard.noise import Initiator, diffie_hellman, public_of
from egressvpn.wireguard.outputs import Clear, DropStaged, Install, SendKeepalive, Transmit
from tests.fuzz.harness import Reader, target
from tests.wireguard.pair import ELSEWHERE, GATEWAY, T0, WALL, Pair, cookie_reply, polled

STEPS = 12
STRANGER = bytes(range(32))


class _Exchange:
    """A client and a gateway, and what they sent so far."""

    def __init__(self) -> None:
        self.pair = Pair()
        self.now = T0
        self.sent = [(False, self.pair.initiate().datagram)]  # (to the client, datagram), the newest first

    @property
    def wall(self) -> int:
        return WALL + self.now - T0

    def deliver(self, to_client: bool, datagram: bytes, path: Path, genuine: bool) -> None:
        """Nothing changes and nothing is sent unless it passes; and it passes only if it can be genuine."""
        pair = self.pair
        interface, indexes = (pair.client, pair.client_indexes) if to_client else (pair.gateway, pair.gateway_indexes)
        known = interface.peer(7 if to_client else 1)
        assert known is not None
        before = (known.path, known.newest_timestamp, known.outstanding, known.consumed_at, len(indexes))
        verdict = interface.receive(datagram, path, self.now, self.wall)
        assert isinstance(verdict, Verdict)
        outputs = polled(interface)
        if verdict is not Verdict.PASS:
            assert outputs == []
            assert before == (known.path, known.newest_timestamp, known.outstanding, known.consumed_at, len(indexes))
            return
        assert genuine
        assert datagram[0] != 1 or known.newest_timestamp > before[1]
        for output in outputs:
            assert isinstance(output, Install | SendKeepalive | Transmit | Clear | DropStaged)
            if isinstance(output, Install):
                assert len(output.response) <= len(datagram)
                assert output.receive_key != output.send_key
                if output.response:
                    self.sent.insert(0, (not to_client, output.response))

    def newest(self, to_client: bool) -> bytes:
        """The last datagram in this direction."""
        return next((datagram for direction, datagram in self.sent if direction == to_client), bytes(RESPONSE_BYTES))


def _raw(exchange: _Exchange, reader: Reader) -> None:
    exchange.deliver(bool(reader.number() & 1), reader.block(), ELSEWHERE, False)


def _signed(exchange: _Exchange, reader: Reader) -> None:
    """A message of the right type and size, with a right MAC1."""
    flags, octets = reader.number(), reader.block()
    to_client, kind = bool(flags & 1), 1 + (flags >> 1 & 1)
    size = (INITIATION_BYTES if kind == 1 else RESPONSE_BYTES) - 32
    message = (struct.pack("<I", kind) + octets).ljust(size, b"\0")[:size]
    if kind == 2 and flags & 4:  # to a handshake that is under way
        message = message[:8] + exchange.newest(not to_client)[4:8] + message[12:]
    public_key = (exchange.pair.client if to_client else exchange.pair.gateway).public_key
    exchange.deliver(to_client, add_macs(mac1_key(public_key), message), ELSEWHERE, False)


def _initiated(exchange: _Exchange, reader: Reader) -> None:
    """A whole initiation with any payload and index, from the peer or from a stranger, with any ephemeral key put in its place."""
    flags, sender, payload, ephemeral = reader.number(), reader.number(4), reader.take(12).ljust(12, b"\0"), reader.take(32)
    private = STRANGER if flags & 1 else exchange.pair.client.identities[0].private_key
    to = exchange.pair.gateway.public_key
    noise = Initiator(private, public_of(private), to)
    parts = noise.write_initiation(random.Random(flags).randbytes(32), diffie_hellman(private, to), payload)
    if flags & 2:
        parts = (ephemeral.ljust(32, b"\0"), *parts[1:])
    datagram = add_macs(mac1_key(to), Initiation(sender, *parts).pack())
    exchange.deliver(False, datagram, Path(pack_sockaddr("192.0.2.9", 1 + sender % 60_000)), not flags & 3)


def _altered(exchange: _Exchange, reader: Reader) -> None:
    """Something that was sent, again: as it was, or with an octet changed and MAC1 made right."""
    flags, which, position, change = reader.number(), reader.number(), reader.number(), reader.number()
    direction, datagram = exchange.sent[which % len(exchange.sent)]
    to_client = direction ^ bool(flags & 2)
    if change and position < len(datagram):
        datagram = datagram[:position] + bytes([datagram[position] ^ change]) + datagram[position + 1 :]
    if flags & 1:
        public_key = (exchange.pair.client if to_client else exchange.pair.gateway).public_key
        datagram = add_macs(mac1_key(public_key), datagram[:-32])
    unaltered = not change or position >= len(datagram) or 4 <= position < 8 or position >= len(datagram) - 32
    exchange.deliver(to_client, datagram, GATEWAY if to_client else ELSEWHERE, unaltered)


def _cookie(exchange: _Exchange, reader: Reader) -> None:
    """A cookie reply: sealed by who was written to, and for any message; or sealed by nobody."""
    flags, cookie, datagram = reader.number(), reader.take(16).ljust(16, b"\0"), exchange.newest(False)
    if flags & 1:
        datagram = datagram[:4] + reader.take(4).ljust(4, b"\0") + datagram[8:]
    public_key = exchange.pair.client.public_key if flags & 2 else exchange.pair.gateway.public_key
    mac1 = reader.take(16).ljust(16, b"\0") if flags & 4 else None
    reply = cookie_reply(public_key, datagram, cookie, mac1)
    if flags & 8:
        reply = reply[:8] + reader.take(56).ljust(56, b"\0")
    assert len(reply) == COOKIE_REPLY_BYTES
    exchange.deliver(not flags & 16, reply, ELSEWHERE, not flags & 0x1E)


def _time(exchange: _Exchange, reader: Reader) -> None:
    """Time passes, timers fire, and the client may begin again."""
    exchange.now += reader.number(2) * 20 * MILLISECOND
    for interface, device in ((exchange.pair.client, 7), (exchange.pair.gateway, 1)):
        interface.on_timer(device, reader.number() & 15, exchange.now, exchange.wall)
        interface.advance(exchange.now, exchange.wall)
        for output in polled(interface):
            if isinstance(output, Transmit):
                exchange.sent.insert(0, (interface is exchange.pair.gateway, output.datagram))
                assert len(output.datagram) == INITIATION_BYTES


STEP: tuple[Callable[[_Exchange, Reader], Any], ...] = (_raw, _signed, _initiated, _altered, _cookie, _time)


@target
def handshakes(octets: bytes) -> None:
    """Any sequence of such things; afterwards the two still come to a session."""
    exchange, reader = _Exchange(), Reader(octets)
    for _ in range(STEPS):
        if not reader:
            break
        STEP[reader.number() % len(STEP)](exchange, reader)
    _still_works(exchange)


def _still_works(exchange: _Exchange) -> None:
    """Unless the peer itself said a timestamp of the future: then only later ones are accepted."""
    pair, now = exchange.pair, exchange.now
    of_gateway, of_client = pair.gateway.peer(1), pair.client.peer(7)
    assert of_gateway is not None
    assert of_client is not None
    for _ in range(30):
        now += 6 * SECOND
        pair.client.advance(now, WALL + now - T0)
        pair.client.on_session_wanted(7, now, WALL + now - T0)
        for output in polled(pair.client):
            if isinstance(output, Transmit) and pair.gateway.receive(output.datagram, ELSEWHERE, now, 0) is Verdict.PASS:
                (answer,) = [made for made in polled(pair.gateway) if isinstance(made, Install)]
                assert pair.client.receive(answer.response, GATEWAY, now, 0) is Verdict.PASS
                return
    assert of_client.sent_timestamp <= of_gateway.newest_timestamp
