"""The PACKET record: what `headers.parse` found out about one IP packet. Offsets count from the start of its buffer."""

import numpy as np

PACKET = np.dtype(
    [
        ("start", "i8"),  # offset of the IP header in the buffer
        ("length", "i8"),  # of the IP packet, by its own header; the buffer may hold padding behind it
        ("version", "i8"),  # 4 or 6
        ("protocol", "i8"),  # of the transport header: 6 TCP, 17 UDP, 1 ICMP, 58 ICMPv6
        ("transport", "i8"),  # offset of the transport header
        ("payload", "i8"),  # offset of what follows the transport header (TCP options are part of the header)
        ("fragment", "i8"),  # 0 whole, 1 first fragment, 2 a later one (no transport header: ports are 0)
        ("ttl", "i8"),  # TTL or hop limit
        ("source_hi", "i8"),
        ("source_lo", "i8"),
        ("destination_hi", "i8"),
        ("destination_lo", "i8"),
        ("source_port", "i8"),  # of an ICMP query: its identifier, in both
        ("destination_port", "i8"),
        ("tcp_flags", "i8"),
        ("icmp_type", "i8"),  # -1 when the packet is not ICMP
        ("icmp_error", "i8"),  # 1: an ICMP error, its embedded packet starts at `payload`
        ("partial", "i8"),  # 1: the transport checksum holds only the pseudo-header's sum (virtio NEEDS_CSUM); 2: a quote is cut before it
        ("segments", "i8"),  # how many packets on the wire this is (a super-packet is more than one)
        ("owner", "i8"),  # whose it is, once known
        ("flow", "i8"),  # its NAT flow, once known
    ],
    align=True,
)
