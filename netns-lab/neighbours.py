"""One device opens flows without end; what do the others notice? (RFC 6888 REQ-4, 5, 11.)

    neighbours.py PREFIX NUMBER GATEWAY_KEY KEY_FILE INNER SECONDS PACE     the device, from the namespace of client NUMBER

The device is one of swarm.py's: it goes through 300 000 pairs of a port of its own and a remote, again and again, and never reads.
"""

import ipaddress
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import traffic
from siege import flow
from swarm import REMOTE_PORT, Swarm, packets, plan
from topology import INTERNET4, Lab, LabError

PAIRS = 300_000
REMOTES = 16  # to each port
STARTED = 30.0  # s
RATE = "100M"  # bits/s of the neighbour's flow: one that the machine carries beside everything else
CONNECTIONS = 40  # new ones a second
OPENER = "opener"


def open_without_end(lab: Lab, number: int, gateway: str, key: str, inner: str, seconds: float, pace: int) -> int:
    """How many packets were sent."""
    swarm = Swarm(lab, number, gateway, [key], [int(ipaddress.ip_address(inner))])
    flows = plan(PAIRS, swarm.inner, REMOTES)
    rows = packets(flows["internal"], flows["port"], flows["remote"], np.full(PAIRS, REMOTE_PORT))
    order = np.random.default_rng(1).permutation(PAIRS)
    swarm.connect()
    print(json.dumps({"event": "begun"}), flush=True)
    begun, sent = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        some = order[sent % PAIRS : sent % PAIRS + 6000]
        swarm.send(flows, rows, some, pace)
        sent += len(some)
    return sent


@dataclass(frozen=True)
class Noticed:
    """By the neighbour: a flow's Mbit/s (0: it could not begin), and what became of new connections."""

    mbit: float
    tried: int
    succeeded: int
    p50: float
    p99: float


def notice(lab: Lab, namespace: str, seconds: int, rate: str = RATE) -> Noticed:
    """A TCP flow, offered at `rate`, and new connections beside it."""
    script = str(Path(__file__).with_name("connections.py"))
    argv = lab.inside(namespace, sys.executable, script, INTERNET4[0], str(seconds), str(CONNECTIONS))
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as connecting:
        try:
            mbit = flow(lab, namespace, seconds, rate)
        except LabError:
            mbit = 0.0  # its connection was refused
        said, _ = connecting.communicate(timeout=seconds + 30)
    return Noticed(mbit, **json.loads(said))


@dataclass(frozen=True)
class Outcome:
    before: Noticed
    during: Noticed
    sent: int


@dataclass(frozen=True)
class Nuisance:
    """The device that opens flows: its key and inner address, and its pace, packets a second; 0 as many as it can."""

    key: str
    inner: str
    pace: int
    number: int = 3  # the client in whose namespace it is


def endure(lab: Lab, gateway_key: str, namespace: str, nuisance: Nuisance, seconds: int, rate: str = RATE) -> Outcome:
    """What the neighbour in `namespace` notices before and while."""
    traffic.first_answer(lab, namespace, INTERNET4[0])
    before = notice(lab, namespace, seconds, rate)
    file = lab.run_directory / "opener.key"
    file.touch(mode=0o600)
    file.write_text(nuisance.key)
    argv = [lab.prefix, nuisance.number, gateway_key, file, nuisance.inner, 3 * seconds + 2, nuisance.pace]
    lab.processes.start(OPENER, [sys.executable, __file__, *map(str, argv)])
    deadline = time.monotonic() + STARTED
    while "begun" not in lab.processes.output(OPENER):
        if lab.processes.returncode(OPENER) is not None or time.monotonic() > deadline:
            raise LabError(f"nobody opens flows: {lab.processes.output(OPENER, 'err').strip()[-2000:]}")
        time.sleep(0.01)
    time.sleep(1)  # its quota is used up by now
    during = notice(lab, namespace, seconds, rate)
    return Outcome(before, during, _finish(lab))


def _finish(lab: Lab) -> int:
    """Wait for its end; how many packets it sent."""
    deadline = time.monotonic() + STARTED
    while lab.processes.returncode(OPENER) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    lines: list[Any] = lab.processes.output(OPENER).splitlines()
    lab.processes.stop(OPENER)
    return json.loads(lines[-1]).get("sent", 0)


def main(prefix: str, number: str, gateway: str, key_file: str, inner: str, seconds: str, pace: str) -> None:
    sent = open_without_end(Lab(prefix), int(number), gateway, Path(key_file).read_text().strip(), inner, float(seconds), int(pace))
    print(json.dumps({"event": "ended", "sent": sent}))


if __name__ == "__main__":
    main(*sys.argv[1:])
