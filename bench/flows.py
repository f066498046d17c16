"""`bench/flows.py`: what many flows cost: CPU per packet of the whole data path with traffic spread over all of them, new flows, memory.

The devices are netns-lab/swarm.py's: real WireGuard data of 64 devices, each packet of a flow chosen at random, so that hardly two
packets of a batch share anything. Packets out are counted where evl-inet drops them, packets in where the client does. CPU is that of
the gateway's process tree, as in bench.py. Then one device opens flows without end, while another uses the network.
"""

import ipaddress
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "netns-lab"))

import click
import fleet
import neighbours
import numpy as np
from clients import WireGuardGo
from gateways import Egress, Gateway, Peer
from processes import cpu_seconds, memory_bytes
from swarm import DATAGRAM, INNER, REMOTE_PORT, Outside, Swarm, packets, plan
from topology import ROOT, WIREGUARD_PORT, Lab, LabError, run

from bench import into_docs, machine

DEVICES = 64
STAGES = (1_000, 10_000, 100_000, 1_000_000)
PEER_STAGES = (1_000, 10_000, 100_000)  # the kernel's table has room for 262 144
OPENING = 6_000  # flows opened between two looks at the capture
MORE_POOL = "203.0.113.128/25"  # a million ports, and room for chance: an address is given to devices without regard to what they will need
OUTER_HEADERS = 28
COUNTER = """
table inet bench {{
  counter delivered {{}}
  chain counting {{ type filter hook prerouting priority raw; {match} counter name delivered drop; }}
}}
"""
CONFIGURATION = """[nat]
max_flows = 1048576
max_flows_per_device = 1048576
mapping_rate = 0

[api]"""


@contextmanager
def counting(namespace: str, match: str) -> Iterator[dict[str, int]]:
    """Count and drop what matches; the dictionary is filled in at the end."""
    nft = ["ip", "netns", "exec", namespace, "nft"]
    run([*nft, "-f", "-"], stdin=COUNTER.format(match=match))
    seen: dict[str, int] = {}
    try:
        yield seen
        time.sleep(0.3)
        seen |= json.loads(run([*nft, "-j", "list", "counter", "inet", "bench", "delivered"]).stdout)["nftables"][1]["counter"]
    finally:
        run([*nft, "delete", "table", "inet", "bench"])


@dataclass
class Figures:
    """Of one gateway: CPU in µs per packet by number of flows, of a new flow, and memory in MB."""

    out: dict[int, list[float]] = field(default_factory=dict)
    into: dict[int, list[float]] = field(default_factory=dict)
    opened: dict[int, float] = field(default_factory=dict)
    memory: dict[int, float] = field(default_factory=dict)
    among: list[float] = field(default_factory=list)  # out, over the first thousand, with all flows open


@dataclass
class Bench:
    """One gateway with its swarm."""

    lab: Lab
    gateway: Gateway
    remotes: int
    pace: int
    count: int
    rounds: int
    figures: Figures = field(default_factory=Figures)

    def measure(self, stages: tuple[int, ...]) -> Figures:
        devices = fleet.Devices.make(DEVICES)
        self.gateway.prepare(0)
        self._configure()
        self.gateway.start()
        fleet.addconf(self.lab, self.gateway, devices.conf)
        inner = [int(ipaddress.ip_address(f"100.64.{number // 250 + 100}.{number % 250 + 2}")) for number in range(DEVICES)]
        public = self.lab.run(self.lab.gateway, "wg", "show", self.gateway.interface, "public-key").stdout.strip()
        swarm = Swarm(self.lab, 1, public, devices.private, inner)
        outside = Outside(self.lab, stages[-1])
        try:
            self._stages(swarm, outside, stages)
        finally:
            outside.close()
            swarm.close()
            self.gateway.stop()
        return self.figures

    def _configure(self) -> None:
        if isinstance(self.gateway, Egress):
            self.gateway.edit(r"\[api\]", CONFIGURATION)
            self.gateway.edit(r'addresses = \["203[^"]*"', f'block_size = 256\nmax_blocks = 256\naddresses = ["{MORE_POOL}"')

    def _stages(self, swarm: Swarm, outside: Outside, stages: tuple[int, ...]) -> None:
        flows = plan(stages[-1], swarm.inner, self.remotes)
        ports = np.full(len(flows), REMOTE_PORT)
        rows = packets(flows["internal"], flows["port"], flows["remote"], ports)
        self.figures.memory[0] = memory_bytes(self.gateway.pid) / 1e6
        random = np.random.default_rng(1)
        before = 0
        for stage in stages:
            self._open(swarm, outside, (flows, rows), before, stage)
            answers = outside.answers(flows[:stage])
            for _ in range(self.rounds):
                self.figures.out.setdefault(stage, []).append(self._out(swarm, flows, rows, random.integers(0, stage, self.count)))
                self.figures.into.setdefault(stage, []).append(self._into(swarm, outside, answers, random.integers(0, stage, self.count)))
            self.figures.memory[stage] = memory_bytes(self.gateway.pid) / 1e6
            click.echo(f"{self.gateway.title}, {stage} flows: {self.row(stage)}")
            before = stage
        self.figures.among = [self._out(swarm, flows, rows, random.integers(0, stages[0], self.count)) for _ in range(self.rounds)]

    def row(self, stage: int) -> str:
        out, into = (statistics.median(of[stage]) for of in (self.figures.out, self.figures.into))
        return f"out {out:.2f} µs, in {into:.2f} µs, new {self.figures.opened[stage]:.2f} µs, {self.figures.memory[stage]:.0f} MB"

    def _open(self, swarm: Swarm, outside: Outside, made: tuple[Any, Any], first: int, last: int) -> None:
        """Send once on each of the flows from `first` on, and learn their external endpoints; what was lost is sent again."""
        swarm.connect()
        used = cpu_seconds(self.gateway.pid)
        with counting(self.lab.internet, f"udp dport {REMOTE_PORT}"):
            for at in range(first, last, OPENING):
                swarm.send(*made, np.arange(at, min(at + OPENING, last)), self.pace)
                time.sleep(0.02)
                outside.look()
            time.sleep(0.5)
            outside.look()
            self.figures.opened[last] = (cpu_seconds(self.gateway.pid) - used) / (last - first) * 1e6
            for _ in range(5):
                if len(missing := np.flatnonzero(outside.external[:last] == 0)) == 0:
                    return
                swarm.send(*made, missing, self.pace // 4)
                time.sleep(0.5)
                outside.look()
        raise LabError(f"{len(missing)} of {last} flows could not be opened: {self.drops()}")

    def drops(self) -> dict[str, int]:
        return {k: v for k, v in self.gateway.drops().items() if v} if isinstance(self.gateway, Egress) else {}

    def _out(self, swarm: Swarm, flows: Any, rows: Any, order: Any) -> float:
        """µs of gateway CPU per packet that arrived."""
        swarm.connect()
        with counting(self.lab.internet, f"udp dport {REMOTE_PORT}") as seen:
            used = cpu_seconds(self.gateway.pid)
            swarm.send(flows, rows, order, self.pace)
            time.sleep(0.2)
            used = cpu_seconds(self.gateway.pid) - used
        return used / self._arrived(seen["bytes"] // INNER, len(order)) * 1e6

    def _into(self, swarm: Swarm, outside: Outside, answers: Any, order: Any) -> float:
        swarm.connect()
        with counting(self.lab.client(1), f"udp sport {WIREGUARD_PORT}") as seen:
            used = cpu_seconds(self.gateway.pid)
            outside.send(answers, order, self.pace)
            time.sleep(0.2)
            used = cpu_seconds(self.gateway.pid) - used
        return used / self._arrived((seen["bytes"] - OUTER_HEADERS * seen["packets"]) // DATAGRAM, len(order)) * 1e6

    def _arrived(self, arrived: int, sent: int) -> int:
        if arrived < 0.5 * sent:
            raise LabError(f"only {arrived} of {sent} packets arrived, choose a lower --pace: {self.drops()}")
        return arrived


def new_flow(figures: Figures, stage: int) -> str:
    """CPU is counted in ticks of 10 ms: few flows say nothing."""
    return f"{figures.opened[stage]:.2f}" if stage >= 100_000 else "–"


def table(ours: Figures, peer: Figures | None, peer_title: str) -> str:
    """The Markdown tables of docs/performance.md."""
    first = min(ours.out)
    theirs = (f"{peer_title}: out, µs", "in, µs", "new flow, µs")
    rows = [("flows", "out, µs", "ratio", "in, µs", "ratio", "new flow, µs", "memory, MB", *theirs)]
    rows.append(tuple("---:" for _ in rows[0]))
    rows.append(("0", *("" for _ in range(5)), f"{ours.memory[0]:.0f}", "", "", ""))
    for stage in ours.out:
        cells = [f"{stage:,}".replace(",", " ")]
        for of in (ours.out, ours.into):
            cells += [f"{statistics.median(of[stage]):.2f}", f"{statistics.median(of[stage]) / statistics.median(of[first]):.2f}"]
        cells += [new_flow(ours, stage), f"{ours.memory[stage]:.0f}"]
        if peer and stage in peer.out:
            cells += [f"{statistics.median(of[stage]):.2f}" for of in (peer.out, peer.into)] + [new_flow(peer, stage)]
        else:
            cells += ["–"] * 3
        rows.append(tuple(cells))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def crowded(lab: Lab, gateway: Egress, paces: tuple[int, ...], seconds: int) -> dict[str, neighbours.Outcome]:
    """What a neighbour notices of a device that opens flows, with a paced flow and with one that takes what it gets."""
    gateway.init()
    gateway.start()
    files = [gateway.add_peer(name) for name in ("neighbour", "opener")]
    client = WireGuardGo(lab, 2, files[0])
    client.start()
    private = next(line.partition("=")[2].strip() for line in files[1].text.splitlines() if line.startswith("PrivateKey"))
    outcomes = {}
    try:
        for pace in paces:
            for rate in (neighbours.RATE, ""):
                nuisance = neighbours.Nuisance(private, files[1].addresses[0].partition("/")[0], pace, number=1)
                outcome = neighbours.endure(lab, files[0].public_key, client.namespace, nuisance, seconds, rate)
                outcomes[f"{pace} new flows/s, flow of {rate or 'what goes'}"] = outcome
                click.echo(f"{pace} new flows/s, neighbour's flow of {rate or 'what goes'}: {outcome}")
    finally:
        client.stop()
        gateway.stop()
    return outcomes


def neighbours_table(outcomes: dict[str, neighbours.Outcome]) -> str:
    rows = ["| a device opens | others: Mbit/s before | during | ratio | new connections | p99 before, ms | during |"]
    rows.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, o in outcomes.items():
        share = f"{o.during.succeeded} of {o.during.tried}"
        flow = f"{o.before.mbit:.0f} | {o.during.mbit:.0f} | {o.during.mbit / o.before.mbit:.2f}"
        rows.append(f"| {name} | {flow} | {share} | {o.before.p99:.1f} | {o.during.p99:.1f} |")
    return "\n".join(rows)


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--count", default=300_000, show_default=True, help="Packets of each measurement.")
@click.option("--pace", default=50_000, show_default=True, help="Packets/s.")
@click.option("--flows", default=STAGES[-1], show_default=True, help="The most flows.")
@click.option("--remotes", default=1, show_default=True, help="Flows of each mapping.")
@click.option("--peer/--no-peer", default=True, show_default=True, help="Measure wireguard-go + nftables, too.")
@click.option("--docs", is_flag=True, help="Put the tables into docs/performance.md.")
def main(rounds: int, count: int, pace: int, flows: int, remotes: int, peer: bool, docs: bool) -> None:
    """Measure; print the tables; write bench/flows.json."""
    lab = Lab(os.environ.get("EVL_PREFIX", "evl"), 2)
    lab.down()
    lab.up()
    try:
        lab.ip(lab.internet, f"route replace {MORE_POOL} via 198.51.100.1")
        stages = tuple(stage for stage in STAGES if stage <= flows)
        gateway = Egress(lab, "gateway-flows")
        ours = Bench(lab, gateway, remotes, pace, count, rounds).measure(stages)
        theirs = None
        if peer:
            binary = os.environ.get("PEER_WIREGUARD_GO", "wireguard-go")
            theirs = Bench(lab, Peer(lab, binary), remotes, pace, count, rounds).measure(tuple(s for s in PEER_STAGES if s <= flows))
        outcomes = crowded(lab, Egress(lab, "gateway-crowd"), (20_000, 100_000), 5)
    finally:
        lab.down()
    texts = {"flows": table(ours, theirs, "wireguard-go + nftables"), "neighbours": neighbours_table(outcomes)}
    click.echo("\n" + "\n\n".join(texts.values()))
    click.echo(f"\nover the first {stages[0]} flows with {stages[-1]} open: out {statistics.median(ours.among):.2f} µs")
    result = {"schema": 1, "machine": machine(), "remotes": remotes, "pace": pace, "count": count}
    result |= {"egressvpn": vars(ours), "peer": vars(theirs) if theirs else None}
    result["neighbours"] = {name: {"before": vars(o.before), "during": vars(o.during), "sent": o.sent} for name, o in outcomes.items()}
    (ROOT / "bench/flows.json").write_text(json.dumps(result, indent=2) + "\n")
    if docs:
        for name, text in texts.items():
            into_docs(text, name)


if __name__ == "__main__":
    main()
