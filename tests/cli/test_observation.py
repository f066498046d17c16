"""`status`, `flows` and `pool` against a gateway that answers on a real unix socket, and against none."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from click.testing import Result

from egressvpn.api.application import application
from egressvpn.api.http import serve_on, unix_socket
from tests.cli.conftest import Run, read_json
from tests.observe.gateway import FixedGateway


@asynccontextmanager
async def answering(home: Path, gateway: FixedGateway) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        with unix_socket(home / "api.sock") as listener:
            await nursery.start(serve_on, application(gateway, administration=True), [listener], None)
            yield
            nursery.cancel_scope.cancel()


async def ask(run: Run, *arguments: str) -> Result:
    return await trio.to_thread.run_sync(lambda: run(*arguments))


async def test_status_shows_a_healthy_gateway(run: Run, home: Path) -> None:
    async with answering(home, FixedGateway()):
        shown = await ask(run, "status")
        document = read_json(await ask(run, "status", "-o", "json"))
    assert shown.exit_code == 0
    for part in (
        "lis1, egressvpn 0.1.0, up 1d 2h",
        "ready",
        "2 enabled, 1 disabled, 1 connected",
        "2000 packets, 2.9 MiB",
        "policy_denied 9",
    ):
        assert part in shown.stdout
    assert "pid 4242, 1 restarts, libcrypto, compiled, 12.3 CPU-s, 150.0 MiB" in shown.stdout
    assert "203.0.113.0/28, ports 1024-65535, 17 used" in shown.stdout
    assert (document["state"], document["drops"]) == ("ready", {"replayed": 2, "policy_denied": 9})


async def test_status_exits_1_when_something_is_wrong(run: Run, home: Path) -> None:
    gateway = FixedGateway()
    async with answering(home, gateway):
        gateway.health = ["the flow table is full"]
        ill = await ask(run, "status")
        gateway.health, gateway.failing = [], ["no worker runs"]
        degraded = await ask(run, "status", "-o", "json")
    assert ill.exit_code == 1
    assert "the flow table is full" in ill.stdout
    assert degraded.exit_code == 1
    assert read_json(degraded)["reasons"] == ["no worker runs"]


async def test_flows_are_listed(run: Run, home: Path) -> None:
    async with answering(home, FixedGateway()):
        shown = await ask(run, "flows")
        document = read_json(await ask(run, "flows", "--peer", "phone", "--limit", "2", "-o", "json"))
        refused = await ask(run, "flows", "--peer", "nobody")
    assert len(shown.stdout.splitlines()) == 4
    assert "100.64.0.2:40000" in shown.stdout
    assert len(document["items"]) == 2
    assert refused.exit_code == 1
    assert refused.stderr == "egressvpn: there is no device named nobody\n"


async def test_pools_show_what_is_in_use_when_the_gateway_runs(run: Run, home: Path) -> None:
    run("peer", "add", "phone")
    before = read_json(run("pool", "list", "-o", "json"))["items"]
    async with answering(home, FixedGateway()):
        after = read_json(await ask(run, "pool", "list", "-o", "json"))["items"]
    assert (before[0]["ports_used"], before[0]["devices"]) == (None, 1)
    assert after[0]["ports_used"] == 17
    assert "203.0.113.0/28, 2001:db8:113::/64  1024-65535" in run("pool", "list").stdout


@pytest.mark.parametrize("command", ["status", "flows"])
def test_without_a_gateway_one_line_says_how_to_start_it(run: Run, home: Path, command: str) -> None:
    refused = run(command)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.startswith("egressvpn: the gateway is not running")
    assert f"start it: egressvpn --config {home / 'gateway.toml'} up" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_something_else_on_the_socket_is_told_apart(run: Run, home: Path) -> None:
    (home / "api.sock").write_text("")
    refused = run("status")
    assert refused.exit_code == 1
    assert len(refused.stderr.splitlines()) == 1


async def test_a_terminal_gets_colour_unless_it_is_declined(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    async with answering(home, FixedGateway()):
        coloured = await trio.to_thread.run_sync(lambda: run("status", color=True))
        monkeypatch.setenv("NO_COLOR", "1")
        plain = await trio.to_thread.run_sync(lambda: run("status", color=True))
    assert "\x1b[" in coloured.stdout
    assert "\x1b[" not in plain.stdout


@pytest.mark.parametrize("body", [b"[]", b"{}", b"hello", b'{"schema": 2}', b""])
async def test_a_stranger_on_the_socket_is_told_apart_from_a_gateway(run: Run, home: Path, body: bytes) -> None:
    async def babble(stream: trio.SocketStream) -> None:
        async with stream:
            if await stream.receive_some():
                await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body))

    async with trio.open_nursery() as nursery:
        with unix_socket(home / "api.sock") as listener:
            listener.listen()
            nursery.start_soon(trio.serve_listeners, babble, [trio.SocketListener(trio.socket.from_stdlib_socket(listener.dup()))])
            refused = await ask(run, "status")
            nursery.cancel_scope.cancel()
    assert refused.exit_code == 1
    assert "is not the API of this egressvpn" in refused.stderr
