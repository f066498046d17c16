"""What a handshake datagram must show before it costs us a Diffie-Hellman: MAC1 always, MAC2 while under load (whitepaper 5.4.4, 5.4.7).

    MAC1 = Mac(H("mac1----" || our public key), message)      whoever wrote it knows us; nothing else is answered (W2)
    MAC2 = Mac(cookie, message || MAC1)                        whoever wrote it has received what we sent to its address
    cookie = Mac(our changing secret, address || port)         so it is worth nothing from another address or port (W6)

A cookie goes out in a cookie reply; making one costs no Diffie-Hellman and no memory. The key blocks of MAC1 and of the
cookie are absorbed beforehand. `egressvpn.wireguard.mac` has the same as an initiator needs it, in ordinary Python.
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Octets, Word, kernel
from egressvpn.packet.octets import be32, be64, le32, le64, put_le32
from egressvpn.verdict import Verdict
from egressvpn.wireguard.blake2s import MAC_BYTES, Scratch, begin, finish, is_mac, keep, put_mac, resume
from egressvpn.wireguard.ratelimiter import AF_INET, allow
from egressvpn.wireguard.tables import MAX_IDENTITIES, WireGuardTables

PASS: Final = int(Verdict.PASS)
COOKIE_REQUIRED: Final = int(Verdict.COOKIE_REQUIRED)
RATE_LIMITED: Final = int(Verdict.RATE_LIMITED)
HANDSHAKE_OVERLOAD: Final = int(Verdict.HANDSHAKE_OVERLOAD)

KEY_BYTES: Final = 32
COOKIE_BYTES: Final = 16
MACS_BYTES: Final = 2 * MAC_BYTES  # at the end of types 1 and 2
SENDER: Final = 4  # offset of the sender's index in types 1 and 2
COOKIE_REPLY: Final = 3
REPLY_BYTES: Final = 64  # type, receiver's index, nonce, sealed cookie
REPLY_NONCE: Final = 8
REPLY_COOKIE: Final = 32


@kernel
def set_identity(wg: WireGuardTables, s: Scratch, number: Word, mac1_key: Octets, cookie_key: Octets) -> None:
    """From now on answer for the owner of these two keys, as identity `number`."""
    identity = wg.identities[number]
    identity.used = 0
    begin(s, mac1_key, KEY_BYTES, MAC_BYTES)
    keep(s, identity.mac1_state)
    for position in range(KEY_BYTES):
        identity.cookie_key[position] = cookie_key[position]
    identity.used = 1


@kernel
def clear_identity(wg: WireGuardTables, number: Word) -> None:
    wg.identities[number].used = 0


@kernel
def set_secret(wg: WireGuardTables, s: Scratch, secret: Octets) -> None:
    """Cookies made from the secret before this one are worth nothing any more. The first one keys the rate limiter too."""
    cookie, limiter = wg.cookie[0], wg.limiter_state[0]
    begin(s, secret, KEY_BYTES, COOKIE_BYTES)
    keep(s, cookie.state)
    cookie.known = 1
    if limiter.keyed == 0:
        begin(s, secret, KEY_BYTES, KEY_BYTES)
        keep(s, limiter.state)
        limiter.keyed = 1


@kernel
def identity_meant(wg: WireGuardTables, s: Scratch, octets: Octets, start: Word, length: Word) -> Word:
    """The number of the identity whose MAC1 the message (type 1 or 2) bears, or -1."""
    covered = length - MACS_BYTES
    for number in range(MAX_IDENTITIES):
        identity = wg.identities[number]
        if identity.used == 1:
            resume(s, identity.mac1_state)
            finish(s, octets, start, covered)
            if is_mac(s, octets, start + covered) == 1:
                return number
    return -1


@kernel
def judge(wg: WireGuardTables, s: Scratch, octets: Octets, start: Word, length: Word, remote: Octets, at: Word, now: Word) -> Word:
    """Under load: whether a message with a valid MAC1, from the socket address at remote[at:], may go on. COOKIE_REQUIRED: answer so."""
    if wg.cookie[0].known == 0:
        return HANDSHAKE_OVERLOAD
    if _mac2_valid(wg, s, octets, start, length, remote, at) == 0:
        return COOKIE_REQUIRED
    if np.int64(remote[at]) == AF_INET:
        allowed = allow(wg, s, np.int64(4), be32(remote, at + 4), now)
    else:
        allowed = allow(wg, s, np.int64(6), be64(remote, at + 8), now)
    return PASS if allowed == 1 else RATE_LIMITED


@kernel
def begin_reply(wg: WireGuardTables, s: Scratch, octets: Octets, start: Word, remote: Octets, at: Word, out: Octets, to: Word) -> None:
    """The cookie reply to the message at `start`, but for nonce and sealing: at REPLY_COOKIE stands the cookie itself."""
    put_le32(out, to, COOKIE_REPLY)
    put_le32(out, to + 4, le32(octets, start + SENDER))
    put_cookie(wg, s, remote, at, out, to + REPLY_COOKIE)


@kernel
def put_cookie(wg: WireGuardTables, s: Scratch, remote: Octets, at: Word, out: Octets, to: Word) -> None:
    """Write the cookie of the struct sockaddr_in or sockaddr_in6 at remote[at:]."""
    address, size = (at + 4, 4) if np.int64(remote[at]) == AF_INET else (at + 8, 16)
    for position in range(size):
        s.message[position] = remote[address + position]
    s.message[size] = remote[at + 2]
    s.message[size + 1] = remote[at + 3]
    resume(s, wg.cookie[0].state)
    finish(s, s.message, 0, size + 2)
    put_mac(s, out, to)


@kernel
def _mac2_valid(wg: WireGuardTables, s: Scratch, octets: Octets, start: Word, length: Word, remote: Octets, at: Word) -> Word:
    covered = length - MAC_BYTES
    if le64(octets, start + covered) == 0 and le64(octets, start + covered + 8) == 0:
        return 0  # none was made
    put_cookie(wg, s, remote, at, s.message, np.int64(0))
    begin(s, s.message, COOKIE_BYTES, MAC_BYTES)
    finish(s, octets, start, covered)
    return is_mac(s, octets, start + covered)
