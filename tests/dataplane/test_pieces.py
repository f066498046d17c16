"""How many pieces a datagram leaves in, and how long they are, when its fragments had headers of different lengths."""

from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, PadN

from tests.dataplane.gateway import ONE, ONE6, REMOTE, REMOTE6, Gateway
from tests.dataplane.test_fragments import CONTENT, whole


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    yield made
    made.close()


def pieces4(content: bytes, sizes: list[int], first: bytes = b"") -> list[Any]:
    """An IPv4 datagram in fragments with so many octets of data, the first with these options."""
    made, at = [], 0
    for size in sizes:
        more = "MF" if at + size < len(content) else 0
        made.append(
            IP(src=ONE, dst=REMOTE, id=9, proto=17, flags=more, frag=at // 8, options=IP(_ihl(first) + first).options if at == 0 else [])
        )
        made[-1] /= content[at : at + size]
        at += size
    return made


def _ihl(options: bytes) -> bytes:
    """A header for these options."""
    return bytes([0x45 + len(options) // 4]) + bytes(19)


def pieces6(content: bytes, sizes: list[int], padding: int) -> list[Any]:
    """The same in IPv6, a header of so many octets of options before the first fragment header."""
    made, at = [], 0
    for size in sizes:
        packet = IPv6(src=ONE6, dst=REMOTE6)
        if at == 0:
            packet /= IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(padding))])
        made.append(packet / IPv6ExtHdrFragment(id=9, offset=at // 8, m=int(at + size < len(content)), nh=17) / content[at : at + size])
        at += size
    return made


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
def test_a_long_header_on_the_first_of_many_short_fragments_makes_no_more_of_them(gateway: Gateway, six: bool) -> None:
    short, count = (160, 12) if six else (48, 25)
    sizes = [8] + [short] * count
    content = bytes(UDP(sport=5000, dport=53, len=sum(sizes), chksum=int(six))) + CONTENT[: short * count]
    pieces = pieces6(content, sizes, 148) if six else pieces4(content, sizes, bytes([0x9E, 40]) + bytes(38))
    out = gateway.send(1, *pieces)
    assert len(out) == len(pieces)
    carried = [bytes(packet)[200:] if six else bytes(packet)[60:] for packet in out]
    assert [len(data) for data in carried] == [short] * count + [8]
    assert b"".join(carried)[8:] == content[8:]
    assert gateway.drops() == {}


def test_pieces_behind_options_of_the_first_alone_have_the_room_that_these_took(gateway: Gateway) -> None:
    sizes = [1360, 1400, 1400, 100]  # each but the last is 1420 octets long, as much as the tunnel takes
    content = bytes(UDP(sport=5000, dport=53, len=sum(sizes), chksum=0)) + (CONTENT * 2)[: sum(sizes) - 8]
    out = gateway.send(1, *pieces4(content, sizes, bytes([0x44, 40, 5, 0]) + bytes(36)))
    assert [len(packet) for packet in out] == [1420, 1420, 1420, 120]
    assert whole(out)[UDP].load == content[8:]
