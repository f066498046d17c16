"""The large kernels are compiled before the first test, so that no test's time limit counts it."""

from typing import Any

import pytest

from egressvpn.dataplane.loop import sweep
from egressvpn.dataplane.receive import receive
from egressvpn.dataplane.segment import read_tun
from egressvpn.kernel import JIT
from tests.dataplane.rig import rig


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    if not JIT:
        return
    made = rig()
    calls: list[tuple[Any, tuple[Any, ...]]] = [(receive, (made.b, 0, 64, 0)), (read_tun, (made.b, 0)), (sweep, (made.b, 0))]
    for function, arguments in calls:
        _compile(function, arguments)
    made.close()


def _compile(function: Any, arguments: tuple[Any, ...]) -> None:
    import numba

    function.compile(tuple(numba.typeof(argument) for argument in arguments))
