"""The lab as fixtures: one set of namespaces for all these tests, beside any lab that an operator has standing."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateways import Egress
from topology import Lab, LabError, require_root

HERE = Path(__file__).parent
PATIENCE = 420  # s for each test: a first start compiles


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test here; skip them, saying why, where no lab can stand."""
    reason = ""
    try:
        require_root()
    except LabError as error:
        reason = str(error)
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.lab)
            item.add_marker(pytest.mark.timeout(PATIENCE))
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Namespaces and servers, with three clients' hosts; no gateway yet."""
    standing = Lab(os.environ.get("EVL_TEST_PREFIX", "evt"), clients=3)
    standing.down()
    standing.up()
    yield standing
    standing.down()


@pytest.fixture(scope="module")
def gateway(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Egress]:
    """A running gateway of the test module's own."""
    egress = Egress(lab, f"gateway-{request.module.__name__.rpartition('.')[2]}")
    egress.init()
    egress.start()
    yield egress
    egress.stop()


@pytest.fixture
def idle_gateway(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Egress]:
    """A gateway that is configured and not started; ended after the test if the test started it."""
    egress = Egress(lab, f"gateway-{zlib.crc32(request.node.nodeid.encode()):x}")
    egress.init()
    yield egress
    egress.stop()
