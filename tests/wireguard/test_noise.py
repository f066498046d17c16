"""Noise_IKpsk2 against the cacophony vector, byte for byte, and its behaviour on messages that do not authenticate."""

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressvpn.wireguard.mac import mac1_key
from egressvpn.wireguard.noise import (
    CONSTRUCTION,
    IDENTIFIER,
    Initiator,
    InvalidHandshake,
    Responder,
    diffie_hellman,
    hash_of,
    kdf,
    open_sealed,
    public_of,
    seal,
)

VECTORS = Path(__file__).parent.parent / "vectors" / "noise_ikpsk2_cacophony.json"

# every point of small order, and the non-canonical encodings of them that X25519 reduces to one (RFC 7748 section 6.1)
LOW_ORDER = [
    bytes(32),
    bytes([1]) + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


def test_hashes_of_the_names_are_the_papers() -> None:
    construction = hash_of(CONSTRUCTION)

    assert construction.hex() == "60e26daef327efc02ec335e2a025d2d016eb4206f87277f52d38d1988b78cd36"
    assert hash_of(construction, IDENTIFIER).hex() == "2211b361081ac566691243db458ad5322d9c6c662293e8b70ee19c65ba079ef3"


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=200), st.integers(1, 3))
def test_the_kdf_is_hkdf_of_hmac_blake2s(chaining_key: bytes, material: bytes, count: int) -> None:
    secret = hmac.digest(chaining_key, material, hashlib.blake2s)
    expected, key = [], b""
    for number in range(1, count + 1):
        key = hmac.digest(secret, key + bytes([number]), hashlib.blake2s)
        expected.append(key)

    assert kdf(chaining_key, material, count) == expected


def test_cacophony_vector_byte_for_byte() -> None:
    vector = Vector()
    initiator, responder = vector.initiator(), vector.responder()

    first = b"".join(initiator.write_initiation(vector.init_ephemeral, vector.static_static(), vector.payloads[0]))
    assert first == vector.ciphertexts[0]
    assert responder.read_static(first[:32], first[32:80]) == public_of(vector.init_static)
    assert responder.read_payload(vector.static_static(), first[80:]) == vector.payloads[0]

    second = b"".join(responder.write_response(vector.resp_ephemeral, vector.psk, vector.payloads[1]))
    assert second == vector.ciphertexts[1]
    assert initiator.read_response(second[:32], second[32:], vector.psk) == vector.payloads[1]

    assert initiator.transcript == responder.transcript == vector.transcript


def test_cacophony_transport_messages() -> None:
    vector = Vector()
    initiator, responder = vector.finished()

    assert initiator.keys() == responder.keys()[::-1]
    for number, (payload, ciphertext) in enumerate(zip(vector.payloads[2:], vector.ciphertexts[2:], strict=True)):
        sender, receiver = (initiator, responder) if number % 2 == 0 else (responder, initiator)
        assert seal(sender.keys()[1], number // 2, payload) == ciphertext
        assert open_sealed(receiver.keys()[0], number // 2, ciphertext) == payload


@pytest.mark.parametrize("position", range(0, 112, 7))
def test_an_altered_initiation_does_not_authenticate(position: int) -> None:
    vector = Vector()
    altered = bytearray(vector.ciphertexts[0])
    altered[position] ^= 1

    with pytest.raises(InvalidHandshake):
        vector.read_initiation(bytes(altered))


def test_a_forged_response_leaves_the_initiator_as_it_was() -> None:
    vector = Vector()
    initiator = vector.initiator()
    initiator.write_initiation(vector.init_ephemeral, vector.static_static(), vector.payloads[0])
    good = vector.ciphertexts[1]

    with pytest.raises(InvalidHandshake):
        initiator.read_response(good[:32], good[32:-1] + bytes([good[-1] ^ 1]), vector.psk)

    assert initiator.read_response(good[:32], good[32:], vector.psk) == vector.payloads[1]


def test_preshared_keys_must_match() -> None:
    vector = Vector()
    initiator = vector.initiator()
    initiator.write_initiation(vector.init_ephemeral, vector.static_static(), vector.payloads[0])

    with pytest.raises(InvalidHandshake):
        initiator.read_response(vector.ciphertexts[1][:32], vector.ciphertexts[1][32:])


@pytest.mark.parametrize("point", LOW_ORDER)
def test_w12_a_low_order_point_ends_the_handshake(point: bytes) -> None:
    vector = Vector()

    with pytest.raises(InvalidHandshake):
        diffie_hellman(vector.init_static, point)
    with pytest.raises(InvalidHandshake):
        vector.responder().read_static(point, bytes(48))


def test_keys_are_in_no_repr() -> None:
    vector = Vector()
    initiator, responder = vector.finished()
    shown = repr(initiator) + repr(responder) + repr(initiator._state)

    for secret in (vector.init_static, vector.psk, *initiator.keys(), initiator._state.chaining_key):
        assert secret.hex() not in shown
        assert repr(secret) not in shown


def test_mac1_key_depends_on_the_public_key_only() -> None:
    assert mac1_key(bytes(32)) == hash_of(b"mac1----", bytes(32))


class Vector:
    """The one IKpsk2 vector, as bytes."""

    def __init__(self) -> None:
        raw: dict[str, Any] = json.loads(VECTORS.read_text())["vectors"][0]
        self.prologue = bytes.fromhex(raw["init_prologue"])
        self.psk = bytes.fromhex(raw["init_psks"][0])
        self.init_static, self.resp_static = bytes.fromhex(raw["init_static"]), bytes.fromhex(raw["resp_static"])
        self.init_ephemeral, self.resp_ephemeral = bytes.fromhex(raw["init_ephemeral"]), bytes.fromhex(raw["resp_ephemeral"])
        self.transcript = bytes.fromhex(raw["handshake_hash"])
        self.payloads = [bytes.fromhex(message["payload"]) for message in raw["messages"]]
        self.ciphertexts = [bytes.fromhex(message["ciphertext"]) for message in raw["messages"]]

    def static_static(self) -> bytes:
        return diffie_hellman(self.init_static, public_of(self.resp_static))

    def initiator(self) -> Initiator:
        return Initiator(self.init_static, public_of(self.init_static), public_of(self.resp_static), self.prologue)

    def responder(self) -> Responder:
        return Responder(self.resp_static, public_of(self.resp_static), self.prologue)

    def read_initiation(self, message: bytes) -> bytes:
        responder = self.responder()
        responder.read_static(message[:32], message[32:80])
        return responder.read_payload(self.static_static(), message[80:])

    def finished(self) -> tuple[Initiator, Responder]:
        initiator, responder = self.initiator(), self.responder()
        ephemeral, static, payload = initiator.write_initiation(self.init_ephemeral, self.static_static(), self.payloads[0])
        responder.read_static(ephemeral, static)
        responder.read_payload(self.static_static(), payload)
        initiator.read_response(*responder.write_response(self.resp_ephemeral, self.psk, self.payloads[1]), self.psk)
        return initiator, responder
