"""Coalescing is transparent: what the kernel makes of the super-packets is, flow by flow, the packets that came in."""

import random
import socket
from collections import defaultdict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from egressvpn.dataplane.receive import receive
from egressvpn.dataplane.tables import Counter
from tests.dataplane.offload import packets_of, parse
from tests.dataplane.rig import START, Rig, rig, seal

DEVICE4, DEVICE6 = "100.64.0.2", "fd64::2"
ADDRESS = int.from_bytes(socket.inet_aton(DEVICE4), "big")


def bench() -> tuple[Rig, int]:
    made = rig()
    high, low = (int.from_bytes(socket.inet_pton(socket.AF_INET6, DEVICE6)[at : at + 8], "big", signed=True) for at in (0, 8))
    index = made.add_device(1, ADDRESS, internal6_hi=high, internal6_lo=low)
    return made, index


def through(packets: list[bytes]) -> tuple[list[bytes], Rig]:
    """The frames that come out for these inner packets, received in one batch."""
    made, index = bench()
    try:
        made.send(*(seal(index, counter, packet) for counter, packet in enumerate(packets)))
        receive(made.b, 0, 64, START)
        return made.written(), made
    finally:
        made.close()


def base(version: int, **fields: Any) -> Any:
    return IP(src=DEVICE4, dst="198.51.100.2", **fields) if version == 4 else IPv6(src=DEVICE6, dst="2001:db8:51::2")


def flow_of(octets: bytes) -> tuple[Any, ...]:
    packet = parse(octets)
    layer = next((kind for kind in (TCP, UDP) if kind in packet), None)
    ports = (packet[layer].sport, packet[layer].dport) if layer else ()
    return packet.version, layer and layer.name, ports


segments = st.fixed_dictionaries(
    {
        "flow": st.integers(0, 10),
        "size": st.one_of(st.just(1000), st.integers(0, 1200)),
        "flags": st.sampled_from(["A", "A", "A", "A", "PA", "S", "FA", "RA", "PAU", "AE", "AC"]),
        "jump": st.sampled_from([0, 0, 0, 0, 1, -5, 100_000]),
        "window": st.sampled_from([512, 512, 512, 1024]),
        "dont_fragment": st.booleans(),
        "broken": st.sampled_from([False, False, False, False, True]),
        "options": st.sampled_from([[], [("Timestamp", (1, 2))], [("Timestamp", (1, 3))]]),
        "tos": st.sampled_from([0, 0, 0, 2, 3]),
    }
)


@st.composite
def batches(draw: st.DrawFn) -> list[bytes]:
    """Up to 40 packets of up to 11 flows (more than there are open super-packets), most of them in sequence."""
    sequence: dict[int, int] = defaultdict(lambda: 0xFFFFFF00)
    identification: dict[int, int] = defaultdict(int)
    packets = []
    for step in draw(st.lists(segments, min_size=1, max_size=40)):
        flow = step["flow"]
        version = 6 if flow % 3 == 0 else 4
        payload = random.Random(len(packets)).randbytes(step["size"])
        network = base(version)
        if version == 4:
            network.flags, network.id, network.tos = ("DF" if step["dont_fragment"] else 0), identification[flow] & 0xFFFF, step["tos"]
            identification[flow] += 1
        else:
            network.tc = step["tos"]
        if flow % 2:
            packet = network / UDP(sport=1000 + flow, dport=53) / payload
        else:
            at = (sequence[flow] + step["jump"]) & 0xFFFFFFFF
            tcp = TCP(sport=1000 + flow, dport=80, seq=at, ack=7, flags=step["flags"], window=step["window"], options=step["options"])
            packet = network / tcp / payload
            sequence[flow] = (at + step["size"]) & 0xFFFFFFFF
        octets = bytearray(bytes(packet))
        if step["broken"]:
            octets[-1] ^= 0x40
        packets.append(bytes(octets))
    return packets


@given(batches())
def test_every_flow_comes_out_packet_for_packet_as_it_went_in(packets: list[bytes]) -> None:
    frames, made = through(packets)
    came, went = defaultdict(list), defaultdict(list)
    for packet in packets:
        went[flow_of(packet)].append(packet)
    for frame in frames:
        for packet in packets_of(frame):
            came[flow_of(packet)].append(packet)
    assert came == went
    assert made.drops() == {}


def tcp_run(count: int, size: int, **changed: Any) -> list[bytes]:
    return [
        bytes(base(4, flags="DF", id=0) / TCP(sport=9, dport=80, seq=size * n, flags="A", **changed) / Raw(bytes([n]) * size))
        for n in range(count)
    ]


def test_a_run_of_one_connection_leaves_as_one_super_packet() -> None:
    frames, made = through(tcp_run(30, 1000))
    assert len(frames) == 1
    assert made.counter(Counter.TUN_SUPERS) == 1
    assert packets_of(frames[0]) == [_renumbered(packet, number) for number, packet in enumerate(tcp_run(30, 1000))]


def test_datagrams_of_one_flow_leave_as_one_super_packet() -> None:
    packets = [bytes(base(4, flags="DF") / UDP(sport=7, dport=9) / bytes([n] * 64)) for n in range(40)]
    frames, _ = through(packets)
    assert len(frames) == 1
    assert [parse(packet)[UDP].payload.load for packet in packets_of(frames[0])] == [bytes([n] * 64) for n in range(40)]


def test_a_packet_with_a_bad_checksum_is_never_merged() -> None:
    packets = tcp_run(5, 500)
    packets[2] = packets[2][:-1] + b"\xff"
    frames, _ = through(packets)
    alone = [frame for frame in frames if frame[10:] == packets[2]]
    assert len(alone) == 1
    assert alone[0][:10] == bytes(10)  # no offload: the kernel does not make the checksum right


def test_a_udp_datagram_without_checksum_is_left_alone() -> None:
    packets = [bytes(base(4) / UDP(sport=7, dport=9, chksum=0) / bytes(64)) for _ in range(4)]
    frames, _ = through(packets)
    assert [frame[10:] for frame in frames] == packets


def test_a_ping_between_two_segments_does_not_part_them() -> None:
    first, second = tcp_run(2, 700)
    ping = bytes(base(4) / ICMP(id=3) / b"x")
    frames, _ = through([first, ping, second])
    assert sorted(len(packets_of(frame)) for frame in frames) == [1, 2]


def test_push_ends_a_super_packet_and_stays_where_it_was() -> None:
    packets = tcp_run(4, 600)
    pushed = parse(packets[1])
    pushed[TCP].flags = "PA"
    pushed[TCP].chksum = pushed[IP].chksum = None
    packets[1] = bytes(pushed)
    frames, _ = through(packets)
    assert [packet for frame in frames for packet in packets_of(frame)] == [_renumbered(p, n % 2) for n, p in enumerate(packets)]
    assert len(frames) == 2


def _renumbered(octets: bytes, number: int) -> bytes:
    """DF packets may come out with other identifications: segments of a super-packet count up from its first."""
    packet = parse(octets)
    packet[IP].id, packet[IP].chksum = number, None
    return bytes(packet)


def test_a_packet_with_a_bad_header_checksum_is_never_merged() -> None:
    packets = tcp_run(4, 500)
    for number in (1, 2):
        broken = bytearray(packets[number])
        broken[10] ^= 0x55
        packets[number] = bytes(broken)
    frames, _ = through(packets)
    assert [frame[10:] for frame in frames] == packets
