"""The lab with coturn in it, and a sibling of it whose gateway is what everybody has: wireguard-go and nftables masquerade.

The sibling calibrates the tests: what passes there too has proved nothing.
"""

import shutil
from collections.abc import Iterator

import pytest
from discovery import COTURN, NATDISCOVERY, start_coturn, stop_coturn
from gateways import MASQUERADE_RULES, Peer
from topology import Lab

from tests.lab.nat.places import Place, connected


@pytest.fixture(scope="session")
def judged(lab: Lab) -> Iterator[Lab]:
    """The lab with coturn."""
    needs_coturn()
    start_coturn(lab)
    yield lab
    stop_coturn(lab)


@pytest.fixture(scope="session")
def sibling(lab: Lab) -> Iterator[Lab]:
    """Another lab beside it, with coturn, and with an nftables gateway to come."""
    needs_coturn()
    standing = Lab(f"{lab.prefix[:7]}m", clients=3)
    standing.down()
    standing.up()
    try:
        start_coturn(standing)
        yield standing
    finally:
        standing.down()


@pytest.fixture(scope="session")
def masquerade(sibling: Lab) -> Iterator[Place]:
    """The sibling's gateway, with three clients; the last may be lost."""
    place = connected(sibling, Peer(sibling, rules=MASQUERADE_RULES), 3)
    yield place
    place.stop()


def needs_coturn() -> None:
    if not shutil.which(COTURN) or not shutil.which(NATDISCOVERY):
        pytest.skip("coturn is not installed; `make setup` as root installs it")
