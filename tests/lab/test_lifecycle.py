"""What the gateway puts into the kernel it takes out again, and what keeps it from starting it says in one line."""

import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import traffic
from clients import EGRESSVPN, ENVIRONMENT, WireGuardGo
from gateways import Egress
from processes import Identity, start_time, tree, wait_gone
from topology import GATEWAY4, INTERNET4, INTERNET6, POOL4, WIREGUARD_PORT, Lab, run

SYSCTLS = "grep -rs . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf | grep -v stable_secret | sort"
HOLD_PORT = "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind((%r, %d)); print('held', flush=True); time.sleep(60)"


def kernel_state(lab: Lab) -> dict[str, Any]:
    """Everything of evl-gw that a gateway might change."""
    return {
        "links": [{k: link[k] for k in ("ifname", "flags", "mtu")} for link in lab.ip_json(lab.gateway, "link")],
        "addresses": lab.ip_json(lab.gateway, "address"),
        "routes4": lab.ip_json(lab.gateway, "-4", "route", "show", "table", "all"),
        "routes6": lab.ip_json(lab.gateway, "-6", "route", "show", "table", "all"),
        "rules": lab.ip_json(lab.gateway, "rule") + lab.ip_json(lab.gateway, "-6", "rule"),
        "sysctls": lab.run(lab.gateway, "sh", "-c", SYSCTLS).stdout.splitlines(),
    }


@pytest.fixture
def untouched(lab: Lab) -> Iterator[dict[str, Any]]:
    """The state before the test, which must be the state after it."""
    before = kernel_state(lab)
    yield before
    after = kernel_state(lab)
    assert {k: v for k, v in after.items() if v != before[k]} == {}


def refusal(gateway: Egress, *prefix: str) -> str:
    """What `up` says on stderr when it will not start. Asserts the exit status, and that it is one line and no traceback."""
    config = str(gateway.directory / "gateway.toml")
    argv = ["env", *(f"{k}={v}" for k, v in ENVIRONMENT.items()), *prefix, *EGRESSVPN, "--config", config, "up"]
    done = gateway.lab.run(gateway.lab.gateway, *argv, check=False, timeout=300)
    said = done.stderr.strip()
    assert done.returncode == 1, f"exit status {done.returncode}: {said}"
    assert "Traceback" not in said
    assert '"ready"' not in done.stdout
    errors = [line for line in said.splitlines() if line]
    assert errors, "it said nothing"
    return errors[-1]


def test_a_stopped_gateway_leaves_nothing_in_the_kernel(lab: Lab, idle_gateway: Egress, untouched: dict[str, Any]) -> None:
    idle_gateway.start()
    assert kernel_state(lab) != untouched
    assert idle_gateway.stop() == 0
    assert run(["ip", "netns", "pids", lab.gateway]).stdout.split() == []


def test_a_gateway_killed_and_started_again_leaves_nothing_either(lab: Lab, idle_gateway: Egress, untouched: dict[str, Any]) -> None:
    idle_gateway.start()
    everybody = [Identity(pid, start_time(pid)) for pid in tree(idle_gateway.pid)]
    for process in everybody:
        process.signal(signal.SIGKILL)
    assert wait_gone(everybody, 5)
    lab.processes.stop(idle_gateway.name)
    idle_gateway.start()
    assert idle_gateway.stop() == 0


def test_forwarding_set_by_the_gateway_is_set_back(lab: Lab, idle_gateway: Egress) -> None:
    lab.sysctl(lab.gateway, net__ipv4__ip_forward=0, net__ipv6__conf__all__forwarding=0)
    try:
        before = kernel_state(lab)
        idle_gateway.edit(r"set_sysctls = \w+", "set_sysctls = true")
        idle_gateway.start()
        assert idle_gateway.stop() == 0
        assert kernel_state(lab)["sysctls"] == before["sysctls"]
    finally:
        lab.sysctl(lab.gateway, net__ipv4__ip_forward=1, net__ipv6__conf__all__forwarding=1)


def test_forwarding_switched_off_is_refused_with_a_clear_line(lab: Lab, idle_gateway: Egress) -> None:
    lab.sysctl(lab.gateway, net__ipv4__ip_forward=0, net__ipv6__conf__all__forwarding=0)
    try:
        before = kernel_state(lab)
        idle_gateway.edit(r"set_sysctls = \w+", "set_sysctls = false")
        assert "forward" in refusal(idle_gateway)
        assert kernel_state(lab) == before
    finally:
        lab.sysctl(lab.gateway, net__ipv4__ip_forward=1, net__ipv6__conf__all__forwarding=1)


def test_a_port_that_is_taken_is_refused(lab: Lab, idle_gateway: Egress, untouched: dict[str, Any]) -> None:
    lab.start("port-holder", lab.gateway, sys.executable, "-c", HOLD_PORT % (GATEWAY4, WIREGUARD_PORT))
    try:
        while "held" not in lab.processes.output("port-holder"):
            time.sleep(0.01)
        assert f"{WIREGUARD_PORT}" in refusal(idle_gateway)
    finally:
        lab.processes.stop("port-holder")


def test_an_interface_name_that_is_taken_is_refused(lab: Lab, idle_gateway: Egress, untouched: dict[str, Any]) -> None:
    lab.ip(lab.gateway, "link add egress0 type veth peer name egress0peer")
    try:
        assert "egress0" in refusal(idle_gateway)
    finally:
        lab.ip(lab.gateway, "link delete egress0")


def test_a_pool_route_that_is_there_already_is_refused(lab: Lab, idle_gateway: Egress, untouched: dict[str, Any]) -> None:
    lab.ip(lab.gateway, f"route add {POOL4} via {INTERNET4[0]}")
    try:
        assert POOL4 in refusal(idle_gateway)
    finally:
        lab.ip(lab.gateway, f"route delete {POOL4}")


def test_a_missing_capability_is_refused(lab: Lab, idle_gateway: Egress, untouched: dict[str, Any]) -> None:
    line = refusal(idle_gateway, "setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin")
    assert "CAP_NET_ADMIN" in line


def test_a_second_gateway_on_the_same_configuration_is_refused(idle_gateway: Egress) -> None:
    idle_gateway.start()
    refusal(idle_gateway)
    assert idle_gateway.json("status")["schema"] == 1


def test_without_compiled_kernels_the_gateway_runs_interpreted_and_says_so(lab: Lab, idle_gateway: Egress) -> None:
    idle_gateway.edit(r"\[api\]", "[dataplane]\njit = false\n\n[api]")
    (quick,) = idle_gateway.prepare(1)
    idle_gateway.start()
    client = WireGuardGo(lab, 1, quick)
    client.start()
    try:
        traffic.first_answer(lab, client.namespace, INTERNET4[0])
        assert len(traffic.ping(lab, client.namespace, INTERNET6[0], count=3)) == 3
        (worker,) = idle_gateway.json("status")["workers"]
        assert worker["jit"] is False
        assert "interpreted" in lab.processes.output(idle_gateway.name, "err")
    finally:
        client.stop()


@pytest.mark.parametrize("changes", [["down"], ["down", "up"]], ids=["down", "down and up"])
def test_a_tun_that_was_set_down_is_set_up_again_with_its_routes(
    lab: Lab, idle_gateway: Egress, untouched: dict[str, Any], changes: list[str]
) -> None:
    (quick,) = idle_gateway.prepare(1)
    idle_gateway.start()
    client = WireGuardGo(lab, 1, quick)
    client.start()
    try:
        traffic.first_answer(lab, client.namespace, INTERNET4[0])
        lab.ip(lab.gateway, *(f"link set egress0 {change}" for change in changes))
        assert traffic.first_answer(lab, client.namespace, INTERNET4[0], tries=20)
        assert len(traffic.ping(lab, client.namespace, INTERNET6[0], count=2)) == 2
    finally:
        client.stop()
    assert idle_gateway.stop() == 0


def test_a_tun_that_was_deleted_ends_the_gateway_with_a_clear_line(lab: Lab, idle_gateway: Egress, untouched: dict[str, Any]) -> None:
    idle_gateway.start()
    lab.ip(lab.gateway, "link delete egress0")
    deadline = time.monotonic() + 10
    while lab.processes.returncode(idle_gateway.name) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert lab.processes.returncode(idle_gateway.name) == 1
    assert "egress0 was deleted" in lab.processes.output(idle_gateway.name, "err").splitlines()[-1]


def test_a_second_gateway_on_the_same_state_is_refused_though_all_else_differs(lab: Lab, idle_gateway: Egress) -> None:
    idle_gateway.start()
    try:
        before = kernel_state(lab)
        idle_gateway.edit(r"(?m)^listen = \[.*:51820.*$", 'listen = ["192.0.2.1:51999"]')
        idle_gateway.edit(r"(?m)^networks = ", 'interface = "egress9"\nnetworks = ')
        assert "another gateway" in refusal(idle_gateway)
        assert kernel_state(lab) == before
    finally:
        idle_gateway.stop()
