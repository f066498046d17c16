"""The API over real sockets."""

import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from egressvpn.api.http import serve, tcp_socket, unix_socket
from egressvpn.control.config import parse
from egressvpn.control.schema import Config
from egressvpn.control.values import socket_address
from egressvpn.errors import OperatorError
from tests.observe.gateway import FixedGateway


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def configuration(directory: Path, **ports: int) -> Config:
    api = ', "127.0.0.1:{}"'.format(ports["api"]) if "api" in ports else ""
    metrics = f"127.0.0.1:{ports['metrics']}" if "metrics" in ports else ""
    text = f"""
[api]
listen = ["unix:api.sock"{api}]
[metrics]
listen = "{metrics}"
[[pool]]
name = "default"
addresses = ["203.0.113.0/28"]
"""
    return parse(text, directory / "gateway.toml")


@asynccontextmanager
async def serving(config: Config, gateway: FixedGateway) -> AsyncIterator[httpx.AsyncClient]:
    """A client on the unix socket of an API that runs."""
    async with trio.open_nursery() as nursery:
        await serve(nursery, config, gateway)
        transport = httpx.AsyncHTTPTransport(uds=str(config.api_sockets[0]))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield client
        nursery.cancel_scope.cancel()


async def test_whois_pools_and_explain_are_answered(tmp_path: Path) -> None:
    gateway = FixedGateway()
    gateway.log = [tmp_path / "nat.jsonl"]
    line = (
        '{"schema":1,"time":"2021-01-31T12:00:00.000Z","event":"%s","epoch":1,"live":0,"file":1,"device":"phone","device_id":7,'
        '"external":"203.0.113.5","ports":[1024,1279],"protocols":["tcp","udp","icmp"]}\n'
    )
    gateway.log[0].write_text(line % "checkpoint" + line % "block-allocated")
    async with serving(configuration(tmp_path), gateway) as client:
        who = (await client.get("/v1/whois", params={"endpoint": "203.0.113.5:1100", "at": "2021-01-31T13:00:00Z", "proto": "tcp"})).json()
        pools = (await client.get("/v1/pools")).json()
        told = (await client.get("/v1/explain", params={"peer": "phone", "destination": "198.51.100.2:443"})).json()
        bad = [
            await problem_of(await client.get("/v1/whois", params=params), 400)
            for params in (
                {},
                {"endpoint": "203.0.113.5"},
                {"endpoint": "203.0.113.5:1", "at": "x"},
                {"endpoint": "203.0.113.5:1", "proto": "x"},
            )
        ]
        await problem_of(await client.get("/v1/explain", params={"peer": "nobody"}), 404)
    assert (who["schema"], who["sure"], [item["device"] for item in who["items"]]) == (1, True, ["phone"])
    assert (pools["schema"], len(pools["items"])) == (1, 2)
    assert (told["schema"], told["external"]) == (1, "203.0.113.5")
    assert all(problem["mend"] for problem in bad)


async def problem_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["title"]
    return body


async def test_the_unix_socket_answers_administration_calls(tmp_path: Path) -> None:
    async with serving(configuration(tmp_path), FixedGateway()) as client:
        status = (await client.get("/v1/status")).json()
        assert (status["schema"], status["name"], status["state"]) == (1, "lis1", "ready")
        flows = (await client.get("/v1/flows", params={"peer": "phone", "limit": 2})).json()
        assert (flows["schema"], len(flows["items"]), flows["items"][0]["state"]) == (1, 2, "established")


async def test_the_unix_socket_is_its_owners_only_and_goes_away_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with serving(configuration(tmp_path), FixedGateway()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


async def test_readiness_follows_the_gateway(tmp_path: Path) -> None:
    gateway = FixedGateway()
    async with serving(configuration(tmp_path), gateway) as client:
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        gateway.failing = ["no worker runs"]
        assert (await problem_of(await client.get("/readyz"), 503))["failing"] == ["no worker runs"]
        assert (await client.get("/livez")).status_code == 200


@pytest.mark.parametrize("limit", ["0", "-1", "x", "10001", "9" * 5000, "", "١"])
async def test_a_limit_that_is_no_number_is_a_problem(tmp_path: Path, limit: str) -> None:
    async with serving(configuration(tmp_path), FixedGateway()) as client:
        assert "limit must be" in (await problem_of(await client.get("/v1/flows", params={"limit": limit}), 400))["detail"]


async def test_what_is_not_there_is_a_problem(tmp_path: Path) -> None:
    async with serving(configuration(tmp_path), FixedGateway()) as client:
        assert "nobody" in (await problem_of(await client.get("/v1/flows", params={"peer": "nobody"}), 404))["detail"]
        await problem_of(await client.get("/v1/nothing"), 404)
        await problem_of(await client.get("/../etc/passwd"), 404)
        assert (await problem_of(await client.post("/v1/status"), 405))["title"] == "Method Not Allowed"


async def test_a_bug_is_a_problem_that_tells_nothing_and_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FixedGateway):
        def status(self) -> Any:
            raise RuntimeError("the secret of the house")

    async with serving(configuration(tmp_path), Broken()) as client:
        answer = await client.get("/v1/status")
        assert "secret" not in (await problem_of(answer, 500))["detail"]
        assert (await client.get("/livez")).status_code == 200
    assert "the secret of the house" in caplog.text


async def test_metrics_have_a_listener_of_their_own_without_administration(tmp_path: Path) -> None:
    port = free_port()
    async with serving(configuration(tmp_path, metrics=port), FixedGateway()), httpx.AsyncClient() as scraper:
        answer = await scraper.get(f"http://127.0.0.1:{port}/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=")
        assert "egress_flows 17.0" in answer.text
        assert (await scraper.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
        await problem_of(await scraper.get(f"http://127.0.0.1:{port}/v1/status"), 403)


async def test_the_tcp_listener_refuses_administration_and_has_no_metrics(tmp_path: Path) -> None:
    port = free_port()
    async with serving(configuration(tmp_path, api=port), FixedGateway()), httpx.AsyncClient() as outsider:
        for method in ("GET", "POST", "DELETE"):
            assert "unix socket" in (await problem_of(await outsider.request(method, f"http://127.0.0.1:{port}/v1/flows"), 403))["detail"]
        await problem_of(await outsider.get(f"http://127.0.0.1:{port}/metrics"), 404)
        assert (await outsider.get(f"http://127.0.0.1:{port}/livez")).text == "ok\n"


@pytest.mark.parametrize(
    "octets",
    [b"\x00" * 100, b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"x" * 100_000, b"\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"],
)
async def test_garbage_on_the_socket_does_no_harm(tmp_path: Path, octets: bytes) -> None:
    async with serving(configuration(tmp_path), FixedGateway()) as client:
        stream = await trio.open_unix_socket(str(tmp_path / "api.sock"))
        async with stream:
            with trio.move_on_after(5):
                try:
                    await stream.send_all(octets)
                    await stream.send_eof()
                    while await stream.receive_some():
                        pass
                except trio.BrokenResourceError:
                    pass
        assert (await client.get("/livez")).status_code == 200


async def test_a_second_gateway_on_the_same_socket_is_refused(tmp_path: Path) -> None:
    async with serving(configuration(tmp_path), FixedGateway()) as client:
        with pytest.raises(OperatorError, match="another process answers on"), unix_socket(tmp_path / "api.sock"):
            pass
        assert (await client.get("/livez")).status_code == 200


def test_a_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with unix_socket(path):
        assert stat.S_ISSOCK(path.stat().st_mode)


def test_a_file_in_the_sockets_place_is_kept(tmp_path: Path) -> None:
    (tmp_path / "api.sock").write_text("mine")
    with pytest.raises(OperatorError, match="not a socket"), unix_socket(tmp_path / "api.sock"):
        pass
    assert (tmp_path / "api.sock").read_text() == "mine"


def test_a_socket_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="cannot listen on"), unix_socket(tmp_path / ("x" * 120)):
        pass


def test_a_port_that_is_taken_is_refused_with_the_key() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        at = socket_address(f"127.0.0.1:{other.getsockname()[1]}")
        with (
            pytest.raises(OperatorError, match=r"cannot listen on .* \(metrics.listen\): Address already in use"),
            tcp_socket(at, "metrics.listen"),
        ):
            pass
