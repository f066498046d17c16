"""ICMP errors through the NAT (RFC 5508 4, RFC 4787 REQ-12): they belong to the flow of the packet they quote.

Inbound, the quoted packet is one that we sent out: its source goes back to the internal endpoint and the error to the
internal address. Outbound, it is one that we let in: its destination goes back to the external endpoint, and the error
leaves from the external address. An error never makes, prolongs or ends anything, and its sender may be any router.

The quote may be cut anywhere behind the ports, so its transport checksum is mended only when it is there, and never
checked (5508 REQ-3 c). RFC 4884 extensions behind the quote are not touched.
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Octets, Row, Word, kernel
from egressvpn.nat.flows import expired, find_inbound, find_outbound
from egressvpn.nat.keys import DEVICE_SHIFT, inside_word, outside_word
from egressvpn.nat.tables import NatTables
from egressvpn.packet.checksum import fill_transport_checksum, transport_checksum_ok
from egressvpn.packet.headers import header_checksum_ok, parse_quote
from egressvpn.packet.rewrite import rewrite_destination, rewrite_source
from egressvpn.verdict import Verdict

PASS: Final = int(Verdict.PASS)
BAD_CHECKSUM: Final = int(Verdict.BAD_CHECKSUM)
UNSUPPORTED_PROTOCOL: Final = int(Verdict.UNSUPPORTED_PROTOCOL)
UNMATCHED_ICMP_ERROR: Final = int(Verdict.UNMATCHED_ICMP_ERROR)


@kernel
def error_inbound(nat: NatTables, packet: Row, buffer: Octets, now: Word) -> Word:
    """Translate an ICMP error from outside."""
    quote = nat.quote[0]
    verdict = _open_quote(packet, buffer, quote)
    if verdict != PASS:
        return verdict
    if quote.source_lo != packet.destination_lo or quote.source_hi != packet.destination_hi:
        return UNMATCHED_ICMP_ERROR
    remote_port = quote.destination_port if quote.icmp_type < 0 else np.int64(0)
    key = outside_word(quote, quote.source_port, remote_port)
    slot = find_inbound(
        nat.settings[0], nat.heads, nat.flows, key, quote.source_hi, quote.source_lo, quote.destination_hi, quote.destination_lo
    )
    if slot == 0 or expired(nat.flows[slot], now):
        return UNMATCHED_ICMP_ERROR
    flow = nat.flows[slot]
    rewrite_source(buffer, quote, flow.internal_hi, flow.internal_lo, (flow.key >> 16) & 0xFFFF)
    rewrite_destination(buffer, packet, flow.internal_hi, flow.internal_lo, 0)
    fill_transport_checksum(buffer, packet)
    packet.owner = flow.key >> DEVICE_SHIFT
    packet.flow = slot
    return PASS


@kernel
def error_outbound(nat: NatTables, device: Word, packet: Row, buffer: Octets, now: Word) -> Word:
    """Translate an ICMP error from a device; it must go to the remote that the quoted packet came from."""
    quote = nat.quote[0]
    verdict = _open_quote(packet, buffer, quote)
    if verdict != PASS:
        return verdict
    if quote.source_lo != packet.destination_lo or quote.source_hi != packet.destination_hi:
        return UNMATCHED_ICMP_ERROR
    remote_port = quote.source_port if quote.icmp_type < 0 else np.int64(0)
    key = inside_word(device, quote, quote.destination_port, remote_port)
    slot = find_outbound(
        nat.settings[0], nat.heads, nat.flows, key, quote.destination_hi, quote.destination_lo, quote.source_hi, quote.source_lo
    )
    if slot == 0 or expired(nat.flows[slot], now):
        return UNMATCHED_ICMP_ERROR
    flow = nat.flows[slot]
    rewrite_destination(buffer, quote, flow.external_hi, flow.external_lo, (flow.external_key >> 16) & 0xFFFF)
    rewrite_source(buffer, packet, flow.external_hi, flow.external_lo, 0)
    fill_transport_checksum(buffer, packet)
    packet.owner = device
    packet.flow = slot
    return PASS


@kernel
def _open_quote(packet: Row, buffer: Octets, quote: Row) -> Word:
    """Check an ICMP error, and describe in `quote` the packet it is about."""
    if not _translatable(packet):
        return UNSUPPORTED_PROTOCOL
    if transport_checksum_ok(buffer, packet) == 0:
        return BAD_CHECKSUM
    end = packet.start + packet.length
    extent = _quoted_octets(packet, buffer)
    if extent > 0:
        end = min(end, packet.payload + extent)
    if parse_quote(buffer, packet.payload, end - packet.payload, quote) != PASS or quote.version != packet.version:
        return UNMATCHED_ICMP_ERROR
    if header_checksum_ok(buffer, quote) == 0:
        return BAD_CHECKSUM  # RFC 5508 REQ-3 a
    return PASS


@kernel
def _translatable(packet: Row) -> bool:
    """Unreachable, time exceeded and parameter problem; too big in IPv6. Not quench and redirect (RFC 5508 REQ-10)."""
    kind = packet.icmp_type
    if packet.version == 6:
        return 1 <= kind <= 4
    return kind == 3 or kind == 11 or kind == 12


@kernel
def _quoted_octets(packet: Row, buffer: Octets) -> Word:
    """Where RFC 4884 says that the quote ends and extensions begin; 0: it does not say."""
    kind = packet.icmp_type
    if packet.version == 6:
        return np.int64(buffer[packet.transport + 4]) * 8 if kind == 1 or kind == 3 else np.int64(0)
    return np.int64(buffer[packet.transport + 5]) * 4
