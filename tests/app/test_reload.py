"""SIGHUP: pools follow the configuration with their routes, a mistake changes nothing, and what waits for a start is said."""

from pathlib import Path
from typing import Any

import pytest
import trio
from pyroute2.netlink.exceptions import NetlinkError
from structlog.testing import capture_logs

from egressvpn.addresses import IPNetwork
from egressvpn.app.reload import reload
from egressvpn.errors import OperatorError
from egressvpn.netio.netlink import Netlink
from tests.app.bench import Bench, bench
from tests.app.test_pools import TEXT, add, paired
from tests.netio.namespace import ip, isolated


def reloaded(directory: Path, *texts: str) -> tuple[list[Any], list[str], dict[str, str]]:
    """What the log says, the routes on the TUN, and where a device goes out, after each of the texts was put into the file."""
    return trio.run(_reloaded, directory, texts)


async def _reloaded(directory: Path, texts: tuple[str, ...]) -> tuple[list[Any], list[str], dict[str, str]]:
    ip("link add egress9 type veth peer name far9")
    ip("link set far9 up")
    ip("link set egress9 up")
    index = int(ip("-o link show egress9").split(":")[0])
    async with bench(directory, TEXT) as made:
        for pool in made.config.pools:
            for prefix in pool.addresses:
                Netlink().add_pool_route(prefix, index)
        add(made, "a")
        await made.step()
        with capture_logs() as logs:
            for text in texts:
                made.config.path.write_text(text)
                await _at_work(made, index)
        routes = [line.split()[0] for line in (ip("route show dev egress9") + ip("-6 route show dev egress9 ")).splitlines() if line]
        return (
            logs,
            sorted(route for route in routes if not route.startswith("fe80")),
            {name: paired(made, name) for name in made.fleet.members},
        )


async def _at_work(made: Bench, index: int) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made._end_addresses)
        await reload(made.fleet, index)
        nursery.cancel_scope.cancel()
    made.work()


def own(text: str, directory: Path) -> str:
    return f'[gateway]\nstate_dir = "{directory}"\n{text}'


@isolated
def test_new_pool_networks_are_routed_and_old_ones_are_not(tmp_path: Path) -> None:
    text = own(TEXT.replace("203.0.113.0/30", "198.51.100.0/30"), tmp_path)
    logs, routes, paired_now = reloaded(tmp_path, text)
    assert routes == ["198.51.100.0/30", "2001:db8:113::/64"]
    assert paired_now["a"].startswith("198.51.100.")
    assert logs == [{"event": "pools changed", "log_level": "info", "added": ["198.51.100.0/30"], "removed": ["203.0.113.0/30"]}]


@isolated
def test_a_route_that_cannot_be_removed_is_said_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(network: IPNetwork, ifindex: int) -> None:
        raise (NetlinkError(1, "refused") if network.version == 4 else OperatorError("refused", ""))

    monkeypatch.setattr("egressvpn.app.reload.remove_route", refuse)
    text = TEXT.replace("203.0.113.0/30", "198.51.100.0/30").replace("2001:db8:113::/64", "2001:db8:114::/64")
    logs, _, paired_now = reloaded(tmp_path, own(text.replace("max_flows = 1024", "max_flows = 2048"), tmp_path))
    assert paired_now["a"].startswith("198.51.100.")
    assert sorted(entry.get("mend", entry["event"]) for entry in logs) == [
        "changes take effect with the next start",
        "pools changed",
        "remove it: `ip route del 2001:db8:113::/64`",
        "remove it: `ip route del 203.0.113.0/30`",
    ]


@isolated
def test_a_configuration_with_a_mistake_or_with_our_own_address_changes_nothing(tmp_path: Path) -> None:
    ip("link add up0 type veth peer name up1")
    ip("addr add 198.51.100.1/24 dev up0")
    mistaken = own(TEXT.replace("203.0.113.0/30", "203.0.113.0/33"), tmp_path)
    ours = own(TEXT.replace('"203.0.113.0/30"', '"192.0.2.0/30", "198.51.100.0/30"'), tmp_path)
    logs, routes, paired_now = reloaded(tmp_path, mistaken, ours)
    assert routes == ["2001:db8:113::/64", "203.0.113.0/30"]
    assert paired_now["a"].startswith("203.0.113.")
    assert [entry["log_level"] for entry in logs] == ["error", "error"]
    assert "is not a network" in logs[0]["error"]
    assert "an address of this machine" in logs[1]["error"]


@isolated
def test_other_keys_wait_for_the_next_start_and_are_named(tmp_path: Path) -> None:
    text = own(
        TEXT.replace("max_flows = 1024", 'max_flows = 2048\nhold_down = "60s"').replace("max_blocks = 2", "max_blocks = 4"), tmp_path
    )
    logs, _, _ = reloaded(tmp_path, text)
    assert [entry["event"] for entry in logs] == ["pools changed", "changes take effect with the next start"]
    assert logs[1]["keys"] == ["nat.max_flows", "nat.hold_down"]
