"""The translator's dumb twin: lists and dictionaries, every rule spelled out, expiry by looking at everything each time.

What a TCP segment does to a connection is the business of `tracking`, which has a twin of its own: here its kernel runs on a
record that belongs to the twin.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from egressvpn.nat.tables import ADDRESS_DEPENDENT, CONFIRMED, ENDPOINT_INDEPENDENT, FLOW
from egressvpn.nat.tcp import ACTIVE, CLIENT, OPEN, OPENING, REMOTE_INIT, SERVER, TIMERS
from egressvpn.nat.tracking import opening_state, track
from egressvpn.verdict import Verdict

Endpoint = tuple[int, str, str, int]  # version, kind, address, port
Remote = tuple[str, int]


@dataclass
class Rules:
    """Behaviour; times in seconds."""

    filtering: int
    timeouts: dict[str, float]  # udp, icmp, and tcp's opening, open, closing
    hold_down: float
    max_flows: int  # per device
    max_blocks: int
    records: int


@dataclass
class Flow:
    """Times in ms since the boot."""

    device: int
    kind: str
    record: Any
    mapping: "Mapping"

    @property
    def confirmed(self) -> bool:
        return bool(int(self.record.role) & CONFIRMED)

    def expires(self, rules: Rules) -> int:
        timer = TIMERS[int(self.record.state)]
        name = self.kind if self.kind != "tcp" else {OPENING: "opening", OPEN: "open"}.get(timer, "closing")
        return int(self.record.seen) + round(rules.timeouts[name] * 1000)


@dataclass(eq=False)
class Mapping:
    device: int
    internal: Endpoint
    external: Endpoint
    flows: dict[Remote, Flow] = field(default_factory=dict)


@dataclass
class Block:
    """Nobody's, a device's, or held for the identity that had it until a time."""

    address: str
    ports: range
    device: int = 0
    identity: int = 0
    held_until: int = 0


@dataclass
class Device:
    identity: int
    address: str
    address6: str


@dataclass
class Twin:
    rules: Rules
    devices: dict[int, Device]
    blocks: list[Block]
    mappings: list[Mapping] = field(default_factory=list)
    stray: list[Flow] = field(default_factory=list)  # unanswered flows of mappings that have ended

    def forget(self, now: int) -> None:
        """`now` in ms."""
        self.stray = [flow for flow in self.stray if now < flow.expires(self.rules)]
        for mapping in self.mappings:
            mapping.flows = {remote: flow for remote, flow in mapping.flows.items() if now < flow.expires(self.rules)}
        self.end_idle(now)
        for block in self.blocks:
            if block.held_until and block.held_until <= now:
                block.device = block.identity = block.held_until = 0

    def end_idle(self, now: int) -> None:
        """Mappings without a flow that the inside sent on end, and blocks without a port in use are held."""
        for mapping in [m for m in self.mappings if not any(flow.confirmed for flow in m.flows.values())]:
            self.mappings.remove(mapping)
            self.stray += mapping.flows.values()
        used = {(m.external[2], m.external[3]) for m in self.mappings}
        for block in self.blocks:
            if block.device and not block.held_until and not any((block.address, port) in used for port in block.ports):
                block.held_until = now + round(self.rules.hold_down * 1000)

    def may_send(self, device: int, internal: Endpoint, remote: Remote, packet: Any) -> Verdict:
        mapping = self.inside(device, internal)
        if mapping is not None and remote in mapping.flows:
            return Verdict.PASS
        if internal[1] == "tcp" and packet.tcp_flags & 4:
            return Verdict.NO_MAPPING
        if len(self.flows_of(device)) >= self.rules.max_flows:
            return Verdict.QUOTA_EXCEEDED
        if mapping is not None:
            return Verdict.PASS
        if internal[0] == 6:
            taken = self.outside((6, internal[1], self.devices[device].address6, internal[3]))
            return Verdict.PASS if taken is None else Verdict.PORTS_EXHAUSTED
        return self.choices(device, internal)[0]

    def choices(self, device: int, internal: Endpoint) -> tuple[Verdict, set[tuple[str, int]]]:
        """The external endpoints that a new mapping may get."""
        own = [block for block in self.blocks if block.device == device and not block.held_until]
        free = {
            (block.address, port) for block in own for port in block.ports if self.outside((4, internal[1], block.address, port)) is None
        }
        if not free:
            verdict, blocks = self.another_block(device, own)
            if verdict != Verdict.PASS:
                return verdict, set()
            free = {(block.address, port) for block in blocks for port in block.ports}
        alike = {end for end in free if end[1] % 2 == internal[3] % 2}
        return Verdict.PASS, alike or free

    def another_block(self, device: int, own: list[Block]) -> tuple[Verdict, list[Block]]:
        """The blocks one of which a device gets that has no free port."""
        mine = self.devices[device]
        if not mine.address:
            return Verdict.NO_EXTERNAL_ADDRESS, []
        if held := [block for block in self.blocks if block.device == device and block.held_until]:
            return Verdict.PASS, held
        if len(own) >= self.rules.max_blocks:
            return Verdict.QUOTA_EXCEEDED, []
        left = [block for block in self.blocks if block.held_until and not block.device and block.identity == mine.identity]
        if left := [block for block in left if block.address == mine.address or not own]:
            return Verdict.PASS, left
        free = [block for block in self.blocks if not block.held_until and not block.device]
        if here := [block for block in free if block.address == mine.address]:
            return Verdict.PASS, here
        return (Verdict.PASS, free) if free and not own else (Verdict.PORTS_EXHAUSTED, [])

    def sent(self, device: int, internal: Endpoint, external: Endpoint, remote: Remote, packet: tuple[Any, Any], now: int) -> None:
        """`packet`: its record and buffer, as it was before."""
        mapping = self.inside(device, internal)
        if mapping is None:
            mapping = self.add_mapping(device, internal, external)
        assert mapping.external == external, "the mapping depends on more than the endpoint"
        if remote not in mapping.flows:
            state = opening_state(packet[0].tcp_flags) if internal[1] == "tcp" else ACTIVE
            mapping.flows[remote] = self.flow(mapping, state, CONFIRMED, now)
        flow = mapping.flows[remote]
        if flow.kind == "tcp":
            assert track(flow.record, CLIENT, *packet, now * 1_000_000) == Verdict.PASS
        else:
            flow.record.seen = now
        if flow.kind != "tcp" or packet[0].tcp_flags & 4 == 0:
            flow.record.role = CONFIRMED

    def add_mapping(self, device: int, internal: Endpoint, external: Endpoint) -> Mapping:
        assert self.outside(external) is None, "an external endpoint was given twice"
        if internal[0] == 4:
            assert external[2:] in self.choices(device, internal)[1]
            block = next(b for b in self.blocks if b.address == external[2] and external[3] in b.ports)
            block.device, block.identity, block.held_until = device, self.devices[device].identity, 0
            self.devices[device].address = block.address
        else:
            assert external[2:] == (self.devices[device].address6, internal[3])
        self.mappings.append(Mapping(device, internal, external))
        return self.mappings[-1]

    def flow(self, mapping: Mapping, state: int, role: int, now: int) -> Flow:
        record = np.zeros(1, FLOW).view(np.recarray)[0]
        record.state, record.role, record.seen = state, role, now
        return Flow(mapping.device, mapping.internal[1], record, mapping)

    def receive(self, external: Endpoint, remote: Remote, packet: tuple[Any, Any], now: int) -> tuple[Verdict, Mapping | None]:
        mapping = self.outside(external)
        if mapping is None:
            return Verdict.NO_MAPPING, None
        if remote not in mapping.flows:
            verdict = self.may_call(mapping, remote, packet[0].tcp_flags)
            if verdict != Verdict.PASS:
                return verdict, None
            mapping.flows[remote] = self.flow(mapping, REMOTE_INIT if external[1] == "tcp" else ACTIVE, 0, now)
        flow = mapping.flows[remote]
        if flow.kind == "tcp":
            return Verdict(track(flow.record, SERVER, *packet, now * 1_000_000)), mapping
        if flow.confirmed:
            flow.record.seen = now
        return Verdict.PASS, mapping

    def may_call(self, mapping: Mapping, remote: Remote, flags: int) -> Verdict:
        """Whether a new remote endpoint gets through to a mapping."""
        if mapping.internal[1] == "tcp" and flags & 0x17 != 2:
            return Verdict.FILTERED
        contacted = any(host == remote[0] for (host, _), flow in mapping.flows.items() if flow.confirmed)
        if not {ENDPOINT_INDEPENDENT: True, ADDRESS_DEPENDENT: contacted}.get(self.rules.filtering, False):
            return Verdict.FILTERED
        flows, everyone = self.flows_of(mapping.device), [flow for device in self.devices for flow in self.flows_of(device)]
        waiting = sum(not flow.confirmed for flow in flows), sum(not flow.confirmed for flow in everyone)
        full = len(flows) >= self.rules.max_flows or waiting[0] * 4 >= self.rules.max_flows or waiting[1] * 4 >= self.rules.records
        return Verdict.QUOTA_EXCEEDED if full else Verdict.PASS

    def drop(self, device: int, now: int, versions: tuple[int, ...] = (4, 6)) -> None:
        for mapping in self.mappings:
            if mapping.device == device and mapping.internal[0] in versions:
                mapping.flows = {}
        self.stray = [flow for flow in self.stray if flow.device != device or flow.mapping.internal[0] not in versions]
        self.end_idle(now)

    def remove(self, device: int, now: int) -> None:
        self.drop(device, now)
        for block in self.blocks:
            if block.device == device:
                block.device = 0

    def end_address(self, address: str, now: int) -> None:
        for number, device in self.devices.items():
            if device.address == address:
                self.drop(number, now, versions=(4,))
                device.address = ""
        self.blocks = [block for block in self.blocks if block.address != address]

    def restart(self) -> None:
        self.stray = []

    def flows_of(self, device: int) -> list[Flow]:
        mine = [flow for mapping in self.mappings if mapping.device == device for flow in mapping.flows.values()]
        return mine + [flow for flow in self.stray if flow.device == device]

    def inside(self, device: int, internal: Endpoint) -> Mapping | None:
        return next((m for m in self.mappings if (m.device, m.internal) == (device, internal)), None)

    def outside(self, external: Endpoint) -> Mapping | None:
        return next((m for m in self.mappings if m.external == external), None)
