"""Dumb twins in plain Python over bytes: checksums, and how a kernel cuts a super-packet that stands behind a virtio header."""

import struct

TCP, UDP = 6, 17
VNET = struct.Struct("<BBHHHH")
FIN, PSH, CWR = 0x01, 0x08, 0x80


def checksum(octets: bytes) -> int:
    """RFC 1071."""
    if len(octets) % 2:
        octets += b"\0"
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF ^ total


def with_header_checksum(octets: bytes) -> bytes:
    """An IPv4 packet with the right header checksum; anything else as it is."""
    if len(octets) < 20 or octets[0] >> 4 != 4:
        return octets
    header = octets[: (octets[0] & 15) * 4]
    return octets[:10] + struct.pack("!H", checksum(header[:10] + b"\0\0" + header[12:])) + octets[12:]


def pseudo_header(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    """RFC 9293 3.1 and RFC 8200 8.1: the sum is the same with the length in 16 bits."""
    return source + destination + struct.pack("!HH", protocol, length)


def with_checksums(octets: bytes) -> bytes:
    """The packet with every checksum right that can be: of the IPv4 header, and of the transport header."""
    return with_transport_checksum(with_header_checksum(octets))


def with_transport_checksum(octets: bytes) -> bytes:
    """With the right checksum of TCP, UDP or ICMP, if that is a whole packet without extension headers."""
    start = (octets[0] & 15) * 4 if octets[0] >> 4 == 4 else 40
    protocol, at = _transport(octets, start)
    if at is None or len(octets) < at + 2:
        return octets
    end = start + int.from_bytes(octets[start + 4 : start + 6], "big") if protocol == UDP else len(octets)  # RFC 9868: options may follow
    body = octets[start:at] + b"\0\0" + octets[at + 2 : max(end, at + 2)]
    if protocol != 1:
        source, destination = (octets[12:16], octets[16:20]) if octets[0] >> 4 == 4 else (octets[8:24], octets[24:40])
        body = pseudo_header(source, destination, protocol, len(body)) + body
    return octets[:at] + struct.pack("!H", checksum(body) or (0xFFFF if protocol == UDP else 0)) + octets[at + 2 :]


def _transport(octets: bytes, start: int) -> tuple[int, int | None]:
    """Protocol, and where its checksum is."""
    four = octets[0] >> 4 == 4
    if len(octets) < (20 if four else 40):
        return 0, None
    protocol = octets[9] if four else octets[6]
    field = {1 if four else 58: 2, TCP: 16, UDP: 6}.get(protocol)
    return protocol, None if field is None else start + field


def cut(frame: bytes) -> list[bytes]:
    """The packets that a kernel makes of a frame with a virtio header; the IP packet has no extension headers."""
    flags, kind, _, size, _, _ = VNET.unpack_from(frame)
    packet, kind = frame[VNET.size :], kind & 0x7F  # the top bit says that a TCP super-packet has ECN
    if kind == 0:
        return [with_transport_checksum(packet)] if flags & 1 else [packet]
    start = (packet[0] & 15) * 4 if packet[0] >> 4 == 4 else 40
    udp = kind == 5
    headers = start + (8 if udp else (packet[start + 12] >> 4) * 4)
    payload = packet[headers:]
    pieces = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
    return [_segment(bytearray(packet[:headers]), start, udp, number, piece, len(pieces), size) for number, piece in enumerate(pieces)]


def _segment(made: bytearray, start: int, udp: bool, number: int, piece: bytes, count: int, size: int) -> bytes:
    """Headers of one segment as tcp_gso_segment and udp4/6_ufo_fragment of the kernel leave them."""
    length = len(made) + len(piece)
    if made[0] >> 4 == 4:
        made[2:4] = struct.pack("!H", length)
        made[4:6] = struct.pack("!H", int.from_bytes(made[4:6], "big") + number & 0xFFFF)
    else:
        made[4:6] = struct.pack("!H", length - 40)
    if udp:
        made[start + 4 : start + 6] = struct.pack("!H", length - start)
    else:
        sequence = int.from_bytes(made[start + 4 : start + 8], "big") + number * size
        made[start + 4 : start + 8] = struct.pack("!I", sequence & 0xFFFFFFFF)
        if number < count - 1:
            made[start + 13] &= 0xFF ^ (FIN | PSH)
        if number > 0:
            made[start + 13] &= 0xFF ^ CWR
    return with_checksums(bytes(made) + piece)
