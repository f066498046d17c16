"""The door before an interface, with its load switched by hand: the very kernels that judge MAC1, MAC2 and the rate of a source.

How the data path finds out that it is under load is its own matter (tests/dataplane/test_door.py).
"""

from typing import Any

import numpy as np
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt

from egressvpn.addresses import Path
from egressvpn.verdict import Verdict
from egressvpn.wireguard import cookie
from egressvpn.wireguard.blake2s import scratch
from egressvpn.wireguard.identity import LocalIdentity
from egressvpn.wireguard.messages import INITIATION, RESPONSE, kind_of
from egressvpn.wireguard.tables import MAX_IDENTITIES, WireGuardTables
from tests.wireguard.doorstep import octets


class Door:
    """Judges every handshake datagram of one node."""

    def __init__(self, wg: WireGuardTables) -> None:
        self.loaded = False
        self._wg = wg
        self._scratch = scratch()

    def set_identities(self, identities: tuple[LocalIdentity, ...]) -> None:
        for number in range(MAX_IDENTITIES):
            cookie.clear_identity(self._wg, number)
        for number, identity in enumerate(identities):
            cookie.set_identity(self._wg, self._scratch, number, octets(identity.mac1_key), octets(identity.cookie_key))

    def set_secret(self, secret: bytes) -> None:
        cookie.set_secret(self._wg, self._scratch, octets(secret))

    def knock(self, datagram: bytes, origin: Path, nonce: bytes, now: int) -> tuple[Verdict, bytes]:
        """PASS when the interface is to see the datagram; and the cookie reply, if there is to be one."""
        if kind_of(datagram) not in (INITIATION, RESPONSE):
            return Verdict.PASS, b""
        message, remote = octets(datagram), octets(origin.remote)
        number = cookie.identity_meant(self._wg, self._scratch, message, 0, len(datagram))
        if number < 0:
            return Verdict.BAD_MAC1, b""
        if not self.loaded:
            return Verdict.PASS, b""
        verdict = Verdict(int(cookie.judge(self._wg, self._scratch, message, 0, len(datagram), remote, 0, now)))
        return verdict, self._reply(number, message, remote, nonce) if verdict is Verdict.COOKIE_REQUIRED else b""

    def _reply(self, number: int, message: Any, remote: Any, nonce: bytes) -> bytes:
        out = np.zeros(cookie.REPLY_BYTES, np.uint8)
        cookie.begin_reply(self._wg, self._scratch, message, 0, remote, 0, out, 0)
        plain = out[cookie.REPLY_COOKIE : cookie.REPLY_COOKIE + cookie.COOKIE_BYTES].tobytes()
        key = self._wg.identities[number].cookie_key.tobytes()
        head = out[: cookie.REPLY_NONCE].tobytes()
        return head + nonce + crypto_aead_xchacha20poly1305_ietf_encrypt(plain, message[-32:-16].tobytes(), nonce, key)
