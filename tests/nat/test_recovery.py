"""After a crash the tables are whole again, and what was not being written at that moment is all still there."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from egressvpn.kernel import JIT
from egressvpn.nat.expiry import drop_flows, sweep
from egressvpn.nat.recovery import recover
from egressvpn.nat.tables import REGIONS, USED_REGIONS
from egressvpn.nat.tcp import FREE
from egressvpn.nat.translate import inbound, open_outbound
from egressvpn.verdict import Verdict
from tests.nat.support import Gateway, assert_consistent, loaded, ns

DERIVED = {
    "flows": ["permit", "next_out", "next_in", "next", "prev"],
    "mappings": ["first", "next_out", "next_in"],
    "permits": ["mapping", "remote_hi", "remote_lo", "first", "next"],
    "subscribers": ["first", "flows", "mappings"],
    "pool": ["used"],
    "settings": ["flow_free", "mapping_free", "permit_free", "permit_high", "hand", "flows", "mappings", "permits"],
}


@given(st.integers(0, 2**32))
@settings(max_examples=15)
def test_everything_derived_may_be_lost(noise: int) -> None:
    gateway = busy()
    live, counted = gateway.live(), traffic(gateway)
    scramble(gateway, np.random.default_rng(noise))
    assert recover(gateway.nat) == len(live)
    assert_consistent(gateway.nat)
    assert gateway.live() == live
    assert traffic(gateway) == counted


def test_recovering_what_is_whole_changes_nothing_that_counts() -> None:
    gateway = busy()
    live = gateway.live()
    assert recover(gateway.nat) == recover(gateway.nat) == len(live)
    assert gateway.live() == live
    assert gateway.external(1, udp(4000)) in {
        (Gateway.external4(1), int(row["external_key"]) >> 16 & 0xFFFF) for row in gateway.nat.mappings
    }


def test_recovering_empty_tables_leaves_them_empty() -> None:
    gateway = Gateway()
    before = gateway.octets()
    assert recover(gateway.nat) == 0
    assert recover(gateway.nat) == 0
    gateway.nat.settings[0].flow_high = gateway.nat.settings[0].mapping_high = 0
    for table in (gateway.nat.flows, gateway.nat.mappings):
        assert (table["state"] == FREE).all()
    assert len(gateway.octets()) == len(before)


@pytest.mark.parametrize(
    "field", ["key", "external_key", "internal_lo", "internal_hi", "external_lo", "external_hi", "mapping", "pool", "timeout"]
)
@pytest.mark.parametrize("value", [0, 77, -1])
def test_a_flow_record_half_written_is_dropped_and_the_others_stay(field: str, value: int) -> None:
    gateway = busy()
    live = gateway.live()
    victim = gateway.nat.flows[2]
    lost = key_of(victim)
    if victim[field] == value:
        return
    victim[field] = value
    if field == "timeout" and value > 0:
        return  # a timeout may be anything
    recover(gateway.nat)
    assert_consistent(gateway.nat)
    assert gateway.live() == live - {lost}


@pytest.mark.parametrize("field", ["key", "external_key", "internal_lo", "external_lo", "pool", "state"])
@pytest.mark.parametrize("value", [0, 5, -1])
def test_a_mapping_record_half_written_is_dropped_with_its_flows_and_the_others_stay(field: str, value: int) -> None:
    gateway = busy()
    live = gateway.live()
    lost = {key_of(row) for row in gateway.nat.flows if row["state"] != FREE and row["mapping"] == 1}
    gateway.nat.mappings[1][field] = value
    recover(gateway.nat)
    assert_consistent(gateway.nat)
    assert gateway.live() == live - lost


@pytest.mark.parametrize("name", ["flows", "mappings"])
def test_a_record_twice_in_the_table_counts_once(name: str) -> None:
    gateway = busy()
    live = gateway.live()
    table, high = getattr(gateway.nat, name), f"{name[:-1]}_high"
    slot = int(gateway.nat.settings[0][high]) + 1
    table[slot] = table[1]
    recover(gateway.nat)
    assert_consistent(gateway.nat)
    assert gateway.live() == live


def test_a_flow_beyond_the_high_water_mark_is_found() -> None:
    gateway = busy()
    live = gateway.live()
    gateway.nat.settings[0].flow_high -= 1
    gateway.nat.settings[0].mapping_high -= 1
    recover(gateway.nat)
    assert_consistent(gateway.nat)
    assert gateway.live() == live


def test_a_port_that_left_the_slice_does_not_come_back() -> None:
    gateway = busy()
    gateway.nat.pool[1].port_high = gateway.nat.pool[1].port_low
    recover(gateway.nat)
    assert_consistent(gateway.nat)


class CrashError(Exception):
    pass


def open_new(gateway: Gateway) -> None:
    open_outbound(gateway.nat, 1, loaded(udp(9999))[1], ns(1))


def open_known_endpoint(gateway: Gateway) -> None:
    open_outbound(gateway.nat, 1, loaded(udp(4000, remote="198.51.100.200"))[1], ns(1))


def open_from_outside(gateway: Gateway) -> None:
    flow = gateway.nat.flows[1]
    buffer, row = loaded(IP(src="198.51.100.7", dst=Gateway.external4(1)) / UDP(sport=999, dport=int(flow["external_key"]) >> 16 & 0xFFFF))
    inbound(gateway.nat, row, buffer, ns(1))


def drop_one(gateway: Gateway) -> None:
    drop_flows(gateway.nat, 3)


def sweep_all(gateway: Gateway) -> None:
    sweep(gateway.nat, 100, ns(299.5))


OPERATIONS: list[Callable[[Gateway], None]] = [open_new, open_known_endpoint, open_from_outside, drop_one, sweep_all]


@pytest.mark.skipif(JIT, reason="only an interpreted kernel can be stopped between two of its lines")
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_a_crash_at_any_line_loses_at_most_what_was_being_written(operation: Callable[[Gateway], None]) -> None:
    line = 0
    while True:
        gateway = small()
        before = gateway.live()
        line += 1
        crashed = stopped_at(line, lambda gateway=gateway: operation(gateway))  # type: ignore[misc]
        during = gateway.live()
        count = recover(gateway.nat)
        assert_consistent(gateway.nat)
        after = gateway.live()
        assert count == len(after)
        assert after == during
        assert len(before ^ after) <= (1 if operation not in (drop_one, sweep_all) else 3)
        assert recover(gateway.nat) == count
        assert gateway.send(2, udp(5555))[0] == Verdict.PASS
        if not crashed:
            break
    assert line > 40


def stopped_at(line: int, operation: Callable[[], None]) -> bool:
    """Run `operation`, and die at the given line executed in the nat package. False: there are fewer."""
    left = [line]

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        path = frame.f_code.co_filename
        if "/nat/" not in path or "/tests/" in path or path.endswith("keys.py"):
            return None  # keys.py only computes
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
    """Few flows, some about to expire at 299.5, with chains longer than one."""
    gateway = Gateway(max_flows=7, ports=(2000, 2009))
    gateway.external(1, udp(4000))
    gateway.external(3, udp(4000), -1)
    gateway.external(3, udp(4000, remote="198.51.100.8"), -1)
    gateway.external(3, IPv6(src="fd64::5", dst="2001:db8:51::7") / UDP(sport=3), -1)
    return gateway


def busy() -> Gateway:
    gateway = Gateway(max_flows=64)
    for device in (1, 2, 3):
        for port in (4000, 4001):
            for remote in ("198.51.100.7", "198.51.100.8"):
                gateway.external(device, udp(port, remote=remote))
        gateway.external(device, IP(src="100.64.0.5", dst="198.51.100.7") / TCP(sport=4000, dport=443, flags="S"))
        gateway.external(device, IPv6(src="fd64::5", dst="2001:db8:51::7") / UDP(sport=3))
        gateway.external(device, IPv6(src="fd64::5", dst="2001:db8:51::7") / TCP(sport=3, flags="S"))
    drop_flows(gateway.nat, 2)
    return gateway


def scramble(gateway: Gateway, random: np.random.Generator) -> None:
    """Noise over everything that recovery does not rely on."""
    for name, fields in DERIVED.items():
        table = getattr(gateway.nat, name)
        for field in fields:
            table[field] = random.integers(-3, 100, table[field].shape)
    used = gateway.nat.heads.size // REGIONS * USED_REGIONS
    gateway.nat.heads[:used] = random.integers(-3, 100, used)
    gateway.nat.port_bits[:] = random.integers(-(2**63), 2**63 - 1, gateway.nat.port_bits.size)


def key_of(row: Any) -> tuple[int, ...]:
    names = ("key", "internal_hi", "internal_lo", "remote_hi", "remote_lo", "external_key", "external_hi", "external_lo")
    return tuple(int(row[name]) for name in names)


def traffic(gateway: Gateway) -> list[tuple[int, ...]]:
    names = ("seen", "timeout", "state", "packets_out", "bytes_out", "packets_in", "bytes_in", "created")
    return [tuple(int(row[name]) for name in names) for row in gateway.nat.flows if row["state"] != FREE]
