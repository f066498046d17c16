"""W20: what cannot be sent on is answered with an ICMP error, written to the TUN, that its sender can tell what it is about."""

import socket
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, TCPerror, UDPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, IPerror6, IPv6

from egressvpn.dataplane.channel import Command
from egressvpn.dataplane.receive import receive
from egressvpn.dataplane.segment import read_tun
from egressvpn.dataplane.tables import CLIENT, GATEWAY, Counter
from egressvpn.wireguard.tables import DISABLED, ENABLED
from tests.dataplane.gateway import EXTERNAL6, ONE, ONE6, REMOTE, REMOTE6, Gateway, udp
from tests.dataplane.offload import VNET, parse
from tests.dataplane.rig import START, Rig, rig, seal
from tests.dataplane.test_fragments import cut, datagram

DEVICE, POOL = "100.64.0.2", "203.0.113.1"


def word(address: str) -> int:
    return int.from_bytes(socket.inet_aton(address), "big")


def client() -> Rig:
    """A client with one peer that was never heard, who has a little of the network."""
    made = rig(CLIENT)
    made.command(Command.SET_DEVICE, owner=1, state=ENABLED, internal4=-1)
    made.add_prefixes(1, "192.0.2.0/24", "2001:db8:2::/48")
    return made


def answers(made: Rig, *frames: bytes) -> list[Any]:
    """What comes out on the TUN for these frames; every checksum in it is right."""
    for frame in frames:
        made.tun.send(frame)
        assert read_tun(made.b, START) == 1
    written = made.written()
    assert all(frame[:10] == bytes(10) for frame in written)
    packets = [parse(frame[10:]) for frame in written]
    assert [bytes(packet) for packet in packets] == [_renewed(packet) for packet in packets]
    return packets


def _renewed(packet: Any) -> bytes:
    packet = packet.copy()
    if IP in packet:
        packet[IP].chksum = packet[ICMP].chksum = None
    else:
        packet[ICMPv6DestUnreach].cksum = None
    return bytes(packet)


def frame(version: int, source: str, destination: str, payload: bytes = b"question") -> bytes:
    network = IP(src=source, dst=destination) if version == 4 else IPv6(src=source, dst=destination)
    return bytes(10) + bytes(network / UDP(sport=5, dport=6) / payload)


@pytest.mark.parametrize(("destination", "reason"), [("198.51.100.2", "no_route"), ("192.0.2.7", "no_endpoint")])
def test_a_client_answers_for_an_ipv4_destination_nobody_has_or_nobody_heard(destination: str, reason: str) -> None:
    made = client()
    sent = frame(4, "10.0.0.5", destination)
    (answer,) = answers(made, sent)
    assert (answer.src, answer.dst, answer[ICMP].type, answer[ICMP].code) == (destination, "10.0.0.5", 3, 1)
    assert bytes(answer[IPerror]) == sent[10:]
    assert made.drops() == {reason: 1}
    assert made.counter(Counter.ICMP_ERRORS) == 1
    assert made.sent() == []
    assert int(made.b.wg.devices[1].staged) == 0
    made.close()


@pytest.mark.parametrize("destination", ["2001:db8::2", "2001:db8:2::2"])
def test_a_client_answers_for_an_ipv6_destination(destination: str) -> None:
    made = client()
    sent = frame(6, "fd00::5", destination)
    (answer,) = answers(made, sent)
    assert (answer.src, answer.dst, answer[ICMPv6DestUnreach].type, answer[ICMPv6DestUnreach].code) == (destination, "fd00::5", 1, 3)
    assert bytes(answer[IPerror6]) == sent[10:]
    made.close()


def test_there_is_no_error_about_an_error_nor_to_many() -> None:
    made = client()
    error = IP(src="10.0.0.5", dst="198.51.100.2") / ICMP(type=3, code=3) / IPerror(src="198.51.100.2", dst="10.0.0.5") / UDPerror()
    answers(made, bytes(10) + bytes(error), frame(4, "10.0.0.5", "224.0.0.251"), frame(4, "0.0.0.0", "198.51.100.2"))
    assert made.counter(Counter.ICMP_ERRORS) == 0
    assert made.drops() == {"no_route": 3}
    made.close()


def test_a_super_packet_is_answered_once() -> None:
    made = client()
    packet = IP(src="10.0.0.5", dst="198.51.100.2") / TCP(sport=80, dport=7, flags="A") / bytes(3000)
    (answer,) = answers(made, VNET.pack(1, 1, 40, 1000, 20, 16) + bytes(packet))
    assert (len(answer), answer[TCPerror].dport) == (576, 7)
    made.close()


def test_errors_are_limited_in_rate_together_with_the_others() -> None:
    made = client()
    made.b.work.worker[0].icmp_tokens = 2
    assert len(answers(made, *[frame(4, "10.0.0.5", "198.51.100.2")] * 5)) == 2
    assert made.counter(Counter.ICMP_SUPPRESSED) == 3
    assert made.drops() == {"no_route": 5}
    made.close()


def gateway() -> tuple[Rig, int]:
    """A gateway whose device has a flow to a server. Returns it with the flow's external port."""
    made = rig(GATEWAY)
    made.add_pool(1, POOL)
    made.command(Command.OPEN, internal4=word("100.64.0.1"))
    index = made.add_device(1, word(DEVICE), external4=1)
    made.send(seal(index, 0, bytes(IP(src=DEVICE, dst="198.51.100.2") / UDP(sport=5000, dport=53) / b"question")))
    receive(made.b, 0, 64, START)
    (out,) = [IP(written[10:]) for written in made.written()]
    return made, out[UDP].sport


def test_the_gateway_answers_in_the_name_of_the_external_address_for_a_device_it_has_not_heard() -> None:
    made, port = gateway()
    made.b.wg.devices[1].remote_length = 0
    sent = bytes(IP(src="198.51.100.2", dst=POOL, id=7) / UDP(sport=53, dport=port) / b"answer")
    (answer,) = answers(made, bytes(10) + sent)
    assert (answer.src, answer.dst, answer[ICMP].type, answer[ICMP].code) == (POOL, "198.51.100.2", 3, 1)
    assert bytes(answer[IPerror]) == sent
    assert made.drops() == {"no_endpoint": 1}
    made.close()


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
def test_an_error_about_a_datagram_that_came_in_pieces_quotes_it_as_it_came(six: bool) -> None:
    made = Gateway()
    inner, remote, external = (ONE6, REMOTE6, EXTERNAL6[1]) if six else (ONE, REMOTE, POOL)
    sent = datagram(remote, external, sport=53, dport=made.external(1, udp(inner, remote)))
    made.b.wg.devices[1].remote_length = 0
    assert made.arrive(*cut(sent)) == []
    (error,) = [parse(frame[10:]) for frame in made.rig.written()]
    quote = bytes(error[IPerror6 if six else IPerror])
    assert quote == bytes(sent)[: len(quote)]
    assert len(quote) >= 48
    assert made.drops() == {"no_endpoint": 1}
    made.close()


def test_the_gateway_is_silent_about_a_disabled_device_and_about_what_has_no_mapping() -> None:
    made, port = gateway()
    made.b.wg.devices[1].remote_length, made.b.wg.devices[1].state = 0, DISABLED
    packet = IP(src="198.51.100.2", dst=POOL) / UDP(sport=53, dport=port) / b"answer"
    assert answers(made, bytes(10) + bytes(packet), frame(4, "198.51.100.2", "203.0.113.77")) == []
    assert made.drops() == {"device_disabled": 1, "no_mapping": 1}
    made.close()
