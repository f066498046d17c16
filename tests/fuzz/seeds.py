"""The first inputs of every target, well-formed ones: `python -m tests.fuzz.seeds` writes them into the corpus.

What fuzzing then found stands beside them under the name libFuzzer gave it.
"""

import struct
from collections.abc import Iterator

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.packet import Raw

from tests.fuzz import CORPUS

INSIDE4, REMOTE4, INSIDE6, REMOTE6 = "100.64.0.5", "198.51.100.7", "fd64::5", "2001:db8:51::7"
SYN = [("MSS", 1460), ("NOP", None), ("WScale", 7), ("NOP", None), ("Timestamp", (1, 0)), ("SAckOK", b"")]


def packets() -> dict[str, bytes]:
    """IP packets of every kind that a parser tells apart."""
    four, six = IP(src=INSIDE4, dst=REMOTE4), IPv6(src=INSIDE6, dst=REMOTE6)
    udp, tcp = UDP(sport=4000, dport=53) / Raw(b"query"), TCP(sport=4000, dport=80, flags="S", options=SYN)
    options = [IPOption(b"\x94\x04\x00\x00"), IPOption(b"\x01"), IPOption(b"\x00")]
    jumps = IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))]) / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(12))])
    made = {
        "tcp4": four / tcp,
        "tcp6": six / tcp,
        "udp4": four / udp,
        "udp6": six / udp,
        "udp4-no-checksum": four / UDP(sport=1, dport=2, chksum=0),
        "echo4": four / ICMP(id=7) / Raw(b"x"),
        "echo6": six / ICMPv6EchoRequest(id=7, data=b"x"),
        "error4": four / ICMP(type=3, code=4, nexthopmtu=1300) / four / udp,
        "error6": six / ICMPv6PacketTooBig(mtu=1300) / six / udp,
        "unreachable6": six / ICMPv6DestUnreach(code=3) / six / tcp,
        "options4": IP(src=INSIDE4, dst=REMOTE4, options=options) / tcp,
        "source-route4": IP(src=INSIDE4, dst=REMOTE4, options=[IPOption(b"\x83\x07\x04\x01\x02\x03\x04")]) / udp,
        "first-fragment4": IP(src=INSIDE4, dst=REMOTE4, flags="MF") / udp,
        "later-fragment4": IP(src=INSIDE4, dst=REMOTE4, frag=9, proto=17) / Raw(b"tail"),
        "extensions6": six / jumps / udp,
        "fragment6": six / IPv6ExtHdrFragment(id=9, m=1) / udp,
        "later-fragment6": six / IPv6ExtHdrFragment(id=9, offset=9, nh=17) / Raw(b"tail"),
        "routing6": six / IPv6ExtHdrRouting(type=2, segleft=0, addresses=[REMOTE6]) / tcp,
        "source-route6": six / IPv6ExtHdrRouting(type=2, segleft=1, addresses=[REMOTE6]) / tcp,
        "authentication6": IPv6(src=INSIDE6, dst=REMOTE6, nh=51) / Raw(b"\x11\x04" + bytes(22) + bytes(udp)),
        "other4": IP(src=INSIDE4, dst=REMOTE4, proto=47) / Raw(b"gre"),
        "long4": four / UDP(sport=1, dport=2) / Raw(bytes(1000)),
        "long6": six / TCP(sport=1, dport=2) / Raw(bytes(1400)),
        "ones6": six / UDP(sport=0xFFFF, dport=0) / Raw(b"\xff" * 9),
    }
    return {name: bytes(packet) for name, packet in made.items()}


def in_pieces() -> dict[str, list[bytes]]:
    """Datagrams in pieces, at most four: in order, out of it, twice, overlapping, too long, with options."""
    six = IPv6(src=INSIDE6, dst=REMOTE6)
    octets = bytes(UDP(sport=4000, dport=53, len=68) / Raw(bytes(range(60))))
    places = ((0, 24, 1), (24, 48, 1), (48, 68, 0))
    pieces4 = [
        bytes(IP(src=INSIDE4, dst=REMOTE4, proto=17, id=9, frag=first // 8, flags="MF" if more else 0) / octets[first:last])
        for first, last, more in places
    ]
    pieces6 = [bytes(six / IPv6ExtHdrFragment(id=9, nh=17, offset=first // 8, m=more) / octets[first:last]) for first, last, more in places]
    overlap = bytes(IP(src=INSIDE4, dst=REMOTE4, proto=17, id=9, frag=2, flags="MF") / bytes(16))
    death = bytes(IP(src=INSIDE4, dst=REMOTE4, proto=17, id=9, frag=8189) / bytes(600))
    return {
        "in-pieces4": pieces4,
        "in-pieces6": pieces6,
        "in-pieces-out-of-order4": pieces4[::-1],
        "in-pieces-twice6": [pieces6[1], pieces6[1], pieces6[2], pieces6[0]],
        "in-pieces-overlapping4": [pieces4[0], overlap, *pieces4[1:]],
        "in-pieces-too-long4": [pieces4[0], death],
    }


def of_packets() -> Iterator[tuple[str, str, bytes]]:
    """(target, name, input) for the targets in `packets`."""
    made = packets()
    for name, octets in made.items():
        yield "headers", name, b"\x05" + octets
        yield "headers", f"cut-{name}", b"\x05" + octets[:-9]
        yield "quotes", name, octets
        yield "quotes", f"cut-{name}", octets[: 28 if octets[0] >> 4 == 4 else 48]
        yield "icmp_errors_made", name, bytes([3, 1, 0, 0, 0, 0]) + octets
    for version in (4, 6):
        yield "headers", f"udp{version}-whose-checksum-becomes-zero", b"\0" + _zero_checksum(version)
    yield "nat", "every-kind-outward", b"".join(b"\x03" + block(octets) for octets in made.values())
    yield "nat", "every-kind-inward", b"".join(b"\x02" + block(octets) for octets in made.values())
    for flow in range(6):
        for outward in (0, 1):
            yield "nat_errors", f"flow-{flow}-{outward}", bytes([flow, 3 if flow % 2 == 0 else 1, 1, 0, 0, 0, 0, outward, 0])
    yield "nat_errors", "changed", bytes([64 + 2, 11, 0, 0, 0, 0, 0, 0, 2, 8, 1, 21, 9])
    yield "nat_errors", "quoted", bytes([128, 3, 1, 0, 0, 0, 0, 0]) + block(made["error4"]) + b"\0"


def _zero_checksum(version: int) -> bytes:
    """UDP that has a checksum of 0 once the target has changed its addresses and ports; it must be sent as 0xFFFF (RFC 768)."""
    after = IP(src="203.0.113.5", dst="203.0.113.5") if version == 4 else IPv6(src="2001:db8:113:0:ffff:ffff:ffff:fffb")
    if version == 6:
        after.dst = after.src
    total = (
        (after / UDP(sport=0xFFFF, dport=0) / Raw(bytes(2)))
        .__class__(bytes(after / UDP(sport=0xFFFF, dport=0) / Raw(bytes(2))))[UDP]
        .chksum
    )
    before = IP(src=INSIDE4, dst=REMOTE4) if version == 4 else IPv6(src=INSIDE6, dst=REMOTE6)
    return bytes(before / UDP(sport=7, dport=9) / Raw(struct.pack("!H", total)))


def of_the_datapath() -> Iterator[tuple[str, str, bytes]]:
    """(target, name, input) for the targets in `datapath`."""
    made = packets()
    for target in ("datagrams", "datagrams_at_the_gateway"):
        for name, octets in made.items():
            yield target, f"sealed-{name}", b"\0\0\x01" + block(octets)
        yield target, "keepalive-and-raw", b"\0\0\x01\0\0" + b"\0\0" + block(b"\4\0\0\0" + bytes(28))
        for name in ("forged", "repeated", "unpadded"):
            kind = {"forged": 9, "repeated": 5, "unpadded": 17}[name]
            yield target, name, b"\0\0\x01" + block(made["udp4"]) + bytes([0, kind]) + block(made["udp4"])
        tcp = made["tcp4"][:33] + b"\x10" + made["tcp4"][34:]
        yield target, "gro-batch", b"\0\x0b" + 3 * (b"\x01" + block(tcp)) + b"\x01" + block(tcp[:40])
        yield target, "gro-size-of-its-own", b"\0\x10" + b"\x01" + block(tcp) + b"\4\0\0\0\7"
        yield target, "pktinfo-and-ecn", b"\0\x10\x01" + block(tcp) + b"\0" + bytes(12) + b"\x10\x01" + block(tcp) + b"\2\3"
        congested = b"\x10\x01" + block(tcp[:1] + b"\2" + tcp[2:]) + b"\2\3"  # outer CE, inner ECT(0)
        yield target, "congestion", b"\0" + congested + congested
        yield target, "controls-of-any-kind", b"\0\x18\x01" + block(tcp) + struct.pack("<QIIi", 28, 0, 8, 1) + b"\x7f\0\0\1" * 2
        for load in (0, 1):
            yield target, f"handshakes-{load}", bytes([load]) + b"\0\xf0" + block(b"\7\0\0\0") + b"\0\xf1" + block(b"\7\0\0\0")
        yield target, "handshakes-raw", b"\1\0\0" + block(b"\1\0\0\0" + bytes(144)) + b"\0\0" + block(b"\3\0\0\0" + bytes(60))
        yield target, "forged-does-not-count", b"\0\0\x09" + block(tcp) + b"\0\x01" + block(tcp) + b"\0\x05" + block(tcp)
        for name, fragments in in_pieces().items():
            yield target, name, b"\0" + b"".join(b"\0\x01" + block(octets) for octets in fragments)
        yield target, "truncated", b"\0\xe0\x01" + block(tcp)
        yield target, "truncated-and-roaming", b"\0\xe0\x01" + block(tcp) + b"\4\x01" + block(tcp) + b"\2"
    for target in ("frames", "frames_at_the_gateway"):
        for name, octets in made.items():
            back = swapped(octets)
            yield target, name, b"\1" + (block(octets) if "gateway" in target else b"") + bytes(10) + back
        for name, kind, field in (("tcp4", 1, 16), ("tcp6", 4, 16), ("udp4", 5, 6), ("udp6", 5, 6)):
            flags = bytearray(swapped(made[name] + bytes(range(256)) * 8))
            start = 20 if name.endswith("4") else 40
            if name.startswith("tcp"):
                flags[start + 13] = 0x10
            flags[2:4] = struct.pack("!H", len(flags)) if start == 20 else flags[2:4]
            flags[4:6] = struct.pack("!H", len(flags) - 40) if start == 40 else flags[4:6]
            if name.startswith("udp"):
                flags[start + 4 : start + 6] = struct.pack("!H", len(flags) - start)
            header = struct.pack("<BBHHHH", 1, kind, 0, 700, start, field)
            opened = b"\1" + (block(made[name]) if "gateway" in target else b"")
            yield target, f"super-{name}", opened + header + bytes(flags)
            if name.startswith("tcp"):
                flags[start + 13] = 0x99  # CWR, ACK, PSH, FIN
                yield target, f"super-last-{name}", opened + header + bytes(flags)
            opened = b"\1" + block(made[name]) if "gateway" in target else b"\0"
            yield target, f"partial-{name}", opened + bytes([1]) + bytes(5) + struct.pack("<BBH", start, 0, field)[:4] + swapped(made[name])
    for name, choices in (("tcp4", (0, 16, 32)), ("udp4", (2, 2, 2)), ("tcp6", (1, 17, 33)), ("udp6", (3, 3, 3)), ("mixed", (0, 3, 16))):
        sizes = (1000, 1000, 400) if name != "tcp4" else (1, 1, 1)
        yield "coalescing", name, b"".join(struct.pack("!BHB", choice, size, 0) for choice, size in zip(choices, sizes, strict=True))
    for name, choices in (("broken-udp", (2, 2, 2)), ("broken-tcp", (0, 16, 32))):
        second = struct.pack("!BHB", choices[1], 1000, 1) + bytes([90, 0x77])
        yield "coalescing", name, struct.pack("!BHB", choices[0], 1000, 0) + second + struct.pack("!BHB", choices[2], 1000, 0)
    changed = b"".join(struct.pack("!BHB", 2, 100, 5) + bytes([at, 1]) for at in (1, 8, 21, 23))
    yield "coalescing", "changed", changed + struct.pack("!BHB", 2, 100, 1) + bytes([40, 9])


def of_handshakes() -> Iterator[tuple[str, str, bytes]]:
    """(target, name, input) for the targets in `handshakes`."""
    stamp = struct.pack("!QI", (1 << 62) + 10 + 1_700_000_001, 0)
    initiated = b"\2\0\0\0\0\7" + stamp
    yield "handshakes", "raw", b"\0\0" + block(b"\1\0\0\0" + bytes(144)) + b"\0\1" + block(b"\2\0\0\0" + bytes(88))
    yield "handshakes", "signed", b"".join(b"\1" + bytes([flags]) + block(bytes(140)) for flags in range(8))
    yield "handshakes", "initiated", initiated
    yield "handshakes", "initiated-twice", initiated + initiated + b"\5\0\2\0\0" + initiated[:-1] + b"\1"
    yield "handshakes", "stranger", b"\2\1" + initiated[2:]
    yield "handshakes", "low-order", b"\2\2" + initiated[2:] + bytes(32)
    yield "handshakes", "whole", b"\3\0\0\0\0" + b"\3\0\0\0\0" + b"\3\0\0\0\0"
    yield "handshakes", "altered", b"\3\1\0\x09\1" + b"\3\1\0\x40\1" + b"\3\1\0\4\1" + b"\3\1\0\x20\1"
    for flags in (0, 1, 2, 4, 8, 16):
        yield "handshakes", f"cookie-{flags}", b"\4" + bytes([flags]) + bytes(range(16)) + b"\5\1\0\2\2" + b"\4" + bytes([flags])
    yield "handshakes", "time", initiated + b"\5\0\xff\2\2" + b"\3\0\0\0\0" + b"\5\1\0\x0f\x0f"


def of_the_door() -> Iterator[tuple[str, str, bytes]]:
    """(target, name, input) for the target in `door`."""

    def knocks(shape: int, *sources: int, after: int = 0, other: bytes = b"") -> bytes:
        return b"".join(bytes([shape, after, source]) + block(b"\7\0\0\0") + other for source in sources)

    yield "door", "idle", b"\xff\xff\xff" + knocks(0x0A, 0, 1, 2, 3) + knocks(0x09, 0, 2) + knocks(0x00, 0) + knocks(0x02, 0)
    yield "door", "cookies", b"\xff\0\xff" + knocks(0x6A, 0, 1, 2, 3, 4, 5) + knocks(0x09, 0, 2)
    yield "door", "shares", b"\xff\xff\xff" + knocks(0x6A, 0, 1, 2, 3, 4, 5) * 3 + knocks(0x2A, 0, 2, after=200)
    yield "door", "few-shares", b"\xff\2\xff" + knocks(0x6A, 0, 2, 5, 0, 2, 5)
    yield "door", "answers", b"\xff\0\xff" + knocks(0x5A, 0, 1, 2, 3, 4, 5) + knocks(0x3B, 0, 2, other=b"\1") + knocks(0x3B, 4, other=b"\4")
    yield (
        "door",
        "limited",
        b"\xff\0\xff" + knocks(0x5A, 0, 1, 0, 1, 0, 1, 0) + knocks(0x1B, 0, 0, 0, after=5) + knocks(0x1B, 2, 3, 4, 2, 3, 4, 5),
    )
    yield "door", "exhausted", b"\2\0\xff" + knocks(0x6A, 0, 0, 0) + knocks(0x1B, 2, 2, 2) + knocks(0x80, 0) + knocks(0x1B, 2)
    yield (
        "door",
        "load-ends",
        b"\xff\0\xff" + knocks(0x6A, 0) + knocks(0x2A, 0, after=99) + knocks(0xAA, 0, after=1) + knocks(0x6A, 0, after=90),
    )
    yield "door", "cookie-replies", b"\xff\xff\x08" + knocks(0x02, *[0] * 12) + knocks(0x86, *[0] * 25)


PEER = "public_key=" + "5a" * 32
WG_QUICK = """[Interface]  # a comment
PrivateKey = RXx2nznYZEGZwOW9vPvIWzfOkcveH8Gw6mtE8TBDbdc=
Address = 100.64.0.2/32, fd64::2/128
DNS = 1.1.1.1, example.net
MTU = 0x58c
ListenPort = 51820
Table = off
FwMark = 0xca6c
PostUp = true

[Peer]
PublicKey = Kf5pvZ6M66agfR3sJbGwh+/ibAf/DSHX2wszd3c4pcY=
PresharedKey = dNN/8TbqwT9VMiOmOEFGDTtqoeaNaCco9hD7HH/ZLV8=
Endpoint = [2001:db8::1]:51820
AllowedIPs = 0.0.0.0/0, ::/0
PersistentKeepalive = 25
"""


def of_texts() -> Iterator[tuple[str, str, bytes]]:
    """(target, name, input) for the targets in `texts`."""
    yield "wg_quick", "everything", WG_QUICK.encode()
    yield "wg_quick", "least", "\n".join(WG_QUICK.split("\n")[:2]).encode()
    yield "wg_quick", "name", WG_QUICK.replace("[2001:db8::1]", "vpn.example.net").replace("25", "off").encode()
    yield "wg_quick", "twice", (WG_QUICK + WG_QUICK).encode()
    yield "wg_quick", "key-alone", WG_QUICK.replace("PrivateKey = ", "").encode()
    device = "private_key=" + "0b1d" * 15 + "0b4c\nlisten_port=51820\nfwmark=51820\nreplace_peers=true"
    peer = f"{PEER}\npreshared_key={'07a9' * 16}\nendpoint=[2001:db8::1]:51820\npersistent_keepalive_interval=25"
    networks = "replace_allowed_ips=true\nallowed_ip=10.0.0.0/8\nallowed_ip=-10.1.0.0/16\nallowed_ip=2001:db8::/32"
    for size in (0, 1, 255):
        first = bytes([size])
        yield "uapi", f"get-{size}", first + b"get=1\n\nget=1\n\n"
        yield "uapi", f"set-{size}", first + f"set=1\n{device}\n{peer}\nprotocol_version=1\n{networks}\n\nget=1\n\n".encode()
        yield "uapi", f"removed-{size}", first + f"set=1\n{PEER}\nremove=true\n{PEER}\nupdate_only=true\n\n".encode()
        yield "uapi", f"mistake-{size}", first + f"set=1\n{device}\nno such\n{peer}\n\nset=1\n{PEER}\n\n".encode()
        for bad in ("listen_port=65536", "fwmark=4294967296", "private_key=" + "00" * 33, f"{PEER}\npersistent_keepalive_interval=65536"):
            yield "uapi", f"bad-{bad.split('=')[0]}-{len(bad)}-{size}", first + f"set=1\n{bad}\n\n".encode()
        yield "uapi", f"cut-off-{size}", first + f"set=1\n{device}\n{peer[:90]}".encode()
        yield "uapi", f"get-with-lines-{size}", first + b"get=1\nx=1\n\nget=1\n\nhello\n"


def swapped(octets: bytes) -> bytes:
    """The packet as an answer: addresses and ports change sides."""
    first, size, start = (12, 4, 20) if octets[0] >> 4 == 4 else (8, 16, 40)
    source, destination = octets[first : first + size], octets[first + size : first + 2 * size]
    octets = octets[:first] + destination + source + octets[first + 2 * size :]
    if octets[9 if size == 4 else 6] not in (6, 17):
        return octets
    return octets[:start] + octets[start + 2 : start + 4] + octets[start : start + 2] + octets[start + 4 :]


def block(octets: bytes) -> bytes:
    """As Reader.block takes it."""
    return struct.pack("!H", len(octets)) + octets


def main() -> None:
    for target, name, octets in (*of_packets(), *of_the_datapath(), *of_handshakes(), *of_the_door(), *of_texts()):
        directory = CORPUS / target
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(octets)


if __name__ == "__main__":
    main()
