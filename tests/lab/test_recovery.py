"""A worker killed in the middle of a transfer: the next one goes on with every session and flow, and no nonce is used twice."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import traffic
from clients import WireGuardGo
from datagrams import data_messages
from gateways import Egress
from processes import Identity, start_time
from topology import INTERNET4, WIREGUARD_PORT, Lab

SECONDS = 8
RATE = "40M"  # bits/s: slow enough to be captured whole
STALL = 3.0  # s


@pytest.fixture
def client(lab: Lab, gateway: Egress, request: pytest.FixtureRequest) -> Iterator[WireGuardGo]:
    connected = WireGuardGo(lab, 1, gateway.add_peer(f"client-{request.node.callspec.id}"))
    connected.start()
    traffic.first_answer(lab, connected.namespace, INTERNET4[0])
    yield connected
    connected.stop()


@pytest.mark.parametrize("reverse", [False, True], ids=["upload", "download"])
def test_a_transfer_survives_the_death_of_the_worker(lab: Lab, gateway: Egress, client: WireGuardGo, reverse: bool, tmp_path: Path) -> None:
    capture = start_capture(lab, tmp_path / "outer.pcap")
    killed = gateway.worker()
    argv = [*traffic.iperf3_command(4, SECONDS, reverse), "--bitrate", RATE]
    with subprocess.Popen(lab.inside(client.namespace, *argv), stdout=subprocess.PIPE) as transfer:
        time.sleep(SECONDS / 3)
        Identity(killed, start_time(killed)).signal(signal.SIGKILL)
        report = json.loads(transfer.communicate(timeout=SECONDS + 30)[0])
    stop_capture(lab, capture)
    assert "error" not in report
    assert longest_stall(report) <= STALL
    assert report["end"]["sum_received"]["bytes"] > 0
    assert gateway.worker() != killed
    assert repeated_nonces(tmp_path / "outer.pcap") == []


def test_new_clients_are_served_by_the_next_worker(lab: Lab, gateway: Egress) -> None:
    killed = gateway.worker()
    Identity(killed, start_time(killed)).signal(signal.SIGKILL)
    latecomer = WireGuardGo(lab, 2, gateway.add_peer("after-the-crash"))
    latecomer.start()
    try:
        assert traffic.first_answer(lab, latecomer.namespace, INTERNET4[0])
        assert gateway.drops()["channel_full"] == 0  # its handshake waited in the socket and was taken at once
    finally:
        latecomer.stop()


def start_capture(lab: Lab, file: Path) -> str:
    """tcpdump of the outer datagrams, once it listens."""
    lab.start(
        "capture", lab.gateway, "tcpdump", "-n", "-i", "access0", "-B", "65536", "-U", "-w", str(file), "-Z", "root",
        f"udp port {WIREGUARD_PORT}",
    )  # fmt: skip
    deadline = time.monotonic() + 10
    while "listening on" not in lab.processes.output("capture", "err"):
        assert time.monotonic() < deadline, lab.processes.output("capture", "err")
        time.sleep(0.02)
    return "capture"


def stop_capture(lab: Lab, name: str) -> None:
    time.sleep(0.5)  # what is in flight
    lab.processes.stop(name)
    assert "\n0 packets dropped by kernel" in lab.processes.output(name, "err")


def repeated_nonces(file: Path) -> list[tuple[int, int]]:
    """(receiver index, counter) pairs seen more than once from the same sender."""
    seen: set[Any] = set()
    repeated = []
    count = 0
    for message in data_messages(file):
        count += 1
        if message in seen:
            repeated.append((message.receiver, message.counter))
        seen.add(message)
    assert count > 1000, f"only {count} data messages were captured"
    return repeated


def longest_stall(report: dict[str, Any]) -> float:
    """Seconds of the longest run of intervals in which nothing was transferred."""
    longest = current = 0.0
    for interval in report["intervals"]:
        current = 0.0 if interval["sum"]["bytes"] else current + interval["sum"]["seconds"]
        longest = max(longest, current)
    return longest
