"""The dumb twin of the kernel's own offloads: cut a super-packet that stands behind a virtio header, one packet at a time, with scapy."""

import struct
from typing import Any

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6

VNET = struct.Struct("<BBHHHH")


def parse(octets: bytes) -> Any:
    return IP(octets) if octets[0] >> 4 == 4 else IPv6(octets)


def plain(packet: Any) -> bytes:
    """The packet's octets with lengths and checksums made anew."""
    packet = packet.copy()
    if IP in packet:
        packet[IP].len = packet[IP].chksum = None
    else:
        packet[IPv6].plen = None
    for layer in (TCP, UDP):
        if layer in packet:
            packet[layer].chksum = None
            if layer is UDP:
                packet[layer].len = None
    return bytes(packet)


def packets_of(frame: bytes) -> list[bytes]:
    """What the kernel makes of a frame written to a TUN with a virtio header."""
    flags, kind, _, size, _, _ = VNET.unpack_from(frame)
    octets = frame[VNET.size :]
    if kind == 0:
        assert flags == 0
        return [octets]
    assert flags == 1
    packet = parse(octets)
    layer = UDP if kind == 5 else TCP
    assert kind == (5 if UDP in packet else 1 if IP in packet else 4)
    payload = bytes(packet[layer].payload)
    packet[layer].remove_payload()
    pieces = [payload[at : at + size] for at in range(0, len(payload), size)]
    return [plain(_segment(packet, layer, number, piece, len(pieces), size)) for number, piece in enumerate(pieces)]


def _segment(packet: Any, layer: Any, number: int, piece: bytes, count: int, size: int) -> Any:
    made = packet.copy()
    if IP in made:
        made[IP].id = (made[IP].id + number) & 0xFFFF
    if layer is TCP:
        made[TCP].seq = (made[TCP].seq + number * size) & 0xFFFFFFFF
        if number < count - 1:
            made[TCP].flags = int(made[TCP].flags) & ~0x09
        if number > 0:
            made[TCP].flags = int(made[TCP].flags) & ~0x80
    return made / piece
