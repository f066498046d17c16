"""The channel to a worker: nothing is lost or overtaken when it is full, descriptors travel with their command, events are sorted out."""

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing

from egressvpn.control.supervisor import Supervisor
from egressvpn.dataplane import arena
from egressvpn.dataplane.channel import COMMAND, EVENT, Command, Event, Happened, pack_command
from egressvpn.dataplane.layout import Limits, layout

LIMITS = Limits(max_devices=8, max_prefixes=16, max_flows=64, pool_addresses=1)


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    memory = arena.create(layout(LIMITS))
    made = Supervisor(memory, LIMITS, -1, [7])
    yield made
    made.close()
    os.close(memory.fd)


@asynccontextmanager
async def pumping(supervisor: Supervisor) -> AsyncIterator[list[Happened]]:
    """Both pumps run, without a worker. What is handed on collects in the list."""
    handed: list[Happened] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor._pump_commands)
        nursery.start_soon(supervisor._pump_events, handed.append)
        yield handed
        nursery.cancel_scope.cancel()


def arrived(supervisor: Supervisor) -> list[tuple[int, list[int]]]:
    """The `index` of every command that is in the channel, and the descriptors that came with it."""
    found = []
    while True:
        try:
            octets, descriptors, _, _ = socket.recv_fds(supervisor._theirs, COMMAND.itemsize, 2)
        except BlockingIOError:
            return found
        found.append((int(np.frombuffer(octets, COMMAND)["index"][0]), descriptors))


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_more_commands_than_the_channel_holds_arrive_in_order(supervisor: Supervisor) -> None:
    many = 20_000
    for number in range(many):
        supervisor.command(pack_command(Command.SYNC, index=number))
    found = [index for index, _ in arrived(supervisor)]
    assert 0 < len(found) < many
    async with pumping(supervisor):
        while len(found) < many:
            await trio.testing.wait_all_tasks_blocked()
            found += [index for index, _ in arrived(supervisor)]
    assert found == list(range(many))


async def test_a_command_does_not_overtake_those_that_wait(supervisor: Supervisor) -> None:
    number = 0
    while not supervisor._waiting:
        supervisor.command(pack_command(Command.SYNC, index=number))
        number += 1
    assert len(arrived(supervisor)) == number - 1  # there is room again
    supervisor.command(pack_command(Command.SYNC, index=number))
    assert arrived(supervisor) == []
    async with pumping(supervisor):
        await trio.testing.wait_all_tasks_blocked()
        assert [index for index, _ in arrived(supervisor)] == [number - 1, number]


async def test_a_descriptor_arrives_with_its_command_at_once_or_later(supervisor: Supervisor) -> None:
    reading, writing = os.pipe()
    before = descriptors()
    supervisor.command(pack_command(Command.SET_SOCKET, index=1), reading)
    ((_, (at_once,)),) = arrived(supervisor)
    while not supervisor._waiting:
        supervisor.command(pack_command(Command.SYNC))
    supervisor.command(pack_command(Command.SET_SOCKET, index=2), reading)
    os.close(reading)  # the caller need not wait for it
    arrived(supervisor)
    async with pumping(supervisor):
        await trio.testing.wait_all_tasks_blocked()
        (later,) = arrived(supervisor)[-1][1]
    os.write(writing, b"xy")
    assert (os.read(at_once, 1), os.read(later, 1)) == (b"x", b"y")
    for descriptor in (at_once, later, writing):
        os.close(descriptor)
    assert descriptors() == before - 2


async def test_what_waits_when_all_is_over_is_closed(supervisor: Supervisor) -> None:
    before = descriptors()
    while not supervisor._waiting:
        supervisor.command(pack_command(Command.SYNC))
    supervisor.command(pack_command(Command.SET_SOCKET), 0)
    supervisor.close()
    assert descriptors() == before - 2
    supervisor.command(pack_command(Command.SYNC))


async def test_there_is_an_end_to_what_may_wait(supervisor: Supervisor) -> None:
    supervisor._capacity = 3
    while len(supervisor._waiting) < 3:
        supervisor.command(pack_command(Command.SYNC))
    with pytest.raises(RuntimeError, match="more commands wait"):
        supervisor.command(pack_command(Command.SYNC))
    with pytest.raises(ValueError, match="not a command"):
        supervisor.command(b"")


async def test_sockets_are_replaced_by_as_many(supervisor: Supervisor) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as fresh:
        supervisor.replace_sockets([fresh.fileno()])
        ((_, (passed,)),) = arrived(supervisor)
        assert os.fstat(passed).st_ino == os.fstat(fresh.fileno()).st_ino
        assert supervisor._sockets == [fresh.fileno()]
        os.close(passed)
    with pytest.raises(ValueError, match="another number"):
        supervisor.replace_sockets([])


async def test_progress_and_failure_are_the_supervisors_and_all_else_is_handed_on(supervisor: Supervisor) -> None:
    async with pumping(supervisor) as handed:
        for kind in Event:
            record = np.zeros(1, EVENT)
            record["kind"], record["owner"] = kind, 5
            supervisor._theirs.send(record.tobytes())
        await trio.testing.wait_all_tasks_blocked()
        assert [event.kind for event in handed] == [kind for kind in Event if kind not in (Event.PROGRESS, Event.FAILED)]
        assert supervisor.ready.is_set()
