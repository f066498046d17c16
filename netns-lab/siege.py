"""A gateway under a flood of handshakes: what it costs those who are connected, and how long newcomers wait.

    .venv/bin/python netns-lab/siege.py [PACE…]     measure on a calm machine; PACE in packets per second, 0 as many as possible

The flood comes from the namespace of the last client, with source addresses that are routed to it. A newcomer's first initiation
may be answered with a cookie; the protocol lets him use it in the next one, REKEY_TIMEOUT and up to a third of a second later
(whitepaper 6.1, 6.6). Every network has a small share that needs no cookie: only who is in one that takes part in the flood, or
when the flood comes from everywhere, has to wait for that.
"""

import itertools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flood
import traffic
from clients import DEVICE, WireGuardGo
from gateways import Egress
from processes import memory_bytes
from topology import GATEWAY4, INTERNET4, WIREGUARD_PORT, Lab, LabError

REKEY_TIMEOUT = 5.0 + 1 / 3  # s, with the longest jitter
STARTED = 20.0  # s, for the generator to make its frames
PATIENCE = 60.0  # s
RATE = "100M"  # bits/s of a flow that saturates nobody


class Flood:
    """flood.py in a client's namespace."""

    def __init__(self, lab: Lab, number: int, name: str = "flood") -> None:
        self.lab = lab
        self.namespace = lab.client(number)
        self.name = name
        self.address = f"192.0.2.{10 + number}"

    def start(self, mode: str, public_key: str, seconds: float, pace: int, sources: str = flood.SOURCES) -> None:
        """Returns when it has begun. The answers to spoofed sources are routed to whence the flood came."""
        if mode == "spoofed":
            self.lab.ip(self.lab.gateway, f"route replace {sources} via {self.address}")
        script = str(Path(flood.__file__))
        argv = [sys.executable, script, mode, public_key, GATEWAY4, str(WIREGUARD_PORT), str(seconds), str(pace), sources]
        self.lab.start(self.name, self.namespace, *argv)
        deadline = time.monotonic() + STARTED
        while "begun" not in self.lab.processes.output(self.name):
            if self.lab.processes.returncode(self.name) is not None or time.monotonic() > deadline:
                raise LabError(f"no flood: {self.lab.processes.output(self.name, 'err')}")
            time.sleep(0.01)

    def running(self) -> bool:
        return self.lab.processes.returncode(self.name) is None

    def finish(self) -> dict[str, Any]:
        """End it. What it did: `sent`, `seconds`, `rate`. Raises LabError when it had ended before."""
        if not self.running():
            raise LabError("the flood ended before what it was for")
        self.lab.processes.stop(self.name)
        return json.loads(self.lab.processes.output(self.name).splitlines()[-1])


def flow(lab: Lab, namespace: str, seconds: float, rate: str = "", reverse: bool = False) -> float:
    """Mbit/s that arrive of a TCP flow through the tunnel, offered at `rate`, or at whatever goes."""
    argv = [*traffic.iperf3_command(4, int(seconds), reverse), *(["--bitrate", rate] if rate else [])]
    report = json.loads(lab.run(namespace, *argv, check=False, timeout=seconds + 30).stdout or "{}")
    if "error" in report or "end" not in report:
        raise LabError(f"iperf3 in {namespace}: {report.get('error')}")
    return report["end"]["sum_received"]["bits_per_second"] / 1e6


def connected_after(client: WireGuardGo, restart: bool = False) -> float:
    """Seconds from the start of a client to its first answer through the gateway. `restart`: the process, and its cookie, stay."""
    if restart:
        lines = [f"route replace {net} dev {DEVICE}" for net in client.quick.allowed]
        client.lab.ip(client.namespace, f"link set {DEVICE} down", f"link set {DEVICE} up", *lines)
    else:
        client.start()
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        if traffic.ping(client.lab, client.namespace, INTERNET4[0], wait=1):
            return time.monotonic() - began
    raise LabError(f"{client.name} was not let in within {PATIENCE:.0f} s")


@dataclass(frozen=True)
class Outcome:
    """One siege. Flows in Mbit/s, before and during; waits in seconds; memory in bytes."""

    packets_per_second: int
    before: float
    during: float
    newcomer: float
    with_cookie: float
    memory_growth: int
    drops: dict[str, int]

    @property
    def lost(self) -> float:
        """The part of the flow's throughput that the flood took."""
        return 1 - self.during / self.before


@dataclass(frozen=True)
class Siege:
    """What is done to a gateway: for how long a flow is measured, at which rate (empty: what goes), and the flood's pace and sources."""

    seconds: int
    pace: int
    rate: str = RATE
    sources: str = flood.SOURCES


def besiege(lab: Lab, gateway: Egress, established: WireGuardGo, newcomer: WireGuardGo, siege: Siege) -> Outcome:
    """A flow through the established client's tunnel before and during a flood, and a newcomer in the midst of it."""
    attack = Flood(lab, lab.clients)
    lab.sysctl(lab.access, **{"net__bridge__bridge-nf-call-iptables": 0})  # its switch is no packet filter
    traffic.first_answer(lab, established.namespace, INTERNET4[0])
    before = flow(lab, established.namespace, siege.seconds, siege.rate)
    memory, drops = memory_bytes(gateway.pid), gateway.drops()
    attack.start("spoofed", established.quick.public_key, flood.MAX_SECONDS, siege.pace, siege.sources)
    try:
        during = flow(lab, established.namespace, siege.seconds, siege.rate)
        first = connected_after(newcomer)
        second = connected_after(newcomer, restart=True)
        grown = memory_bytes(gateway.pid) - memory
        counted = {reason: count - drops.get(reason, 0) for reason, count in gateway.drops().items() if count > drops.get(reason, 0)}
    finally:
        report = attack.finish()
        newcomer.stop()
    return Outcome(report["rate"], before, during, first, second, grown, counted)


def main(paces: list[int]) -> None:
    """Each pace, from one network and from everywhere, with a paced flow and with one that takes what it gets."""
    lab = Lab("evs", clients=3)
    lab.down()
    lab.up()
    try:
        gateway = Egress(lab)
        files = gateway.prepare(2)
        gateway.start(echo=True)
        established, newcomer = (WireGuardGo(lab, number, quick) for number, quick in enumerate(files, 1))
        established.start()
        for pace, sources, rate in itertools.product(paces, (flood.SOURCES, flood.EVERYWHERE), (RATE, "")):
            try:
                outcome = besiege(lab, gateway, established, newcomer, Siege(10, pace, rate, sources))
            except LabError as error:
                print(f"{pace} from {sources}, flow of {rate or 'what goes'}: {error}", flush=True)
                continue
            print(f"{pace} from {sources}, flow of {rate or 'what goes'}: lost {outcome.lost:.1%}; {outcome}", flush=True)
    finally:
        lab.down()


if __name__ == "__main__":
    main([int(pace) for pace in sys.argv[1:]] or [50_000, 0])
