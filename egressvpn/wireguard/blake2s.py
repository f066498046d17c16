"""BLAKE2s (RFC 7693) in kernels, for the MACs that the data path checks before a datagram costs anything more.

A hash in work is eight words of state. `begin` starts a keyed one and absorbs its key block; that state depends on the key
alone, so it can be kept and each MAC starts from a copy of it. `finish` absorbs the message, which must fit in one piece.
Words are 32 bits wide in int64 variables: every sum and every rotation is masked.
"""

from typing import Any, Final, NamedTuple

import numpy as np

from egressvpn.kernel import Octets, Row, Table, Word, inlined, kernel
from egressvpn.packet.octets import put_le32
from egressvpn.wireguard.tables import HASH_WORDS

BLOCK_BYTES: Final = 64
MAC_BYTES: Final = 16  # of the paper's Mac()
MASK: Final = 0xFFFFFFFF
FANOUT_AND_DEPTH: Final = 0x01010000  # 1 each: no tree; below them the key's length and the digest's (RFC 7693 2.5)

# the initialization vector: that of SHA-256 (RFC 7693 2.6)
IV0: Final = 0x6A09E667
IV1: Final = 0xBB67AE85
IV2: Final = 0x3C6EF372
IV3: Final = 0xA54FF53A
IV4: Final = 0x510E527F
IV5: Final = 0x9B05688C
IV6: Final = 0x1F83D9AB
IV7: Final = 0x5BE0CD19


class Scratch(NamedTuple):
    """Where a hash is worked out."""

    state: Any
    block: Any
    message: Any  # for short messages put together here


def scratch() -> Scratch:
    """Memory for one hash at a time."""
    return Scratch(np.zeros(HASH_WORDS, np.int64), np.zeros(BLOCK_BYTES, np.uint8), np.zeros(BLOCK_BYTES, np.uint8))


@kernel
def begin(s: Scratch, key: Octets, key_bytes: Word, digest_bytes: Word) -> None:
    """A keyed hash with its key block absorbed. The key has 1 to 32 octets."""
    state = s.state
    state[0] = IV0 ^ FANOUT_AND_DEPTH ^ (key_bytes << 8) ^ digest_bytes
    state[1] = IV1
    state[2] = IV2
    state[3] = IV3
    state[4] = IV4
    state[5] = IV5
    state[6] = IV6
    state[7] = IV7
    _fill(s.block, key, np.int64(0), key_bytes)
    compress(state, s.block, np.int64(0), np.int64(BLOCK_BYTES), np.int64(0))


@kernel
def resume(s: Scratch, kept: Table) -> None:
    """Go on from a kept state."""
    for word in range(HASH_WORDS):
        s.state[word] = kept[word]


@kernel
def keep(s: Scratch, kept: Table) -> None:
    """Keep the state, to go on from it often."""
    for word in range(HASH_WORDS):
        kept[word] = s.state[word]


@kernel
def finish(s: Scratch, octets: Octets, start: Word, length: Word) -> None:
    """Absorb the message behind the key block, at least one octet. The digest is then in the state, least octet first."""
    counted = np.int64(BLOCK_BYTES)
    while length > BLOCK_BYTES:
        counted += BLOCK_BYTES
        compress(s.state, octets, start, counted, np.int64(0))
        start += BLOCK_BYTES
        length -= BLOCK_BYTES
    _fill(s.block, octets, start, length)
    compress(s.state, s.block, np.int64(0), counted + length, np.int64(MASK))


@kernel
def put_mac(s: Scratch, out: Octets, at: Word) -> None:
    """Write the 16 octets of a MAC."""
    for word in range(4):
        put_le32(out, at + 4 * word, s.state[word])


@kernel
def is_mac(s: Scratch, octets: Octets, at: Word) -> Word:
    """1 when the MAC stands at `at`. Takes the same time wherever they differ."""
    words = octets[at : at + MAC_BYTES].view(np.uint32)
    difference = np.int64(0)
    for word in range(4):
        difference |= np.int64(words[word]) ^ s.state[word]
    return 1 if difference == 0 else 0


@kernel
def _fill(block: Octets, octets: Octets, start: Word, length: Word) -> None:
    """The block: `length` octets, then zeros."""
    block[:] = 0
    for at in range(length):
        block[at] = octets[start + at]


@kernel
def compress(state: Table, octets: Octets, start: Word, counted: Word, last: Word) -> None:
    """RFC 7693 3.2: mix one block into the state. `counted` octets so far, this block included; `last`: all ones for the last block."""
    block = octets[start : start + BLOCK_BYTES].view(np.uint32)
    m0, m1, m2, m3 = _word(block, 0), _word(block, 1), _word(block, 2), _word(block, 3)
    m4, m5, m6, m7 = _word(block, 4), _word(block, 5), _word(block, 6), _word(block, 7)
    m8, m9, m10, m11 = _word(block, 8), _word(block, 9), _word(block, 10), _word(block, 11)
    m12, m13, m14, m15 = _word(block, 12), _word(block, 13), _word(block, 14), _word(block, 15)
    h0, h1, h2, h3 = _word(state, 0), _word(state, 1), _word(state, 2), _word(state, 3)
    h4, h5, h6, h7 = _word(state, 4), _word(state, 5), _word(state, 6), _word(state, 7)
    v = (h0, h1, h2, h3, h4, h5, h6, h7, IV0, IV1, IV2, IV3, IV4 ^ int(counted), IV5, IV6 ^ int(last), IV7)
    v = _round(v, m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12, m13, m14, m15)
    v = _round(v, m14, m10, m4, m8, m9, m15, m13, m6, m1, m12, m0, m2, m11, m7, m5, m3)
    v = _round(v, m11, m8, m12, m0, m5, m2, m15, m13, m10, m14, m3, m6, m7, m1, m9, m4)
    v = _round(v, m7, m9, m3, m1, m13, m12, m11, m14, m2, m6, m5, m10, m4, m0, m15, m8)
    v = _round(v, m9, m0, m5, m7, m2, m4, m10, m15, m14, m1, m11, m12, m6, m8, m3, m13)
    v = _round(v, m2, m12, m6, m10, m0, m11, m8, m3, m4, m13, m7, m5, m15, m14, m1, m9)
    v = _round(v, m12, m5, m1, m15, m14, m13, m4, m10, m0, m7, m6, m3, m9, m2, m8, m11)
    v = _round(v, m13, m11, m7, m14, m12, m1, m3, m9, m5, m0, m15, m4, m8, m6, m2, m10)
    v = _round(v, m6, m15, m14, m9, m11, m3, m0, m8, m12, m2, m13, m7, m1, m4, m10, m5)
    v = _round(v, m10, m2, m8, m4, m7, m6, m1, m5, m15, m11, m9, m14, m3, m12, m13, m0)
    _feed_forward(state, v)


@kernel
def _word(words: Table, position: Word) -> Word:
    return int(np.int64(words[position]))


@kernel
def _feed_forward(state: Table, v: Row) -> None:
    v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15 = v
    state[0] ^= v0 ^ v8
    state[1] ^= v1 ^ v9
    state[2] ^= v2 ^ v10
    state[3] ^= v3 ^ v11
    state[4] ^= v4 ^ v12
    state[5] ^= v5 ^ v13
    state[6] ^= v6 ^ v14
    state[7] ^= v7 ^ v15


@inlined
def _round(
    v: Row, m0: Word, m1: Word, m2: Word, m3: Word, m4: Word, m5: Word, m6: Word, m7: Word,
    m8: Word, m9: Word, m10: Word, m11: Word, m12: Word, m13: Word, m14: Word, m15: Word,
) -> Row:  # fmt: skip
    """One round: the columns, then the diagonals. The message words come in the round's order."""
    v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15 = v
    v0, v4, v8, v12 = _mix(v0, v4, v8, v12, m0, m1)
    v1, v5, v9, v13 = _mix(v1, v5, v9, v13, m2, m3)
    v2, v6, v10, v14 = _mix(v2, v6, v10, v14, m4, m5)
    v3, v7, v11, v15 = _mix(v3, v7, v11, v15, m6, m7)
    v0, v5, v10, v15 = _mix(v0, v5, v10, v15, m8, m9)
    v1, v6, v11, v12 = _mix(v1, v6, v11, v12, m10, m11)
    v2, v7, v8, v13 = _mix(v2, v7, v8, v13, m12, m13)
    v3, v4, v9, v14 = _mix(v3, v4, v9, v14, m14, m15)
    return v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15


@inlined
def _mix(a: Word, b: Word, c: Word, d: Word, x: Word, y: Word) -> Row:
    """The function G (RFC 7693 3.1)."""
    a = (a + b + x) & MASK
    d ^= a
    d = (d >> 16 | d << 16) & MASK
    c = (c + d) & MASK
    b ^= c
    b = (b >> 12 | b << 20) & MASK
    a = (a + b + y) & MASK
    d ^= a
    d = (d >> 8 | d << 24) & MASK
    c = (c + d) & MASK
    b ^= c
    b = (b >> 7 | b << 25) & MASK
    return a, b, c, d
