"""EXPLAIN says what would be done with a packet, and does nothing."""

from collections.abc import Iterator

import numpy as np
import pytest

from egressvpn.dataplane.channel import Command, Event
from egressvpn.dataplane.explain import EXEMPTED, SLOT_SHIFT, TRANSLATED, TURNED, WAY_SHIFT
from egressvpn.verdict import Verdict
from egressvpn.wireguard.tables import DISABLED
from tests.dataplane.gateway import EXTERNAL6, ONE, POOL, REMOTE, REMOTE6, Gateway, address_words, udp

TCP, UDP, PING = 6, 17, 1


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway(max_flows_per_device=1)
    made.rig.command(Command.ADD_DENIED, version=4, low=address_words("10.0.0.0")[1], prefix_length=8)
    made.rig.command(Command.ADD_EXEMPT, version=4, low=address_words("10.20.0.0")[1], prefix_length=16)
    yield made
    made.close()


def explain(gateway: Gateway, destination: str, protocol: int = UDP, number: int = 1) -> tuple[Verdict, int, int]:
    """Verdict, way and place; nothing else changed."""
    before = [np.array(table) for name, table in gateway.b.nat._asdict().items() if name != "quote"]
    high, low = address_words(destination)
    version = 6 if ":" in destination else 4
    gateway.rig.command(Command.EXPLAIN, owner=number, version=version, high=high, low=low, port_low=53, state=protocol, index=77)
    (event,) = gateway.rig.events()
    assert (event.kind, event.owner, event.index) == (Event.EXPLAINED, number, 77)
    after = [table for name, table in gateway.b.nat._asdict().items() if name != "quote"]
    assert all((table == kept).all() for table, kept in zip(after, before, strict=True))
    assert gateway.drops() == {}
    return Verdict(int(event.first) & 0xFF), int(event.first) >> WAY_SHIFT, int(event.second)


@pytest.mark.parametrize("protocol", [TCP, UDP, PING])
def test_a_new_flow_leaves_from_the_pool_address(gateway: Gateway, protocol: int) -> None:
    assert explain(gateway, REMOTE, protocol) == (Verdict.PASS, TRANSLATED, 1 << SLOT_SHIFT)


def test_the_block_of_a_device_that_has_one_is_told(gateway: Gateway) -> None:
    gateway.b.nat.settings[0].max_flows_per_device = 9
    port = gateway.external(1, udp(ONE, REMOTE))
    verdict, _, place = explain(gateway, REMOTE)
    low, high = place >> 16 & 0xFFFF, place & 0xFFFF
    assert (verdict, place >> SLOT_SHIFT, high - low) == (Verdict.PASS, 1, 255)
    assert low <= port <= high


def test_what_would_be_refused_is_told_with_its_verdict(gateway: Gateway) -> None:
    assert explain(gateway, "10.1.2.3")[0] == Verdict.POLICY_DENIED
    assert explain(gateway, "127.0.0.1")[0] == Verdict.POLICY_DENIED
    assert explain(gateway, REMOTE, 47)[0] == Verdict.UNSUPPORTED_PROTOCOL
    gateway.send(1, udp(ONE, REMOTE))
    assert explain(gateway, REMOTE)[0] == Verdict.QUOTA_EXCEEDED


def test_other_ways_are_told(gateway: Gateway) -> None:
    assert explain(gateway, "10.20.1.1") == (Verdict.PASS, EXEMPTED, 0)
    assert explain(gateway, POOL)[:2] == (Verdict.PASS, TURNED)
    assert explain(gateway, EXTERNAL6[2]) == (Verdict.PASS, TURNED, 0)
    assert explain(gateway, REMOTE6) == (Verdict.PASS, TRANSLATED, 0)
    assert explain(gateway, REMOTE6, 58) == (Verdict.PASS, TRANSLATED, 0)


def test_a_device_that_cannot_send_at_all_is_told_why(gateway: Gateway) -> None:
    assert explain(gateway, REMOTE, number=3)[0] == Verdict.DEVICE_DISABLED
    gateway.b.wg.devices[1].internal6_hi = gateway.b.wg.devices[1].internal6_lo = 0
    assert explain(gateway, REMOTE6)[0] == Verdict.SOURCE_MISMATCH
    gateway.b.wg.devices[1].state = DISABLED
    assert explain(gateway, REMOTE)[0] == Verdict.DEVICE_DISABLED
    gateway.b.work.worker[0].open = 0
    assert explain(gateway, REMOTE)[0] == Verdict.NOT_CONFIGURED
