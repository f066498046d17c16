"""IPv4 identifications of what leaves: unique for source, destination and protocol unless the packet may not be fragmented (RFC 6864)."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP

from egressvpn.dataplane.receive import receive
from egressvpn.dataplane.tables import IDENTIFICATIONS, Counter
from tests.dataplane.gateway import ONE, REMOTE, TWO, Gateway, udp
from tests.dataplane.rig import START, seal


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    yield made
    made.close()


def test_rfc7857_req10_two_devices_with_the_same_identification_leave_with_different_ones(gateway: Gateway) -> None:
    (first,) = gateway.send(1, udp(ONE, REMOTE, flags=0, id=77))
    (second,) = gateway.send(2, udp(TWO, REMOTE, flags=0, id=77))
    assert first.id != second.id


def test_rfc6864_a_packet_that_may_not_be_fragmented_keeps_what_it_has(gateway: Gateway) -> None:
    (out,) = gateway.send(1, udp(ONE, REMOTE, flags="DF", id=77))
    assert out.id == 77


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_none_is_used_twice_whoever_sends(sent: list[tuple[int, int, int]]) -> None:
    gateway = Gateway()
    used: dict[Any, list[int]] = {}
    for number, host, port in sent:
        (out,) = gateway.send(number, udp((ONE, TWO)[number - 1], f"198.51.100.{host}", sport=5000 + port, flags=0, id=1))
        used.setdefault((out.dst, out.proto), []).append(out.id)
    assert all(len(set(ids)) == len(ids) for ids in used.values())
    gateway.close()


def test_a_counter_goes_round_after_all_of_them(gateway: Gateway) -> None:
    (first,) = gateway.send(1, udp(ONE, REMOTE, flags=0))
    counters = gateway.b.work.identifications
    counters[counters.argmax()] += 65_534
    (last,) = gateway.send(1, udp(ONE, REMOTE, flags=0))
    (again,) = gateway.send(1, udp(ONE, REMOTE, flags=0))
    assert (last.id, again.id) == ((first.id - 1) & 0xFFFF, first.id)


def test_datagrams_of_one_flow_still_leave_as_one_super_packet(gateway: Gateway) -> None:
    gateway.send(1, udp(ONE, REMOTE, flags=0))
    before = gateway.counter(Counter.TUN_WRITES)
    out = gateway.send(1, *[udp(ONE, REMOTE, flags=0, id=n * 7919 & 0xFFFF) for n in range(20)])
    assert gateway.counter(Counter.TUN_WRITES) == before + 1
    assert [packet.id for packet in out] == [(out[0].id + n) & 0xFFFF for n in range(20)]


def test_protocols_and_destinations_begin_anywhere(gateway: Gateway) -> None:
    out = gateway.send(1, *[udp(ONE, f"198.51.100.{host}", flags=0, id=0) for host in range(30)])
    out += gateway.send(1, IP(src=ONE, dst=REMOTE, id=0) / TCP(dport=80, flags="S"))
    assert len({packet.id for packet in out}) > 20


def test_a_successor_goes_on_where_the_counters_stood(gateway: Gateway) -> None:
    gateway.send(1, udp(ONE, REMOTE, flags=0))
    counters = gateway.b.work.identifications
    assert counters.size == IDENTIFICATIONS
    assert int(counters.sum()) == 1  # in the arena, like all that outlives a worker


def test_a_wrong_header_checksum_stays_wrong(gateway: Gateway) -> None:
    packet = bytearray(bytes(udp(ONE, REMOTE, flags=0)))
    packet[10] ^= 0x55
    gateway.rig.send(seal(gateway.index[1], 0, bytes(packet)))
    receive(gateway.b, 0, 64, START)
    (frame,) = gateway.rig.written()
    fresh = IP(frame[10:])
    fresh.chksum = None
    assert bytes(fresh) != frame[10:]
