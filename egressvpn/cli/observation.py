"""`status`, `flows`, `pool`: what a running gateway says of itself over its unix socket."""

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from egressvpn.cli.common import SCHEMA, Invocation, amount, echo_json, echo_pairs, echo_table, output_option, pass_invocation, span
from egressvpn.errors import OperatorError

if TYPE_CHECKING:
    from egressvpn.control.config import Config

PATIENCE: Final = 10.0  # s for an answer


class NotRunningError(OperatorError):
    """Nobody answers on the gateway's socket."""


def ask(config: "Config", path: str, **parameters: Any) -> dict[str, Any]:
    """One GET on the unix socket of the running gateway. Raises OperatorError."""
    if not config.api_sockets:
        raise OperatorError("api.listen has no unix socket", f'add "unix:/run/egressvpn/api.sock" to api.listen in {config.path}')
    at = config.api_sockets[0]
    _knock(at, config.path)
    import httpx

    wanted = {key: value for key, value in parameters.items() if value is not None}
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(at)), timeout=PATIENCE) as gateway:
            answer = gateway.get(f"http://gateway{path}", params=wanted)
    except httpx.HTTPError as error:
        raise OperatorError(f"the gateway does not answer on {at}: {error}", "look at its log") from None
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or not (answer.is_error or body.get("schema") == SCHEMA):
        raise OperatorError(
            f"what answers on {at} is not the API of this egressvpn", "use the version that the gateway runs; check api.listen"
        )
    if answer.is_error:
        raise OperatorError(str(body.get("detail", answer.reason_phrase)), str(body.get("mend", "")))
    return body


def _knock(at: Path, config_path: Path) -> None:
    """Find out cheaply whether anybody is there. Raises OperatorError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(at))
        except PermissionError:
            raise OperatorError(f"this user may not use {at}", "run as the user who runs the gateway") from None
        except OSError:
            mend = f"start it: egressvpn --config {config_path} up"
            raise NotRunningError(f"the gateway is not running (nobody answers on {at})", mend) from None


@click.command()
@output_option
@pass_invocation
def status(invocation: Invocation) -> None:
    """Gateway, workers, pools, sessions, traffic, drops and health. Exit 1 when unhealthy."""
    answer = ask(invocation.config(), "/v1/status")
    if invocation.json:
        echo_json(answer)
    else:
        _show_status(answer)
    if answer["state"] != "ready" or answer["health"]:
        raise SystemExit(1)


def _show_status(answer: dict[str, Any]) -> None:
    devices, traffic = answer["devices"], answer["traffic"]
    colour = {"ready": "green", "degraded": "red"}.get(answer["state"], "yellow")
    pairs: list[tuple[str, object]] = [
        ("gateway", f"{answer['name']}, egressvpn {answer['version']}, up {span(answer['uptime_seconds'])}"),
        ("state", click.style(answer["state"], fg=colour) + "".join(f"; {reason}" for reason in answer["reasons"])),
        ("interface", f"{answer['interface']}, listening on {', '.join(answer['listen'])}"),
        ("public key", answer["public_key"]),
        ("devices", f"{devices['enabled']} enabled, {devices['disabled']} disabled, {devices['connected']} connected"),
        ("sessions", answer["sessions"]),
        ("flows", answer["flows"]),
    ]
    pairs += [(name, f"{count['packets']} packets, {amount(count['bytes'])}") for name, count in traffic.items()]
    pairs += [(f"worker {worker['number']}", _worker_text(worker)) for worker in answer["workers"]]
    pairs += [(f"pool {pool['name']}", _pool_text(pool)) for pool in answer["pools"]]
    drops = ", ".join(f"{reason} {count}" for reason, count in sorted(answer["drops"].items(), key=lambda drop: -drop[1]))
    pairs.append(("drops", drops or "none"))
    pairs += [("health", click.style(issue, fg="red")) for issue in answer["health"]] or [("health", "good")]
    echo_pairs(pairs)


def _worker_text(worker: dict[str, Any]) -> str:
    how = "compiled" if worker["jit"] else "interpreted"
    use = f"{worker['cpu_seconds']:.1f} CPU-s, {amount(worker['resident_bytes'])}"
    return f"pid {worker['pid']}, {worker['restarts']} restarts, {worker['aead']}, {how}, {use}"


def _pool_text(pool: dict[str, Any]) -> str:
    return f"{', '.join(pool['addresses'])}, ports {pool['ports']}, {pool['ports_used']} used"


@click.command()
@click.option("--peer", metavar="NAME", help="Only this device's.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, metavar="N", help="At most N.")
@output_option
@pass_invocation
def flows(invocation: Invocation, peer: str | None, limit: int) -> None:
    """Live connection tracking."""
    answer = ask(invocation.config(), "/v1/flows", peer=peer, limit=limit)
    if invocation.json:
        echo_json(answer)
        return
    columns = ("PEER", "PROTO", "INTERNAL", "EXTERNAL", "REMOTE", "STATE", "IDLE", "SENT", "RECEIVED")
    rows = [
        (
            *(flow[key] for key in ("peer", "protocol", "internal", "external", "remote", "state")),
            span(flow["idle_seconds"]),
            amount(flow["sent_bytes"]),
            amount(flow["received_bytes"]),
        )
        for flow in answer["items"]
    ]
    echo_table(columns, rows, empty="no flows", right=("IDLE", "SENT", "RECEIVED"))


@click.group()
def pool() -> None:
    """Egress addresses."""


@pool.command("list")
@output_option
@pass_invocation
def pool_list(invocation: Invocation) -> None:
    """The configured pools; what is in use as well when the gateway runs."""
    config = invocation.config()
    try:
        used = {running["name"]: running["ports_used"] for running in ask(config, "/v1/status")["pools"]}
    except NotRunningError:
        used = {}
    with invocation.store(config) as store:
        devices = [device.pool for device in store.devices()]
    items: list[dict[str, Any]] = [
        {
            "name": known.name,
            "addresses": list(map(str, known.addresses)),
            "ports": str(known.ports),
            "ports_used": used.get(known.name),
            "devices": devices.count(known.name),
            "country": known.country,
            "city": known.city,
        }
        for known in config.pools
    ]
    if invocation.json:
        echo_json({"items": items})
        return
    rows = [
        (i["name"], ", ".join(i["addresses"]), i["ports"], i["ports_used"], i["devices"], " ".join(filter(None, (i["city"], i["country"]))))
        for i in items
    ]
    columns = ("NAME", "ADDRESSES", "PORTS", "USED", "DEVICES", "PLACE")
    echo_table(columns, rows, empty="no pools", right=("USED", "DEVICES"))


@pool.command("usage")
@output_option
@pass_invocation
def pool_usage(invocation: Invocation) -> None:
    """Of each address of the running gateway: ports in use, blocks used, free and held back."""
    answer = ask(invocation.config(), "/v1/pools")
    if invocation.json:
        echo_json(answer)
        return
    columns = ("POOL", "ADDRESS", "PORTS", "TCP", "UDP", "ICMP", "BLOCKS", "USED", "FREE", "HELD", "DEVICES", "EXHAUSTED")
    rows = [
        (
            *(item["pool"], item["address"], "{}-{}".format(*item["ports"])),
            *(item["used"][protocol] for protocol in ("tcp", "udp", "icmp")),
            f"{item['blocks']['all']} of {item['block_size']}",
            *(item["blocks"][state] for state in ("used", "free", "held")),
            *(item["devices"], item["exhausted"]),
        )
        for item in answer["items"]
    ]
    echo_table(columns, rows, empty="no IPv4 addresses", right=columns[3:])
