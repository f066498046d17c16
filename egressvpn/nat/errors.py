"""ICMP errors through the NAT (RFC 5508 4, RFC 4787 REQ-12): they belong to the flow of the packet they quote.

Inbound, the quoted packet is one that we sent out: its source goes back to the internal endpoint and the error to the
internal address. Outbound, it is one that we let in: its destination goes back to the external endpoint, and the error
leaves from the external address. An error never makes, prolongs or ends anything, and its sender may be any router. One
that a device sends to another device's external address goes through both, like any packet (RFC 5508 REQ-7).

The sender of an error can be anyone, so what it quotes must be a packet that may be under way: of a living flow, and when it
is TCP, sent and not yet acknowledged (RFC 5927 4.1). One that would lower the path MTU below what every link carries is
not believed at all (RFC 1191's 68 octets and routers that name no MTU included; RFC 8200 5).

The quote may be cut anywhere behind the ports, so its transport checksum is mended only when it is there, and never
checked (5508 REQ-3 c). RFC 4884 extensions behind the quote are not touched.
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Octets, Row, Word, kernel
from egressvpn.nat.flows import find_flow, find_home_inbound, find_home_outbound
from egressvpn.nat.keys import DEVICE_SHIFT, inside_word
from egressvpn.nat.tables import NatTables
from egressvpn.nat.tcp import CLIENT, SERVER
from egressvpn.nat.tracking import plausible_sequence
from egressvpn.nat.wheel import expired
from egressvpn.packet.checksum import fill_transport_checksum, transport_checksum_ok
from egressvpn.packet.headers import TCP, header_checksum_ok, parse_quote
from egressvpn.packet.octets import be16, be32
from egressvpn.packet.rewrite import rewrite_destination, rewrite_source
from egressvpn.verdict import Verdict

PASS: Final = int(Verdict.PASS)
BAD_CHECKSUM: Final = int(Verdict.BAD_CHECKSUM)
UNSUPPORTED_PROTOCOL: Final = int(Verdict.UNSUPPORTED_PROTOCOL)
UNMATCHED_ICMP_ERROR: Final = int(Verdict.UNMATCHED_ICMP_ERROR)

UNREACHABLE: Final = 3
FRAGMENTATION_NEEDED: Final = 4  # code of UNREACHABLE
PACKET_TOO_BIG6: Final = 2
MIN_MTU4: Final = 576  # octets that every host takes (RFC 791); below lies nobody who is not lying
MIN_MTU6: Final = 1280  # RFC 8200 5


@kernel
def error_inbound(nat: NatTables, packet: Row, buffer: Octets, now: Word) -> Word:
    """Translate an ICMP error from outside."""
    quote = nat.quote[0]
    verdict = _open_quote(packet, buffer, quote)
    if verdict != PASS:
        return verdict
    home = find_home_inbound(nat, quote.version, quote.protocol, quote.source_hi, quote.source_lo, quote.source_port)
    slot = _quoted_flow(nat, home, quote, buffer, np.int64(CLIENT), now)
    if slot == 0:
        return UNMATCHED_ICMP_ERROR
    flow = nat.flows[slot]
    high = nat.wide[slot].internal_hi if packet.version == 6 else np.int64(0)
    rewrite_source(buffer, quote, high, flow.internal_lo, (flow.key >> 16) & 0xFFFF)
    rewrite_destination(buffer, packet, high, flow.internal_lo, 0)
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
    key = inside_word(device, quote, quote.destination_port)
    home = find_home_outbound(nat, key, quote.destination_hi, quote.destination_lo)
    slot = _quoted_flow(nat, home, quote, buffer, np.int64(SERVER), now)
    if slot == 0:
        return UNMATCHED_ICMP_ERROR
    flow = nat.flows[slot]
    high, low = np.int64(0), nat.pool[np.int64(flow.pool)].address
    if packet.version == 6:
        high, low = nat.subscribers[device].external6_hi, nat.subscribers[device].external6_lo
    rewrite_destination(buffer, quote, high, low, flow.key & 0xFFFF)
    rewrite_source(buffer, packet, high, low, 0)
    fill_transport_checksum(buffer, packet)
    packet.owner = device
    packet.flow = slot
    return PASS


@kernel
def _open_quote(packet: Row, buffer: Octets, quote: Row) -> Word:
    """Check an ICMP error, and describe in `quote` the packet it is about, which its receiver must have sent."""
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
    if quote.source_lo != packet.destination_lo or quote.source_hi != packet.destination_hi or not _believable_mtu(packet, buffer):
        return UNMATCHED_ICMP_ERROR
    return PASS


@kernel
def _quoted_flow(nat: NatTables, home: Word, quote: Row, buffer: Octets, sender: Word, now: Word) -> Word:
    """The flow of the quoted packet, which `sender` sent. 0: there is none, or it cannot have been under way."""
    if home == 0:
        return np.int64(0)
    hi, lo, port = quote.destination_hi, quote.destination_lo, quote.destination_port
    if sender == SERVER:
        hi, lo, port = quote.source_hi, quote.source_lo, quote.source_port
    slot = find_flow(nat, home, hi, lo, port if quote.icmp_type < 0 else np.int64(0))
    if slot == 0 or expired(nat.settings[0], nat.flows[slot], now):
        return np.int64(0)
    if quote.protocol == TCP and not plausible_sequence(nat.flows[slot], sender, be32(buffer, quote.transport + 4)):
        return np.int64(0)
    return slot


@kernel
def _translatable(packet: Row) -> bool:
    """Unreachable, time exceeded and parameter problem; too big in IPv6. Not quench and redirect (RFC 5508 REQ-10)."""
    kind = packet.icmp_type
    if packet.version == 6:
        return 1 <= kind <= 4
    return kind == UNREACHABLE or kind == 11 or kind == 12


@kernel
def _believable_mtu(packet: Row, buffer: Octets) -> bool:
    """An error that does not speak of the path MTU, or names one that a path can have."""
    if packet.version == 6:
        return packet.icmp_type != PACKET_TOO_BIG6 or be32(buffer, packet.transport + 4) >= MIN_MTU6
    if packet.icmp_type != UNREACHABLE or buffer[packet.transport + 1] != FRAGMENTATION_NEEDED:
        return True
    return be16(buffer, packet.transport + 6) >= MIN_MTU4


@kernel
def _quoted_octets(packet: Row, buffer: Octets) -> Word:
    """Where RFC 4884 says that the quote ends and extensions begin; 0: it does not say."""
    kind = packet.icmp_type
    if packet.version == 6:
        return np.int64(buffer[packet.transport + 4]) * 8 if kind == 1 or kind == 3 else np.int64(0)
    return np.int64(buffer[packet.transport + 5]) * 4
