"""S13: fragments that never become a datagram (FragmentSmack, CVE-2018-5391) cost those who send them, and nobody else.

(Overlaps, tiny first fragments and the ping of death are tried between real hosts in tests/lab/nat/test_fragments.py.)
"""

from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP, fragment
from scapy.packet import Raw

from egressvpn.dataplane import reassembly
from egressvpn.dataplane.local import INSIDE_DATAGRAMS, OUTSIDE_DATAGRAMS
from egressvpn.dataplane.loop import sweep
from egressvpn.kernel import JIT
from tests.dataplane.gateway import ONE, POOL, REMOTE, TWO, Gateway, udp
from tests.dataplane.rig import START
from tests.security.mutants import interpreted_only

FLOOD = INSIDE_DATAGRAMS + 20
SECOND = 1_000_000_000


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    yield made
    made.close()


def headless(source: str, destination: str, count: int) -> list[Any]:
    """Last fragments of as many datagrams."""
    return [IP(src=source, dst=destination, id=n, proto=17, frag=100, flags=0) / Raw(bytes(16)) for n in range(1, count + 1)]


def whole_in_the_end(gateway: Gateway) -> bool:
    """Whether device 1's datagram becomes whole although device 2 floods between its pieces."""
    pieces = fragment(IP(src=ONE, dst=REMOTE, id=7) / UDP(sport=5000, dport=53) / Raw(bytes(1200)), 600)
    gateway.send(1, *pieces[:-1])
    gateway.send(2, *headless(TWO, REMOTE, FLOOD))
    return len(gateway.send(1, pieces[-1])) > 0


def test_s13_a_flood_of_fragments_harms_who_sends_it(gateway: Gateway) -> None:
    assert whole_in_the_end(gateway)
    assert gateway.drops()["fragment_limit"] >= FLOOD - 8


@interpreted_only
def test_s13_succeeds_where_a_device_may_have_all_room(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reassembly, "DEVICE_DATAGRAMS", 1 << 30)
    assert not whole_in_the_end(gateway)


def test_s13_a_flood_from_outside_does_not_stop_what_is_whole_or_what_devices_send(gateway: Gateway) -> None:
    port = gateway.external(1, udp(ONE, REMOTE))
    pieces = fragment(IP(src=ONE, dst=REMOTE, id=7) / UDP(sport=5000, dport=53) / Raw(bytes(1200)), 600)
    gateway.send(1, *pieces[:-1])
    gateway.arrive(*headless("198.51.100.66", POOL, OUTSIDE_DATAGRAMS + 40))
    assert len(gateway.arrive(IP(src=REMOTE, dst=POOL) / UDP(sport=53, dport=port) / Raw(b"answer"))) == 1
    assert len(gateway.send(1, pieces[-1])) > 0


def test_s13_what_never_becomes_whole_is_forgotten(gateway: Gateway) -> None:
    gateway.send(1, *headless(ONE, REMOTE, 5))
    sweep(gateway.b, START + 31 * SECOND)
    assert gateway.drops() == {"fragment_timeout": 5}
    assert not any(int(row.state) for row in gateway.b.local.datagrams)


@pytest.mark.skipif(not JIT, reason="interpreted, so many packets take minutes")
def test_4787_14a_a_hundred_thousand_fragments_without_a_first_take_no_memory_and_no_flow(gateway: Gateway) -> None:
    tables = sum(table.nbytes for table in (gateway.b.local.datagrams, gateway.b.local.octets))
    port = gateway.external(1, udp(ONE, REMOTE))
    fragments = headless(TWO, REMOTE, 4000)
    for _ in range(25):
        gateway.send(2, *fragments)
    assert sum(table.nbytes for table in (gateway.b.local.datagrams, gateway.b.local.octets)) == tables
    assert int(gateway.b.nat.settings[0].flows) == 1
    assert len(gateway.arrive(IP(src=REMOTE, dst=POOL) / UDP(sport=53, dport=port) / Raw(b"answer"))) == 1
