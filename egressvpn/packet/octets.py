"""Reading and writing big- and little-endian integers in a byte array. All values are int64."""

import numpy as np

from egressvpn.kernel import Octets, Word, kernel


@kernel
def be16(buffer: Octets, offset: Word) -> Word:
    return (np.int64(buffer[offset]) << 8) | np.int64(buffer[offset + 1])


@kernel
def be32(buffer: Octets, offset: Word) -> Word:
    return (be16(buffer, offset) << 16) | be16(buffer, offset + 2)


@kernel
def be64(buffer: Octets, offset: Word) -> Word:
    """The eight bytes as a signed word: IPv6 addresses are two of them."""
    return (be32(buffer, offset) << 32) | be32(buffer, offset + 4)


@kernel
def le16(buffer: Octets, offset: Word) -> Word:
    return np.int64(buffer[offset]) | (np.int64(buffer[offset + 1]) << 8)


@kernel
def le32(buffer: Octets, offset: Word) -> Word:
    return le16(buffer, offset) | (le16(buffer, offset + 2) << 16)


@kernel
def le64(buffer: Octets, offset: Word) -> Word:
    """Signed: a counter of 2^63 and more reads negative."""
    return le32(buffer, offset) | (le32(buffer, offset + 4) << 32)


@kernel
def put_be16(buffer: Octets, offset: Word, value: Word) -> None:
    buffer[offset] = (value >> 8) & 0xFF
    buffer[offset + 1] = value & 0xFF


@kernel
def put_be32(buffer: Octets, offset: Word, value: Word) -> None:
    put_be16(buffer, offset, value >> 16)
    put_be16(buffer, offset + 2, value)


@kernel
def put_be64(buffer: Octets, offset: Word, value: Word) -> None:
    put_be32(buffer, offset, value >> 32)
    put_be32(buffer, offset + 4, value)


@kernel
def put_le16(buffer: Octets, offset: Word, value: Word) -> None:
    buffer[offset] = value & 0xFF
    buffer[offset + 1] = (value >> 8) & 0xFF


@kernel
def put_le32(buffer: Octets, offset: Word, value: Word) -> None:
    put_le16(buffer, offset, value)
    put_le16(buffer, offset + 2, value >> 16)


@kernel
def put_le64(buffer: Octets, offset: Word, value: Word) -> None:
    put_le32(buffer, offset, value)
    put_le32(buffer, offset + 4, value >> 32)
