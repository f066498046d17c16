"""`whois`, `explain`: who had an address and port, and what would become of a packet."""

import time
from pathlib import Path
from typing import Any

import click

from egressvpn.cli.common import Invocation, echo_json, echo_pairs, echo_table, output_option, pass_invocation
from egressvpn.cli.observation import ask
from egressvpn.errors import OperatorError


@click.command()
@click.argument("endpoint", metavar="ADDR:PORT")
@click.option("--proto", "protocol", type=click.Choice(["tcp", "udp", "icmp"]), help="Only as a port of this protocol.")
@click.option("--at", metavar="TIME", default="", help="Like 2026-01-31T12:00:00Z: in that second (UTC unless said) [default: now].")
@click.option(
    "--log",
    "logs",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read this file of a NAT log, not the gateway's own. Repeat it.",
)
@output_option
@pass_invocation
def whois(invocation: Invocation, endpoint: str, protocol: str | None, at: str, logs: tuple[Path, ...]) -> None:
    """Which device held this egress address and port at that time, from the NAT log. Exit 1 when nobody did."""
    from egressvpn.observe.nat_history import in_order, log_files
    from egressvpn.observe.nat_history import whois as find
    from egressvpn.observe.whois import answer, question

    if logs:
        files = in_order(logs)
    else:
        config = invocation.config()
        if not config.log.nat_log:
            raise OperatorError("log.nat_log is off in the configuration", "name the files of a log with --log")
        files = log_files(config.state_dir, config.log.nat_log)
        if not files:
            raise OperatorError(f"there is no NAT log in {config.state_dir}", "it begins with the first `egressvpn up`")
    found = answer(question(endpoint, protocol or "", at, time.time_ns()), lambda *asked: find(files, *asked))
    if invocation.json:
        echo_json(found)
    else:
        _show(found)
    if not found["items"]:
        raise SystemExit(1)


def _show(found: dict[str, Any]) -> None:
    rows = [
        (
            item["device"],
            item["device_id"],
            ", ".join(item["internal"]),
            item["external"],
            "all" if item["ports"] is None else "{}-{}".format(*item["ports"]),
            item["since"],
            _until(item),
        )
        for item in found["items"]
    ]
    columns = ("DEVICE", "ID", "INTERNAL", "EXTERNAL", "PORTS", "SINCE", "UNTIL")
    echo_table(columns, rows, empty=f"nobody held it at {found['begin']}")
    for note in found["notes"]:
        click.echo(f"not sure: {note}", err=True)


def _until(item: dict[str, Any]) -> str:
    if item["until"] is None:
        return "now"
    return str(item["until"]) if item["clean"] else f"{item['until']} at the latest"


@click.command()
@click.argument("name")
@click.argument("destination", metavar="DST[:PORT][/PROTOCOL]")
@output_option
@pass_invocation
def explain(invocation: Invocation, name: str, destination: str) -> None:
    """What would happen to this packet of a device, and why: rule, pool, address, block."""
    answer = ask(invocation.config(), "/v1/explain", peer=name, destination=destination)
    if invocation.json:
        echo_json(answer)
        return
    passes = answer["verdict"] == "pass"
    verdict = click.style(answer["verdict"], fg="green" if passes else "red")
    echo_pairs(
        [
            ("packet", f"{name} {answer['internal'] or ''} to {answer['destination']}, {answer['protocol']}"),
            ("verdict", f"{verdict}: {answer['why']}"),
            ("rule", answer["rule"]),
            ("way", answer["way"]),
            ("pool", answer["pool"]),
            *([("external", answer["external"]), ("ports", _ports(answer))] if passes else []),
        ]
    )


def _ports(answer: dict[str, Any]) -> str | None:
    """Where the packet's external port would come from."""
    if answer["external"] is None:
        return None
    if ":" in answer["external"]:
        return "as they are"  # IPv6 is translated by address alone
    return "{}-{}".format(*answer["block"]["ports"]) if answer["block"] else "a block when it needs one"
