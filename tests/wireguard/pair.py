"""A client and a gateway whose datagrams are handed over by hand, and what their tests share."""

import random
from typing import Final, TypeVar

from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt

from egressvpn.addresses import Path, pack_sockaddr
from egressvpn.verdict import Verdict
from egressvpn.wireguard.constants import SECOND
from egressvpn.wireguard.indexes import SessionIndexes
from egressvpn.wireguard.interface import Install, Interface, KeepTimestamp, Output, Transmit
from egressvpn.wireguard.mac import cookie_key
from egressvpn.wireguard.messages import CookieReply
from egressvpn.wireguard.timestamps import NO_TIMESTAMP

T = TypeVar("T")

T0: Final = 1_000 * SECOND
WALL: Final = 1_700_000_000 * SECOND
PSK: Final = bytes(range(32))
CLIENT, GATEWAY, ELSEWHERE = (Path(pack_sockaddr(host, 51820)) for host in ("192.0.2.1", "192.0.2.2", "2001:db8::3"))
COOKIE: Final = b"sixteen octets !"


class Pair:
    """A client (its peer is device 7) and a gateway (its peer is device 1, its path not known yet)."""

    def __init__(self, psk: bytes = bytes(32), slots: int = 256, client_mark: bytes = NO_TIMESTAMP) -> None:
        dice = random.Random(1)
        self.client_indexes = SessionIndexes(slots, 0, dice.randbytes)
        self.gateway_indexes = SessionIndexes(slots, 1, dice.randbytes)
        self.client = Interface(random.Random(2).randbytes(32), self.client_indexes, dice.randbytes, client_mark)
        self.gateway = Interface(random.Random(3).randbytes(32), self.gateway_indexes, dice.randbytes)
        self.client.add_peer(7, self.gateway.public_key, psk, GATEWAY)
        self.gateway.add_peer(1, self.client.public_key, psk)

    def initiate(self, now: int = T0, wall_ns: int | None = None) -> Transmit:
        """The client's initiation: its first, or the next when that is due."""
        wall_ns = WALL + now - T0 if wall_ns is None else wall_ns
        self.client.advance(now, wall_ns)
        self.client.on_session_wanted(7, now, wall_ns)
        return only(polled(self.client), Transmit)

    def answered(self, now: int = T0) -> bytes:
        """The gateway's response to the client's initiation."""
        assert self.gateway.receive(self.initiate(now).datagram, CLIENT, now, WALL) is Verdict.PASS
        return only(polled(self.gateway), Install).response

    def handshake(self, now: int) -> Install:
        """A whole handshake; what the client installs."""
        assert self.client.receive(self.answered(now), GATEWAY, now, WALL) is Verdict.PASS
        installed = polled(self.client)[0]
        assert isinstance(installed, Install)
        return installed

    def gateway_path(self) -> Path | None:
        peer = self.gateway.peer(1)
        return peer.path if peer is not None else None

    def client_path(self) -> Path | None:
        peer = self.client.peer(7)
        return peer.path if peer is not None else None


def polled(interface: Interface) -> list[Output]:
    """What is to be done, but for what is to be kept on disk."""
    return [output for output in interface.poll() if not isinstance(output, KeepTimestamp)]


def only(outputs: list[Output], kind: type[T]) -> T:
    (output,) = outputs
    assert isinstance(output, kind)
    return output


def cookie_reply(public_key: bytes, datagram: bytes, cookie: bytes = COOKIE, mac1: bytes | None = None) -> bytes:
    """What the owner of `public_key` under load answers to a datagram whose MAC2 does not satisfy it."""
    nonce = random.Random(datagram).randbytes(24)
    associated = datagram[-32:-16] if mac1 is None else mac1
    sealed = crypto_aead_xchacha20poly1305_ietf_encrypt(cookie, associated, nonce, cookie_key(public_key))
    return CookieReply(int.from_bytes(datagram[4:8], "little"), nonce, sealed).pack()
