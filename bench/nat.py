"""What the NAT kernels cost by themselves, compiled, on one core: new flows, look-ups from a thousand flows to a million, expiry, memory.

Packets are parsed before and rewritten in place; everything between is measured. Each flow has a mapping of its own, half are
TCP and half UDP. Prints a table, and with --json writes the figures to a file.
"""

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from egressvpn.dataplane import arena, cache
from egressvpn.kernel import JIT, kernel
from egressvpn.nat.expiry import STEP, expire
from egressvpn.nat.pools import set_pool
from egressvpn.nat.recovery import recover
from egressvpn.nat.tables import DERIVED, SECOND, NatTables, configure, seed, subscribe, tables
from egressvpn.nat.translate import inbound, open_outbound, outbound
from egressvpn.packet.headers import TCP, UDP, parse
from egressvpn.packet.octets import put_be16, put_be32
from egressvpn.packet.record import PACKET
from egressvpn.verdict import Verdict

PASS, NO_MAPPING = int(Verdict.PASS), int(Verdict.NO_MAPPING)
ADDRESSES = 16
DEVICES = 2000  # 500 flows each, in two blocks of 256 ports or fewer
BLOCK = 256
BATCH = 256
STRIDE = 64  # octets per packet in a batch
INSIDE, REMOTES, SERVICE = 0x64400000, 0xC6330000, 443
TCP_OCTETS, UDP_OCTETS = 40, 28
SCALES = (1_000, 10_000, 100_000, 1_000_000)
NEW_FLOWS, PAUSE, BYTES = 300_000, 5.0, 160  # what the figures must hold


@kernel
def build(buffer, packets, flows, devices):
    """Write and parse the packets that open, or continue, the given flows. 0: all are valid."""
    for index in range(flows.size):
        number = np.int64(flows[index])
        remote = REMOTES + (number * 40503 & 0xFFFF)
        if (
            write(buffer, packets[index], index * STRIDE, number, INSIDE + number % devices, 1024 + number // devices, remote, SERVICE)
            != PASS
        ):
            return index + 1
    return 0


@kernel
def build_answers(buffer, packets, flows, addresses, ports):
    """Write and parse what comes back on the given flows. 0: all are valid."""
    for index in range(flows.size):
        number = np.int64(flows[index])
        remote = REMOTES + (number * 40503 & 0xFFFF)
        if write(buffer, packets[index], index * STRIDE, number, remote, SERVICE, addresses[number], ports[number]) != PASS:
            return index + 1
    return 0


@kernel
def write(buffer, packet, start, number, source, source_port, destination, destination_port):
    """One packet, TCP or UDP as its flow is; a SYN when `packet.segments` is 0. Returns the parser's verdict."""
    for at in range(start, start + STRIDE):
        buffer[at] = 0
    protocol = TCP if number & 1 else UDP
    length = TCP_OCTETS if protocol == TCP else UDP_OCTETS
    buffer[start] = 0x45
    put_be16(buffer, start + 2, length)
    buffer[start + 8] = 64
    buffer[start + 9] = protocol
    put_be32(buffer, start + 12, source)
    put_be32(buffer, start + 16, destination)
    total = np.int64(0)
    for at in range(start, start + 20, 2):
        total += np.int64(buffer[at]) << 8 | np.int64(buffer[at + 1])
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    put_be16(buffer, start + 10, ~total & 0xFFFF)
    put_be16(buffer, start + 20, source_port)
    put_be16(buffer, start + 22, destination_port)
    if protocol == TCP:
        buffer[start + 32] = 0x50
        buffer[start + 33] = 0x02 if packet.segments == 0 else 0x10
    else:
        put_be16(buffer, start + 24, UDP_OCTETS - 20)
    return parse(buffer, start, length, packet)


@kernel
def open_all(nat, packets, flows, devices, buffer, now):
    """Send first packets of flows. Returns how many were not passed."""
    failed = np.int64(0)
    for index in range(flows.size):
        device = 1 + np.int64(flows[index]) % devices
        packet = packets[index]
        verdict = outbound(nat, device, packet, buffer, now)
        if verdict == NO_MAPPING:
            verdict = open_outbound(nat, device, packet, now)
            if verdict == PASS:
                verdict = outbound(nat, device, packet, buffer, now)
        if verdict != PASS:
            failed += 1
    return failed


@kernel
def send_all(nat, packets, flows, devices, buffer, now):
    failed = np.int64(0)
    for index in range(flows.size):
        if outbound(nat, 1 + np.int64(flows[index]) % devices, packets[index], buffer, now) != PASS:
            failed += 1
    return failed


@kernel
def receive_all(nat, packets, buffer, now):
    failed = np.int64(0)
    for index in range(packets.size):
        if inbound(nat, packets[index], buffer, now) != PASS:
            failed += 1
    return failed


@dataclass
class World:
    """A NAT of the size of a real one, in an arena of its own."""

    memory: Any
    nat: Any
    buffer: Any = field(default_factory=lambda: np.zeros(BATCH * STRIDE, np.uint8))
    packets: Any = field(default_factory=lambda: np.zeros(BATCH, PACKET).view(np.recarray))
    addresses: Any = field(default_factory=lambda: np.zeros(SCALES[-1], np.int64))  # external, by flow
    ports: Any = field(default_factory=lambda: np.zeros(SCALES[-1], np.int64))
    now: int = 1000 * SECOND
    flows: int = 0

    @classmethod
    def make(cls) -> "World":
        memory = arena.create(tables(1 << 20, 16_384, ADDRESSES))
        nat = memory.bundle(NatTables)
        seed(nat, 0x1122334455667788, -0x0102030405060708)
        configure(nat)
        for slot in range(1, ADDRESSES + 1):
            if set_pool(nat, slot, 0xCB007100 + slot, 1, 1024, 65535, BLOCK, 8, 0, 0) != 1:
                raise RuntimeError("the pool does not fit")
        for device in range(1, DEVICES + 1):
            subscribe(nat, device, device, 1 + device % ADDRESSES, 0, 0, 0)
        return cls(memory, nat)

    def prepare(self, flows: Any, first: bool) -> None:
        self.packets.segments = 0 if first else 1
        if build(self.buffer, self.packets, flows, DEVICES) != 0:
            raise RuntimeError("a packet of the bench is not valid")

    def open(self, until: int) -> float:
        """Open flows up to a number. Returns CPU seconds that the NAT took."""
        spent = 0
        while self.flows < until:
            count = min(BATCH, until - self.flows)
            flows = np.arange(self.flows, self.flows + BATCH)[:count]
            self.prepare(flows, first=True)
            before = time.thread_time_ns()
            failed = open_all(self.nat, self.packets, flows, DEVICES, self.buffer, self.now)
            spent += time.thread_time_ns() - before
            if failed:
                raise RuntimeError(f"{failed} flows of {count} were refused after {self.flows}")
            self.addresses[flows], self.ports[flows] = self.packets.source_lo[:count], self.packets.source_port[:count]
            self.flows += count
        return spent / 1e9

    def translate(self, rounds: int) -> tuple[float, float]:
        """ns per packet out and in, of flows drawn at random."""
        random = np.random.default_rng(1)
        out = into = 0
        for _ in range(rounds):
            flows = random.integers(0, self.flows, BATCH)
            self.prepare(flows, first=False)
            before = time.thread_time_ns()
            failed = send_all(self.nat, self.packets, flows, DEVICES, self.buffer, self.now)
            out += time.thread_time_ns() - before
            flows = random.integers(0, self.flows, BATCH)
            failed += build_answers(self.buffer, self.packets, flows, self.addresses, self.ports)
            before = time.thread_time_ns()
            failed += receive_all(self.nat, self.packets, self.buffer, self.now)
            into += time.thread_time_ns() - before
            if failed:
                raise RuntimeError("a packet of a known flow was not passed")
        return out / rounds / BATCH, into / rounds / BATCH

    def resident(self) -> int:
        return os.fstat(self.memory.fd).st_blocks * 512

    def steps(self) -> tuple[list[float], list[float]]:
        """Run `expire` until nothing is due: ms of CPU and of wall time of every step."""
        processor, wall = [], []
        while True:
            before, began = time.thread_time_ns(), time.perf_counter_ns()
            handled = expire(self.nat, STEP, self.now)
            processor.append((time.thread_time_ns() - before) / 1e6)
            wall.append((time.perf_counter_ns() - began) / 1e6)
            if handled < STEP:
                return processor, wall


def warm() -> None:
    """Compile everything, on a world that is thrown away."""
    world = World.make()
    world.open(BATCH)
    world.translate(1)
    world.steps()
    for name in DERIVED:
        getattr(world.nat, name)[:] = 0
    recover(world.nat, world.now)


def measure() -> dict[str, Any]:
    world = World.make()
    result: dict[str, Any] = {"lookup": {}, "empty_bytes": world.resident()}
    spent = 0.0
    for scale in SCALES:
        spent += world.open(scale)
        out, into = world.translate(400)
        result["lookup"][str(scale)] = {"out_ns": out, "in_ns": into}
    result["new_flows"] = world.flows / spent
    result["resident_bytes"] = world.resident()
    result["bytes_per_flow"] = world.resident() / world.flows
    result["recovery_s"] = recovery(world)
    world.now += 7440 * SECOND
    processor, wall = world.steps()
    result["expiry"] = {
        "flows": world.flows,
        "left": int(world.nat.settings[0].flows),
        "steps": len(processor),
        "worst_step_ms": max(processor),
        "worst_step_wall_ms": max(wall),
        "ns_per_flow": sum(processor) * 1e6 / world.flows,
    }
    world.flows = 0
    result["new_flows_again"] = SCALES[-1] / reopened(world)
    return result


def recovery(world: World) -> float:
    """Seconds that a worker's successor takes, its tables full."""
    for name in DERIVED:
        getattr(world.nat, name)[:] = 0
    before = time.perf_counter()
    if recover(world.nat, world.now) != world.flows:
        raise RuntimeError("recovery lost flows")
    return time.perf_counter() - before


def reopened(world: World) -> float:
    """All flows once more, in records and blocks that were used before."""
    world.now += 130 * SECOND
    return world.open(SCALES[-1])


def table(result: dict[str, Any]) -> str:
    expiry = result["expiry"]
    rows = [
        ("new flows per second, 1 per mapping", f"{result['new_flows']:,.0f}", f"≥ {NEW_FLOWS:,}"),
        ("the same in a table used before", f"{result['new_flows_again']:,.0f}", f"≥ {NEW_FLOWS:,}"),
        ("table memory per flow at 1 M flows, bytes", f"{result['bytes_per_flow']:.1f}", f"≤ {BYTES}"),
        ("expiry of 1 M flows, worst step, ms", f"{expiry['worst_step_ms']:.2f}", f"≤ {PAUSE:.0f}"),
        ("the same by the clock on the wall", f"{expiry['worst_step_wall_ms']:.2f}", ""),
        ("expiry per flow, ns", f"{expiry['ns_per_flow']:.0f}", ""),
        ("recovery of 1 M flows, s", f"{result['recovery_s']:.2f}", ""),
    ]
    for scale, cost in result["lookup"].items():
        rows.append((f"a packet out / in at {int(scale):,} flows, ns", f"{cost['out_ns']:.0f} / {cost['in_ns']:.0f}", ""))
    return "\n".join(["| NAT kernels, one core | measured | must be |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)])


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), help="Also write the figures to this file.")
def main(path: Path | None) -> None:
    """Measure the kernels of the NAT."""
    if not JIT:
        raise click.ClickException("this measures compiled kernels: unset EGRESSVPN_JIT")
    if "NUMBA_CACHE_DIR" not in os.environ:
        cache.prepare(cache.CALLABLE)
        os.execv(sys.executable, [sys.executable, *sys.argv])  # numba reads it when it is imported
    warm()
    result = measure()
    click.echo(table(result))
    if path:
        path.write_text(json.dumps({"schema": 1, **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
