"""A device reaches another by its external endpoint; what it sends there never leaves (RFC 4787 6, RFC 5382 7.2, RFC 5508 7)."""

from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, UDPerror
from scapy.layers.inet6 import IPerror6, IPv6

from egressvpn.dataplane.loop import sweep
from egressvpn.dataplane.tables import Counter
from egressvpn.nat.limits import ERROR_BURST
from egressvpn.nat.tables import ADDRESS_DEPENDENT, ENDPOINT_INDEPENDENT, SECOND
from tests.dataplane.gateway import EXTERNAL6, ONE, ONE6, POOL, REMOTE, REMOTE6, TWO, TWO6, Gateway, udp
from tests.dataplane.rig import START
from tests.dataplane.test_fragments import cut, datagram


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway(filtering=ENDPOINT_INDEPENDENT)
    yield made
    made.close()


def test_rfc4787_req9_a_packet_to_the_external_endpoint_of_another_device_reaches_it(gateway: Gateway) -> None:
    port = gateway.external(2, udp(TWO, REMOTE, sport=7000))
    assert gateway.send(1, udp(ONE, POOL, dport=port, ttl=9)) == []
    ((number, packet),) = gateway.delivered()
    assert (number, packet.dst, packet[UDP].dport, packet.ttl, packet.load) == (2, TWO, 7000, 8, b"question")
    assert gateway.drops() == {}


def test_rfc4787_req9a_its_source_is_the_senders_external_endpoint_and_the_answer_comes_back(gateway: Gateway) -> None:
    mine = gateway.external(1, udp(ONE, REMOTE, sport=5000))
    port = gateway.external(2, udp(TWO, REMOTE, sport=7000))
    gateway.send(1, udp(ONE, POOL, sport=5000, dport=port))
    ((_, packet),) = gateway.delivered()
    assert (packet.src, packet[UDP].sport) == (POOL, mine)

    assert gateway.send(2, udp(TWO, POOL, sport=7000, dport=mine, payload=b"answer")) == []
    ((number, answer),) = gateway.delivered()
    assert (number, answer.src, answer[UDP].sport, answer.dst, answer[UDP].dport) == (1, POOL, port, ONE, 5000)


def test_filtering_holds_for_the_inside_too() -> None:
    gateway = Gateway(filtering=ADDRESS_DEPENDENT)
    gateway.rig.add_pool(2, "203.0.113.7")
    gateway.b.nat.subscribers[2].external4 = 2
    theirs = gateway.external(2, udp(TWO, REMOTE, sport=7000))
    assert gateway.send(1, udp(ONE, "203.0.113.7", dport=theirs)) == []
    assert gateway.delivered() == []
    assert gateway.drops() == {"filtered": 1}
    gateway.send(2, udp(TWO, POOL, sport=7000, dport=9))  # now it has contacted the other's address
    gateway.send(1, udp(ONE, "203.0.113.7", dport=theirs))
    assert [number for number, _ in gateway.delivered()] == [2]
    gateway.close()


def test_rfc5382_req8_a_connection_between_two_devices(gateway: Gateway) -> None:
    port = gateway.external(2, IP(src=TWO, dst=REMOTE) / TCP(sport=80, dport=9, flags="S"))
    gateway.send(1, IP(src=ONE, dst=POOL) / TCP(sport=4000, dport=port, flags="S", seq=100))
    ((_, syn),) = gateway.delivered()
    mine = syn[TCP].sport
    assert (syn.src, syn.dst, syn[TCP].dport) == (POOL, TWO, 80)
    gateway.send(2, IP(src=TWO, dst=POOL) / TCP(sport=80, dport=mine, flags="SA", seq=900, ack=101))
    ((number, reply),) = gateway.delivered()
    assert (number, reply.src, reply[TCP].sport, reply[TCP].dport) == (1, POOL, port, 4000)
    gateway.send(1, IP(src=ONE, dst=POOL) / TCP(sport=4000, dport=port, flags="PA", seq=101, ack=901) / b"data")
    assert [packet.load for _, packet in gateway.delivered()] == [b"data"]


def test_rfc5508_req7_an_error_about_a_hairpinned_packet_comes_back_translated(gateway: Gateway) -> None:
    port = gateway.external(2, udp(TWO, REMOTE, sport=7000))
    gateway.send(1, udp(ONE, POOL, dport=port))
    ((_, packet),) = gateway.delivered()
    error = IP(src=TWO, dst=POOL) / ICMP(type=3, code=3) / IPerror(bytes(packet)[:28])
    assert gateway.send(2, error) == []
    ((number, answer),) = gateway.delivered()
    assert (number, answer.src, answer.dst, answer[ICMP].type, answer[ICMP].code) == (1, POOL, ONE, 3, 3)
    quote = answer[IPerror]
    assert (quote.src, quote.dst, quote[UDPerror].sport, quote[UDPerror].dport) == (ONE, POOL, 5000, port)


def test_ipv6_turns_round_at_an_external_address(gateway: Gateway) -> None:
    gateway.send(2, udp(TWO6, REMOTE6, sport=7000))
    assert gateway.send(1, udp(ONE6, EXTERNAL6[2], dport=7000, hlim=9)) == []
    ((number, packet),) = gateway.delivered()
    assert (number, packet.src, packet.dst, packet.hlim) == (2, EXTERNAL6[1], TWO6, 8)


@pytest.mark.parametrize("packet", [udp(ONE, POOL, dport=60_000), udp(ONE6, "2001:db8:113::77"), udp(ONE6, EXTERNAL6[2])])
def test_what_is_for_nobody_does_not_leave(gateway: Gateway, packet: IP | IPv6) -> None:
    assert gateway.send(1, packet) == []
    assert gateway.delivered() == []
    assert gateway.drops() == {"no_mapping": 1}


def test_a_loop_between_two_devices_ends_when_its_hops_are_used_up(gateway: Gateway) -> None:
    ports = {1: gateway.external(1, udp(ONE, REMOTE, sport=5000)), 2: gateway.external(2, udp(TWO, REMOTE, sport=7000))}
    inner = {1: (ONE, 5000), 2: (TWO, 7000)}
    number, ttl, rounds = 1, 64, 0
    while ttl is not None:
        source, sport = inner[number]
        gateway.send(number, udp(source, POOL, sport=sport, dport=ports[3 - number], ttl=ttl))
        came = [packet for where, packet in gateway.delivered() if where != number]
        number, ttl, rounds = 3 - number, came[0].ttl if came else None, rounds + 1
    assert rounds == 64
    assert gateway.drops() == {"ttl_exceeded": 1}


def test_a_packet_to_its_own_external_endpoint_is_a_martian(gateway: Gateway) -> None:
    mine = gateway.external(1, udp(ONE, REMOTE))
    assert gateway.send(1, udp(ONE, POOL, dport=mine)) == []
    assert gateway.delivered() == []
    assert gateway.drops() == {"martian": 1}


def test_a_device_reaches_another_endpoint_of_its_own(gateway: Gateway) -> None:
    other = gateway.external(1, udp(ONE, REMOTE, sport=6000))
    gateway.send(1, udp(ONE, POOL, dport=other))
    assert [(number, packet[UDP].dport) for number, packet in gateway.delivered()] == [(1, 6000)]


def test_a_device_that_was_never_heard_is_unreachable_from_inside_too(gateway: Gateway) -> None:
    port = gateway.external(2, udp(TWO, REMOTE, sport=7000))
    gateway.b.wg.devices[2].remote_length = 0
    gateway.send(1, udp(ONE, POOL, dport=port))
    ((number, error),) = gateway.delivered()
    assert (number, error[ICMP].type, error[ICMP].code, error[IPerror].src, error[UDPerror].dport) == (1, 3, 1, ONE, port)
    assert gateway.drops() == {"no_endpoint": 1}


@pytest.mark.parametrize("heard", [True, False], ids=["too big", "unreachable"])
def test_rfc5508_req10_errors_about_what_turns_round_come_out_of_the_senders_own_bucket(gateway: Gateway, heard: bool) -> None:
    ports = [gateway.external(1, udp(ONE, REMOTE, sport=sport)) for sport in (6000, 7000)]
    theirs = gateway.external(2, udp(TWO, REMOTE, sport=7000))
    gateway.b.work.worker[0].icmp_tokens = 50
    if heard:
        sent = udp(ONE, POOL, sport=7000, dport=ports[0], payload=bytes(1400))
    else:
        gateway.b.wg.devices[2].remote_length = 0
        sent = udp(ONE, POOL, sport=7000, dport=theirs)
    gateway.send(1, *[sent] * 60)
    assert [(number, error[ICMP].type, error[ICMP].code) for number, error in gateway.delivered()] == [
        (1, 3, 4 if heard else 1)
    ] * ERROR_BURST
    assert gateway.counter(Counter.ICMP_SUPPRESSED) == 60 - ERROR_BURST
    assert int(gateway.b.work.worker[0].icmp_tokens) == 50 - ERROR_BURST


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
def test_the_error_about_a_datagram_in_pieces_quotes_what_its_sender_sent(gateway: Gateway, six: bool) -> None:
    inner, outer = (TWO6, REMOTE6) if six else (TWO, REMOTE)
    port = gateway.external(2, udp(inner, outer, sport=7000))
    gateway.b.wg.devices[2].remote_length = 0
    sent = datagram(ONE6 if six else ONE, EXTERNAL6[2] if six else POOL, dport=port)
    assert gateway.send(1, *cut(sent)) == []
    ((number, error),) = gateway.delivered()
    quote = error[IPerror6 if six else IPerror]
    assert (number, quote.src, quote.dst) == (1, sent.src, sent.dst)
    assert (quote[UDPerror].sport, quote[UDPerror].dport, quote[UDPerror].len) == (5000, port, 4008)
    assert quote.plen == sent.plen if six else (quote.len, quote.flags, quote.frag) == (sent.len, 0, 0)
    assert gateway.drops() == {"no_endpoint": 1}


def test_rfc5382_req4_an_unsolicited_syn_of_a_device_is_answered_after_six_seconds_inside() -> None:
    gateway = Gateway(filtering=ADDRESS_DEPENDENT)
    gateway.rig.add_pool(2, "203.0.113.7")
    gateway.b.nat.subscribers[2].external4 = 2
    port = gateway.external(2, IP(src=TWO, dst=REMOTE) / TCP(sport=80, dport=9, flags="S"))
    gateway.send(1, IP(src=ONE, dst="203.0.113.7") / TCP(sport=4000, dport=port, flags="S", options=[("MSS", 1400)] + [("NOP", 0)] * 16))
    sweep(gateway.b, START + 6 * SECOND - 1)
    assert gateway.delivered() == []
    sweep(gateway.b, START + 6 * SECOND)
    ((number, error),) = gateway.delivered()
    assert (number, error.src, error.dst, error[ICMP].type, error[ICMP].code) == (1, "203.0.113.7", ONE, 3, 3)
    assert gateway.rig.written() == []
    gateway.close()


def test_packets_to_a_neighbour_of_the_pool_address_leave(gateway: Gateway) -> None:
    (out,) = gateway.send(1, udp(ONE, "203.0.113.99"))
    assert out.dst == "203.0.113.99"
    assert gateway.counter(Counter.TX_PACKETS) == 0
