"""Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s, both roles (whitepaper 5.4; Noise revision 34), for any prologue and payload.

    message 1    initiator -> responder    e, es, s, ss, payload
    message 2    responder -> initiator    e, ee, se, psk, payload

Each role is one object used for one handshake, message by message. A message that does not authenticate, or a Diffie-Hellman
of a low-order point, raises InvalidHandshake; the object is then useless, except that a failed `read_response` leaves an
initiator as it was, so a forged response does no harm. Ephemeral keys are handed in. Nothing here shows keys in its repr.
"""

from dataclasses import dataclass, field
from hashlib import blake2s
from typing import Final

from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
    crypto_scalarmult,
    crypto_scalarmult_base,
)
from nacl.exceptions import CryptoError

CONSTRUCTION: Final = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER: Final = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
NO_PRESHARED_KEY: Final = bytes(KEY_BYTES)

BLOCK_BYTES: Final = 64  # of BLAKE2s
INNER: Final = bytes(octet ^ 0x36 for octet in range(256))  # how HMAC masks its key (RFC 2104)
OUTER: Final = bytes(octet ^ 0x5C for octet in range(256))


class InvalidHandshake(Exception):
    """A handshake message does not authenticate. Caught where messages are received, never shown."""


def hash_of(*parts: bytes) -> bytes:
    return blake2s(b"".join(parts)).digest()


def kdf(chaining_key: bytes, material: bytes, count: int) -> list[bytes]:
    """The paper's Kdf1, Kdf2 and Kdf3: HKDF with HMAC-BLAKE2s.

    HMAC is spelled out, because the keys of one call share their masked blocks: half the time of a handshake that is not
    Diffie-Hellman goes here.
    """
    block = chaining_key.ljust(BLOCK_BYTES, b"\0")
    secret = blake2s(block.translate(OUTER) + blake2s(block.translate(INNER) + material).digest()).digest()
    block = secret.ljust(BLOCK_BYTES, b"\0")
    inner, outer = block.translate(INNER), block.translate(OUTER)
    keys: list[bytes] = []
    key = b""
    for number in range(1, count + 1):
        key = blake2s(outer + blake2s(inner + key + number.to_bytes(1, "big")).digest()).digest()
        keys.append(key)
    return keys


def diffie_hellman(private_key: bytes, public_key: bytes) -> bytes:
    """X25519; raises InvalidHandshake where the result would be zero (low-order points)."""
    try:
        shared: bytes = crypto_scalarmult(private_key, public_key)
    except RuntimeError:
        raise InvalidHandshake("low-order point") from None
    return shared


def public_of(private_key: bytes) -> bytes:
    public_key: bytes = crypto_scalarmult_base(private_key)
    return public_key


@dataclass(slots=True)
class SymmetricState:
    """Noise 5.2: the chaining key and the transcript hash. Every key is used for one message, so nonces are always 0."""

    chaining_key: bytes = field(repr=False)
    hash: bytes = field(repr=False)

    @classmethod
    def begin(cls, prologue: bytes, responder_static: bytes) -> "SymmetricState":
        prologue_hash = IDENTIFIER_HASH if prologue is IDENTIFIER else hash_of(CONSTRUCTION_HASH, prologue)
        return cls(CONSTRUCTION_HASH, hash_of(prologue_hash, responder_static))

    def copy(self) -> "SymmetricState":
        return SymmetricState(self.chaining_key, self.hash)

    def mix_hash(self, data: bytes) -> None:
        self.hash = hash_of(self.hash, data)

    def mix(self, material: bytes) -> None:
        """Into the key, where the key that could be used now is not."""
        (self.chaining_key,) = kdf(self.chaining_key, material, 1)

    def mix_ephemeral(self, public_key: bytes) -> None:
        """An `e` token in a psk handshake (Noise 9.2): into the hash and the key."""
        self.mix_hash(public_key)
        self.mix(public_key)

    def mix_key(self, shared: bytes) -> bytes:
        self.chaining_key, key = kdf(self.chaining_key, shared, 2)
        return key

    def mix_preshared_key(self, preshared_key: bytes) -> bytes:
        self.chaining_key, extra, key = kdf(self.chaining_key, preshared_key, 3)
        self.mix_hash(extra)
        return key

    def seal(self, key: bytes, plaintext: bytes) -> bytes:
        sealed = seal(key, 0, plaintext, self.hash)
        self.mix_hash(sealed)
        return sealed

    def open(self, key: bytes, sealed: bytes) -> bytes:
        plaintext = open_sealed(key, 0, sealed, self.hash)
        self.mix_hash(sealed)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        """The transport keys: initiator to responder, responder to initiator."""
        first, second = kdf(self.chaining_key, b"", 2)
        return first, second


def seal(key: bytes, counter: int, plaintext: bytes, associated: bytes = b"") -> bytes:
    """The paper's Aead(): ChaCha20-Poly1305 with a 32-bit zero and the little-endian counter as nonce."""
    sealed: bytes = crypto_aead_chacha20poly1305_ietf_encrypt(plaintext, associated, _nonce(counter), key)
    return sealed


def open_sealed(key: bytes, counter: int, sealed: bytes, associated: bytes = b"") -> bytes:
    """The inverse of `seal`; raises InvalidHandshake when it was not sealed with this key, counter and associated data."""
    try:
        plaintext: bytes = crypto_aead_chacha20poly1305_ietf_decrypt(sealed, associated, _nonce(counter), key)
    except CryptoError:
        raise InvalidHandshake("authentication failed") from None
    return plaintext


class Initiator:
    """The side that begins: `write_initiation`, then `read_response`, then `keys`."""

    def __init__(self, private_key: bytes, public_key: bytes, remote_public: bytes, prologue: bytes = IDENTIFIER) -> None:
        self._private_key = private_key
        self._public_key = public_key
        self._remote_public = remote_public
        self._ephemeral = b""
        self._state = SymmetricState.begin(prologue, remote_public)

    def write_initiation(self, ephemeral: bytes, static_static: bytes, payload: bytes) -> tuple[bytes, bytes, bytes]:
        """The unencrypted ephemeral, the sealed static key and the sealed payload, from a fresh ephemeral private key."""
        state = self._state
        self._ephemeral = ephemeral
        public = public_of(ephemeral)
        state.mix_ephemeral(public)
        sealed_static = state.seal(state.mix_key(diffie_hellman(ephemeral, self._remote_public)), self._public_key)
        return public, sealed_static, state.seal(state.mix_key(static_static), payload)

    def read_response(self, remote_ephemeral: bytes, sealed_payload: bytes, preshared_key: bytes = NO_PRESHARED_KEY) -> bytes:
        """The payload of the response."""
        state = self._state.copy()
        state.mix_ephemeral(remote_ephemeral)
        state.mix(diffie_hellman(self._ephemeral, remote_ephemeral))
        state.mix(diffie_hellman(self._private_key, remote_ephemeral))
        payload = state.open(state.mix_preshared_key(preshared_key), sealed_payload)
        self._state = state
        return payload

    @property
    def transcript(self) -> bytes:
        """The handshake hash (Noise 11.2)."""
        return self._state.hash

    def keys(self) -> tuple[bytes, bytes]:
        """(receive key, send key) of the new session."""
        first, second = self._state.split()
        return second, first


class Responder:
    """The side that answers: `read_static`, then `read_payload` once the peer is known, `write_response`, `keys`."""

    def __init__(self, private_key: bytes, public_key: bytes, prologue: bytes = IDENTIFIER) -> None:
        self._private_key = private_key
        self._remote_static = b""
        self._remote_ephemeral = b""
        self._state = SymmetricState.begin(prologue, public_key)

    def read_static(self, remote_ephemeral: bytes, sealed_static: bytes) -> bytes:
        """The static public key of whoever sent the initiation."""
        state = self._state
        state.mix_ephemeral(remote_ephemeral)
        key = state.mix_key(diffie_hellman(self._private_key, remote_ephemeral))
        self._remote_ephemeral = remote_ephemeral
        self._remote_static = state.open(key, sealed_static)
        return self._remote_static

    def read_payload(self, static_static: bytes, sealed_payload: bytes) -> bytes:
        """The payload, which only the owner of the static key can have sealed."""
        return self._state.open(self._state.mix_key(static_static), sealed_payload)

    def write_response(self, ephemeral: bytes, preshared_key: bytes = NO_PRESHARED_KEY, payload: bytes = b"") -> tuple[bytes, bytes]:
        """The unencrypted ephemeral and the sealed payload, from a fresh ephemeral private key."""
        state = self._state
        public = public_of(ephemeral)
        state.mix_ephemeral(public)
        state.mix(diffie_hellman(ephemeral, self._remote_ephemeral))
        state.mix(diffie_hellman(ephemeral, self._remote_static))
        return public, state.seal(state.mix_preshared_key(preshared_key), payload)

    @property
    def transcript(self) -> bytes:
        """The handshake hash (Noise 11.2)."""
        return self._state.hash

    def keys(self) -> tuple[bytes, bytes]:
        """(receive key, send key) of the new session."""
        return self._state.split()


def _nonce(counter: int) -> bytes:
    return bytes(4) + counter.to_bytes(8, "little")


CONSTRUCTION_HASH: Final = hash_of(CONSTRUCTION)  # the name is longer than a hash, so Noise hashes it
IDENTIFIER_HASH: Final = hash_of(CONSTRUCTION_HASH, IDENTIFIER)
