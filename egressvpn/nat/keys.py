"""What flows, mappings and permits are found by: packed key words, and SipHash-1-3 over them with the tables' secret.

Packed word of the inside:  device << 41 | v6 << 40 | protocol << 32 | internal port << 16 | remote port
Packed word of the outside:                v6 << 40 | protocol << 32 | external port << 16 | remote port
An ICMP query has its identifier as the internal and the external port, and remote port 0. A mapping's words have remote
port 0. The hash is keyed because who sends packets chooses the keys, and could otherwise make every chain one.
"""

from typing import Final

from egressvpn.kernel import Octets, Row, Word, kernel
from egressvpn.nat.tables import REGIONS

V6: Final = 1 << 40
DEVICE_SHIFT: Final = 41
PORTLESS: Final = ~0xFFFF  # takes the remote port out of a packed word
_REGION_SHIFT: Final = REGIONS.bit_length() - 1


@kernel
def inside_word(device: Word, packet: Row, internal_port: Word, remote_port: Word) -> Word:
    return device << DEVICE_SHIFT | outside_word(packet, internal_port, remote_port)


@kernel
def outside_word(packet: Row, external_port: Word, remote_port: Word) -> Word:
    word = packet.protocol << 32 | external_port << 16 | remote_port
    return word | V6 if packet.version == 6 else word


@kernel
def bucket(heads: Octets, region: Word, hashed: Word) -> Word:
    """Index in `heads` of the chain for a hash."""
    size = heads.size >> _REGION_SHIFT
    return region * size + (hashed & (size - 1))


@kernel
def hash_pair(settings: Row, word: Word, hi: Word, lo: Word, other_hi: Word, other_lo: Word) -> Word:
    """Hash of a flow's key: packed word, own address, remote address."""
    if word & V6:
        return siphash5(settings.key0, settings.key1, word, hi, lo, other_hi, other_lo)
    return siphash2(settings.key0, settings.key1, word, lo << 32 | other_lo)


@kernel
def hash_one(settings: Row, word: Word, hi: Word, lo: Word) -> Word:
    """Hash of a mapping's or a permit's key: a word and one address."""
    return siphash3(settings.key0, settings.key1, word, hi, lo)


@kernel
def draw(settings: Row) -> Word:
    """The next random word (all 64 bits): the hash of a counter, so that none tells the next without the secret."""
    settings.generator += 1
    return siphash1(settings.key0, settings.key1, settings.generator)


@kernel
def _rotate(word: Word, by: Word) -> Word:
    return (word << by) | ((word >> (64 - by)) & ((1 << by) - 1))


@kernel
def _round(v0: Word, v1: Word, v2: Word, v3: Word) -> tuple[Word, Word, Word, Word]:
    v0 += v1
    v2 += v3
    v1 = _rotate(v1, 13) ^ v0
    v3 = _rotate(v3, 16) ^ v2
    v0 = _rotate(v0, 32)
    v2 += v1
    v0 += v3
    v1 = _rotate(v1, 17) ^ v2
    v3 = _rotate(v3, 21) ^ v0
    v2 = _rotate(v2, 32)
    return v0, v1, v2, v3


@kernel
def _absorb(v0: Word, v1: Word, v2: Word, v3: Word, word: Word) -> tuple[Word, Word, Word, Word]:
    v0, v1, v2, v3 = _round(v0, v1, v2, v3 ^ word)
    return v0 ^ word, v1, v2, v3


@kernel
def _begin(key0: Word, key1: Word) -> tuple[Word, Word, Word, Word]:
    return key0 ^ 0x736F6D6570736575, key1 ^ 0x646F72616E646F6D, key0 ^ 0x6C7967656E657261, key1 ^ 0x7465646279746573


@kernel
def _finish(v0: Word, v1: Word, v2: Word, v3: Word, words: Word) -> Word:
    v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, (words * 8) << 56)
    v2 = v2 ^ 0xFF
    for _ in range(3):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


@kernel
def siphash1(key0: Word, key1: Word, a: Word) -> Word:
    """SipHash-1-3 of one little-endian 64-bit word."""
    v0, v1, v2, v3 = _begin(key0, key1)
    v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, a)
    return _finish(v0, v1, v2, v3, 1)


@kernel
def siphash2(key0: Word, key1: Word, a: Word, b: Word) -> Word:
    v0, v1, v2, v3 = _begin(key0, key1)
    v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, a)
    v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, b)
    return _finish(v0, v1, v2, v3, 2)


@kernel
def siphash3(key0: Word, key1: Word, a: Word, b: Word, c: Word) -> Word:
    v0, v1, v2, v3 = _begin(key0, key1)
    v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, a)
    v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, b)
    v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, c)
    return _finish(v0, v1, v2, v3, 3)


@kernel
def siphash5(key0: Word, key1: Word, a: Word, b: Word, c: Word, d: Word, e: Word) -> Word:
    v0, v1, v2, v3 = _begin(key0, key1)
    v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, a)
    v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, b)
    v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, c)
    v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, d)
    v0, v1, v2, v3 = _absorb(v0, v1, v2, v3, e)
    return _finish(v0, v1, v2, v3, 5)
