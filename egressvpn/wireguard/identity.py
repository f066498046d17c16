"""The gateway's own static key, as a value. An interface may answer to several: MAC1 tells which one was meant."""

from dataclasses import dataclass, field

from egressvpn.wireguard.mac import mac1_key
from egressvpn.wireguard.noise import KEY_BYTES, public_of


@dataclass(frozen=True, slots=True)
class LocalIdentity:
    """A static key pair and what is derived from it once."""

    private_key: bytes = field(repr=False)
    public_key: bytes
    mac1_key: bytes = field(repr=False)

    @classmethod
    def from_private(cls, private_key: bytes) -> "LocalIdentity":
        if len(private_key) != KEY_BYTES:
            raise ValueError(f"a private key has {KEY_BYTES} bytes")
        public_key = public_of(private_key)
        return cls(private_key, public_key, mac1_key(public_key))
