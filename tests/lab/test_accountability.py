"""Who had this address and port: the gateway's log against what a server on the Internet saw, over kills, restarts and pool changes."""

import json
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import traffic
from clients import WireGuardGo
from gateways import Egress
from processes import Identity, start_time, tree, wait_gone
from topology import INTERNET4, Lab

PATIENCE = 10.0  # s


@pytest.fixture
def clients(lab: Lab, idle_gateway: Egress) -> Iterator[list[WireGuardGo]]:
    """Two devices that are connected; the gateway runs."""
    files = idle_gateway.prepare(2)
    idle_gateway.start()
    connected = [WireGuardGo(lab, number, quick) for number, quick in enumerate(files, 1)]
    for client in connected:
        client.start()
        traffic.first_answer(lab, client.namespace, INTERNET4[0])
    yield connected
    for client in connected:
        client.stop()


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def whose(gateway: Egress, seen: tuple[str, int], at: str) -> list[str]:
    endpoint = f"[{seen[0]}]:{seen[1]}" if ":" in seen[0] else f"{seen[0]}:{seen[1]}"
    answer = gateway.json("whois", endpoint, "--at", at, "--proto", "tcp")
    assert answer["sure"], answer
    return [item["device"] for item in answer["items"]]


def until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.1)


def said(lab: Lab, gateway: Egress, words: str) -> bool:
    return words in lab.processes.output(gateway.name, "err")


def kill_all(lab: Lab, gateway: Egress) -> None:
    everybody = [Identity(pid, start_time(pid)) for pid in tree(gateway.pid)]
    for process in everybody:
        process.signal(signal.SIGKILL)
    assert wait_gone(everybody, 5)
    lab.processes.stop(gateway.name)


def test_whois_names_who_the_server_saw_whatever_happens(lab: Lab, idle_gateway: Egress, clients: list[WireGuardGo]) -> None:
    gateway = idle_gateway
    seen: list[tuple[str, tuple[str, int], str]] = []

    def browse() -> None:
        for number, client in enumerate(clients, 1):
            traffic.first_answer(lab, client.namespace, INTERNET4[0], tries=30)
            seen.extend((f"client{number}", traffic.seen_address(lab, client.namespace, version), now()) for version in (4, 6))
        time.sleep(0.5)  # for the log

    browse()
    gateway.edit(r'"203\.0\.113\.0/28"', '"203.0.113.8/29"')
    Identity(gateway.pid, start_time(gateway.pid)).signal(signal.SIGHUP)
    until(lambda: said(lab, gateway, "pools changed"))
    browse()
    assert {address for _, (address, _), _ in seen[4:] if "." in address} <= {f"203.0.113.{number}" for number in range(8, 16)}
    kill_all(lab, gateway)
    nobody = now()
    time.sleep(1.1)
    gateway.start()
    browse()
    gateway.stop()
    for device, endpoint, at in seen:
        assert whose(gateway, endpoint, at) == [device]  # without a gateway
    gateway.start()
    assert gateway.command("whois", "203.0.113.1:1024", "--at", nobody, check=False).returncode == 1


def test_explain_and_usage_say_what_then_happens(lab: Lab, idle_gateway: Egress, clients: list[WireGuardGo]) -> None:
    told = idle_gateway.json("explain", "client1", f"{INTERNET4[0]}:80/tcp")
    address, port = traffic.seen_address(lab, clients[0].namespace, 4)
    assert (told["verdict"], told["external"]) == ("pass", address)
    again = idle_gateway.json("explain", "client1", f"{INTERNET4[0]}:80/tcp")
    low, high = again["block"]["ports"]
    assert low <= port <= high
    denied = idle_gateway.json("explain", "client1", "192.168.1.1:22")
    assert (denied["verdict"], denied["rule"]) == ("policy_denied", "policy.deny 192.168.0.0/16")
    usage = next(item for item in idle_gateway.json("pool", "usage")["items"] if item["address"] == address)
    assert usage["blocks"]["used"] >= 1
    assert usage["used"]["tcp"] >= 1
    lines = [json.loads(line) for path in (idle_gateway.directory / "state").glob("nat-*.jsonl") for line in path.read_text().splitlines()]
    assert {line["schema"] for line in lines} == {1}
    assert "block-allocated" in {line["event"] for line in lines}
