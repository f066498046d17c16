"""The gateway's own static key, as a value. An interface may answer to several: MAC1 tells which one was meant."""

from dataclasses import dataclass, field

from egressvpn.wireguard.mac import cookie_key, mac1_key
from egressvpn.wireguard.noise import KEY_BYTES, public_of


@dataclass(frozen=True, slots=True)
class LocalIdentity:
    """A static key pair and what is derived from it once."""

    private_key: bytes = field(repr=False)
    public_key: bytes
    mac1_key: bytes = field(repr=False)  # of what is written to us
    cookie_key: bytes = field(repr=False)  # of the cookie replies we write

    @classmethod
    def from_private(cls, private_key: bytes) -> "LocalIdentity":
        """Raises ValueError for bytes that are no key. Kept clamped (RFC 7748 section 5), as other implementations show it."""
        if len(private_key) != KEY_BYTES:
            raise ValueError(f"a private key has {KEY_BYTES} bytes")
        private_key = bytes([private_key[0] & 248]) + private_key[1:-1] + bytes([private_key[-1] & 127 | 64])
        public_key = public_of(private_key)
        return cls(private_key, public_key, mac1_key(public_key), cookie_key(public_key))
