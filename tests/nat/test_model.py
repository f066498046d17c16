"""The translator against its twin, through allocation, translation, expiry, reload and restart: a state machine of small pools."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6

from egressvpn.nat.expiry import drop_flows, drop_flows6, end_address, remove_device
from egressvpn.nat.pools import set_pool
from egressvpn.nat.tables import MILLISECOND, SECOND, subscribe
from egressvpn.nat.translate import may_open
from egressvpn.verdict import Verdict
from tests.nat.support import GROUP, POOL4, Gateway, assert_consistent, loaded, ns
from tests.nat.twin import Block, Device, Endpoint, Rules, Twin
from tests.packet.support import address, as_words

INNER = {4: ("100.64.0.5", "100.64.0.6"), 6: ("fd64::5", "fd64::6")}
REMOTES = {4: ("198.51.100.7", "198.51.100.8"), 6: ("2001:db8:51::7", "2001:db8:51::8")}
# Things happen at multiples of half a second, and flows end a quarter before: never within the wheel's tick of something else.
TIMEOUTS = {"udp": 299.75, "icmp": 59.75, "opening": 239.75, "open": 7439.75, "closing": 249.75}
HOLD_DOWN = 120
MAX_FLOWS, MAX_BLOCKS, RECORDS = 12, 2, 160
LOW, BLOCK, DEVICES = 2001, 3, 4
SLICES = (LOW + 3 * BLOCK - 1, LOW + 4 * BLOCK)  # ends of the ports: three blocks, and four with a port left over

devices, choices = st.integers(1, DEVICES), st.integers(0, 1)
flags = st.sampled_from(["S", "S", "SA", "A", "PA", "FA", "R", "RA"])
kinds = st.sampled_from(["tcp", "udp", "udp", "icmp"])
pauses = st.sampled_from([0.5, 59.5, 60, 120, 181, 239.5, 240, 299.5, 300, 7440])


class Machine(RuleBasedStateMachine):
    """One history of a gateway and its twin."""

    filtering = 0

    @initialize(end=st.sampled_from(SLICES))
    def begin(self, end: int) -> None:
        timeouts = {name: round(seconds * SECOND) for name, seconds in TIMEOUTS.items()}
        self.gateway = Gateway(
            max_flows=RECORDS - 1,
            devices=DEVICES,
            ports=(LOW, end),
            block_size=BLOCK,
            max_blocks=MAX_BLOCKS,
            filtering=self.filtering,
            udp=timeouts["udp"],
            icmp=timeouts["icmp"],
            tcp_opening=timeouts["opening"],
            tcp_established=timeouts["open"],
            tcp_closing=timeouts["closing"],
            hold_down=HOLD_DOWN * SECOND,
            max_flows_per_device=MAX_FLOWS,
        )
        owners = {n: Device(100 + n, Gateway.external4(n), Gateway.external6(n)) for n in range(1, DEVICES + 1)}
        rules = Rules(self.filtering, TIMEOUTS, HOLD_DOWN, MAX_FLOWS, MAX_BLOCKS, RECORDS)
        self.twin = Twin(rules, owners, [block for host in POOL4 for block in cut(host, end)])
        self.known: list[Endpoint] = []  # external endpoints ever used
        self.identity = 200

    @property
    def now(self) -> int:
        return ns(self.gateway.now) // MILLISECOND

    @rule(
        device=devices,
        version=st.sampled_from([4, 4, 6]),
        kind=kinds,
        host=choices,
        port=st.integers(0, 3),
        remote=choices,
        rport=choices,
        flags=flags,
    )
    def send(self, device: int, version: int, kind: str, host: int, port: int, remote: int, rport: int, flags: str) -> None:
        internal = (version, kind, INNER[version][host], 4000 + port)
        there = (REMOTES[version][remote], 0 if kind == "icmp" else 80 + rport)
        octets = outgoing(internal, there, flags)
        self.twin.forget(self.now)
        self.gateway.expire()
        buffer, row = loaded(octets)
        expected = self.twin.may_send(device, internal, there, row)
        assert may_open(self.gateway.nat, device, row, ns(self.gateway.now)) == (
            expected if "R" not in flags or kind != "tcp" else Verdict.NO_MAPPING
        )
        verdict, sent, _ = self.gateway.send(device, octets)
        assert verdict == expected
        if verdict == Verdict.PASS:
            external = (version, kind, address(version, sent.source_hi, sent.source_lo), int(sent.source_port))
            self.twin.sent(device, internal, external, there, (row, buffer), self.now)
            self.known = [end for end in self.known if end != external] + [external]

    @rule(device=devices, kind=kinds, host=choices, remote=choices, count=st.integers(2, 7))
    def burst(self, device: int, kind: str, host: int, remote: int, count: int) -> None:
        """A device begins many sessions."""
        for port in range(count):
            self.send(device, 4, kind, host, port, remote, port % 2, "S")

    @precondition(lambda self: self.known)
    @rule(count=st.integers(1, 4), remote=choices, port=choices, flags=flags)
    def call(self, count: int, remote: int, port: int, flags: str) -> None:
        """Somebody outside tries the external endpoints used last."""
        for which in range(count):
            self.receive(which, remote, port, flags)

    @precondition(lambda self: self.known)
    @rule(which=st.integers(0, 15), remote=choices, port=choices, flags=flags)
    def receive(self, which: int, remote: int, port: int, flags: str) -> None:
        external = self.known[-1 - which % len(self.known)]
        there = (REMOTES[external[0]][remote], 0 if external[1] == "icmp" else 80 + port)
        octets = incoming(external, there, flags)
        self.twin.forget(self.now)
        buffer, row = loaded(octets)
        expected, mapping = self.twin.receive(external, there, (row, buffer), self.now)
        verdict, received, _ = self.gateway.receive(octets)
        assert verdict == expected
        if verdict == Verdict.PASS:
            assert mapping is not None
            host = address(external[0], received.destination_hi, received.destination_lo)
            assert (int(received.owner), host, int(received.destination_port)) == (mapping.device, *mapping.internal[2:])

    @rule(seconds=pauses)
    def wait(self, seconds: float) -> None:
        self.gateway.expire(self.gateway.now + seconds)
        self.twin.forget(self.now)

    @rule(device=devices, only6=st.booleans())
    def drop(self, device: int, only6: bool) -> None:
        (drop_flows6 if only6 else drop_flows)(self.gateway.nat, device, ns(self.gateway.now))
        self.twin.drop(device, self.now, (6,) if only6 else (4, 6))

    @rule(device=devices, slot=st.integers(1, len(POOL4)), again=st.booleans())
    def replace(self, device: int, slot: int, again: bool) -> None:
        """A device goes, and it or another one comes to its slot."""
        remove_device(self.gateway.nat, device, ns(self.gateway.now))
        self.twin.remove(device, self.now)
        if not again:
            self.identity += 1
            self.twin.devices[device].identity = self.identity
        self.twin.devices[device].address = POOL4[slot - 1]
        self.subscribe(device)

    @rule(slot=st.integers(1, len(POOL4)), budget=st.integers(1, 3), end=st.sampled_from(SLICES))
    def reload(self, slot: int, budget: int, end: int) -> None:
        """An address is taken away and comes back with other ports; its devices are paired again."""
        nat, host = self.gateway.nat, POOL4[slot - 1]
        while end_address(nat, slot, budget, ns(self.gateway.now)) == 0:
            assert_consistent(nat)
        assert nat.pool[slot].address == 0
        lost = [number for number, device in self.twin.devices.items() if device.address == host]
        self.twin.end_address(host, self.now)
        assert set_pool(nat, slot, as_words(host)[1], GROUP, LOW, end, BLOCK, MAX_BLOCKS, 0, 0) == 1
        self.twin.blocks += cut(host, end)
        for device in lost:
            self.twin.devices[device].address = POOL4[device % len(POOL4)]
            self.subscribe(device)

    @rule()
    def restart(self) -> None:
        self.twin.forget(self.now)
        self.gateway.expire()
        self.twin.restart()
        assert self.gateway.restart() == sum(len(self.twin.flows_of(device)) for device in self.twin.devices)

    def subscribe(self, device: int) -> None:
        row = self.twin.devices[device]
        subscribe(self.gateway.nat, device, row.identity, POOL4.index(row.address) + 1, *as_words(row.address6), 0)

    @invariant()
    def everything_agrees(self) -> None:
        if not hasattr(self, "gateway"):
            return
        assert_consistent(self.gateway.nat)
        counted = self.gateway.nat.settings[0]
        assert counted.slice_violations == 0
        self.twin.forget(self.now)
        self.gateway.expire()
        assert counted.mappings == len(self.twin.mappings)
        for device in self.twin.devices:
            assert self.gateway.nat.subscribers[device].flows == len(self.twin.flows_of(device))
        held = sum(block.held_until != 0 for block in self.twin.blocks)
        assert sum(self.gateway.nat.pool["held"]) == held


@pytest.mark.parametrize("filtering", [0, 1, 2], ids=["endpoint-independent", "address-dependent", "address-and-port-dependent"])
def test_it_behaves_as_its_dumb_twin_whatever_happens(filtering: int) -> None:
    machine = type("Filtering", (Machine,), {"filtering": filtering})
    run_state_machine_as_test(machine, settings=settings(max_examples=40, stateful_step_count=40, deadline=None))


def cut(host: str, end: int) -> list[Block]:
    """An address's blocks; what is left over belongs to none."""
    return [Block(host, range(low, low + BLOCK)) for low in range(LOW, end - BLOCK + 2, BLOCK)]


def outgoing(internal: Endpoint, remote: tuple[str, int], flags: str) -> bytes:
    version, kind, host, port = internal
    ip = IP(src=host, dst=remote[0]) if version == 4 else IPv6(src=host, dst=remote[0])
    if kind == "icmp":
        return bytes(ip / (ICMP(type=8, id=port) if version == 4 else ICMPv6EchoRequest(id=port)))
    return bytes(ip / (TCP(sport=port, dport=remote[1], flags=flags) if kind == "tcp" else UDP(sport=port, dport=remote[1])))


def incoming(external: Endpoint, remote: tuple[str, int], flags: str) -> bytes:
    version, kind, host, port = external
    ip = IP(src=remote[0], dst=host) if version == 4 else IPv6(src=remote[0], dst=host)
    if kind == "icmp":
        return bytes(ip / (ICMP(type=0, id=port) if version == 4 else ICMPv6EchoReply(id=port)))
    return bytes(ip / (TCP(sport=remote[1], dport=port, flags=flags) if kind == "tcp" else UDP(sport=remote[1], dport=port)))
