"""A device that opens flows without end harms no other (S11): not its throughput, not one of its new connections.

The flows are paced, so that the gateway is tried and not the two cores of a small machine (`bench/flows.py` measures the rest).
"""

import re
from collections.abc import Iterator

import pytest
from clients import DEVICE, WireGuardGo
from gateways import METRICS, Egress
from neighbours import Nuisance, endure
from processes import memory_bytes
from topology import Lab

PACE = 20_000  # packets/s, each to another pair of port and remote
SECONDS = 3
MEGABYTE = 1 << 20
UNLIMITED = """[nat]
max_flows = 4096
max_flows_per_device = 4096
mapping_rate = 0

[api]"""  # a table that one device may fill


@pytest.fixture
def limited(lab: Lab) -> Iterator[Egress]:
    yield from running(lab, "gateway-neighbours")


@pytest.fixture
def unlimited(lab: Lab) -> Iterator[Egress]:
    yield from running(lab, "gateway-unlimited", UNLIMITED)


def running(lab: Lab, name: str, nat: str = "") -> Iterator[Egress]:
    egress = Egress(lab, name)
    egress.init()
    if nat:
        egress.edit(r"\[api\]", nat)
        egress.edit(r"(?m)^(addresses = .*)$", r"\1\nblock_size = 8064\nmax_blocks = 8")
    egress.start()
    yield egress
    egress.stop()


def crowd(lab: Lab, egress: Egress) -> tuple[WireGuardGo, Nuisance, str]:
    """The neighbour, connected; the device that opens flows; the gateway's key."""
    neighbour, opener = egress.add_peer("neighbour"), egress.add_peer("opener")
    client = WireGuardGo(lab, 1, neighbour)
    client.start()
    key = re.search(r"(?m)^PrivateKey\s*=\s*(\S+)", opener.text)
    assert key
    gateway = lab.run(client.namespace, "wg", "show", DEVICE, "peers").stdout.strip()
    return client, Nuisance(key[1], opener.addresses[0].partition("/")[0], PACE), gateway


def violations(lab: Lab) -> int:
    text = lab.run(lab.gateway, "curl", "-sS", "--max-time", "5", METRICS).stdout
    return sum(int(float(value)) for value in re.findall(r"(?m)^egress_slice_violations_total(?:\{[^}]*\})? (\S+)$", text))


def test_s11_a_device_that_opens_flows_without_end_harms_no_other(lab: Lab, limited: Egress) -> None:
    client, nuisance, gateway = crowd(lab, limited)
    worker, memory = limited.worker(), memory_bytes(limited.pid)
    try:
        outcome = endure(lab, gateway, client.namespace, nuisance, SECONDS)
    finally:
        client.stop()
    assert outcome.sent >= 2 * SECONDS * PACE, outcome
    assert outcome.during.succeeded == outcome.during.tried, outcome
    assert outcome.during.mbit >= 0.95 * outcome.before.mbit, outcome
    assert outcome.during.p99 <= 100, outcome  # ms
    assert limited.drops()["quota_exceeded"] + limited.drops()["rate_exceeded"] > 0
    assert memory_bytes(limited.pid) - memory <= 32 * MEGABYTE
    assert violations(lab) == 0
    assert limited.worker() == worker


def test_s11_without_limits_the_others_would_find_the_table_full(lab: Lab, unlimited: Egress) -> None:
    client, nuisance, gateway = crowd(lab, unlimited)
    try:
        outcome = endure(lab, gateway, client.namespace, nuisance, SECONDS)
    finally:
        client.stop()
    assert outcome.before.succeeded == outcome.before.tried, outcome
    assert outcome.during.succeeded < outcome.during.tried, outcome
    assert unlimited.drops()["flow_table_full"] > 0
