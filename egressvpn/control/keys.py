"""WireGuard keys: 32 bytes of Curve25519, written in base64 by every tool."""

import base64
import binascii


def decode_key(written: str) -> bytes | None:
    """The 32 bytes of a base64 key; None when it is not one, or is all zero."""
    written = written.strip()
    try:
        key = base64.b64decode(written, validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(written) == 44 and len(key) == 32 and any(key) else None


def encode_key(key: bytes) -> str:
    """A key as WireGuard's tools write it."""
    return base64.b64encode(key).decode()


def new_private_key() -> bytes:
    """A fresh private key, clamped as `wg genkey` does it."""
    from nacl.utils import random

    key = bytearray(random(32))
    key[0] &= 248
    key[31] = (key[31] & 127) | 64
    return bytes(key)


def public_key_of(private_key: bytes) -> bytes:
    from nacl.bindings import crypto_scalarmult_base

    return bytes(crypto_scalarmult_base(private_key))
