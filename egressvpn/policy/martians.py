"""Source addresses that no packet can honestly have, and packets that say they come from where they go.

IPv4: "this network" 0/8, loopback 127/8, multicast 224/4 and 240/4 with the broadcast address (RFC 1122 3.2.1.3, RFC 1812
5.3.7). IPv6: the unspecified address, loopback, IPv4-mapped and IPv4-compatible ones, link-local, site-local, multicast
(RFC 4291). A packet whose two endpoints are one is the "land" attack (RFC 6274 3.13).
"""

from egressvpn.kernel import Row, Word, kernel
from egressvpn.packet.headers import TCP, UDP
from egressvpn.policy.deny import never4, never6


@kernel
def from_nowhere(version: Word, hi: Word, lo: Word) -> bool:
    """The address is nobody's."""
    return never4(lo) if version == 4 else never6(hi, lo)


@kernel
def to_itself(packet: Row) -> bool:
    """Source and destination are one endpoint of TCP or UDP. Without ports, several hosts may have the address."""
    if packet.source_lo != packet.destination_lo or packet.source_hi != packet.destination_hi:
        return False
    return packet.source_port == packet.destination_port and (packet.protocol == TCP or packet.protocol == UDP)
