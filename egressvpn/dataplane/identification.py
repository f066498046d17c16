"""IPv4 identifications after translation: unique for each source, destination and protocol (RFC 6864 4.3, 5.3.1; RFC 7857 10).

Devices that share an external address choose theirs without knowing of each other; two datagrams in pieces with the same
one would be put together wrongly by their receiver. So every packet that may be in pieces, now or later, gets the next one
of a counter. As in the kernel (ip_idents) there is a table of counters, found by a keyed hash, so a counter may serve
several addresses: each has its own offset on it. A packet that may not be fragmented keeps what it has.

The counters are in the arena: a successor goes on.
"""

from typing import Final

from egressvpn.dataplane.tables import IDENTIFICATIONS
from egressvpn.kernel import Octets, Row, kernel
from egressvpn.nat.keys import siphash2
from egressvpn.packet.checksum import adjust
from egressvpn.packet.octets import be16, put_be16

OFFSET: Final = 32  # bits of the hash from here on are the offset


@kernel
def identify(counters: Octets, settings: Row, octets: Octets, packet: Row) -> None:
    """Give an IPv4 packet the next identification of its source, destination and protocol."""
    hashed = siphash2(settings.key0, settings.key1, packet.source_lo << 32 | packet.destination_lo, packet.protocol)
    counter = hashed & (IDENTIFICATIONS - 1)
    counters[counter] += 1
    start = packet.start
    old, new = be16(octets, start + 4), (counters[counter] + ((hashed >> OFFSET) & 0xFFFF)) & 0xFFFF
    put_be16(octets, start + 4, new)
    adjust(octets, start + 10, (0xFFFF ^ old) + new)
