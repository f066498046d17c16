"""The arena: what one process writes another finds, and what does not fit is refused."""

import os

import numpy as np
import pytest

from egressvpn.dataplane import arena
from egressvpn.dataplane.layout import Limits, layout

SMALL = Limits(max_devices=4, max_prefixes=16, max_flows=64, pool_addresses=1)


def test_a_second_mapping_sees_what_the_first_wrote() -> None:
    first = arena.create(layout(SMALL))
    first.tables["devices"][2].last_sent = 77
    second = arena.attach(first.fd, layout(SMALL))
    assert second.tables["devices"][2].last_sent == 77
    os.close(first.fd)


def test_a_new_arena_is_empty_and_takes_no_memory() -> None:
    memory = arena.create(layout(Limits(max_flows=1_000_000)))
    size = os.fstat(memory.fd)
    assert size.st_size > 300_000_000
    assert size.st_blocks * 512 <= 64 * 1024  # the header alone
    os.close(memory.fd)


def test_tables_do_not_overlap() -> None:
    memory = arena.create(layout(SMALL))
    for number, table in enumerate(memory.tables.values(), 1):
        table.view(np.ndarray).view("u1")[:] = number
    for number, table in enumerate(memory.tables.values(), 1):
        assert set(np.unique(table.view(np.ndarray).view("u1"))) == {number}
    os.close(memory.fd)


def test_an_arena_of_other_dimensions_is_refused() -> None:
    memory = arena.create(layout(SMALL))
    with pytest.raises(ValueError, match="tables differ"):
        arena.attach(memory.fd, layout(Limits(max_devices=8)))
    os.close(memory.fd)


def test_a_file_that_is_no_arena_is_refused() -> None:
    fd = os.memfd_create("other")
    os.ftruncate(fd, 1 << 20)
    with pytest.raises(ValueError, match="not an arena"):
        arena.attach(fd, layout(SMALL))
    os.close(fd)


def test_only_rows_that_were_written_are_named() -> None:
    limits = Limits(max_devices=4096)
    memory = arena.create(layout(limits))
    assert memory.written("sessions") == []
    memory.tables["sessions"][3000].index = 9
    ((first, end),) = memory.written("sessions")
    assert first <= 3000 < end <= first + 8
    os.close(memory.fd)
