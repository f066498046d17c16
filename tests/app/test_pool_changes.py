"""In what order, and how long, the data path is told of pools and blocks that go from one to another."""

import time
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from structlog.testing import capture_logs

from egressvpn.app import fleet, pools
from egressvpn.app.view import View
from egressvpn.control.config import parse
from egressvpn.control.store import PeerChange
from egressvpn.dataplane.channel import COMMAND, Command
from egressvpn.dataplane.egress import end_some
from tests.app.bench import Bench, bench
from tests.app.test_pools import TEXT, add, log_is_written, paired

pytestmark = pytest.mark.timeout(300)  # s: whoever comes first compiles what the worker's commands call


def overheard(made: Bench, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The commands that the data path is given from now on."""
    heard: list[Any] = []
    tell = made.tunnel.command

    def command(octets: bytes) -> None:
        heard.append(np.frombuffer(octets, COMMAND)[0])
        tell(octets)

    monkeypatch.setattr(made.tunnel, "command", command)
    return heard


async def test_an_address_that_takes_long_to_end_keeps_nobody_waiting_and_comes_in_when_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pools.REMOVAL_PATIENCE <= 5
    monkeypatch.setattr(pools, "REMOVAL_PATIENCE", 0.1)
    monkeypatch.setattr(fleet, "WATCH_INTERVAL", 0.01)
    async with bench(tmp_path, TEXT.replace("203.0.113.0/30", "203.0.113.0/32")) as made:
        add(made, "a")
        await made.step()
        slot, row = int(made.b.nat.subscribers[made.slot("a")].external4), made.b.nat.pool
        free, recut = len(made.fleet.pools._free), TEXT.replace("203.0.113.0/30", "203.0.113.0/32").replace("= 256", "= 128")
        with capture_logs() as logs:
            await made.fleet.change_pools(parse(recut, made.config.path))  # the worker does not come to it
        assert [(entry["log_level"], entry["address"]) for entry in logs] == [("error", "203.0.113.0")]
        assert made.fleet.pools.late == ["203.0.113.0"]
        assert made.fleet.pools.pool_of(slot) == "default"
        view = View(made.config, made.supervisor, made.tunnel, made.fleet, made.accounts, 0.0)
        assert "pool addresses take long to end, nobody goes out from them: 203.0.113.0" in view.status()["health"]
        made.fleet.pools.check(parse(recut, made.config.path))
        await made.fleet.settle_pools()
        assert [int(one.address) for one in row if one.address] == [int(IPv4Address("203.0.113.0"))]
        assert int(row[slot].block_size) == 256
        add(made, "b")
        await made.fleet.follow()  # somebody who comes meanwhile
        assert made.fleet.members["b"].external4 is None
        made.work()
        while end_some(made.b, time.monotonic_ns()):
            pass
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.fleet.run)
            with trio.fail_after(10):
                while made.fleet.pools.late:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        made.work()
        assert made.fleet.pools.late == []
        assert len(made.fleet.pools._free) == free
        assert {paired(made, "a"), paired(made, "b")} == {"203.0.113.0"}
        assert {int(one.block_size) for one in row if one.address} == {128}
        assert made.tunnel.refused == set()


async def test_nobody_gets_a_block_before_those_that_are_held_back_are_out_of_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(tmp_path, TEXT) as made:
        add(made, "a")
        await made.step()
        address, _ = made.give_block("a")
        await made.change(TEXT.replace("203.0.113.0/30", "198.51.100.0/30"))
        commands = overheard(made, monkeypatch)
        await made.change(TEXT.replace('"203.0.113.0/30"', '"203.0.113.0/30", "198.51.100.0/30"'))
        there = int(IPv4Address(address))
        sent = [
            (int(told["kind"]), int(told["group"]))
            for told in commands
            if told["kind"] == Command.HOLD_BLOCK or (told["kind"] == Command.ADD_POOL and told["low"] == there)
        ]
        assert [kind for kind, _ in sent] == [Command.ADD_POOL, Command.HOLD_BLOCK, Command.ADD_POOL]
        groups = {int(row.group) for row in made.b.nat.pool if row.address}
        assert groups == {sent[-1][1]}
        assert sent[0][1] not in groups
        assert sent[0][1] > 0  # or the data path would not take it


async def test_a_device_whose_plan_changes_gets_the_block_of_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = TEXT.replace("max_blocks = 2", 'max_blocks = 2\nallocation = "deterministic"\ninside = "100.64.0.0/29"\ndynamic_factor = 2')
    async with bench(tmp_path, text) as made:
        add(made, "f", "a")  # .7, which is outside, and .2
        await made.step()
        assert [made.fleet.members[name].egress.fixed for name in "af"] == [2, 0]
        made.give_block("a")
        commands = overheard(made, monkeypatch)
        a, f = made.fleet.members["a"], made.fleet.members["f"]
        moved = {"a": ip_network("100.64.0.4/32"), "f": ip_network("100.64.0.2/32")}
        changes = [
            PeerChange(made.fleet.members[name].device.public_key, replace_allowed_ips=True, allowed_ips=((True, network),))
            for name, network in reversed(moved.items())
        ]
        made.store.apply(changes, replace=False, pool="default", limit=100, now=0)
        await made.step()
        new = made.fleet.members["a"].egress
        sent = [(int(told["owner"]), int(told["external4"]), int(told["fixed"])) for told in commands if told["kind"] == Command.SET_DEVICE]
        assert sent == [(a.slot, new.slot, new.fixed), (f.slot, a.egress.slot, a.egress.fixed)]  # who loses a block comes first
        assert (new.slot, new.fixed) != (a.egress.slot, a.egress.fixed)
        commands.clear()
        await made.change(text.replace("100.64.0.0/29", "100.64.0.8/29"))
        assert [int(told["fixed"]) for told in commands if told["kind"] == Command.SET_DEVICE] == [0, 0]
        await log_is_written(made)
        told = [entry for entry in made.events() if entry[0] in ("block-allocated", "block-released")]
        assert told == [("block-allocated", "a", str(a.external4)), ("block-released", "a", str(a.external4))]
