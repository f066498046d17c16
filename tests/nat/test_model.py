"""The translator against a dumb twin: dictionaries, every rule spelled out, expiry by looking at everything each time."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6

from egressvpn.nat.expiry import drop_flows, sweep
from egressvpn.nat.recovery import recover
from egressvpn.nat.tables import ADDRESS_AND_PORT_DEPENDENT, ADDRESS_DEPENDENT, ENDPOINT_INDEPENDENT
from egressvpn.nat.tcp import BOTH_FIN, CLIENT, DATA, FIN, INIT, REMOTE_INIT, RST, SERVER, SYN, TABLE, TRANS, TRANSITORY
from egressvpn.verdict import Verdict
from tests.nat.support import Gateway, assert_consistent, ns
from tests.packet.support import address

INNER = {4: ("100.64.0.5", "100.64.0.6"), 6: ("fd64::5", "fd64::6")}
REMOTES = {4: ("198.51.100.7", "198.51.100.8"), 6: ("2001:db8:51::7", "2001:db8:51::8")}
TIMEOUTS = {"udp": 300, "icmp": 60}

Endpoint = tuple[int, str, str, int]  # version, kind, address, port


@dataclass
class Flow:
    seen: float
    state: int = 0
    packets: int = 0

    def expires(self, kind: str) -> float:
        return self.seen + (TIMEOUTS.get(kind) or (240 if self.state in TRANSITORY else 7440))

    def track(self, kind: str, direction: int, flags: str, now: float) -> None:
        first, self.packets = self.packets == 0, self.packets + 1
        if kind != "tcp" or first:
            self.seen = now
            return
        segment = RST if "R" in flags else SYN if "S" in flags else FIN if "F" in flags else DATA
        after = TABLE[self.state, direction][segment]
        if after != self.state or (segment != RST and self.state != BOTH_FIN):
            self.seen = now
        self.state = after


@dataclass
class Mapping:
    device: int
    internal: Endpoint
    external: Endpoint
    flows: dict[tuple[str, int], Flow] = field(default_factory=dict)


@dataclass
class Twin:
    filtering: int
    mappings: list[Mapping] = field(default_factory=list)

    def forget(self, now: float) -> None:
        for mapping in self.mappings:
            mapping.flows = {remote: flow for remote, flow in mapping.flows.items() if now < flow.expires(mapping.internal[1])}
        self.mappings = [mapping for mapping in self.mappings if mapping.flows]

    def may_send(self, device: int, internal: Endpoint, remote: tuple[str, int], flags: str) -> Verdict:
        mapping = self.inside(device, internal)
        if mapping is None or remote not in mapping.flows:
            if internal[1] == "tcp" and "R" in flags:
                return Verdict.NO_MAPPING
            taken = any(m.external == (6, internal[1], Gateway.external6(device), internal[3]) for m in self.mappings)
            if internal[0] == 6 and mapping is None and taken:
                return Verdict.PORTS_EXHAUSTED
        return Verdict.PASS

    def sent(self, device: int, internal: Endpoint, external: Endpoint, remote: tuple[str, int], flags: str, now: float) -> None:
        mapping = self.inside(device, internal)
        if mapping is None:
            assert all(m.external != external for m in self.mappings), "an external endpoint was given twice"
            mapping = Mapping(device, internal, external)
            self.mappings.append(mapping)
        assert mapping.external == external, "the mapping depends on more than the endpoint"
        flow = mapping.flows.setdefault(remote, Flow(now, INIT if "S" in flags else TRANS))
        flow.track(internal[1], CLIENT, flags, now)

    def may_receive(self, external: Endpoint, remote: tuple[str, int], flags: str) -> Verdict:
        mapping = self.outside(external)
        if mapping is None:
            return Verdict.NO_MAPPING
        if remote in mapping.flows:
            return Verdict.PASS
        if external[1] == "tcp" and ("S" not in flags or "R" in flags):
            return Verdict.FILTERED
        contacted = any(host == remote[0] for host, _ in mapping.flows)
        lets = {ENDPOINT_INDEPENDENT: True, ADDRESS_DEPENDENT: contacted, ADDRESS_AND_PORT_DEPENDENT: False}
        return Verdict.PASS if lets[self.filtering] else Verdict.FILTERED

    def received(self, external: Endpoint, remote: tuple[str, int], flags: str, now: float) -> Mapping:
        mapping = self.outside(external)
        assert mapping is not None
        mapping.flows.setdefault(remote, Flow(now, REMOTE_INIT)).track(external[1], SERVER, flags, now)
        return mapping

    def inside(self, device: int, internal: Endpoint) -> Mapping | None:
        return next((m for m in self.mappings if (m.device, m.internal) == (device, internal)), None)

    def outside(self, external: Endpoint) -> Mapping | None:
        return next((m for m in self.mappings if m.external == external), None)


devices, choices = st.integers(1, 3), st.integers(0, 1)
flags = st.sampled_from(["S", "SA", "A", "PA", "FA", "R", "RA"])
kinds = st.sampled_from(["tcp", "udp", "icmp"])
sends = st.tuples(st.just("send"), devices, st.sampled_from([4, 6]), kinds, choices, choices, choices, choices, flags)
receives = st.tuples(st.just("receive"), st.integers(0, 9), choices, choices, flags)
waits = st.tuples(st.just("wait"), st.sampled_from([0.5, 59.5, 60, 181, 239.5, 240, 299.5, 300, 7440]))
upkeep = st.one_of(
    st.tuples(st.just("sweep"), st.integers(1, 40)), st.tuples(st.just("drop"), devices), st.tuples(st.just("recover")), waits
)
operations = st.lists(st.one_of(sends, sends, receives, receives, receives, upkeep), max_size=40)


@pytest.mark.parametrize("filtering", [ENDPOINT_INDEPENDENT, ADDRESS_DEPENDENT, ADDRESS_AND_PORT_DEPENDENT])
@given(operations)
@settings(max_examples=40)
def test_it_behaves_as_its_dumb_twin_whatever_happens(filtering: int, history: list[Any]) -> None:
    run = Run(Gateway(filtering=filtering, max_flows=128), Twin(filtering))
    for name, *arguments in history:
        run.twin.forget(run.now)
        getattr(run, name)(*arguments)
    assert_consistent(run.gateway.nat)


@dataclass
class Run:
    gateway: Gateway
    twin: Twin
    now: float = 0.0
    known: list[Endpoint] = field(default_factory=list)  # every external endpoint ever used

    def send(self, device: int, version: int, kind: str, host: int, port: int, remote: int, rport: int, flags: str) -> None:
        internal = (version, kind, INNER[version][host], 4000 + port)
        there = (REMOTES[version][remote], 0 if kind == "icmp" else 80 + rport)
        expected = self.twin.may_send(device, internal, there, flags)
        verdict, row, _ = self.gateway.send(device, outgoing(internal, there, flags), self.now)
        assert verdict == expected
        if verdict == Verdict.PASS:
            external = (version, kind, address(version, row.source_hi, row.source_lo), int(row.source_port))
            self.twin.sent(device, internal, external, there, flags, self.now)
            if external not in self.known:
                self.known.append(external)

    def receive(self, which: int, remote: int, rport: int, flags: str) -> None:
        if not self.known:
            return
        external = self.known[-1 - which % len(self.known)]
        there = (REMOTES[external[0]][remote], 0 if external[1] == "icmp" else 80 + rport)
        expected = self.twin.may_receive(external, there, flags)
        verdict, row, _ = self.gateway.receive(incoming(external, there, flags), self.now)
        assert verdict == expected
        if verdict == Verdict.PASS:
            mapping = self.twin.received(external, there, flags, self.now)
            host = address(external[0], row.destination_hi, row.destination_lo)
            assert (int(row.owner), host, int(row.destination_port)) == (mapping.device, *mapping.internal[2:])

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def sweep(self, budget: int) -> None:
        sweep(self.gateway.nat, budget, ns(self.now))

    def drop(self, device: int) -> None:
        drop_flows(self.gateway.nat, device)
        self.twin.mappings = [mapping for mapping in self.twin.mappings if mapping.device != device]

    def recover(self) -> None:
        recover(self.gateway.nat)
        assert_consistent(self.gateway.nat)


def outgoing(internal: Endpoint, remote: tuple[str, int], flags: str) -> Any:
    version, kind, host, port = internal
    ip = IP(src=host, dst=remote[0]) if version == 4 else IPv6(src=host, dst=remote[0])
    if kind == "icmp":
        return ip / (ICMP(type=8, id=port) if version == 4 else ICMPv6EchoRequest(id=port))
    return ip / (TCP(sport=port, dport=remote[1], flags=flags) if kind == "tcp" else UDP(sport=port, dport=remote[1]))


def incoming(external: Endpoint, remote: tuple[str, int], flags: str) -> Any:
    version, kind, host, port = external
    ip = IP(src=remote[0], dst=host) if version == 4 else IPv6(src=remote[0], dst=host)
    if kind == "icmp":
        return ip / (ICMP(type=0, id=port) if version == 4 else ICMPv6EchoReply(id=port))
    return ip / (TCP(sport=remote[1], dport=port, flags=flags) if kind == "tcp" else UDP(sport=remote[1], dport=port))
