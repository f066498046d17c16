"""DSCP and ECN of what is sent, and what ECN of a datagram becomes of the packet inside; over IPv4 and IPv6."""

import socket
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from egressvpn.addresses import Path, pack_sockaddr
from egressvpn.dataplane.channel import Command
from egressvpn.dataplane.receive import receive
from egressvpn.dataplane.segment import read_tun
from egressvpn.dataplane.tables import Counter
from egressvpn.dataplane.transmit import flush_run
from tests.dataplane.offload import VNET
from tests.dataplane.rig import START, Rig, rig, seal

DEVICE4, DEVICE6 = "100.64.0.2", "fd64::2"
NOT_ECT, ECT1, ECT0, CE = range(4)
AF41 = 0x88

both = pytest.mark.parametrize("outer", [4, 6])


def bench(outer: int) -> tuple[Rig, int]:
    made = rig(outer=outer)
    index = made.add_device(1, int.from_bytes(socket.inet_aton(DEVICE4), "big"))
    made.add_prefixes(1, DEVICE6)
    return made, index


def towards(tos: int, version: int = 4) -> bytes:
    network = IP(src="198.51.100.2", dst=DEVICE4, tos=tos) if version == 4 else IPv6(src="2001:db8::2", dst=DEVICE6, tc=tos)
    return bytes(10) + bytes(network / UDP(sport=1, dport=2) / b"answer")


def sent_for(made: Rig, *frames: bytes) -> list[int]:
    for frame in frames:
        made.tun.send(frame)
        read_tun(made.b, START)
    flush_run(made.b)
    return [tos for _, tos in made.sent_with_tos()]


@both
@pytest.mark.parametrize("inner", [4, 6])
def test_data_carries_the_ecn_of_its_packet_and_no_dscp(outer: int, inner: int) -> None:
    made, _ = bench(outer)
    assert sent_for(made, *(towards(0xB8 | ecn, inner) for ecn in range(4))) == [NOT_ECT, ECT1, ECT0, ECT0]
    made.close()


def test_a_run_has_one_ecn() -> None:
    made, _ = bench(4)
    frames = [towards(ecn) for ecn in (ECT0, ECT0, ECT0, NOT_ECT, NOT_ECT, CE)]
    assert sent_for(made, *frames) == [ECT0, ECT0, ECT0, NOT_ECT, NOT_ECT, ECT0]
    assert made.counter(Counter.TX_SENDS) == 3
    made.close()


def test_a_super_packet_hands_its_ecn_to_every_segment() -> None:
    made, _ = bench(4)
    packet = IP(src="198.51.100.2", dst=DEVICE4, tos=ECT0) / TCP(sport=80, dport=7, flags="A") / bytes(3000)
    assert sent_for(made, VNET.pack(1, 1, 40, 1000, 20, 16) + bytes(packet)) == [ECT0] * 3
    assert made.counter(Counter.TX_SENDS) == 1
    made.close()


def test_staged_packets_keep_their_ecn_and_a_keepalive_has_none() -> None:
    made, _ = bench(4)
    made.command(Command.CLEAR, owner=1)
    assert sent_for(made, towards(ECT1), towards(NOT_ECT)) == []
    made.session(1, made.index(2))
    made.command(Command.KEEPALIVE, owner=1)
    assert [tos for _, tos in made.sent_with_tos()] == [ECT1, NOT_ECT]
    made.command(Command.KEEPALIVE, owner=1)
    assert [(len(datagram), tos) for datagram, tos in made.sent_with_tos()] == [(32, 0)]
    made.close()


@both
def test_handshake_messages_carry_af41(outer: int) -> None:
    made, _ = bench(outer)
    path = Path(pack_sockaddr(*made.peer.getsockname()[:2]))
    made.command(Command.TRANSMIT, owner=1, path=path, octets=b"\1" * 148)
    keys = {"receive_key": bytes(32), "send_key": bytes(32)}
    made.command(Command.INSTALL, owner=1, index=made.index(3), remote_index=9, path=path, octets=b"\2" * 92, **keys)
    assert made.sent_with_tos() == [(b"\1" * 148, AF41), (b"\2" * 92, AF41)]
    made.close()


@both
@pytest.mark.parametrize("inner", [4, 6])
@pytest.mark.parametrize(("before", "outside", "after"), [(ECT0, CE, CE), (ECT0, ECT1, ECT1), (NOT_ECT, CE, NOT_ECT), (CE, NOT_ECT, CE)])
def test_congestion_on_the_way_is_told_inside(outer: int, inner: int, before: int, outside: int, after: int) -> None:
    made, index = bench(outer)
    if outer == 4:
        made.peer.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, outside)
    else:
        made.peer.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, outside)
    made.send(seal(index, 0, question(inner, 0xB8 | before)))
    receive(made.b, 0, 64, START)
    assert [frame[10:] for frame in made.written()] == [question(inner, 0xB8 | after)]
    assert made.drops() == {}
    made.close()


def question(version: int, tos: int) -> bytes:
    network: Any = IP(src=DEVICE4, dst="198.51.100.2", tos=tos) if version == 4 else IPv6(src=DEVICE6, dst="2001:db8::2", tc=tos)
    return bytes(network / UDP(sport=1, dport=2) / b"question")
