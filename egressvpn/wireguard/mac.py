"""MAC1: whoever writes to us knows our public key (whitepaper 5.4.4). Checked before any Diffie-Hellman.

MAC2 and the cookies behind it belong here too; until they exist MAC2 is sent as zeros and not looked at, which is what
the protocol asks of a responder that is not under load.
"""

import hashlib
import hmac
from typing import Final

from egressvpn.wireguard.messages import MAC_BYTES, MACS_BYTES
from egressvpn.wireguard.noise import hash_of

LABEL_MAC1: Final = b"mac1----"
NO_MAC2: Final = bytes(MAC_BYTES)


def mac1_key(public_key: bytes) -> bytes:
    """The key of messages meant for the owner of `public_key`."""
    return hash_of(LABEL_MAC1, public_key)


def mac(key: bytes, data: bytes) -> bytes:
    """The paper's Mac(): keyed BLAKE2s of 16 bytes."""
    return hashlib.blake2s(data, digest_size=MAC_BYTES, key=key).digest()


def add_macs(key: bytes, message: bytes) -> bytes:
    """The whole datagram: `message`, its MAC1 under the receiver's `mac1_key`, and an empty MAC2."""
    return message + mac(key, message) + NO_MAC2


def mac1_valid(key: bytes, datagram: bytes) -> bool:
    """Whether the datagram was made for the owner of this `mac1_key`."""
    return hmac.compare_digest(mac(key, datagram[:-MACS_BYTES]), datagram[-MACS_BYTES:-MAC_BYTES])
