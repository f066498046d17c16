"""The two MACs at the end of a handshake message, and the cookies behind the second (whitepaper 5.3, 5.4.4, 5.4.7; kernel: cookie.c).

MAC1 shows that its writer knows the receiver's public key. MAC2, under a cookie the receiver gave out, shows that he receives
at the address he writes from; a receiver under load asks for it. Here is the side that writes MACs and spends cookies. The side
that checks MAC2 and gives out cookies is the data path's, which judges every datagram before it comes to an Interface.

A cookie reply is bound to the MAC1 of the message it answers, and is taken once: after that no reply is, until another message
was sent. It changes nothing but the MAC2 of later messages: it sends none, and moves no endpoint.
"""

import hashlib
import hmac
from typing import Final

from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt
from nacl.exceptions import CryptoError

from egressvpn.wireguard.constants import COOKIE_USABLE_TIME
from egressvpn.wireguard.messages import MAC_BYTES, MACS_BYTES, CookieReply
from egressvpn.wireguard.noise import hash_of

LABEL_MAC1: Final = b"mac1----"
LABEL_COOKIE: Final = b"cookie--"
NO_MAC2: Final = bytes(MAC_BYTES)


def mac1_key(public_key: bytes) -> bytes:
    """The key of MAC1 in messages meant for the owner of `public_key`."""
    return hash_of(LABEL_MAC1, public_key)


def cookie_key(public_key: bytes) -> bytes:
    """The key of cookie replies written by the owner of `public_key`."""
    return hash_of(LABEL_COOKIE, public_key)


def mac(key: bytes, data: bytes) -> bytes:
    """The paper's Mac(): keyed BLAKE2s of 16 bytes."""
    return hashlib.blake2s(data, digest_size=MAC_BYTES, key=key).digest()


def add_macs(key: bytes, message: bytes, cookie: bytes = b"") -> bytes:
    """The whole datagram: `message`, its MAC1 under the receiver's `mac1_key`, and its MAC2, zeros when there is no cookie."""
    signed = message + mac(key, message)
    return signed + (mac(cookie, signed) if cookie else NO_MAC2)


def mac1_valid(key: bytes, datagram: bytes) -> bool:
    """Whether the datagram was made for the owner of this `mac1_key`."""
    return hmac.compare_digest(mac(key, datagram[:-MACS_BYTES]), datagram[-MACS_BYTES:-MAC_BYTES])


class Macs:
    """The MACs of what we write to one peer (kernel: struct cookie)."""

    __slots__ = ("_cookie", "_cookie_key", "_mac1_key", "_mac1_sent", "_usable_until", "index")

    def __init__(self, public_key: bytes) -> None:
        self._mac1_key = mac1_key(public_key)
        self._cookie_key = cookie_key(public_key)
        self._mac1_sent = b""  # of the last message
        self._cookie = b""
        self._usable_until = 0
        self.index = 0  # the sender index of the last message

    def complete(self, message: bytes, index: int, now: int) -> bytes:
        """The datagram of a message that carries `index` as its sender's."""
        datagram = add_macs(self._mac1_key, message, self._cookie if now < self._usable_until else b"")
        self._mac1_sent = datagram[-MACS_BYTES:-MAC_BYTES]
        self.index = index
        return datagram

    def take_cookie(self, reply: CookieReply, now: int) -> bool:
        """Keep the cookie of a reply to the last message; False when it is not one, and nothing changes."""
        try:
            cookie = crypto_aead_xchacha20poly1305_ietf_decrypt(reply.cookie, self._mac1_sent, reply.nonce, self._cookie_key)
        except CryptoError:
            return False
        self._cookie, self._usable_until = cookie, now + COOKIE_USABLE_TIME
        return True
