"""External ports of a pool address: a bitmap for each of TCP, UDP and ICMP identifiers.

A port is drawn at random in the slice (RFC 6056): a few independent draws, which succeed almost always below 90 % use,
then one pass over the bitmap from a random word on. So a search ends after at most PORT_WORDS words, however full it is.
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Octets, Row, Table, Word, kernel
from egressvpn.nat.keys import draw
from egressvpn.nat.tables import ICMP_PORTS, PORT_KINDS, PORT_WORDS, TCP_PORTS, UDP_PORTS
from egressvpn.packet.headers import TCP, UDP

DRAWS: Final = 8


@kernel
def port_kind(protocol: Word) -> Word:
    if protocol == TCP:
        return TCP_PORTS
    return UDP_PORTS if protocol == UDP else ICMP_PORTS


@kernel
def take_port(settings: Row, pool: Table, port_bits: Octets, slot: Word, kind: Word) -> Word:
    """Mark a free port of the slice as taken and return it, or -1 when there is none."""
    address = pool[slot]
    low, high = address.port_low, address.port_high
    base = bitmap(slot, kind)
    for _ in range(DRAWS):
        port = low + (draw(settings) & 0x7FFFFFFF) % (high - low + 1)
        if take_exact(pool, port_bits, slot, kind, port):
            return port
    first = low >> 6
    words = (high >> 6) - first + 1
    start = (draw(settings) & 0x7FFFFFFF) % words
    for step in range(words):
        word = first + (start + step) % words
        if port_bits[base + word] != -1:
            port = _free_in_word(port_bits[base + word], word * 64, low, high, draw(settings) & 63)
            if port >= 0:
                take_exact(pool, port_bits, slot, kind, port)
                return port
    return -1


@kernel
def take_exact(pool: Table, port_bits: Octets, slot: Word, kind: Word, port: Word) -> Word:
    """Mark one port as taken. 1, or 0 when it was already or is outside the slice."""
    address = pool[slot]
    if port < address.port_low or port > address.port_high:
        return 0
    index = bitmap(slot, kind) + (port >> 6)
    bit = np.int64(1) << (port & 63)
    if port_bits[index] & bit:
        return 0
    port_bits[index] |= bit
    address.used[kind] += 1
    return 1


@kernel
def free_port(pool: Table, port_bits: Octets, slot: Word, kind: Word, port: Word) -> None:
    index = bitmap(slot, kind) + (port >> 6)
    bit = np.int64(1) << (port & 63)
    if port_bits[index] & bit:
        port_bits[index] &= ~bit
        pool[slot].used[kind] -= 1


@kernel
def bitmap(slot: Word, kind: Word) -> Word:
    """Index of the first word of a bitmap."""
    return (slot * PORT_KINDS + kind) * PORT_WORDS


@kernel
def _free_in_word(bits: Word, base: Word, low: Word, high: Word, start: Word) -> Word:
    """A free port within the slice among the 64 of one word, searched from bit `start` on; or -1."""
    for step in range(64):
        bit = (start + step) & 63
        port = base + bit
        if (bits >> bit) & 1 == 0 and low <= port <= high:
            return port
    return -1
