"""Segmentation is transparent: a super-packet from the TUN reaches the device as the packets its sender's kernel would have made."""

import random
import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from egressvpn.dataplane.channel import Command, Event
from egressvpn.dataplane.local import TUN_IN
from egressvpn.dataplane.loop import run
from egressvpn.dataplane.segment import handle_tun, read_tun
from egressvpn.dataplane.tables import MAX_STAGED, Counter
from egressvpn.dataplane.transmit import flush_run
from egressvpn.verdict import Verdict
from tests.dataplane.offload import VNET, packets_of, parse
from tests.dataplane.rig import START, Rig, open_sealed, rig

DEVICE4, DEVICE6 = "100.64.0.2", "fd64::2"
ADDRESS = int.from_bytes(socket.inet_aton(DEVICE4), "big")
HIGH, LOW = struct.unpack("!qq", socket.inet_pton(socket.AF_INET6, DEVICE6))


def bench() -> Rig:
    made = rig()
    made.add_device(1, ADDRESS, internal6_hi=HIGH, internal6_lo=LOW)
    made.add_prefixes(1, DEVICE6)
    return made


def super_packet(version: int, udp: bool, payload: bytes, size: int, flags: str = "A", options: Any = ()) -> bytes:
    """A frame as a kernel with TSO and USO hands it to the TUN: partial checksum, virtio header."""
    network = IP(src="198.51.100.2", dst=DEVICE4, id=0xFFFE) if version == 4 else IPv6(src="2001:db8:51::2", dst=DEVICE6)
    layer = UDP(sport=53, dport=7000) if udp else TCP(sport=80, dport=7000, seq=0xFFFFFF00, ack=5, flags=flags, options=list(options))
    packet = bytearray(bytes(network / layer / payload))
    start = 20 if version == 4 else 40
    headers = len(packet) - len(payload)
    field = 6 if udp else 16
    addresses = packet[12:20] if version == 4 else packet[8:40]
    pseudo = addresses + struct.pack("!HH", 17 if udp else 6, len(packet) - start)
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    packet[start + field : start + field + 2] = struct.pack("!H", total)
    kind = (5 if udp else 1 if version == 4 else 4) if len(payload) > size else 0
    return VNET.pack(1, kind, headers, size if kind else 0, start, field) + bytes(packet)


def delivered(made: Rig, frame: bytes) -> list[bytes]:
    """What the device decrypts after the frame was read from the TUN, padding removed by each packet's own length."""
    made.tun.send(frame)
    assert read_tun(made.b, START) == 1
    flush_run(made.b)
    texts = [open_sealed(datagram)[2] for datagram in made.sent()]
    return [text[: _length(text)] for text in texts]


def _length(text: bytes) -> int:
    return int(struct.unpack_from("!H", text, 2)[0]) if text[0] >> 4 == 4 else 40 + int(struct.unpack_from("!H", text, 4)[0])


@given(
    version=st.sampled_from([4, 6]),
    udp=st.booleans(),
    length=st.one_of(st.integers(1, 5000), st.integers(1, 40_000)),
    size=st.integers(500, 1300),
    flags=st.sampled_from(["A", "PA", "FPA", "AC"]),
    options=st.sampled_from([(), (("Timestamp", (9, 8)),)]),
)
def test_a_super_packet_arrives_as_its_segments(version: int, udp: bool, length: int, size: int, flags: str, options: Any) -> None:
    payload = random.Random(length).randbytes(length)
    frame = super_packet(version, udp, payload, size, flags, options)
    made = bench()
    try:
        expected = packets_of(frame) if frame[1] else [_completed(frame)]
        assert delivered(made, frame) == expected
        assert made.drops() == {}
    finally:
        made.close()


def _completed(frame: bytes) -> bytes:
    packet = parse(frame[VNET.size :])
    packet[UDP if UDP in packet else TCP].chksum = None
    return bytes(packet)


def test_a_run_of_segments_leaves_with_one_send() -> None:
    made = bench()
    assert len(delivered(made, super_packet(4, False, bytes(20_000), 1000))) == 20
    assert made.counter(Counter.TX_SENDS) == 1
    assert made.counter(Counter.TX_PACKETS) == 20
    made.close()


def test_without_segmentation_offload_each_message_leaves_alone() -> None:
    made = bench()
    made.b.work.worker[0].gso = 0
    assert len(delivered(made, super_packet(4, False, bytes(5_000), 1000))) == 5
    assert made.counter(Counter.TX_SENDS) == 5
    made.close()


def test_the_counter_advances_by_one_per_message_and_padding_is_sixteen() -> None:
    made = bench()
    made.tun.send(super_packet(4, False, bytes(2_500), 1000))
    read_tun(made.b, START)
    flush_run(made.b)
    sent = made.sent()
    assert [open_sealed(datagram)[1] for datagram in sent] == [0, 1, 2]
    assert all(len(datagram) % 16 == 0 for datagram in sent)
    assert {open_sealed(datagram)[0] for datagram in sent} == {0x1001}
    made.close()


def test_padding_stops_at_the_mtu() -> None:
    made = bench()
    made.tun.send(super_packet(4, True, bytes(1420 - 28), 1420))
    read_tun(made.b, START)
    flush_run(made.b)
    assert [len(datagram) for datagram in made.sent()] == [1420 + 32]
    made.close()


def test_packets_wait_for_a_session_and_the_oldest_is_dropped() -> None:
    made = bench()
    made.command(Command.CLEAR, owner=1)
    made.events()
    for number in range(MAX_STAGED + 3):
        made.tun.send(super_packet(4, True, struct.pack("!I", number), 1000))
        read_tun(made.b, START)
    assert made.event_kinds() == [Event.WANTED]
    assert made.drops() == {"staged_overflow": 3}
    made.session(1, made.index(1, 0x7777))
    made.command(Command.KEEPALIVE, owner=1)
    texts = [open_sealed(datagram)[2] for datagram in made.sent()]
    assert [struct.unpack_from("!I", text, 28)[0] for text in texts] == list(range(3, MAX_STAGED + 3))
    made.close()


def test_a_super_packet_without_a_session_waits_as_segments() -> None:
    made = bench()
    made.command(Command.CLEAR, owner=1)
    frame = super_packet(4, False, random.Random(1).randbytes(5_000), 1000)
    made.tun.send(frame)
    read_tun(made.b, START)
    made.session(1, made.index(1, 0x7777))
    made.command(Command.KEEPALIVE, owner=1)
    assert [open_sealed(datagram)[2][:1040] for datagram in made.sent()] == packets_of(frame)
    made.close()


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 29])
def test_a_frame_too_short_to_be_a_packet_is_dropped_and_counted(size: int) -> None:
    made = bench()
    assert handle_tun(made.b, size, START) == Verdict.MALFORMED_PACKET
    made.close()


@given(st.binary(max_size=3000), st.binary(min_size=10, max_size=10))
def test_any_frame_is_delivered_or_dropped_once(octets: bytes, header: bytes) -> None:
    made = bench()
    frame = header + octets
    made.b.local.octets[TUN_IN : TUN_IN + len(frame)] = list(frame)
    before = int(made.b.work.counters[Counter.TX_PACKETS])
    verdict = handle_tun(made.b, len(frame), START)
    assert verdict in Verdict.__members__.values()
    assert (verdict == Verdict.PASS) == (int(made.b.work.counters[Counter.TX_PACKETS]) > before)
    made.close()


def test_a_dead_tun_does_not_make_the_loop_spin() -> None:
    made = bench()
    made.tun.close()
    assert run(made.b, 3) == 0
    assert made.counter(Counter.POLLS) == 3
    made.close()


def test_pieces_that_must_wait_do_not_touch_what_is_sealed_for_another() -> None:
    made = bench()
    other = "100.64.0.9"
    made.add_device(2, int.from_bytes(socket.inet_aton(other), "big"))
    made.command(Command.CLEAR, owner=2)
    sealed = super_packet(4, True, b"for the first", 1000)
    waiting = super_packet(4, False, b"SECRET" * 500, 1000)
    readdressed = IP(waiting[VNET.size :])
    readdressed[IP].dst = other
    for frame in (sealed, waiting[: VNET.size] + bytes(readdressed)):
        made.tun.send(frame)
        read_tun(made.b, START)
    flush_run(made.b)
    (datagram,) = made.sent()
    assert b"SECRET" not in datagram
    assert open_sealed(datagram)[2][28:41] == b"for the first"
    assert int(made.b.wg.devices[2].staged) == 3
    made.close()
