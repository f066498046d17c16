"""Fragments through the gateway between real hosts, in both directions and both versions of IP; the hosts' kernels judge what arrives.

The cases are those of OpenBSD's regress/sys/net/pf_fragment (frag, cutnew, cutold, dropnew, dropold, ext) and of RFC 1858, 3128 and
5722: what can be reassembled arrives whole in whatever order it came, what overlaps is dropped as a whole, what is bounded stays so.
"""

import itertools
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import pytest
from gateways import Egress
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.packet import Packet, Raw
from topology import INTERNET4, INTERNET6, Lab
from triangle import socket_in

from tests.lab.nat.places import SILENCE, Place, connected, heard

EXTERNAL4 = "203.0.113.5"  # one address for all devices
VERSIONS = (4, 6)
DIRECTIONS = ("out", "in")
SERVERS = {4: INTERNET4[0], 6: INTERNET6[0]}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
TEXT = b"".join(b"%08d" % number for number in range(200))  # 1600 octets: more than a tunnel's MTU with its headers
UDP_HEADER = 8
Slices = list[tuple[int, int]]  # of the datagram, UDP header included: begin, end
IDENTIFICATION = itertools.count(0x4000)


@pytest.fixture(scope="module")
def ours(lab: Lab) -> Iterator[Place]:
    gateway = Egress(lab, "gateway-fragments")
    gateway.init()
    gateway.edit(r'addresses = \["203[^"]*"', f'addresses = ["{EXTERNAL4}/32"')
    place = connected(lab, gateway, 2)
    yield place
    place.stop()


@dataclass
class Way:
    """From a sender to a receiver that knows it, over one version of IP."""

    version: int
    source: tuple[str, int]
    destination: tuple[str, int]
    raw: socket.socket  # of the sender
    receiver: socket.socket

    def datagram(self, text: bytes = TEXT) -> bytes:
        """UDP header and `text`, with the checksum that belongs to the way's endpoints."""
        ends = {"src": self.source[0], "dst": self.destination[0]}
        whole = IP(**ends) if self.version == 4 else IPv6(**ends)
        whole = whole / UDP(sport=self.source[1], dport=self.destination[1]) / Raw(text)
        return bytes(whole)[-len(text) - UDP_HEADER :]

    def send(
        self,
        octets: bytes,
        slices: Slices,
        last: int | None = None,
        lies: Mapping[tuple[int, int], bytes] = MappingProxyType({}),
        extended: bool = False,
    ) -> None:
        """The slices as fragments, all of one datagram, which ends at `last` (None: where they end). Slices in `lies` are of others."""
        number = next(IDENTIFICATION)
        last = max(end for _, end in slices) if last is None else last
        for begin, end in slices:
            part = lies.get((begin, end), octets)[begin:end]
            self.raw.sendto(bytes(self.fragment(number, part, begin, end != last, extended)), (self.destination[0], 0))

    def fragment(self, number: int, part: bytes, offset: int, more: bool, extended: bool) -> Packet:
        source, destination = self.source[0], self.destination[0]
        if self.version == 4:
            return IP(src=source, dst=destination, id=number, flags=int(more), frag=offset // 8, proto=socket.IPPROTO_UDP) / Raw(part)
        header = IPv6(src=source, dst=destination)
        if extended:
            header = header / IPv6ExtHdrDestOpt()
        return header / IPv6ExtHdrFragment(id=number, m=int(more), offset=offset // 8, nh=socket.IPPROTO_UDP) / Raw(part)


@pytest.fixture(params=[(v, d) for v in VERSIONS for d in DIRECTIONS], ids=lambda p: f"IPv{p[0]} {p[1]}")
def way(ours: Place, request: pytest.FixtureRequest) -> Iterator[Way]:
    with opened(ours, *request.param) as through:
        yield through


@contextmanager
def opened(place: Place, version: int, direction: str) -> Iterator[Way]:
    """A mapping of client 1, and the way through it in one direction."""
    lab, client_at = place.lab, place.clients[0].namespace
    inner = place.clients[0].quick.addresses[(4, 6).index(version)].partition("/")[0]
    family = FAMILIES[version]
    with socket_in(client_at, family, socket.SOCK_DGRAM) as client, socket_in(lab.internet, family, socket.SOCK_DGRAM) as server:
        client.bind((inner, 0))
        server.bind((SERVERS[version], 0))
        client.sendto(b"open", server.getsockname()[:2])
        opening = heard(server)
        assert opening
        inside, outside, external = client.getsockname()[:2], server.getsockname()[:2], opening[1][:2]
        sender, ends = (client_at, (inside, outside)) if direction == "out" else (lab.internet, (outside, external))
        with socket_in(sender, family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            yield Way(version, *ends, raw, server if direction == "out" else client)


def cut(size: int, *at: int) -> Slices:
    """The slices between these offsets."""
    return list(itertools.pairwise((0, *at, size)))


WHOLE = UDP_HEADER + len(TEXT)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=lambda order: "".join(map(str, order)))
def test_three_fragments_arrive_in_any_order(way: Way, order: Sequence[int]) -> None:
    """RFC 4787 REQ-14."""
    slices = cut(WHOLE, 536, 1072)
    way.send(way.datagram(), [slices[index] for index in order])
    arrived = heard(way.receiver)
    assert arrived
    assert arrived[0] == TEXT


def test_many_small_fragments_arrive(way: Way) -> None:
    text = TEXT[:400]
    way.send(way.datagram(text), cut(UDP_HEADER + len(text), *range(16, 400, 16)))
    arrived = heard(way.receiver)
    assert arrived
    assert arrived[0] == text


def test_a_datagram_of_the_largest_size_arrives(way: Way) -> None:
    text = (TEXT * 41)[: 65_535 - 20 - UDP_HEADER]
    size = UDP_HEADER + len(text)
    way.send(way.datagram(text), cut(size, *range(1280, size, 1280)))
    arrived = heard(way.receiver)
    assert arrived
    assert arrived[0] == text


@pytest.mark.parametrize("way", [(6, "out"), (6, "in")], ids=["out", "in"], indirect=True)
def test_fragments_behind_an_extension_header_arrive(way: Way) -> None:
    """OpenBSD's frag6_ext."""
    way.send(way.datagram(), cut(WHOLE, 536, 1072), extended=True)
    arrived = heard(way.receiver)
    assert arrived
    assert arrived[0] == TEXT


@pytest.mark.parametrize("way", [(6, "out"), (6, "in")], ids=["out", "in"], indirect=True)
def test_an_atomic_fragment_arrives(way: Way) -> None:
    """RFC 6946: a datagram that is one fragment."""
    text = TEXT[:64]
    way.send(way.datagram(text), [(0, UDP_HEADER + len(text))])
    arrived = heard(way.receiver)
    assert arrived
    assert arrived[0] == text


OVERLAPS: dict[str, tuple[Slices, int]] = {  # and which of them brings other octets than the datagram's
    "cutnew": ([(0, 800), (800, WHOLE), (400, 1200)], 2),  # every case covers the whole datagram
    "the next begins before the end": ([(0, 800), (792, WHOLE)], 1),
    "the previous ends after the begin": ([(800, WHOLE), (0, 808)], 1),
    "dropnew: within what is there": ([(0, 800), (160, 320), (800, WHOLE)], 1),
    "dropold: around what is there": ([(160, 320), (0, 800), (800, WHOLE)], 0),
    "the first again, longer": ([(0, 24), (0, 800), (800, WHOLE)], 0),
    "the ports again": ([(0, 800), (0, 16), (800, WHOLE)], 1),
}


@pytest.mark.parametrize("case", OVERLAPS)
def test_a_datagram_whose_fragments_contradict_each_other_is_dropped_as_a_whole(ours: Place, way: Way, case: str) -> None:
    """RFC 5722, also for IPv4. The first datagram of `cutnew` is complete before the overlap comes, and arrives."""
    before = drops(ours)
    contradict(way, case)
    arrived = heard(way.receiver, SILENCE)
    assert (arrived[0] if arrived else None) == (TEXT if case == "cutnew" else None)
    if case != "cutnew":
        assert drops(ours).get("fragment_overlap", 0) > before.get("fragment_overlap", 0)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_contradiction_passes_masquerade(masquerade: Place, version: int) -> None:
    """The kernel drops overlapping datagrams, too, but for a fragment within another one, which it takes for a repetition."""
    with opened(masquerade, version, "out") as through:
        contradict(through, "dropnew: within what is there")
        arrived = heard(through.receiver)
    assert arrived
    assert arrived[0] == TEXT


def contradict(way: Way, case: str) -> None:
    slices, liar = OVERLAPS[case]
    octets = way.datagram()
    lie = bytes(octet ^ 0x55 for octet in octets)
    way.send(octets, slices, last=WHOLE, lies={slices[liar]: lie})


def test_a_fragment_that_comes_twice_does_no_harm(way: Way) -> None:
    """RFC 8200 4.5: networks repeat packets."""
    way.send(way.datagram(), [(0, 800), (0, 800), (800, WHOLE)])
    arrived = heard(way.receiver)
    assert arrived
    assert arrived[0] == TEXT


def test_a_datagram_that_would_be_longer_than_can_be_is_dropped(ours: Place, way: Way) -> None:
    """The ping of death: the last fragment ends behind 65 535."""
    before = sum(drops(ours).values())
    octets = way.datagram((TEXT * 41)[: 65_535 - 20 - UDP_HEADER]) + bytes(1200)
    way.send(octets, [(0, 1200), (65_528, 65_528 + 1200)])
    assert heard(way.receiver, SILENCE) is None
    assert sum(drops(ours).values()) > before


def test_a_first_fragment_without_the_whole_transport_header_is_dropped(ours: Place, lab: Lab) -> None:
    """RFC 1858, 3128: TCP flags hidden in a second fragment."""
    before = sum(drops(ours).values())
    segment = b"\x9c\x40\x00\x50" + bytes(8) + b"\x50\x02\xff\xff" + bytes(4)
    inner = ours.inner(1)
    with socket_in(ours.clients[0].namespace, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for begin, end in ((0, 8), (8, 20)):
            header = IP(src=inner, dst=INTERNET4[0], id=77, flags=int(end != 20), frag=begin // 8, proto=socket.IPPROTO_TCP)
            raw.sendto(bytes(header / Raw(segment[begin:end])), (INTERNET4[0], 0))
    with socket_in(lab.internet, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as wire:
        assert heard(wire, SILENCE) is None
    assert sum(drops(ours).values()) > before


def test_identifications_of_two_devices_do_not_meet(ours: Place) -> None:
    """RFC 6864 5.3.1, RFC 4963: two devices behind one address, one identification, fragments in turns; both datagrams arrive."""
    texts = [bytes([letter]) * 1400 for letter in b"ab"]
    wanted = [(ours.clients[n - 1].namespace, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) for n in (1, 2)]
    with ours.sockets((ours.lab.internet, INTERNET4[0], 46_000)) as (server,), socket_in(*wanted[0]) as one, socket_in(*wanted[1]) as two:
        for round_trip in ("to learn who is there", "then"):
            parts = []
            for number, text in enumerate(texts, 1):
                header = {"src": ours.inner(number), "dst": INTERNET4[0], "id": 9, "proto": socket.IPPROTO_UDP}
                whole = bytes(IP(src=ours.inner(number), dst=INTERNET4[0]) / UDP(sport=46_001, dport=46_000) / Raw(text))[20:]
                parts.append((IP(flags=1, **header) / Raw(whole[:704]), IP(frag=88, **header) / Raw(whole[704:])))
            for sender, part in ((one, parts[0][0]), (two, parts[1][0]), (one, parts[0][1]), (two, parts[1][1])):
                sender.sendto(bytes(part), (INTERNET4[0], 0))
            arrived = [each for each in (heard(server), heard(server)) if each]
            assert sorted(text for text, _ in arrived) == texts, round_trip
            assert len({remote[0] for _, remote in arrived}) == 1


def drops(place: Place) -> dict[str, int]:
    assert isinstance(place.gateway, Egress)
    return place.gateway.drops()
