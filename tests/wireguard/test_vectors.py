"""Published known answers through our own functions, and X25519 against the ladder of RFC 7748 written over plain integers."""

import hashlib
import ipaddress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
    crypto_aead_xchacha20poly1305_ietf_decrypt,
)

from egressvpn.addresses import words
from egressvpn.dataplane.aead import seal_cookie
from egressvpn.wireguard import blake2s, ratelimiter
from egressvpn.wireguard.constants import MILLISECOND, SECOND
from egressvpn.wireguard.cookie import set_secret
from egressvpn.wireguard.mac import mac
from egressvpn.wireguard.noise import InvalidHandshake, diffie_hellman, hash_of, kdf, open_sealed, public_of, seal
from tests.vectors import load
from tests.wireguard.doorstep import small_tables

X25519, AEAD, BLAKE2S, KDF, RATE = (load(name) for name in ("x25519", "chacha20poly1305", "blake2s", "kdf", "ratelimiter"))
PRIVATE_KEYS = [bytes(32), bytes([0xFF]) * 32, bytes(range(32)), *(bytes.fromhex(row[0]) for row in X25519["cases"][:5])]
KEYS = st.binary(min_size=32, max_size=32)
FIELD = 2**255 - 19


@pytest.mark.parametrize(("private_key", "public_key", "shared", "why"), X25519["cases"])
def test_x25519_cases(private_key: str, public_key: str, shared: str, why: str) -> None:
    assert diffie_hellman(bytes.fromhex(private_key), bytes.fromhex(public_key)).hex() == shared
    assert ladder(bytes.fromhex(private_key), bytes.fromhex(public_key)).hex() == shared


@pytest.mark.parametrize(("public_key", "why"), X25519["low_order"])
def test_w12_a_low_order_public_key_is_refused_with_every_private_key(public_key: str, why: str) -> None:
    for private_key in PRIVATE_KEYS:
        assert ladder(private_key, bytes.fromhex(public_key)) == bytes(32)
        with pytest.raises(InvalidHandshake):
            diffie_hellman(private_key, bytes.fromhex(public_key))


def test_x25519_iterated_a_thousand_times() -> None:
    k = u = (9).to_bytes(32, "little")
    expected = dict(map(tuple, X25519["iterated"]))
    for count in range(1, 1001):
        k, u = diffie_hellman(k, u), k
        if count in expected:
            assert k.hex() == expected.pop(count)
    assert not expected


def test_x25519_exchange() -> None:
    alice, bob, alice_public, bob_public, shared = (bytes.fromhex(text) for text in X25519["exchange"])

    assert (public_of(alice), public_of(bob)) == (alice_public, bob_public)
    assert diffie_hellman(alice, bob_public) == diffie_hellman(bob, alice_public) == shared


@given(KEYS, KEYS)
@settings(max_examples=50)
def test_x25519_is_the_ladder_of_the_rfc(private_key: bytes, public_key: bytes) -> None:
    try:
        shared = diffie_hellman(private_key, public_key)
    except InvalidHandshake:
        shared = bytes(32)

    assert shared == ladder(private_key, public_key)


@pytest.mark.parametrize(("key", "nonce", "associated", "text", "sealed", "source"), AEAD["cases"])
def test_chacha20poly1305(key: str, nonce: str, associated: str, text: str, sealed: str, source: str) -> None:
    key_, nonce_, associated_, text_, sealed_ = (bytes.fromhex(part) for part in (key, nonce, associated, text, sealed))
    if nonce_[:4] == bytes(4):  # WireGuard's nonces have no other form
        counter = int.from_bytes(nonce_[4:], "little")
        assert seal(key_, counter, text_, associated_) == sealed_
        assert open_sealed(key_, counter, sealed_, associated_) == text_
    else:
        assert crypto_aead_chacha20poly1305_ietf_encrypt(text_, associated_, nonce_, key_) == sealed_
        assert crypto_aead_chacha20poly1305_ietf_decrypt(sealed_, associated_, nonce_, key_) == text_


def test_a_sealed_text_altered_anywhere_is_refused() -> None:
    key, nonce, associated, _, sealed, _ = (bytes.fromhex(part) if at < 5 else b"" for at, part in enumerate(AEAD["cases"][1]))
    counter = int.from_bytes(nonce[4:], "little")
    for position in range(len(sealed)):
        altered = sealed[:position] + bytes([sealed[position] ^ 1]) + sealed[position + 1 :]
        with pytest.raises(InvalidHandshake):
            open_sealed(key, counter, altered, associated)
    for change in ((counter + 1, associated), (counter, associated + b"\0"), (counter, b"")):
        with pytest.raises(InvalidHandshake):
            open_sealed(key, change[0], sealed, change[1])


@pytest.mark.parametrize(("key", "nonce", "associated", "text", "sealed", "source"), AEAD["extended_nonce"])
def test_xchacha20poly1305(key: str, nonce: str, associated: str, text: str, sealed: str, source: str) -> None:
    key_, nonce_, associated_, text_, sealed_ = (bytes.fromhex(part) for part in (key, nonce, associated, text, sealed))
    assert crypto_aead_xchacha20poly1305_ietf_decrypt(sealed_, associated_, nonce_, key_) == text_

    memory = octets(nonce_ + associated_ + text_ + bytes(16))
    at = len(nonce_ + associated_)
    assert seal_cookie(octets(key_), memory, at, len(text_), 0, len(nonce_), len(associated_)) == 1
    assert memory.tobytes() == nonce_ + associated_ + sealed_


def test_blake2s_of_the_rfc() -> None:
    assert hash_of(b"abc").hex() == BLAKE2S["abc"]
    assert hash_of(b"a", b"", b"bc").hex() == BLAKE2S["abc"]


def test_blake2s_selftest_of_the_rfc() -> None:
    total = hashlib.blake2s()
    for size, length, key_length, expected in BLAKE2S["selftest"]:
        text, key = sequence(length), sequence(key_length)
        digest = hashlib.blake2s(text, digest_size=size, key=key).digest()
        assert digest.hex() == expected
        if (size, key_length) == (32, 0):
            assert hash_of(text) == digest
        if (size, key_length) == (16, 16):
            assert mac(key, text) == digest
        if key_length and length:
            assert in_kernels(key, text, size) == digest
        total.update(digest)
    assert total.hexdigest() == BLAKE2S["selftest_hash"]


@pytest.mark.parametrize(("length", "expected"), BLAKE2S["macs"])
def test_keyed_blake2s_of_16_octets(length: int, expected: str) -> None:
    assert mac(sequence(32), sequence(length)).hex() == expected
    if length:  # there is no empty message
        assert in_kernels(sequence(32), sequence(length), 16).hex() == expected


@pytest.mark.parametrize(("key", "octets", "first", "second", "third"), KDF["cases"])
def test_kdf(key: str, octets: str, first: str, second: str, third: str) -> None:
    for count in (1, 2, 3):
        outputs = kdf(bytes.fromhex(key), bytes.fromhex(octets), count)
        assert [output.hex() for output in outputs] == [first, second, third][:count]


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8:7::9"])
def test_ratelimiter_steps(address: str) -> None:
    limiter, now = Limiter(), 1000 * SECOND
    assert RATE["packets_per_second"] == ratelimiter.HANDSHAKES_PER_SECOND
    assert RATE["burst"] == ratelimiter.BURST
    for milliseconds, allowed in RATE["steps"]:
        now += milliseconds * MILLISECOND
        assert limiter.allow(address, now) == allowed


def test_ratelimiter_buckets_are_ipv4_addresses_and_ipv6_networks_of_64_bits() -> None:
    limiter, spent = Limiter(), dict[str, int]()
    for address, bucket in RATE["addresses"] * 3:
        spent[bucket] = spent.get(bucket, 0) + 1
        assert limiter.allow(address, SECOND) == (spent[bucket] <= RATE["burst"])


def test_ratelimiter_knows_no_more_sources_than_it_has_room_for() -> None:
    limiter = Limiter(max_sources=50)

    assert [limiter.allow(f"198.51.{number}.1", SECOND) for number in range(51)] == [True] * 50 + [False]


class Limiter:
    """A rate limiter with its key."""

    def __init__(self, max_sources: int = 64) -> None:
        self.wg, self.scratch = small_tables(max_sources), blake2s.scratch()
        set_secret(self.wg, self.scratch, octets(bytes(range(32))))

    def allow(self, address: str, now: int) -> bool:
        parsed = ipaddress.ip_address(address)
        high, low = words(parsed)
        return bool(ratelimiter.allow(self.wg, self.scratch, parsed.version, low if parsed.version == 4 else high, now))


def in_kernels(key: bytes, text: bytes, size: int) -> bytes:
    """Keyed BLAKE2s as the data path computes it."""
    scratch = blake2s.scratch()
    blake2s.begin(scratch, octets(key), len(key), size)
    blake2s.finish(scratch, octets(text + bytes(64)), 0, len(text))
    return bytes(scratch.state.astype("<u4").tobytes()[:size])


def octets(raw: bytes) -> Any:
    """As a kernel takes them."""
    return np.frombuffer(raw, np.uint8).copy()


def sequence(length: int) -> bytes:
    """selftest_seq of RFC 7693 appendix E, seeded with its length."""
    a, b, octets = 0xDEAD4BAD * length & 0xFFFFFFFF, 1, bytearray()
    for _ in range(length):
        a, b = b, a + b & 0xFFFFFFFF
        octets.append(b >> 24)
    return bytes(octets)


def ladder(private_key: bytes, public_key: bytes) -> bytes:
    """X25519 as RFC 7748 section 5 writes it: the dumb twin."""
    k = int.from_bytes(private_key, "little") & ~7 & (1 << 255) - 1 | 1 << 254
    x1 = (int.from_bytes(public_key, "little") & (1 << 255) - 1) % FIELD
    near: Any = (1, 0)  # of the multiple reached so far, and of the next one
    far: Any = (x1, 1)
    for bit in range(254, -1, -1):
        if k >> bit & 1:
            far, near = _step(far, near, x1)
        else:
            near, far = _step(near, far, x1)
    return (near[0] * pow(near[1], FIELD - 2, FIELD) % FIELD).to_bytes(32, "little")


def _step(doubled: tuple[int, int], added: tuple[int, int], x1: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Double the first point; add the two, whose difference is the base point."""
    a, b = doubled[0] + doubled[1], doubled[0] - doubled[1]
    c, d = added[0] + added[1], added[0] - added[1]
    e = a * a - b * b
    twice = (a * a * b * b % FIELD, e * (a * a + 121665 * e) % FIELD)
    return twice, ((d * a + c * b) ** 2 % FIELD, x1 * (d * a - c * b) ** 2 % FIELD)
