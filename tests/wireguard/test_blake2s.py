"""BLAKE2s in kernels is BLAKE2s (RFC 7693), whatever the key and wherever the message lies."""

import hashlib

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from egressvpn.wireguard import blake2s


@given(st.binary(min_size=1, max_size=32), st.binary(min_size=1, max_size=200), st.integers(0, 9))
@example(bytes(32), bytes(63), 0)
@example(bytes(32), bytes(64), 0)
@example(bytes(32), bytes(65), 1)
@example(bytes(16), bytes(128), 3)
@example(bytes(16), bytes(129), 0)
def test_a_keyed_hash_is_that_of_the_standard_library(key: bytes, message: bytes, start: int) -> None:
    s = blake2s.scratch()
    octets = np.frombuffer(bytes([0xA5]) * start + message + bytes([0x5A]) * 70, np.uint8)

    blake2s.begin(s, np.frombuffer(key, np.uint8), len(key), 32)
    blake2s.finish(s, octets, start, len(message))

    assert s.state.astype("<u4").tobytes() == hashlib.blake2s(message, key=key).digest()


@given(st.binary(min_size=32, max_size=32), st.lists(st.binary(min_size=1, max_size=150), min_size=1, max_size=4))
def test_a_kept_state_serves_for_every_message_under_its_key(key: bytes, messages: list[bytes]) -> None:
    s, kept = blake2s.scratch(), np.zeros(blake2s.HASH_WORDS, np.int64)
    blake2s.begin(s, np.frombuffer(key, np.uint8), 32, blake2s.MAC_BYTES)
    blake2s.keep(s, kept)
    for message in messages:
        out = np.zeros(24, np.uint8)

        blake2s.resume(s, kept)
        blake2s.finish(s, np.frombuffer(message, np.uint8), 0, len(message))
        blake2s.put_mac(s, out, 4)

        mac = hashlib.blake2s(message, key=key, digest_size=16).digest()
        assert out.tobytes() == bytes(4) + mac + bytes(4)
        assert blake2s.is_mac(s, out, 4) == 1


@given(st.integers(0, 127))
def test_a_mac_with_any_one_bit_changed_is_another(bit: int) -> None:
    s, out = blake2s.scratch(), np.zeros(16, np.uint8)
    blake2s.begin(s, np.frombuffer(bytes(32), np.uint8), 32, 16)
    blake2s.finish(s, np.frombuffer(b"message", np.uint8), 0, 7)
    blake2s.put_mac(s, out, 0)

    out[bit // 8] ^= 1 << bit % 8

    assert blake2s.is_mac(s, out, 0) == 0


def test_the_example_of_the_rfc_without_a_key() -> None:
    """RFC 7693 appendix B: "abc". `begin` is for keyed hashes, so the state is set by hand."""
    state = np.array([blake2s.IV0, blake2s.IV1, blake2s.IV2, blake2s.IV3, blake2s.IV4, blake2s.IV5, blake2s.IV6, blake2s.IV7])
    state[0] ^= 0x01010020
    block = np.frombuffer(b"abc" + bytes(61), np.uint8)

    blake2s.compress(state, block, 0, 3, blake2s.MASK)

    assert state.astype("<u4").tobytes().hex() == "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"
