"""SipHash-1-3 against CPython's own, and against its definition on any key."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressvpn.nat.keys import DEVICE_SHIFT, PORTLESS, V6, bucket, draw, hash_end, inside_word, siphash1, siphash2, siphash3
from egressvpn.nat.tables import FLOWS, HOMES_IN, HOMES_OUT, PERMITS, SETTINGS, SHARES
from tests.packet.support import record

KERNELS = {1: siphash1, 2: siphash2, 3: siphash3}
words = st.integers(-(1 << 63), (1 << 63) - 1)


@pytest.mark.skipif(sys.hash_info.algorithm != "siphash13", reason="this Python hashes bytes otherwise")
@pytest.mark.parametrize("count", sorted(KERNELS))
def test_with_key_zero_it_is_what_python_hashes_bytes_with(count: int) -> None:
    program = f"print(hash(bytes(range({8 * count}))))"
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    expected = int(subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True).stdout)
    octets = bytes(range(8 * count))
    parts = [np.int64(int.from_bytes(octets[i : i + 8], "little", signed=True)) for i in range(0, len(octets), 8)]
    assert KERNELS[count](np.int64(0), np.int64(0), *parts) == expected
    assert siphash(0, 0, *map(int, parts)) == expected


@given(words, words, st.sampled_from(sorted(KERNELS)), st.data())
def test_with_any_key_it_is_what_the_definition_says(key0: int, key1: int, count: int, data: st.DataObject) -> None:
    message = [data.draw(words) for _ in range(count)]
    hashed = KERNELS[count](np.int64(key0), np.int64(key1), *map(np.int64, message))
    assert hashed == siphash(key0, key1, *message)


@given(words)
def test_the_regions_of_the_heads_do_not_overlap(hashed: int) -> None:
    share = 32
    heads = np.zeros(share * SHARES, np.int32)
    places = {region: int(bucket(heads, region, np.int64(hashed))) for region in (HOMES_OUT, HOMES_IN, FLOWS, PERMITS)}
    assert 0 <= places[HOMES_OUT] < 2 * share
    assert [places[region] // share for region in (HOMES_IN, FLOWS, PERMITS)] == [2, 3, 4]


@given(words, words, words, words)
def test_the_high_word_of_an_address_counts_in_ipv6_only(word: int, hi: int, other: int, lo: int) -> None:
    settings = secret()
    assert hash_end(settings, 0, word, hi, lo) == hash_end(settings, 0, word, other, lo) == siphash(5, -9, word, lo)
    assert hash_end(settings, V6, word, hi, lo) == siphash(5, -9, word, hi, lo)


@given(st.integers(1, (1 << 21) - 1), st.sampled_from([4, 6]), st.sampled_from([1, 6, 17, 58]), st.integers(0, 65535))
def test_a_key_holds_each_of_its_parts_and_leaves_room_for_the_external_port(device: int, version: int, protocol: int, port: int) -> None:
    packet = record()
    packet.version, packet.protocol = version, protocol
    key = int(inside_word(np.int64(device), packet, np.int64(port)))
    assert (key >> DEVICE_SHIFT, bool(key & V6), key >> 32 & 0xFF, key >> 16 & 0xFFFF, key & 0xFFFF) == (
        device,
        version == 6,
        protocol,
        port,
        0,
    )
    assert key & PORTLESS == key > 0


def test_drawn_words_differ_and_depend_on_the_secret() -> None:
    settings, other = secret(), secret()
    drawn = [int(draw(settings)) for _ in range(100)]
    assert len(set(drawn)) == 100
    other.key1 = -8
    assert drawn[0] != int(draw(other))


def secret() -> Any:
    settings = np.zeros(1, SETTINGS).view(np.recarray)[0]
    settings.key0, settings.key1 = 5, -9
    return settings


def siphash(key0: int, key1: int, *message: int) -> int:
    """SipHash-1-3 as in the paper, on Python integers; signed."""
    mask = (1 << 64) - 1

    def rotate(x: int, b: int) -> int:
        return (x << b | x >> (64 - b)) & mask

    def sipround(v: list[int]) -> None:
        v[0] = (v[0] + v[1]) & mask
        v[1] = rotate(v[1], 13) ^ v[0]
        v[0] = rotate(v[0], 32)
        v[2] = (v[2] + v[3]) & mask
        v[3] = rotate(v[3], 16) ^ v[2]
        v[0] = (v[0] + v[3]) & mask
        v[3] = rotate(v[3], 21) ^ v[0]
        v[2] = (v[2] + v[1]) & mask
        v[1] = rotate(v[1], 17) ^ v[2]
        v[2] = rotate(v[2], 32)

    key0, key1 = key0 & mask, key1 & mask
    v = [key0 ^ 0x736F6D6570736575, key1 ^ 0x646F72616E646F6D, key0 ^ 0x6C7967656E657261, key1 ^ 0x7465646279746573]
    for word in [*(m & mask for m in message), 8 * len(message) << 56]:
        v[3] ^= word
        sipround(v)
        v[0] ^= word
    v[2] ^= 0xFF
    for _ in range(3):
        sipround(v)
    result = v[0] ^ v[1] ^ v[2] ^ v[3]
    return result - (1 << 64) if result >> 63 else result
