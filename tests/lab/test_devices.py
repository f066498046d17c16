"""What an operator does to devices takes effect on the running gateway."""

import re
import subprocess
import time
from collections.abc import Iterator

import pytest
import traffic
from clients import WireGuardGo
from gateways import Egress
from topology import INTERNET4, Lab


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """A device name of the test's own."""
    return re.sub(r"[^a-z]+", "-", request.node.name.removeprefix("test_")).strip("-")[:60]


@pytest.fixture
def connected(lab: Lab, gateway: Egress, device: str) -> Iterator[WireGuardGo]:
    """A client whose device was added while the gateway ran."""
    client = WireGuardGo(lab, 1, gateway.add_peer(device))
    client.start()
    yield client
    client.stop()


def test_an_added_device_is_let_in_within_a_second(lab: Lab, gateway: Egress) -> None:
    quick = gateway.add_peer("latecomer")
    added = time.monotonic()
    client = WireGuardGo(lab, 1, quick)
    time.sleep(max(0.0, added + 1 - time.monotonic()))  # the promise to keep: a client that asks earlier asks again after 5 s
    client.start()
    try:
        assert traffic.ping(lab, client.namespace, INTERNET4[0], count=1, wait=2)
    finally:
        client.stop()


@pytest.mark.parametrize("verb", ["remove", "disable"])
def test_a_devices_packets_stop_within_a_second(lab: Lab, gateway: Egress, connected: WireGuardGo, device: str, verb: str) -> None:
    traffic.first_answer(lab, connected.namespace, INTERNET4[0])
    argv = lab.inside(connected.namespace, "ping", "-n", "-D", "-i", "0.05", "-w", "5", INTERNET4[0])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as pings:
        time.sleep(1)
        gateway.command("peer", verb, device)
        done = time.time()
        answers = [float(t) for t in re.findall(r"(?m)^\[([0-9.]+)\].*time=", pings.communicate()[0])]
    assert answers, "no ping was answered before"
    assert max(answers) < done + 1


def test_an_enabled_device_is_let_in_again(lab: Lab, gateway: Egress, connected: WireGuardGo, device: str) -> None:
    traffic.first_answer(lab, connected.namespace, INTERNET4[0])
    gateway.command("peer", "disable", device)
    gateway.command("peer", "enable", device)
    connected.stop()
    connected.start()
    assert traffic.first_answer(lab, connected.namespace, INTERNET4[0])


def test_two_clients_never_reach_each_others_inner_addresses(lab: Lab, gateway: Egress, connected: WireGuardGo) -> None:
    other = WireGuardGo(lab, 2, gateway.add_peer("the-other"))
    other.start()
    try:
        for client in (connected, other):
            traffic.first_answer(lab, client.namespace, INTERNET4[0])
        for address in other.quick.addresses:
            assert traffic.ping(lab, connected.namespace, address.partition("/")[0], wait=1) == []
    finally:
        other.stop()
