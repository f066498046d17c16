"""The layouts of the handshake messages (whitepaper 5.4). Integers are little-endian; lengths and the type word are exact.

Transport data (type 4) never comes here: the worker parses it in place.
"""

import struct
from typing import Final, NamedTuple

INITIATION: Final = 1
RESPONSE: Final = 2
COOKIE_REPLY: Final = 3
TRANSPORT: Final = 4

MAC_BYTES: Final = 16
MACS_BYTES: Final = 2 * MAC_BYTES  # mac1 and mac2 end both handshake messages

_INITIATION = struct.Struct("<II32s48s28s")
_RESPONSE = struct.Struct("<III32s16s")
_COOKIE_REPLY = struct.Struct("<II24s32s")

INITIATION_BYTES: Final = _INITIATION.size + MACS_BYTES
RESPONSE_BYTES: Final = _RESPONSE.size + MACS_BYTES
COOKIE_REPLY_BYTES: Final = _COOKIE_REPLY.size

LENGTHS: Final = {INITIATION: INITIATION_BYTES, RESPONSE: RESPONSE_BYTES, COOKIE_REPLY: COOKIE_REPLY_BYTES}


class Initiation(NamedTuple):
    """First message."""

    sender: int
    ephemeral: bytes
    static: bytes
    timestamp: bytes

    def pack(self) -> bytes:
        """Without the MACs."""
        return _INITIATION.pack(INITIATION, *self)


class Response(NamedTuple):
    """Second message."""

    sender: int
    receiver: int
    ephemeral: bytes
    empty: bytes

    def pack(self) -> bytes:
        """Without the MACs."""
        return _RESPONSE.pack(RESPONSE, *self)


class CookieReply(NamedTuple):
    """The answer of a receiver under load: try again with the sealed cookie."""

    receiver: int
    nonce: bytes
    cookie: bytes

    def pack(self) -> bytes:
        """The whole datagram; it has no MACs."""
        return _COOKIE_REPLY.pack(COOKIE_REPLY, *self)


def kind_of(datagram: bytes) -> int:
    """INITIATION, RESPONSE or COOKIE_REPLY, when the type word and the length are exactly theirs; else 0."""
    kind = int.from_bytes(datagram[:4], "little")
    return kind if LENGTHS.get(kind) == len(datagram) else 0


def unpack_initiation(datagram: bytes) -> Initiation:
    """Of a datagram whose kind is INITIATION."""
    return Initiation(*_INITIATION.unpack_from(datagram)[1:])


def unpack_response(datagram: bytes) -> Response:
    """Of a datagram whose kind is RESPONSE."""
    return Response(*_RESPONSE.unpack_from(datagram)[1:])


def unpack_cookie_reply(datagram: bytes) -> CookieReply:
    """Of a datagram whose kind is COOKIE_REPLY."""
    return CookieReply(*_COOKIE_REPLY.unpack_from(datagram)[1:])
