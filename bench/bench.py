"""`make bench`: egressvpn against wireguard-go + nftables SNAT, in one run, on the same lab, with the same load client, alternating.

Gateway CPU is user and system time of the gateway's whole process tree, children that ended included. The kernel's forwarding and
NAT run inside the gateway's own writes to the TUN and are charged to it, for both gateways alike; what runs in a soft interrupt
is charged to whichever process it interrupted. Resident memory is the sum of Pss, after the transfers.
"""

import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "netns-lab"))

import click
import fleet
import traffic
from clients import ReferenceClient, WireGuardGo
from gateways import Egress, Gateway, Peer
from processes import cpu_seconds, memory_bytes
from topology import INTERNET4, ROOT, Lab, LabError, run

GIB = 1 << 30
DISCARD = 9  # the UDP port that evl-inet counts and drops
HEADERS = 28  # IPv4 and UDP
COUNTER = f"""
table inet bench {{
  counter delivered {{}}
  chain counting {{ type filter hook prerouting priority raw; udp dport {DISCARD} counter name delivered drop; }}
}}
"""


@dataclass(frozen=True)
class Metric:
    """A row of the table. `bound` is what the ratio egressvpn / peer must keep to, when something is asked of it."""

    key: str
    title: str
    digits: int
    bound: str = ""


METRICS = (
    Metric("upload_gbit", "TCP upload, Gbit/s", 2),
    Metric("upload_cpu", "TCP upload, gateway CPU-s/GiB", 2, "≤ 0.15"),
    Metric("download_gbit", "TCP download, Gbit/s", 2),
    Metric("download_cpu", "TCP download, gateway CPU-s/GiB", 2, "≤ 0.20"),
    Metric("udp64_kpps", "UDP of 64 B, kpps per core", 1, "≥ 2"),
    Metric("udp1420_kpps", "UDP of 1420 B packets, kpps per core", 1),
    Metric("ping_p50", "ping p50, idle, ms", 2),
    Metric("ping_p99", "ping p99, idle, ms", 2),
    Metric("loaded_p50", "ping p50 during a TCP upload, ms", 2),
    Metric("loaded_p99", "ping p99 during a TCP upload, ms", 2),
    Metric("startup", "start to ready, s", 2),
    Metric("idle_percent", "idle CPU with 2 clients, %", 2),
    Metric("memory_mb", "resident memory of all processes, MB", 0),
    Metric("handshakes_core", "handshakes answered per second and core, 10 000 devices", 0, "≥ 1500 by itself"),
    Metric("handshake_p50", "answer to a handshake, idle, p50, ms", 2),
    Metric("handshake_p99", "answer to a handshake, idle, p99, ms", 2, "≤ 5 ms by itself"),
    Metric("fleet_startup", "start with 10 000 devices, s", 2, "≤ 5 s by itself"),
    Metric("fleet_added", "a device added to 10 000, until its handshake is answered, ms", 1, "≤ 50 ms by itself"),
    Metric("fleet_removed", "a device removed from 10 000, until its last ping, ms", 1, "≤ 50 ms by itself"),
    Metric("fleet_udp64", "UDP of 64 B with 10 000 devices, kpps per core", 1, "flat"),
)


@dataclass
class Bench:
    """One lab, one gateway at a time."""

    lab: Lab
    seconds: int
    client: str
    pace: int
    devices: fleet.Devices

    def measure(self, gateway: Gateway) -> dict[str, float]:
        """Every figure of METRICS for one start of the gateway."""
        files = gateway.prepare(2)
        result = {"startup": gateway.start()}
        second = WireGuardGo(self.lab, 2, files[1])
        namespace = self.lab.client(1)
        self._with_client(files[0], single=False)
        second.start()
        traffic.first_answer(self.lab, namespace, INTERNET4[0])
        traffic.first_answer(self.lab, second.namespace, INTERNET4[0])
        self._idle(gateway, result)
        self._ping("ping", result)
        self._tcp(gateway, "upload", result)
        self._tcp(gateway, "download", result)
        self._loaded_ping(result)
        result["memory_mb"] = memory_bytes(gateway.pid) / 1e6
        if self.client == "reference":
            self.lab.processes.stop("client1")
            self._with_client(files[0], single=True)
            traffic.first_answer(self.lab, namespace, INTERNET4[0])
        self._udp(gateway, "udp64_kpps", 64, result)
        self._udp(gateway, "udp1420_kpps", 1420 - HEADERS, result)
        for name in ("client1", "client2"):
            self.lab.processes.stop(name)
        gateway.stop()
        return result

    def measure_fleet(self, gateway: Gateway, result: dict[str, float]) -> None:
        """The rows with many devices."""
        files = gateway.prepare(2)
        result["fleet_startup"] = fleet.start(self.lab, gateway, self.devices)
        fleet.measure(self.lab, gateway, self.devices, result)
        self._with_client(files[0], single=True)
        traffic.first_answer(self.lab, self.lab.client(1), INTERNET4[0])
        self._udp(gateway, "fleet_udp64", 64, result)
        self.lab.processes.stop("client1")
        second = WireGuardGo(self.lab, 2, files[1])
        second.start()
        traffic.first_answer(self.lab, second.namespace, INTERNET4[0])
        result["fleet_removed"] = fleet.removed(self.lab, gateway, second)
        second.stop()
        gateway.stop()

    def _with_client(self, quick: Any, single: bool) -> None:
        if self.client == "reference":
            ReferenceClient(self.lab, 1, quick, single_datagrams=single).start()
        else:
            WireGuardGo(self.lab, 1, quick).start()

    def _idle(self, gateway: Gateway, result: dict[str, float]) -> None:
        seconds = 5.0
        before = cpu_seconds(gateway.pid)
        time.sleep(seconds)
        result["idle_percent"] = (cpu_seconds(gateway.pid) - before) / seconds * 100

    def _ping(self, key: str, result: dict[str, float]) -> None:
        times = traffic.ping(self.lab, self.lab.client(1), INTERNET4[0], count=300, interval=0.01, wait=1)
        if len(times) < 200:
            raise LabError(f"{len(times)} of 300 pings answered")
        result[f"{key}_p50"] = statistics.median(times)
        result[f"{key}_p99"] = statistics.quantiles(times, n=100)[98]

    def _tcp(self, gateway: Gateway, direction: str, result: dict[str, float]) -> None:
        before = cpu_seconds(gateway.pid)
        report = traffic.iperf3(self.lab, self.lab.client(1), 4, self.seconds, reverse=direction == "download")
        used = cpu_seconds(gateway.pid) - before
        received = report["end"]["sum_received"]
        result[f"{direction}_gbit"] = received["bits_per_second"] / 1e9
        result[f"{direction}_cpu"] = used / (received["bytes"] / GIB)

    def _loaded_ping(self, result: dict[str, float]) -> None:
        load = subprocess.Popen(self.lab.inside(self.lab.client(1), *traffic.iperf3_command(4, 5, port=5202)), stdout=subprocess.DEVNULL)
        try:
            time.sleep(0.5)
            self._ping("loaded", result)
        finally:
            load.wait(30)

    def _udp(self, gateway: Gateway, key: str, size: int, result: dict[str, float]) -> None:
        """Datagrams that arrived in evl-inet per second of gateway CPU. (A super-packet counts as the datagrams it holds.)"""
        inet = ["ip", "netns", "exec", self.lab.internet, "nft"]
        run([*inet, "-f", "-"], stdin=COUNTER)
        blaster = str(ROOT / "netns-lab/blaster.py")
        argv = [sys.executable, blaster, INTERNET4[0], str(DISCARD), str(size), str(self.seconds), str(self.pace)]
        before = cpu_seconds(gateway.pid)
        report = json.loads(self.lab.run(self.lab.client(1), *argv).stdout)
        time.sleep(0.2)
        used = cpu_seconds(gateway.pid) - before
        counter = json.loads(run([*inet, "-j", "list", "counter", "inet", "bench", "delivered"]).stdout)["nftables"][1]["counter"]
        run([*inet, "delete", "table", "inet", "bench"])
        delivered = (counter["bytes"] - HEADERS * counter["packets"]) // size
        result[key] = delivered / used / 1000
        result[f"{key}_offered"] = report["sent"] / report["seconds"] / 1000
        result[f"{key}_delivered"] = delivered / report["seconds"] / 1000


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}


def table(ours: dict[str, float], peer: dict[str, float], peer_title: str) -> str:
    """The Markdown table, aligned so that it reads well in a terminal too."""
    rows = [("median of the rounds", "egressvpn", peer_title, "ratio", "asked")]
    for m in METRICS:
        ratio = f"{ours[m.key] / peer[m.key]:.3f}" if peer[m.key] else "–"
        rows.append((m.title, f"{ours[m.key]:.{m.digits}f}", f"{peer[m.key]:.{m.digits}f}", ratio, m.bound))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    rows.insert(1, ("-" * widths[0], *(f"{'-' * (w - 1)}:" for w in widths[1:])))
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def into_docs(text: str, name: str = "bench") -> None:
    """Replace a measured table of docs/performance.md."""
    file = ROOT / "docs/performance.md"
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = file.read_text().split(begin)
    file.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "unknown")
    return {"processor": model, "cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}


def rounds_of(bench: Bench, count: int, makers: tuple[Callable[[], Gateway], ...]) -> list[list[dict[str, float]]]:
    """For each gateway its rounds, measured in turns."""
    results: list[list[dict[str, float]]] = [[] for _ in makers]
    for number in range(1, count + 1):
        for mine, make in zip(results, makers, strict=True):
            gateway = make()
            mine.append(bench.measure(gateway))
            bench.measure_fleet(make(), mine[-1])
            shown = ", ".join(f"{m.key} {mine[-1][m.key]:.{m.digits}f}" for m in METRICS)
            click.echo(f"round {number} of {count}, {gateway.title}: {shown}")
    return results


def _compile(lab: Lab) -> None:
    """One start that is not measured: a first one compiles."""
    first = Egress(lab)
    first.init()
    click.echo(f"first start of egressvpn: {first.start(echo=True):.1f} s")
    first.stop()


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--seconds", default=8, show_default=True, help="Length of each transfer.")
@click.option("--client", type=click.Choice(["reference", "wireguard-go"]), default="reference", show_default=True, help="The load client.")
@click.option("--pace", default=150_000, show_default=True, help="Bound of the UDP load, packets/s; 0: none.")
@click.option("--docs", is_flag=True, help="Put the table into docs/performance.md.")
def main(rounds: int, seconds: int, client: str, pace: int, docs: bool) -> None:
    """Measure both gateways in turns; print the table; write bench/results.json."""
    binary = os.environ.get("PEER_WIREGUARD_GO", "wireguard-go")
    lab = Lab(os.environ.get("EVL_PREFIX", "evl"), 2)
    lab.down()
    lab.up()
    try:
        _compile(lab)
        fresh = itertools.count(1)
        makers = (lambda: Egress(lab, f"gateway{next(fresh)}"), lambda: Peer(lab, binary))
        ours, peers = rounds_of(Bench(lab, seconds, client, pace, fleet.Devices.make(fleet.DEVICES)), rounds, makers)
    finally:
        lab.down()
    version = run([binary, "--version"]).stdout.split()[1]
    text = table(medians(ours), medians(peers), f"wireguard-go {version.lstrip('v')}")
    click.echo(f"\n{text}")
    result = {
        "schema": 1,
        "machine": machine(),
        "load_client": client,
        "seconds": seconds,
        "pace": pace,
        "peer": version,
        "medians": {"egressvpn": medians(ours), "peer": medians(peers)},
        "rounds": {"egressvpn": ours, "peer": peers},
    }
    (ROOT / "bench/results.json").write_text(json.dumps(result, indent=2) + "\n")
    if docs:
        into_docs(text)


if __name__ == "__main__":
    main()
