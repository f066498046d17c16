"""A device whose packet is refused is told so, at a bounded rate; what it has stays (RFC 6888 REQ-11, RFC 1812 4.3.2.8)."""

from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, IPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6TimeExceeded, IPerror6, IPv6

from egressvpn.dataplane.answers import SYN_ANSWERS
from egressvpn.dataplane.channel import Command
from egressvpn.dataplane.loop import sweep
from egressvpn.dataplane.tables import ICMP_ERRORS_PER_SWEEP, Counter
from egressvpn.nat.limits import ERROR_BURST, ERROR_RATE
from egressvpn.nat.tables import SECOND
from tests.dataplane.gateway import INNER, INNER6, ONE, ONE6, POOL, REMOTE, REMOTE6, TWO, Gateway, address_words, udp
from tests.dataplane.rig import START, Limits


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway(max_flows_per_device=1)
    yield made
    made.close()


def told(gateway: Gateway) -> list[tuple[int, str, int, int]]:
    """(device, source, type, code) of each error."""
    return [(number, packet.src, *kind_of(packet)) for number, packet in gateway.delivered()]


def kind_of(packet: Any) -> tuple[int, int]:
    if IP in packet:
        return packet[ICMP].type, packet[ICMP].code
    layer = packet[ICMPv6DestUnreach] if ICMPv6DestUnreach in packet else packet[ICMPv6TimeExceeded]
    return layer.type, layer.code


def test_rfc6888_req11_a_quota_is_answered_with_host_unreachable_and_the_flow_there_is_stays(gateway: Gateway) -> None:
    gateway.send(1, udp(ONE, REMOTE))
    refused = udp(ONE, REMOTE, dport=54)
    assert gateway.send(1, refused) == []
    ((number, error),) = gateway.delivered()
    assert (number, error.src, error.dst, kind_of(error)) == (1, INNER, ONE, (3, 1))
    assert bytes(error[IPerror]) == bytes(refused)  # as the device sent it
    assert len(gateway.send(1, udp(ONE, REMOTE))) == 1
    assert gateway.drops() == {"quota_exceeded": 1}


def test_rfc6146_the_same_in_ipv6_is_address_unreachable(gateway: Gateway) -> None:
    gateway.send(1, udp(ONE6, REMOTE6))
    refused = udp(ONE6, REMOTE6, dport=54)
    gateway.send(1, refused)
    ((number, error),) = gateway.delivered()
    assert (number, error.src, error.dst, kind_of(error)) == (1, INNER6, ONE6, (1, 3))
    assert bytes(error[IPerror6]) == bytes(refused)


def test_rfc5508_req8_what_policy_denies_is_communication_prohibited(gateway: Gateway) -> None:
    high, low = address_words("2001:db8:dead::")
    gateway.rig.command(Command.ADD_DENIED, version=4, low=address_words("10.0.0.0")[1], prefix_length=8)
    gateway.rig.command(Command.ADD_DENIED, version=6, high=high, low=low, prefix_length=48)
    gateway.send(1, udp(ONE, "10.1.2.3"), udp(ONE6, "2001:db8:dead::1"))
    assert told(gateway) == [(1, INNER, 3, 13), (1, INNER6, 1, 1)]
    assert gateway.drops() == {"policy_denied": 2}


def test_rfc5135_multicast_is_denied_in_silence(gateway: Gateway) -> None:
    gateway.send(1, udp(ONE, "224.0.0.251"), udp(ONE, "255.255.255.255"), udp(ONE6, "ff02::fb"))
    assert told(gateway) == []
    assert gateway.drops() == {"policy_denied": 3}


def test_a_version_without_an_external_address_is_told_at_once(gateway: Gateway) -> None:
    gateway.rig.command(
        Command.SET_DEVICE,
        owner=1,
        identity=1,
        state=1,
        internal4=address_words(ONE)[1],
        internal6_hi=address_words(ONE6)[0],
        internal6_lo=2,
    )
    gateway.b.nat.subscribers[1].external4 = 0
    gateway.send(1, udp(ONE6, REMOTE6), udp(ONE, REMOTE))
    assert told(gateway) == [(1, INNER6, 1, 0), (1, INNER, 3, 0)]
    assert gateway.drops() == {"no_external_address": 2}


def test_a_rate_of_new_mappings_is_answered_too() -> None:
    gateway = Gateway(mapping_rate=1, mapping_burst=2)
    assert len(gateway.send(1, *[udp(ONE, REMOTE, sport=port) for port in range(2000, 2005)])) == 2
    assert told(gateway) == [(1, INNER, 3, 1)] * 3
    assert gateway.drops() == {"rate_exceeded": 3}
    assert len(gateway.send(2, udp(TWO, REMOTE))) == 1
    gateway.close()


def test_ports_that_ran_out_and_a_full_table_are_answered() -> None:
    gateway = Gateway(Limits(max_devices=16, max_prefixes=64, max_flows=20, pool_addresses=4))
    gateway.rig.add_pool(2, "203.0.113.2", port_low=2000, port_high=2007, block_size=8, max_blocks=1)
    gateway.b.nat.subscribers[1].external4 = 2
    assert len(gateway.send(1, *[udp(ONE, REMOTE, sport=port) for port in range(3000, 3009)])) == 8
    assert [row[1:] for row in told(gateway)] == [(INNER, 3, 1)]
    assert sum(gateway.drops().values()) == 1
    assert set(gateway.drops()) <= {"ports_exhausted", "quota_exceeded"}
    assert len(gateway.send(2, *[udp(TWO, REMOTE, sport=port) for port in range(4000, 4014)])) == 12
    assert told(gateway) == [(2, INNER, 3, 1)] * 2
    assert gateway.drops()["flow_table_full"] == 2
    gateway.close()


def test_rfc5508_req10a_a_last_hop_is_told_in_both_versions(gateway: Gateway) -> None:
    gateway.send(1, udp(ONE, REMOTE, ttl=1), udp(ONE6, REMOTE6, hlim=1), udp(ONE, REMOTE, ttl=0))
    assert told(gateway) == [(1, INNER, 11, 0), (1, INNER6, 3, 0), (1, INNER, 11, 0)]


def test_rfc5508_req10_one_device_hears_of_few_and_does_not_use_up_what_others_hear_of(gateway: Gateway) -> None:
    gateway.b.work.worker[0].icmp_tokens = 100
    gateway.send(1, udp(ONE, REMOTE))
    gateway.send(1, *[udp(ONE, REMOTE, dport=2000 + n) for n in range(90)])
    assert len(gateway.delivered()) == ERROR_BURST
    assert gateway.counter(Counter.ICMP_SUPPRESSED) == 90 - ERROR_BURST
    gateway.send(2, udp(TWO, "127.0.0.1"))
    assert told(gateway) == [(2, INNER, 3, 13)]
    gateway.send(1, *[udp(ONE, REMOTE, dport=2000 + n) for n in range(90)], now=START + SECOND)
    assert len(gateway.delivered()) == ERROR_RATE


def test_all_together_are_bounded_and_the_bucket_fills_again(gateway: Gateway) -> None:
    gateway.b.work.worker[0].icmp_tokens = 3
    gateway.send(1, *[udp(ONE, "127.0.0.1")] * 9)
    assert len(gateway.delivered()) == 3
    sweep(gateway.b, START + SECOND // 10)
    gateway.send(1, *[udp(ONE, "127.0.0.1")] * 9)
    assert len(gateway.delivered()) == 9


@pytest.mark.parametrize(
    "packet",
    [
        IP(src=ONE, dst="127.0.0.1") / ICMP(type=3, code=3) / IPerror(src="127.0.0.1", dst=ONE) / TCP(),
        IP(src=ONE, dst=REMOTE, proto=47) / bytes(20),
        IPv6(src=ONE6, dst=REMOTE6, nh=59),
    ],
)
def test_rfc5508_req10_there_is_no_error_about_an_error_nor_about_what_nobody_translates(gateway: Gateway, packet: Any) -> None:
    gateway.send(1, packet)
    assert gateway.delivered() == []
    assert sum(gateway.drops().values()) == 1


def test_rfc5382_req4_a_waiting_syn_is_answered_outside_after_six_seconds(gateway: Gateway) -> None:
    port = gateway.external(1, IP(src=ONE, dst=REMOTE) / TCP(sport=80, dport=9, flags="S"))
    options = [("MSS", 1400)] + [("NOP", 0)] * 16
    assert gateway.arrive(IP(src="192.0.2.9", dst=POOL) / TCP(sport=4000, dport=port, flags="S", options=options)) == []
    sweep(gateway.b, START + 6 * SECOND - 1)
    assert gateway.rig.written() == []
    gateway.b.work.worker[0].icmp_tokens = 0
    sweep(gateway.b, START + 6 * SECOND)
    sweep(gateway.b, START + 6 * SECOND + 1)
    (frame,) = gateway.rig.written()
    error = IP(frame[10:])
    assert (error.src, error.dst, error[ICMP].type, error[ICMP].code) == (POOL, "192.0.2.9", 3, 3)
    assert len(error) <= 76


def test_waiting_syns_from_anywhere_take_nothing_from_other_errors(gateway: Gateway) -> None:
    port = gateway.external(1, IP(src=ONE, dst=REMOTE) / TCP(sport=80, dport=9, flags="S"))
    options = [("MSS", 1400)] + [("NOP", 0)] * 16
    syns = [IP(src=f"192.0.2.{n}", dst=POOL) / TCP(sport=4000, dport=port, flags="S", options=options) for n in range(1, 41)]
    assert gateway.arrive(*syns) == []
    gateway.b.work.worker[0].icmp_tokens = 0
    sweep(gateway.b, START + 6 * SECOND)
    assert len(gateway.rig.written()) == SYN_ANSWERS
    assert int(gateway.b.work.worker[0].icmp_tokens) == ICMP_ERRORS_PER_SWEEP
    gateway.send(2, udp(TWO, "127.0.0.1"), now=START + 6 * SECOND)
    assert told(gateway) == [(2, INNER, 3, 13)]
    for n in range(1, 8):
        sweep(gateway.b, START + 6 * SECOND + n * SECOND // 10)
    assert len(gateway.rig.written()) == len(syns) - SYN_ANSWERS  # each in its turn
