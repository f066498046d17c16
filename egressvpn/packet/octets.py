"""Reading and writing big- and little-endian integers in a byte array. All values are int64.

Wide ones are single loads and stores through a view, at any alignment, which takes a little-endian machine; narrow ones
are put together from octets, which compiles to the same.
"""

import sys

import numpy as np

from egressvpn.kernel import Octets, Word, kernel

if sys.byteorder != "little":
    raise ImportError("egressvpn runs on little-endian machines only")


@kernel
def _swap32(word: Word) -> Word:
    word = ((word & 0x00FF00FF) << 8) | ((word >> 8) & 0x00FF00FF)
    return ((word & 0xFFFF) << 16) | ((word >> 16) & 0xFFFF)


@kernel
def _swap64(word: Word) -> Word:
    word = ((word & 0x00FF00FF00FF00FF) << 8) | ((word >> 8) & 0x00FF00FF00FF00FF)
    word = ((word & 0x0000FFFF0000FFFF) << 16) | ((word >> 16) & 0x0000FFFF0000FFFF)
    return (word << 32) | ((word >> 32) & 0xFFFFFFFF)


@kernel
def be16(buffer: Octets, offset: Word) -> Word:
    return (np.int64(buffer[offset]) << 8) | np.int64(buffer[offset + 1])


@kernel
def be32(buffer: Octets, offset: Word) -> Word:
    return (be16(buffer, offset) << 16) | be16(buffer, offset + 2)


@kernel
def be64(buffer: Octets, offset: Word) -> Word:
    """The eight bytes as a signed word: IPv6 addresses are two of them."""
    return _swap64(buffer[offset : offset + 8].view(np.int64)[0])


@kernel
def le16(buffer: Octets, offset: Word) -> Word:
    return np.int64(buffer[offset]) | (np.int64(buffer[offset + 1]) << 8)


@kernel
def le32(buffer: Octets, offset: Word) -> Word:
    return le16(buffer, offset) | (le16(buffer, offset + 2) << 16)


@kernel
def le64(buffer: Octets, offset: Word) -> Word:
    """Signed: a counter of 2^63 and more reads negative."""
    return buffer[offset : offset + 8].view(np.int64)[0]


@kernel
def put_be16(buffer: Octets, offset: Word, value: Word) -> None:
    buffer[offset] = (value >> 8) & 0xFF
    buffer[offset + 1] = value & 0xFF


@kernel
def put_be32(buffer: Octets, offset: Word, value: Word) -> None:
    buffer[offset : offset + 4].view(np.uint32)[0] = _swap32(np.int64(value))


@kernel
def put_be64(buffer: Octets, offset: Word, value: Word) -> None:
    buffer[offset : offset + 8].view(np.int64)[0] = _swap64(np.int64(value))


@kernel
def put_le16(buffer: Octets, offset: Word, value: Word) -> None:
    buffer[offset] = value & 0xFF
    buffer[offset + 1] = (value >> 8) & 0xFF


@kernel
def put_le32(buffer: Octets, offset: Word, value: Word) -> None:
    buffer[offset : offset + 4].view(np.uint32)[0] = value & 0xFFFFFFFF


@kernel
def put_le64(buffer: Octets, offset: Word, value: Word) -> None:
    buffer[offset : offset + 8].view(np.int64)[0] = value
