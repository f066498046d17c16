"""Who is refused is said in the log, and nobody can fill it."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from egressvpn.app.alarms import AT_ONCE, QUIET, Alarms
from tests.app.bench import bench
from tests.app.test_pools import NAMES, TEXT, add

pytestmark = pytest.mark.timeout(300)  # s: whoever comes first compiles what the worker's commands call


async def test_a_device_that_is_refused_and_a_pool_without_ports_are_named_once_a_minute(tmp_path: Path) -> None:
    async with bench(tmp_path, TEXT) as made:
        add(made, *NAMES)
        await made.step()
        alarms, nat = Alarms(made.b.nat, made.fleet), made.b.nat
        with capture_logs() as logs:
            alarms.look(0)
            nat.subscribers[made.slot("b")].refused += 5
            nat.pool[made.fleet.members["b"].egress.slot].exhausted += 5
            for second in range(1, int(QUIET) + 2):
                alarms.look(second)
                nat.subscribers[made.slot("b")].refused += 1
        pools = [entry for entry in logs if entry["event"] == "no ports left"]
        devices = [(entry["device"], entry["refused"]) for entry in logs if entry["event"] == "flows refused"]
        assert devices == [("b", 5), ("b", 1)]
        assert [(entry["pool"], entry["address"], entry["refused"]) for entry in pools] == [
            ("default", str(made.fleet.members["b"].external4), 5)
        ]


async def test_a_thousand_devices_that_are_refused_are_some_lines(tmp_path: Path) -> None:
    async with bench(tmp_path, TEXT.replace("max_devices = 8", "max_devices = 1000")) as made:
        alarms = Alarms(made.b.nat, made.fleet)
        made.b.nat.subscribers["refused"][1:] += 1
        with capture_logs() as logs:
            alarms.look(1)
        assert len(logs) == AT_ONCE
