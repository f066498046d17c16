"""Where no packet from a tunnel may go: what is never a destination on the Internet, and what the operator's deny list says.

Always denied, whatever the list: in IPv4 "this network" 0/8, loopback 127/8, multicast 224/4, and 240/4 with the broadcast
address (RFC 1122 3.2.1.3, RFC 5735); in IPv6 the unspecified address, loopback and the IPv4-compatible ones (::/96),
IPv4-mapped ::ffff:0:0/96, link-local fe80::/10, the old site-local fec0::/10 and multicast ff00::/8 (RFC 4291).
An IPv6 address with an IPv4 address inside (NAT64, 6to4) is denied when that one is.

The list is a longest-prefix table (`egressvpn/prefixes.py`) whose values are each prefix's length + 1. So is the list of
exempt destinations, which are reached untranslated (RFC 6888 REQ-6): of two prefixes that hold an address the longer one
decides, of two equal ones the deny list.
"""

from typing import Final

from egressvpn.kernel import Row, Table, Word, kernel
from egressvpn.prefixes import lookup4, lookup6
from egressvpn.verdict import Verdict

SIXTOFOUR: Final = 0x2002
NAT64: Final = 0x0064FF9B << 32
PASS: Final = int(Verdict.PASS)
POLICY_DENIED: Final = int(Verdict.POLICY_DENIED)


@kernel
def denied(table: Table, packet: Row) -> Word:
    """PASS, or POLICY_DENIED when the packet's destination is not to be reached. `table` holds the deny list."""
    return _verdict(table, packet.version, packet.destination_hi, packet.destination_lo)


@kernel
def denied_source(table: Table, packet: Row) -> Word:
    """The same of the packet's source: where its receiver would answer to."""
    return _verdict(table, packet.version, packet.source_hi, packet.source_lo)


@kernel
def exempt(exempted: Table, table: Table, version: Word, hi: Word, lo: Word) -> bool:
    """Whether packets to and from an address pass untranslated."""
    if version == 4:
        return not never4(lo) and lookup4(exempted, lo) > lookup4(table, lo)
    return not never6(hi, lo) and lookup6(exempted, hi, lo) > lookup6(table, hi, lo)


@kernel
def _verdict(table: Table, version: Word, hi: Word, lo: Word) -> Word:
    if version == 4:
        return POLICY_DENIED if never4(lo) or lookup4(table, lo) != 0 else PASS
    if never6(hi, lo) or lookup6(table, hi, lo) != 0:
        return POLICY_DENIED
    inside = _embedded4(hi, lo)
    return POLICY_DENIED if inside >= 0 and (never4(inside) or lookup4(table, inside) != 0) else PASS


@kernel
def _embedded4(hi: Word, lo: Word) -> Word:
    """The IPv4 address a translator or tunnel further on would take out of it: NAT64 (RFC 6052), 6to4 (RFC 3056); -1: none."""
    if (hi >> 48) & 0xFFFF == SIXTOFOUR:
        return (hi >> 16) & 0xFFFFFFFF
    if hi == NAT64 and (lo >> 32) & 0xFFFFFFFF == 0:
        return lo & 0xFFFFFFFF
    return -1


@kernel
def never4(address: Word) -> bool:
    """No host has this address."""
    top = address >> 24
    return top == 0 or top == 127 or top >= 224


@kernel
def never6(hi: Word, lo: Word) -> bool:
    """No host out there has this address."""
    if hi == 0:
        middle = (lo >> 32) & 0xFFFFFFFF
        return middle == 0 or middle == 0xFFFF
    top = (hi >> 54) & 0x3FF
    return top >= 0x3FA  # fe80 is 11 1111 1010 in ten bits, ff00 begins at 11 1111 1100
