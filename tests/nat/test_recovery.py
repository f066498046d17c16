"""After a crash: whatever is derived may be lost or be noise, records may be half written, and every operation may stop at any line."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from egressvpn.kernel import JIT
from egressvpn.nat.expiry import drop_flows, remove_device
from egressvpn.nat.tables import ANCHOR, CONFIRMED, ENDPOINT_INDEPENDENT, HOME, SECOND
from egressvpn.nat.tcp import FREE
from egressvpn.nat.translate import inbound, open_outbound, outbound
from egressvpn.verdict import Verdict
from tests.nat.support import Gateway, assert_consistent, loaded, ns

NOISE = {
    "flows": "next_anchor live refs next_flow permit wheel_next wheel_prev list_next list_prev next_in",
    "subscribers": "first flows unconfirmed mappings blocks first_block open",
    "pool": "free held held_first held_last used",
    "blocks": "used free open_next open_prev list_next list_prev queue_next queue_prev",
    "settings": "free tick flows mappings records unconfirmed",
}
TRAFFIC = ["seen", "state", "role", "packets", "octets", "created", "next_sequence", "acknowledged", "window", "scale"]


@given(st.integers(0, 2**32))
@settings(max_examples=15)
def test_everything_derived_may_be_lost(noise: int) -> None:
    gateway = busy()
    live, counted = gateway.live(), traffic(gateway)
    random = np.random.default_rng(noise)
    for name, fields in NOISE.items():
        for field in fields.split():
            column = getattr(gateway.nat, name)[field]
            column[:] = random.integers(0 if column.dtype.kind == "u" else -3, 100, column.shape)
    assert gateway.restart() == len(live)
    assert_consistent(gateway.nat)
    assert gateway.live() == live
    assert traffic(gateway) == counted


def test_recovering_what_is_whole_changes_nothing_that_counts() -> None:
    gateway = busy()
    external = gateway.external(1, udp(4000))
    live, counted = gateway.live(), traffic(gateway)
    assert gateway.restart() == gateway.restart() == len(live)
    assert_consistent(gateway.nat)
    assert (gateway.live(), traffic(gateway)) == (live, counted)
    assert gateway.external(1, udp(4000)) == external


def test_recovering_empty_tables_leaves_them_empty() -> None:
    gateway = Gateway()
    assert gateway.restart() == gateway.restart() == 0
    assert_consistent(gateway.nat)
    assert (gateway.nat.flows["state"] == FREE).all()


def test_flows_expire_after_a_restart_when_they_would_have_without() -> None:
    gateway = Gateway()
    gateway.external(1, udp(4000))
    gateway.external(1, udp(4001), 100)
    gateway.now = 200.0
    gateway.restart()
    assert [gateway.expire(moment) for moment in (299.9, 300.2, 399.9, 400.2)] == [0, 1, 0, 1]


def test_unanswered_flows_from_outside_stay_and_count_as_such() -> None:
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT)
    external = gateway.external(1, udp(4000))
    gateway.receive(IP(src="198.51.100.9", dst=external[0]) / UDP(sport=7, dport=external[1]))
    assert gateway.restart() == 2
    assert gateway.nat.settings[0].unconfirmed == gateway.nat.subscribers[1].unconfirmed == 1
    assert_consistent(gateway.nat)


@pytest.mark.parametrize("field", ["key", "internal_lo", "mapping", "pool", "state"])
@pytest.mark.parametrize("value", [0, 77, -1])
def test_a_further_flow_half_written_is_dropped_and_the_others_stay(field: str, value: int) -> None:
    gateway = busy()
    live = gateway.live()
    slot = next(s for s in range(1, 60) if gateway.nat.flows[s].state != FREE and gateway.nat.flows[s].mapping != s)
    lost = gateway.key_of(slot)
    write(gateway.nat.flows[slot], field, value)
    gateway.restart()
    assert_consistent(gateway.nat)
    assert gateway.live() == live - {lost}


@pytest.mark.parametrize("field", ["key", "mapping", "pool", "role"])
@pytest.mark.parametrize("value", [0, 5, -1])
def test_a_home_half_written_is_dropped_with_its_flows_and_the_others_stay(field: str, value: int) -> None:
    gateway = busy()
    live = gateway.live()
    lost = {gateway.key_of(s) for s in range(1, 60) if gateway.nat.flows[s].state != FREE and gateway.nat.flows[s].mapping == 1}
    assert len(lost) == 2
    if field == "role":
        value = CONFIRMED if value == 5 else 0
    write(gateway.nat.flows[1], field, value)
    gateway.restart()
    assert_consistent(gateway.nat)
    assert gateway.live() == live - lost


@pytest.mark.parametrize("state", [0, 9, 200])
def test_a_home_whose_own_flow_is_broken_lives_by_its_other_one(state: int) -> None:
    gateway = busy()
    live, lost = gateway.live(), gateway.key_of(1)
    gateway.nat.flows[1].state = state
    gateway.restart()
    assert_consistent(gateway.nat)
    assert gateway.live() == live - {lost}


def test_a_home_without_a_flow_from_inside_is_none() -> None:
    gateway = Gateway()
    gateway.external(1, udp(4000))
    gateway.nat.flows[1].role = HOME
    assert gateway.restart() == 1
    assert gateway.nat.settings[0].mappings == 0
    assert_consistent(gateway.nat)
    assert gateway.expire(301) == 1


@pytest.mark.parametrize("slot", [1, 2], ids=["home", "further flow"])
def test_a_record_twice_in_the_table_counts_once(slot: int) -> None:
    gateway = busy()
    live = gateway.live()
    gateway.nat.flows[int(gateway.nat.settings[0].high) + 1] = gateway.nat.flows[slot]
    gateway.restart()
    assert_consistent(gateway.nat)
    assert gateway.live() == live


def test_a_flow_beyond_the_high_water_mark_is_found() -> None:
    gateway = busy()
    live = gateway.live()
    gateway.nat.settings[0].high -= 1
    gateway.restart()
    assert_consistent(gateway.nat)
    assert gateway.live() == live


def test_a_port_that_left_the_slice_does_not_come_back() -> None:
    gateway = busy()
    gateway.nat.pool[1].port_high = gateway.nat.pool[1].port_low + 200
    gateway.nat.pool[1].blocks = 0
    gateway.restart()
    assert {int(row.pool) for row in gateway.nat.flows if row.state != FREE} == {0, 2}


def test_two_devices_never_come_back_with_one_port() -> None:
    gateway = Gateway()
    gateway.external(1, udp(4000))
    gateway.external(3, udp(4000))
    first, second = gateway.nat.flows[1], gateway.nat.flows[2]
    second.key = second.key & ~0xFFFF | first.key & 0xFFFF
    assert gateway.restart() == 1
    assert_consistent(gateway.nat)


class CrashError(Exception):
    pass


def open_new(gateway: Gateway) -> None:
    open_outbound(gateway.nat, 1, loaded(udp(9999))[1], ns(1))


def open_known_endpoint(gateway: Gateway) -> None:
    open_outbound(gateway.nat, 1, loaded(udp(4000, remote="198.51.100.200"))[1], ns(1))


def open_from_outside(gateway: Gateway) -> None:
    port = int(gateway.nat.flows[1].key) & 0xFFFF
    buffer, row = loaded(IP(src="198.51.100.7", dst=Gateway.external4(1)) / UDP(sport=999, dport=port))
    inbound(gateway.nat, row, buffer, ns(1))


def answer(gateway: Gateway) -> None:
    buffer, row = loaded(udp(4000, remote="198.51.100.9"))
    outbound(gateway.nat, 1, row, buffer, ns(1))


def drop_one(gateway: Gateway) -> None:
    drop_flows(gateway.nat, 3, ns(1))


def remove_one(gateway: Gateway) -> None:
    remove_device(gateway.nat, 3, ns(1))


def expire_some(gateway: Gateway) -> None:
    gateway.expire(2.5)


OPERATIONS: list[Callable[[Gateway], None]] = [open_new, open_known_endpoint, open_from_outside, answer, drop_one, remove_one, expire_some]


@pytest.mark.skipif(JIT, reason="only an interpreted kernel can be stopped between two of its lines")
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_a_crash_at_any_line_loses_at_most_what_was_being_written(operation: Callable[[Gateway], None]) -> None:
    line, gateway = 0, small()
    before, saved = gateway.live(), [table.copy() for table in gateway.nat]
    while True:
        for table, kept in zip(gateway.nat, saved, strict=True):
            table[:] = kept
        gateway.now = 0.9
        line += 1
        crashed = stopped_at(line, lambda: operation(gateway))
        during = gateway.live()
        count = gateway.restart()
        assert_consistent(gateway.nat)
        after = gateway.live()
        assert count == len(after)
        assert after <= during
        assert len(before ^ after) <= (1 if operation not in (drop_one, remove_one, expire_some) else 3)
        assert gateway.restart() == count
        assert gateway.send(2, udp(5555))[0] == Verdict.PASS
        assert_consistent(gateway.nat)
        if not crashed:
            break
    assert line > 20


def stopped_at(line: int, operation: Callable[[], None]) -> bool:
    """Run `operation`, and die at the given line executed in the nat package. False: there are fewer."""
    left = [line]

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        path = frame.f_code.co_filename
        if "/nat/" not in path or "/tests/" in path or path.endswith(("keys.py", "slices.py")):
            return None  # those only compute
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                raise CrashError
        return trace

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        operation()
    except CrashError:
        return True
    finally:
        sys.settrace(old)
    return False


def udp(port: int, host: str = "100.64.0.5", remote: str = "198.51.100.7") -> Any:
    return IP(src=host, dst=remote) / UDP(sport=port, dport=80)


def small() -> Gateway:
    """Few flows, some about to expire at 2.5, one from outside, with chains longer than one."""
    gateway = Gateway(max_flows=8, ports=(2000, 2009), block_size=5, filtering=ENDPOINT_INDEPENDENT, udp=2 * SECOND)
    external = gateway.external(3, udp(4000), 0)
    assert external[0] == gateway.external(3, udp(4000, remote="198.51.100.8"))[0]
    gateway.external(3, IPv6(src="fd64::5", dst="2001:db8:51::7") / UDP(sport=3))
    external = gateway.external(1, udp(4000), 0.9)
    gateway.receive(IP(src="198.51.100.9", dst=external[0]) / UDP(sport=80, dport=external[1]))
    return gateway


def busy() -> Gateway:
    gateway = Gateway(max_flows=64)
    for device in (1, 2, 3, 4):
        for port in (4000, 4001):
            for remote in ("198.51.100.7", "198.51.100.8"):
                gateway.external(device, udp(port, remote=remote))
        gateway.external(device, IP(src="100.64.0.5", dst="198.51.100.7") / TCP(sport=4000, dport=443, flags="S"))
        gateway.external(device, IP(src="100.64.0.5", dst="198.51.100.7") / ICMP(type=8, id=7))
        gateway.external(device, IPv6(src="fd64::5", dst="2001:db8:51::7") / UDP(sport=3))
        gateway.external(device, IPv6(src="fd64::5", dst="2001:db8:51::7") / TCP(sport=3, flags="S"))
    drop_flows(gateway.nat, 4, ns(0))
    return gateway


def write(row: Any, field: str, value: int) -> None:
    """Only what fits, as a torn write would."""
    row[field] = np.array(value).astype(row.dtype[field])


def traffic(gateway: Gateway) -> list[Any]:
    """All that a flow is besides its key. Which flow is an anchor is derived."""
    rows = [row for row in gateway.nat.flows if row["state"] != FREE]
    return [[int(row["role"]) & ~ANCHOR if name == "role" else np.array(row[name]).tolist() for name in TRAFFIC] for row in rows]
