"""Pairs of WireGuard implementations for the cases of the kernel's netns.sh. Each case is tried with our node on either side.

`together` and `apart` give a pair whose configuration is as new; what a test builds between the namespaces is taken down after it.
"""

import os
from collections.abc import Iterator

import pytest
from pair import SIDES, Pair
from triangle import Triangle


@pytest.fixture(scope="package")
def triangle() -> Iterator[Triangle]:
    """The three namespaces."""
    standing = Triangle(os.environ.get("EVL_TEST_PREFIX", "evt")[:7] + "i")
    standing.down()
    standing.up()
    yield standing
    standing.down()


@pytest.fixture(scope="module", params=SIDES.values(), ids=SIDES)
def _together(request: pytest.FixtureRequest, triangle: Triangle) -> Iterator[Pair]:
    yield from _running(Pair(triangle, request.param, together=True))


@pytest.fixture(scope="module", params=SIDES.values(), ids=SIDES)
def _apart(request: pytest.FixtureRequest, triangle: Triangle) -> Iterator[Pair]:
    yield from _running(Pair(triangle, request.param, together=False))


def _running(pair: Pair) -> Iterator[Pair]:
    try:
        pair.start()
        yield pair
    finally:
        pair.stop()


@pytest.fixture
def together(_together: Pair) -> Iterator[Pair]:
    """Both processes are in n0 and meet on its loopback; the interfaces are in n1 and n2."""
    yield from _as_new(_together)


@pytest.fixture
def apart(_apart: Pair) -> Iterator[Pair]:
    """Each process is beside its interface, in n1 and n2; nothing connects them yet."""
    yield from _as_new(_apart)


def _as_new(pair: Pair) -> Iterator[Pair]:
    pair.lab.clean()
    pair.configure()
    yield pair
    pair.lab.clean()
    assert pair.one.running()
    assert pair.two.running()
