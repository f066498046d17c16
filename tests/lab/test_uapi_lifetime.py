"""The control socket and the life of the process behind it."""

from collections.abc import Iterator

import pytest
from clients import EGRESSVPN, ENVIRONMENT, QuickFile, ReferenceClient, wait_ready
from gateways import Egress
from processes import Identity, start_time, wait_gone
from topology import Lab

from tests.lab.wg_tool import Wg, interface_of, key


@pytest.fixture
def client(lab: Lab) -> Iterator[Wg]:
    """`wg` on a reference client that has a key and nothing else."""
    reference = ReferenceClient(lab, 1, QuickFile(f"[Interface]\nPrivateKey = {key()[0]}\n", (), (), 1420, (), ""))
    reference.start()
    yield Wg(lab, reference.namespace, reference.name)
    reference.stop()


def test_who_removes_the_socket_ends_the_gateway_in_order(lab: Lab, idle_gateway: Egress) -> None:
    idle_gateway.start()
    process = Identity(idle_gateway.pid, start_time(idle_gateway.pid))
    lab.run(lab.gateway, "rm", f"/run/wireguard/{interface_of(idle_gateway)}.sock")
    assert wait_gone([process], 10)
    assert "control socket was removed" in lab.processes.output(idle_gateway.name, "err")
    assert idle_gateway.stop() == 0


def test_a_socket_that_a_killed_gateway_left_is_replaced(lab: Lab, idle_gateway: Egress) -> None:
    idle_gateway.start()
    lab.run(lab.gateway, "kill", "-KILL", str(idle_gateway.pid))
    idle_gateway.stop()
    idle_gateway.start()
    wg = Wg(lab, lab.gateway, interface_of(idle_gateway))
    assert wg("show", "interfaces").stdout.split() == [wg.interface]


def test_who_asks_while_the_gateway_starts_does_no_harm(lab: Lab, idle_gateway: Egress) -> None:
    idle_gateway.pid = idle_gateway.launch()
    asked = 0
    while '"ready"' not in lab.processes.output(idle_gateway.name):
        lab.run(lab.gateway, "wg", "show", check=False)
        asked += 1
    wg = Wg(lab, lab.gateway, interface_of(idle_gateway))
    assert asked > 5
    assert wg("show", "interfaces").stdout.split() == [wg.interface]


def test_a_gateway_that_may_not_write_there_runs_without_a_control_socket(lab: Lab, idle_gateway: Egress) -> None:
    read_only = 'mount -o remount,bind,ro /run/wireguard && exec "$@"'
    command = (*EGRESSVPN, "--config", str(idle_gateway.directory / "gateway.toml"), "up")
    lab.start(idle_gateway.name, lab.gateway, "sh", "-c", read_only, "sh", *command, environment=ENVIRONMENT)
    wait_ready(lab, idle_gateway.name)
    assert "wg cannot show or change this gateway" in lab.processes.output(idle_gateway.name, "err")
    assert idle_gateway.json("status")["state"] in ("ready", "degraded")
    assert idle_gateway.stop() == 0


@pytest.mark.parametrize("end", ["socket", "link"])
def test_a_client_ends_when_its_socket_or_its_interface_is_removed(lab: Lab, client: Wg, end: str) -> None:
    identity = lab.processes.identity("client1")
    assert identity is not None
    if end == "socket":
        lab.run(client.namespace, "rm", f"/run/wireguard/{client.interface}.sock")
    else:
        lab.ip(client.namespace, f"link del {client.interface}")
    assert wait_gone([identity], 10)
    assert lab.processes.stop("client1") == 0
    assert not (lab.run_directory / "wireguard" / client.namespace / f"{client.interface}.sock").exists()
