"""Datagrams in pieces through the gateway: one packet for policy and translation, in pieces again behind it, and harmless to others.

RFC 4787 REQ-13 and 14, RFC 6146 3.4, RFC 5722, RFC 1858; security S13.
"""

import struct
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, IPOption_Router_Alert, IPOption_Timestamp, UDPerror, defragment, fragment
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment, defragment6, fragment6

from egressvpn.dataplane.channel import Command
from egressvpn.dataplane.local import DATAGRAMS, DEVICE_DATAGRAMS, OCTETS, OUTSIDE_DATAGRAMS, TUN_IN
from egressvpn.dataplane.loop import sweep
from egressvpn.dataplane.reassembly import REASSEMBLY_TIMEOUT
from egressvpn.dataplane.receive import receive
from egressvpn.dataplane.segment import handle_tun, read_tun
from egressvpn.kernel import JIT
from egressvpn.nat.tables import ENDPOINT_INDEPENDENT
from egressvpn.verdict import Verdict
from tests.dataplane.gateway import EXTERNAL6, ONE, ONE6, POOL, REMOTE, REMOTE6, TWO, TWO6, Gateway, address_words, udp
from tests.dataplane.rig import START, seal

CONTENT = bytes(range(256)) * 16


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    yield made
    made.close()


def datagram(source: str, destination: str, size: int = 4000, **fields: Any) -> Any:
    """A UDP datagram with a right checksum, to be cut."""
    packet = udp(source, destination, payload=CONTENT[:size], **({} if ":" in source else {"flags": 0, "id": 77}) | fields)
    return packet.__class__(bytes(packet))


def cut(packet: Any, size: int = 1200) -> list[Any]:
    """Fragments with about `size` octets."""
    if IP in packet:
        return [IP(bytes(piece)) for piece in fragment(packet, size // 8 * 8)]
    with_header = IPv6(src=packet.src, dst=packet.dst) / IPv6ExtHdrFragment(id=77, nh=packet.nh) / packet.payload
    return [IPv6(bytes(piece)) for piece in fragment6(with_header, size)]


def whole(pieces: list[Any]) -> Any:
    """What the receiver makes of them."""
    if IP in pieces[0]:
        (made,) = defragment(pieces)
        return IP(bytes(made))
    return IPv6(bytes(defragment6(pieces)))


# both ways


@pytest.mark.parametrize(("source", "destination", "external"), [(ONE, REMOTE, POOL), (ONE6, REMOTE6, EXTERNAL6[1])])
def test_rfc4787_req14_a_datagram_out_of_the_tunnel_is_translated_as_one_and_leaves_in_pieces(
    gateway: Gateway, source: str, destination: str, external: str
) -> None:
    pieces = cut(datagram(source, destination))
    out = gateway.send(1, *reversed(pieces))
    assert len(out) == len(pieces)
    assert max(map(len, out)) <= max(map(len, pieces))
    made = whole(out)
    assert (made.src, made.dst, made[UDP].dport, made[UDP].load) == (external, destination, 1053, CONTENT[:4000])
    made[UDP].chksum, right = None, made[UDP].chksum
    assert UDP(bytes(made[UDP])).len == 4008
    assert made.__class__(bytes(made))[UDP].chksum == right
    assert gateway.drops() == {}
    assert int(gateway.b.nat.settings[0].flows) == 1


@pytest.mark.parametrize(("inner", "remote", "external"), [(ONE, REMOTE, POOL), (ONE6, REMOTE6, EXTERNAL6[1])], ids=["IPv4", "IPv6"])
def test_rfc4787_req14_a_datagram_from_outside_reaches_its_device_in_pieces_that_fit_the_tunnel(
    gateway: Gateway, inner: str, remote: str, external: str
) -> None:
    (out,) = gateway.send(1, udp(inner, remote))
    pieces = cut(datagram(remote, external, sport=1053, dport=out[UDP].sport), 1500)
    got = gateway.arrive(pieces[1], pieces[2], pieces[0])
    assert {number for number, _ in got} == {1}
    assert max(len(packet) for _, packet in got) <= 1420
    made = whole([packet for _, packet in got])
    assert (made.src, made.dst, made[UDP].dport, made[UDP].load) == (remote, inner, 5000, CONTENT[:4000])
    assert gateway.drops() == {}


def test_a_small_datagram_in_pieces_reaches_its_device_whole(gateway: Gateway) -> None:
    port = gateway.external(1, udp(ONE, REMOTE))
    got = gateway.arrive(*cut(datagram(REMOTE, POOL, 1000, sport=1053, dport=port), 400))
    assert [(number, len(packet), packet.flags.MF, packet[UDP].load) for number, packet in got] == [(1, 1028, False, CONTENT[:1000])]


def test_a_datagram_in_pieces_turns_round_at_a_pool_address() -> None:
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT)
    port = gateway.external(2, udp(TWO, REMOTE, sport=7000))
    assert gateway.send(1, *cut(datagram(ONE, POOL, dport=port))) == []
    got = gateway.delivered()
    assert {number for number, _ in got} == {2}
    made = whole([packet for _, packet in got])
    assert (made.src, made.dst, made[UDP].dport, made[UDP].load) == (POOL, TWO, 7000, CONTENT[:4000])
    gateway.send(2, udp(TWO6, REMOTE6, sport=7000))
    gateway.send(1, *cut(datagram(ONE6, EXTERNAL6[2], dport=7000)))
    assert whole([packet for _, packet in gateway.delivered()])[UDP].load == CONTENT[:4000]
    gateway.close()


def test_a_ping_of_4000_octets_goes_and_comes_back(gateway: Gateway) -> None:
    out = whole(gateway.send(1, *cut(IP(bytes(IP(src=ONE, dst=REMOTE) / ICMP(id=9) / CONTENT[:4000])))))
    reply = IP(bytes(IP(src=REMOTE, dst=POOL) / ICMP(type=0, id=out[ICMP].id) / CONTENT[:4000]))
    got = whole([packet for _, packet in gateway.arrive(*cut(reply, 1400))])
    assert (got.dst, got[ICMP].id, got[ICMP].load) == (ONE, 9, CONTENT[:4000])


def test_policy_sees_the_whole_datagram_and_its_refusal_quotes_it(gateway: Gateway) -> None:
    gateway.rig.command(Command.ADD_DENIED, version=4, low=address_words("10.0.0.0")[1], prefix_length=8)
    pieces = cut(datagram(ONE, "10.1.2.3"))
    assert gateway.send(1, *pieces) == []
    ((_, error),) = gateway.delivered()
    assert (error[ICMP].type, error[ICMP].code, error[UDPerror].dport) == (3, 13, 1053)
    assert gateway.drops() == {"policy_denied": 1}


def test_an_exempt_destination_gets_its_pieces_untranslated(gateway: Gateway) -> None:
    gateway.rig.command(Command.ADD_EXEMPT, version=4, low=address_words("198.51.100.0")[1], prefix_length=24)
    made = whole(gateway.send(1, *cut(datagram(ONE, REMOTE))))
    assert (made.src, made.id, made[UDP].load) == (ONE, 77, CONTENT[:4000])
    got = whole([packet for _, packet in gateway.arrive(*cut(datagram(REMOTE, ONE)))])
    assert (got.src, got.dst, got[UDP].load) == (REMOTE, ONE, CONTENT[:4000])


def test_rfc7857_req10_two_devices_whose_pieces_come_interleaved_with_one_identification_do_not_mix(gateway: Gateway) -> None:
    first, second = cut(datagram(ONE, REMOTE)), cut(datagram(TWO, REMOTE, 3900))
    out = []
    for mine, theirs in zip(first, second, strict=True):
        out += gateway.send(1, mine) + gateway.send(2, theirs)
    assert len({packet.id for packet in out}) == 2
    made = [whole([packet for packet in out if packet.id == name]) for name in {packet.id for packet in out}]
    assert sorted(packet[UDP].load for packet in made) == sorted([CONTENT[:4000], CONTENT[:3900]])


def test_pieces_that_may_not_be_cut_further_get_an_identification_of_their_own_too(gateway: Gateway) -> None:
    mine, theirs = ([IP(bytes(piece)) for piece in fragment(datagram(source, REMOTE), 1200)] for source in (ONE, TWO))
    for piece in mine + theirs:
        piece.flags.DF, piece.chksum = True, None
    first, second = gateway.send(1, *mine), gateway.send(2, *theirs)
    assert {packet.id for packet in first} & {packet.id for packet in second} == set()
    assert all(packet.flags.DF for packet in first)


def test_nobody_outside_adds_a_piece_to_a_datagram_of_a_device(gateway: Gateway) -> None:
    pieces = cut(datagram(ONE, REMOTE))
    gateway.send(1, *pieces[:-1])
    forged = IP(bytes(pieces[-1])[:-1] + b"!")
    forged.chksum = None
    assert gateway.arrive(forged, pieces[1]) == []
    assert whole(gateway.send(1, pieces[-1]))[UDP].load == CONTENT[:4000]


def test_options_stay_where_they_belong(gateway: Gateway) -> None:
    pieces = [IP(bytes(piece)) for piece in fragment(datagram(ONE, REMOTE, options=[IPOption_Router_Alert(), IPOption_Timestamp()]), 1200)]
    out = gateway.send(1, *pieces)
    assert [len(packet.options) for packet in out] == [len(out[0].options)] + [1] * (len(out) - 1)
    assert whole(out)[UDP].load == CONTENT[:4000]


@given(st.integers(100, 6000), st.integers(64, 1400), st.randoms(use_true_random=False), st.booleans())
def test_whatever_the_sizes_and_the_order_the_receiver_gets_the_datagram(size: int, piece: int, order: Any, six: bool) -> None:
    with closing(Gateway()) as gateway:
        content = (CONTENT * 2)[:size]
        packet = udp(ONE6, REMOTE6, payload=content) if six else udp(ONE, REMOTE, payload=content, flags=0, id=3)
        pieces = cut(packet.__class__(bytes(packet)), max(piece, 128) if six else piece)
        shuffled = list(pieces)
        order.shuffle(shuffled)
        out = gateway.send(1, *[copy for copy in shuffled[:-1] for _ in range(order.randint(1, 2))], shuffled[-1])
        largest = max(map(len, pieces))
        assert all(len(packet) <= largest for packet in out)
        assert len(out) <= len(pieces)
        assert (whole(out) if len(pieces) > 1 else out[0])[UDP].load == content


# what does not fit the tunnel


def test_rfc4787_req13_a_packet_that_may_not_be_cut_is_answered_with_the_size_that_fits(gateway: Gateway) -> None:
    port = gateway.external(1, udp(ONE, REMOTE))
    gateway.rig.command(Command.SET_MTU, index=1300)
    sent = udp(REMOTE, POOL, sport=1053, dport=port, payload=CONTENT[:1380])
    assert gateway.arrive(sent) == []
    (frame,) = gateway.rig.written()
    error = IP(frame[10:])
    assert (error.src, error.dst, error[ICMP].type, error[ICMP].code, error[ICMP].nexthopmtu) == (POOL, REMOTE, 3, 4, 1300)
    assert bytes(error[IPerror]) == bytes(sent)[: len(error[IPerror])]  # as it came
    assert gateway.drops() == {"packet_too_big": 1}


def test_rfc8200_the_same_in_ipv6_is_packet_too_big(gateway: Gateway) -> None:
    gateway.send(1, udp(ONE6, REMOTE6))
    gateway.rig.command(Command.SET_MTU, index=1300)
    assert gateway.arrive(udp(REMOTE6, EXTERNAL6[1], sport=1053, dport=5000, payload=CONTENT[:1380])) == []
    (frame,) = gateway.rig.written()
    error = IPv6(frame[10:])
    assert (error.src, error.dst, error[ICMPv6PacketTooBig].mtu) == (EXTERNAL6[1], REMOTE6, 1300)


def test_rfc4787_req13a_one_that_may_be_cut_is_cut_in_order(gateway: Gateway) -> None:
    port = gateway.external(1, udp(ONE, REMOTE))
    gateway.rig.command(Command.SET_MTU, index=1300)
    got = [packet for _, packet in gateway.arrive(datagram(REMOTE, POOL, 1380, sport=1053, dport=port))]
    assert [(packet.frag * 8, packet.flags.MF, packet.id) for packet in got] == [(0, True, 77), (1280, False, 77)]
    assert whole(got)[UDP].load == CONTENT[:1380]


def test_the_inside_hears_of_it_too_when_it_is_the_sender() -> None:
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT)
    port = gateway.external(2, udp(TWO, REMOTE, sport=7000))
    gateway.rig.command(Command.SET_MTU, index=1300)
    gateway.send(1, udp(ONE, POOL, dport=port, payload=CONTENT[:1380]))
    ((number, error),) = gateway.delivered()
    assert (number, error[ICMP].type, error[ICMP].code, error[ICMP].nexthopmtu, error[IPerror].src) == (1, 3, 4, 1300, ONE)
    gateway.close()


# attacks


def test_teardrop_and_what_follows_of_it_is_dropped(gateway: Gateway) -> None:
    base = {"src": ONE, "dst": REMOTE, "id": 242, "proto": 17}
    first = IP(**base, flags="MF") / UDP(sport=5000, dport=1053, len=64) / bytes(24)
    inside = IP(**base, frag=3) / bytes(4)
    rest = IP(**base, frag=5) / bytes(24)
    assert gateway.send(1, first, inside, rest, rest) == []
    assert gateway.drops() == {"fragment_overlap": 4}


def test_one_octet_that_differs_ends_the_datagram(gateway: Gateway) -> None:
    pieces = cut(datagram(ONE, REMOTE))
    forged = IP(bytes(pieces[1])[:-1] + b"!")
    forged.chksum = None
    assert gateway.send(1, pieces[0], pieces[1], forged, *pieces[2:]) == []
    assert gateway.drops() == {"fragment_overlap": len(pieces) + 1}
    assert len(gateway.send(1, *cut(datagram(ONE, REMOTE, id=78)))) == len(pieces)


def test_the_ping_of_death_is_malformed(gateway: Gateway) -> None:
    port = gateway.external(1, udp(ONE, REMOTE))
    first = IP(src=REMOTE, dst=POOL, id=9, flags="MF", proto=17) / UDP(sport=1053, dport=port, len=65_535) / bytes(1472)
    last = IP(src=REMOTE, dst=POOL, id=9, frag=8189, proto=17) / bytes(1400)
    assert gateway.arrive(first, last) == []
    assert gateway.drops() == {"malformed_packet": 1}


@pytest.mark.parametrize(
    ("header", "size"),
    [(TCP(sport=80, dport=9, flags="S"), 8), (TCP(sport=80, dport=9, flags="S"), 16), (UDP(sport=1, dport=2, len=40), 0)],
)
def test_rfc1858_a_first_fragment_without_its_whole_transport_header_is_malformed(gateway: Gateway, header: Any, size: int) -> None:
    octets = bytes(header)[:size]
    packet = IP(src=ONE, dst=REMOTE, id=9, flags="MF", proto=6 if isinstance(header, TCP) else 17) / octets
    gateway.send(1, packet)
    assert gateway.drops() == {"malformed_packet": 1}


def test_rfc3128_a_tiny_fragment_over_the_flags_of_a_tcp_header_opens_nothing(gateway: Gateway) -> None:
    base = {"src": ONE, "dst": REMOTE, "id": 9, "proto": 6}
    first = IP(**base, flags="MF") / TCP(sport=80, dport=9, flags="A") / bytes(4)
    assert gateway.send(1, first, IP(**base, frag=1) / bytes(TCP(sport=80, dport=9, flags="S"))[8:]) == []
    assert gateway.drops() == {"fragment_overlap": 2}
    assert int(gateway.b.nat.settings[0].flows) == 0


def test_a_fragment_inside_a_fragment_is_malformed(gateway: Gateway) -> None:
    inner = bytes(IPv6ExtHdrFragment(id=5, offset=0, m=1, nh=17)) + bytes(UDP(sport=1, dport=2, len=64)) + bytes(56)
    head = IPv6(src=ONE6, dst=REMOTE6)
    first = head / IPv6ExtHdrFragment(id=4, m=1, nh=44) / inner[:64]
    assert gateway.send(1, first, head / IPv6ExtHdrFragment(id=4, offset=8, nh=44) / inner[64:]) == []
    assert set(gateway.drops()) <= {"malformed_packet", "fragment"}
    assert sum(gateway.drops().values()) >= 1


def test_a_fragment_with_a_wrong_header_checksum_is_dropped(gateway: Gateway) -> None:
    piece = cut(datagram(ONE, REMOTE))[0]
    piece.chksum ^= 1
    gateway.send(1, piece)
    assert gateway.drops() == {"bad_checksum": 1}


def test_what_never_becomes_whole_is_dropped_after_its_time_and_counted(gateway: Gateway) -> None:
    pieces = cut(datagram(ONE, REMOTE))
    gateway.send(1, *pieces[:-1])
    sweep(gateway.b, START + REASSEMBLY_TIMEOUT - 1)
    assert gateway.drops() == {}
    sweep(gateway.b, START + REASSEMBLY_TIMEOUT)
    assert gateway.drops() == {"fragment_timeout": len(pieces) - 1}
    assert gateway.send(1, pieces[-1]) == []


def test_a_device_that_sends_no_last_fragments_harms_itself_alone(gateway: Gateway) -> None:
    theirs = cut(datagram(TWO, REMOTE))
    gateway.send(2, *theirs[:-1])
    gateway.send(1, *[IP(src=ONE, dst=REMOTE, id=n, flags="MF", proto=17) / UDP(sport=1, dport=2, len=2000) / bytes(8) for n in range(100)])
    assert gateway.drops() == {"fragment_limit": 100 - DEVICE_DATAGRAMS}
    assert len(gateway.send(2, theirs[-1])) == len(theirs)
    assert len(gateway.send(1, *cut(datagram(ONE, REMOTE)))) == len(theirs)  # even to itself only while it goes on


def test_rfc4787_req14a_100_000_fragments_without_a_first_one_take_no_more_memory_and_harm_no_other_flow(gateway: Gateway) -> None:
    port = gateway.external(1, udp(ONE, REMOTE))
    pieces = cut(datagram(REMOTE, POOL, sport=1053, dport=port), 1400)
    octets, count = gateway.b.local.octets, 100_000 if JIT else 3000
    for number in range(count):
        header = struct.pack(
            "!BBHHHBBHII", 0x45, 0, 532, number & 0xFFFF, 0x2064, 64, 17, 0, 0xC0000201 + (number >> 16), address_words(POOL)[1]
        )
        frame = bytes(10) + header[:10] + _checksum(header) + header[12:] + bytes(512)
        octets[TUN_IN : TUN_IN + len(frame)] = np.frombuffer(frame, np.uint8)
        assert handle_tun(gateway.b, len(frame), START) == Verdict.PASS
        if number % 1000 == 999:
            ((_, packet),) = gateway.arrive(udp(REMOTE, POOL, sport=1053, dport=port, payload=b"in between"))
            assert packet.load == b"in between"
            assert whole([piece for _, piece in gateway.arrive(*pieces)])[UDP].load == CONTENT[:4000]
    assert gateway.drops()["fragment_limit"] in range(count - OUTSIDE_DATAGRAMS, count + 1)
    assert octets.size == OCTETS
    assert int((gateway.b.local.datagrams.state != 0).sum()) <= OUTSIDE_DATAGRAMS < DATAGRAMS


def _checksum(header: bytes) -> bytes:
    total = sum(int.from_bytes(header[at : at + 2], "big") for at in range(0, len(header), 2))
    total = (total & 0xFFFF) + (total >> 16)
    return (0xFFFF ^ ((total & 0xFFFF) + (total >> 16))).to_bytes(2, "big")


@given(st.lists(st.tuples(st.integers(0, 40), st.binary(max_size=80), st.booleans(), st.integers(0, 3)), max_size=12), st.booleans())
def test_any_fragments_do_no_harm(fragments: list[tuple[int, bytes, bool, int]], inside: bool) -> None:
    gateway = Gateway()
    port = gateway.external(1, udp(ONE, REMOTE))
    source, destination = (ONE, REMOTE) if inside else (REMOTE, POOL)
    for offset, data, more, name in fragments:
        packet = IP(src=source, dst=destination, frag=offset, flags="MF" if more else 0, id=name, proto=17) / data
        if inside:
            gateway.rig.send(seal(gateway.index[1], 100 + gateway._sent[1], bytes(packet)))
            gateway._sent[1] += 1
            receive(gateway.b, 0, 64, START)
        else:
            gateway.rig.tun.send(bytes(10) + bytes(packet))
            assert read_tun(gateway.b, START) == 1
    gateway.rig.written()
    gateway.rig.sent()
    assert gateway.external(1, udp(ONE, REMOTE)) == port
    gateway.close()
