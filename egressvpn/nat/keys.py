"""What homes, flows and permits are found by: packed key words, and SipHash-1-3 over them with the tables' secret.

Key of a home, and of its flows:  device << 41 | v6 << 40 | protocol << 32 | internal port << 16 | external port
An ICMP query has its identifier as the internal and the external port, and remote port 0. Who looks for an internal
endpoint does not know its external port, so look-ups from inside leave it out (PORTLESS). The hash is keyed because who
sends packets chooses the keys, and could otherwise make every chain one.
"""

from typing import Final

from egressvpn.kernel import Octets, Row, Word, inlined, kernel
from egressvpn.nat.tables import HOMES_OUT, SHARES

V6: Final = 1 << 40
DEVICE_SHIFT: Final = 41
PORTLESS: Final = ~0xFFFF  # takes the external port out of a key
_SHARE_SHIFT: Final = SHARES.bit_length() - 1


@inlined
def inside_word(device: Word, packet: Row, internal_port: Word) -> Word:
    """The key of a packet from inside, without its external port."""
    word = device << DEVICE_SHIFT | packet.protocol << 32 | internal_port << 16
    return word | V6 if packet.version == 6 else word


@inlined
def outside_word(version: Word, protocol: Word, external_port: Word) -> Word:
    """What an external IPv6 endpoint is hashed by, besides its address."""
    word = protocol << 32 | external_port << 16
    return word | V6 if version == 6 else word


@inlined
def bucket(heads: Octets, region: Word, hashed: Word) -> Word:
    """Index in `heads` of the chain for a hash."""
    share = heads.size >> _SHARE_SHIFT
    size = 2 * share if region == HOMES_OUT else share
    return region * share + (hashed & (size - 1))


@inlined
def hash_end(settings: Row, v6: Word, word: Word, hi: Word, lo: Word) -> Word:
    """Hash of a word and one address, whose high word counts only in IPv6 (`v6` not 0)."""
    if v6 != 0:
        return siphash3(settings.key0, settings.key1, word, hi, lo)
    return siphash2(settings.key0, settings.key1, word, lo)


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
