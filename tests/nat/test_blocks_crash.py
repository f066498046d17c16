"""Blocks after a crash at any line: no port has two owners, and the journal knows of every owner."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from egressvpn.kernel import JIT
from egressvpn.nat.blocks import hold_block
from egressvpn.nat.tables import BLOCK_HELD, BLOCK_OWNED, UDP_PORTS
from tests.nat.block_support import Pools, ns


def give_first(pools: Pools) -> None:
    pools.port(2, now=50)


def give_held(pools: Pools) -> None:
    pools.port(3, now=50)


def give_after_hold(pools: Pools) -> None:
    pools.port(2, now=200)


def give_another(pools: Pools) -> None:
    pools.port(4, now=50)


def take_last(pools: Pools) -> None:
    pools.port(5, now=50)


def free_last(pools: Pools) -> None:
    pools.free_all(1, now=50)


def remove(pools: Pools) -> None:
    pools.remove(1, now=50)


def hold_again(pools: Pools) -> None:
    hold_block(pools.nat, 1, 1047, 1002, ns(60))


@pytest.mark.skipif(JIT, reason="only an interpreted kernel can be stopped between two of its lines")
@pytest.mark.parametrize("operation", [give_first, give_held, give_after_hold, give_another, take_last, free_last, remove, hold_again])
def test_a_crash_at_any_line_leaves_no_port_with_two_owners_or_none_in_the_journal(operation: Callable[[Pools], None]) -> None:
    line, crashed = 0, True
    while crashed:
        pools = busy()
        before = dict(pools.owners)
        crashed = stopped_at(line, lambda pools=pools: operation(pools))  # type: ignore[misc]
        pools.crash(now=60)
        pools.assert_whole()
        for port in before:
            if port not in pools.owners and pools.block(port).state != BLOCK_OWNED:  # freed, but nobody else's yet
                assert pools.block(port).state == BLOCK_HELD
                assert pools.block(port).hold_until >= ns(50 + 120)
        assert all(pools.owners[port] == 4 for port, owner in before.items() if owner == 4)
        for device in (1, 2, 4):
            pools.take(device, now=60)
        pools.assert_whole()
        line += 1
    assert line > 20


def busy() -> Pools:
    """Device 1 has two ports in one block, 3 a held block, 4 all TCP ports of a block, 5 all but one."""
    pools = Pools(devices=5, size=4, high=1024 + 4 * 6 - 1, most=2)
    pools.port(1)
    pools.port(1, UDP_PORTS)
    pools.free(pools.port(3))
    for device, count in ((4, 4), (5, 3)):
        for _ in range(count):
            pools.port(device)
    return pools


def stopped_at(line: int, operation: Callable[[], None]) -> bool:
    """Run until the kernels have run through so many lines; whether they were stopped."""

    class Crash(BaseException):
        pass

    left = line

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if "/egressvpn/nat/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            if left == 0:
                raise Crash
            left -= 1
        return trace

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        operation()
    except Crash:
        return True
    finally:
        sys.settrace(old)
    return False
