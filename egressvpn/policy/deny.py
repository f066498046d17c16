"""Where no packet from a tunnel may go: what is never a destination on the Internet, and what the operator's deny list says.

Always denied, whatever the list: in IPv4 "this network" 0/8, loopback 127/8, multicast 224/4, and 240/4 with the broadcast
address (RFC 1122 3.2.1.3, RFC 5735); in IPv6 the unspecified address, loopback and the IPv4-compatible ones (::/96),
IPv4-mapped ::ffff:0:0/96, link-local fe80::/10, the old site-local fec0::/10 and multicast ff00::/8 (RFC 4291).

The list is a longest-prefix table (`egressvpn/prefixes.py`) whose every prefix is denied.
"""

from typing import Final

from egressvpn.kernel import Row, Table, Word, kernel
from egressvpn.prefixes import lookup4, lookup6
from egressvpn.verdict import Verdict

PASS: Final = int(Verdict.PASS)
POLICY_DENIED: Final = int(Verdict.POLICY_DENIED)


@kernel
def denied(table: Table, packet: Row) -> Word:
    """PASS, or POLICY_DENIED when the packet's destination is not to be reached. `table` holds the deny list."""
    if packet.version == 4:
        if _never4(packet.destination_lo) or lookup4(table, packet.destination_lo) != 0:
            return POLICY_DENIED
        return PASS
    if _never6(packet.destination_hi, packet.destination_lo):
        return POLICY_DENIED
    return POLICY_DENIED if lookup6(table, packet.destination_hi, packet.destination_lo) != 0 else PASS


@kernel
def _never4(address: Word) -> bool:
    top = address >> 24
    return top == 0 or top == 127 or top >= 224


@kernel
def _never6(hi: Word, lo: Word) -> bool:
    if hi == 0:
        middle = (lo >> 32) & 0xFFFFFFFF
        return middle == 0 or middle == 0xFFFF
    top = (hi >> 54) & 0x3FF
    return top >= 0x3FA  # fe80 is 11 1111 1010 in ten bits, ff00 begins at 11 1111 1100
