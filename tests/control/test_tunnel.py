"""Between the WireGuard interface and the worker: what is decided becomes commands, and what the worker's tables say is read with care."""

import os
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from egressvpn.addresses import Path, pack_sockaddr
from egressvpn.control.supervisor import Supervisor
from egressvpn.control.tunnel import Tunnel
from egressvpn.dataplane import arena
from egressvpn.dataplane.channel import COMMAND, Command, Event, Happened
from egressvpn.dataplane.layout import Limits, layout
from egressvpn.netio.udp import open_udp
from egressvpn.wireguard.indexes import SessionIndexes
from egressvpn.wireguard.interface import Install, Interface, Transmit
from egressvpn.wireguard.mac import cookie_key, mac1_key
from egressvpn.wireguard.tables import MAX_IDENTITIES
from tests.netio.namespace import ip, isolated
from tests.wireguard.pair import cookie_reply

LIMITS = Limits(max_devices=8, max_prefixes=16, max_flows=64, pool_addresses=1)
PATH = Path(pack_sockaddr("192.0.2.7", 9))


@dataclass
class Rig:
    """A tunnel whose commands nobody applies."""

    tunnel: Tunnel
    supervisor: Supervisor
    devices: Any  # the worker's table
    kept: list[Any] = field(default_factory=list)  # the marks of timestamps, and how many commands had been sent by then
    failure: OSError | None = None

    def commands(self) -> list[Any]:
        found = []
        while True:
            try:
                found.append(np.frombuffer(self.supervisor._theirs.recv(COMMAND.itemsize), COMMAND).view(np.recarray)[0])
            except BlockingIOError:
                return found

    def happened(self, kind: Event, owner: int = 0, **fields: Any) -> None:
        told = {"index": 0, "first": 0, "second": 0} | fields
        self.tunnel.handle(Happened(kind, owner, **told))

    def keep(self, mark: bytes) -> None:
        if self.failure:
            raise self.failure
        self.kept.append((mark, len(self.commands())))


@pytest.fixture
def made() -> Iterator[Rig]:
    memory = arena.create(layout(LIMITS))
    supervisor = Supervisor(memory, LIMITS, -1, [])
    interface = Interface(secrets.token_bytes(32), indexes(memory.tables["sessions"].size), secrets.token_bytes)
    rig = Rig(Tunnel(supervisor, interface, [], lambda mark: rig.keep(mark)), supervisor, memory.tables["devices"])
    memory.tables["worker"][0].device_limit = 9
    yield rig
    supervisor.close()
    os.close(memory.fd)


def indexes(slots: int = 64) -> SessionIndexes:
    return SessionIndexes(slots, 0, secrets.token_bytes)


def initiation(to: Interface) -> tuple[Interface, bytes]:
    """A client, and the datagram it begins with."""
    client = Interface(secrets.token_bytes(32), indexes(), secrets.token_bytes)
    client.add_peer(1, to.public_key, path=PATH)
    client.on_session_wanted(1, time.monotonic_ns(), time.time_ns())
    return client, next(output.datagram for output in client.poll() if isinstance(output, Transmit))


async def test_a_handshake_is_answered_by_installing_its_session(made: Rig) -> None:
    client, datagram = initiation(made.tunnel.interface)
    made.tunnel.interface.add_peer(3, client.public_key)
    made.happened(Event.HANDSHAKE, path=PATH, octets=datagram)
    (command,) = made.commands()
    assert (command.kind, command.owner, command.initiator) == (Command.INSTALL, 3, 0)
    client.receive(bytes(command.octets[: command.length]), PATH, time.monotonic_ns(), time.time_ns())
    theirs = next(output for output in client.poll() if isinstance(output, Install))
    assert (theirs.receive_key, theirs.send_key) == (bytes(command.send_key), bytes(command.receive_key))
    assert (theirs.index, theirs.remote_index) == (command.remote_index, command.index)
    assert made.tunnel.handshakes == {"completed": 1}
    assert sum(made.tunnel.handshake_counts) == 1


async def test_a_refused_handshake_is_counted_by_its_reason(made: Rig) -> None:
    _, datagram = initiation(made.tunnel.interface)
    made.happened(Event.HANDSHAKE, path=PATH, octets=datagram)
    made.happened(Event.HANDSHAKE, path=PATH, octets=datagram[:-40] + bytes(40))
    assert made.commands() == []
    assert made.tunnel.handshakes == {"unknown_peer": 1, "bad_mac1": 1}


async def test_a_cookie_reply_that_is_taken_is_not_a_completed_handshake(made: Rig) -> None:
    client, _ = initiation(made.tunnel.interface)
    made.tunnel.interface.add_peer(3, client.public_key, path=PATH)
    made.happened(Event.WANTED, 3)
    (command,) = made.commands()
    datagram = bytes(command.octets[: command.length])
    made.happened(Event.HANDSHAKE, path=PATH, octets=cookie_reply(client.public_key, datagram))
    assert made.tunnel.handshakes == {}  # neither completed nor refused
    assert (sum(made.tunnel.handshake_counts), made.tunnel.handshake_seconds) == (0, 0.0)
    made.happened(Event.HANDSHAKE, path=PATH, octets=cookie_reply(client.public_key, datagram))
    assert made.tunnel.handshakes == {"unexpected_cookie_reply": 1}


async def test_a_handshake_of_ours_leaves_through_the_worker_after_its_timestamp_is_kept(made: Rig) -> None:
    client, _ = initiation(made.tunnel.interface)
    made.tunnel.interface.add_peer(3, client.public_key, path=PATH)
    made.happened(Event.WANTED, 3)
    ((mark, before),) = made.kept
    assert (len(mark), before) == (12, 0)
    (command,) = made.commands()
    assert (command.kind, command.owner, command.length, command.octets[0]) == (Command.TRANSMIT, 3, 148, 1)
    assert bytes(command.remote[:16]) == PATH.remote


async def test_a_timestamp_that_cannot_be_kept_is_said_and_stops_nothing(made: Rig) -> None:
    client, _ = initiation(made.tunnel.interface)
    made.tunnel.interface.add_peer(3, client.public_key, path=PATH)
    made.failure = OSError(28, "No space left on device")
    with capture_logs() as logs:
        made.happened(Event.WANTED, 3)
    assert [command.kind for command in made.commands()] == [Command.TRANSMIT]
    assert "No space left" in logs[0]["error"]


async def test_the_interface_is_woken_when_a_nearer_deadline_comes_up(made: Rig) -> None:
    client, _ = initiation(made.tunnel.interface)
    made.tunnel.interface.add_peer(3, client.public_key, path=PATH)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.tunnel.run)
        await trio.testing.wait_all_tasks_blocked()
        made.happened(Event.WANTED, 3)
        await trio.testing.wait_all_tasks_blocked()
        assert made.tunnel._sleeps_until == made.tunnel.interface.next_deadline() is not None
        nursery.cancel_scope.cancel()


async def test_what_goes_wrong_with_an_event_is_counted_and_ends_nothing(made: Rig) -> None:
    with capture_logs() as logs:
        made.happened(Event.HANDSHAKE, path=Path(b""), octets=b"\1")
        made.happened(Event.REFUSED, 3, first=99)
    assert made.tunnel.failures == 1
    assert logs[-1]["event"] == "event failed"
    made.happened(Event.REFUSED, 3, first=Command.ADD_PREFIXES)
    assert made.tunnel.refused == {"add prefixes"}


async def test_the_worker_learns_every_identity_and_that_there_is_none(made: Rig) -> None:
    key = made.tunnel.interface.public_key
    made.tunnel.set_identities()
    first, *others = made.commands()
    assert (first.kind, first.index, first.state) == (Command.SET_IDENTITY, 0, 1)
    assert (bytes(first.receive_key), bytes(first.send_key)) == (mac1_key(key), cookie_key(key))
    assert [(command.index, command.state) for command in others] == [(number, 0) for number in range(1, MAX_IDENTITIES)]
    made.tunnel.interface.clear_private_key()
    made.tunnel.set_identities()
    commands = made.commands()
    assert [command.state for command in commands] == [0] * MAX_IDENTITIES
    assert not any(command.receive_key.any() or command.send_key.any() for command in commands)


async def test_the_cookie_secret_is_another_every_two_minutes(made: Rig, autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(599):
        await made.tunnel.rotate_cookies()
    commands = made.commands()
    assert {command.kind for command in commands} == {Command.SET_COOKIE_SECRET}
    assert len({bytes(command.receive_key) for command in commands}) == len(commands) == 5


async def test_prefixes_go_to_the_worker_by_the_dozen_or_so(made: Rig) -> None:
    networks = [ip_network(f"10.0.{number}.0/24") for number in range(25)]
    made.tunnel.add_prefixes(3, networks)
    made.tunnel.remove_prefixes(3, networks[:1])
    assert [(command.kind, command.owner, command.length // 18) for command in made.commands()] == [
        (Command.ADD_PREFIXES, 3, 10),
        (Command.ADD_PREFIXES, 3, 10),
        (Command.ADD_PREFIXES, 3, 5),
        (Command.REMOVE_PREFIXES, 3, 1),
    ]


async def test_an_endpoint_that_does_not_fit_together_is_none(made: Rig) -> None:
    row = made.devices[1]
    for remote, length, whole in (
        (pack_sockaddr("192.0.2.7", 9), 16, True),
        (pack_sockaddr("2001:db8::7", 9), 28, True),
        (pack_sockaddr("2001:db8::7", 9), 16, False),  # torn: the address of one, the length of the other
        (pack_sockaddr("192.0.2.7", 9), 28, False),
        (bytes(28), 28, False),
        (bytes(28), 0, False),
    ):
        row.remote[: len(remote)] = list(remote)
        row.remote_length = length
        path = made.tunnel.path(1)
        assert (path is not None) == whole
        assert path is None or path.remote == remote


@isolated
def test_w26_an_address_is_forgotten_when_another_interface_becomes_the_way(made: Rig) -> None:
    for number in (1, 3):
        ip(f"link add up{number} type veth peer name far{number}")
        ip(f"address add 10.0.0.{number}/24 dev up{number} noprefixroute")
        ip(f"link set far{number} up")
        ip(f"link set up{number} up")
    ip("route add 10.0.0.0/24 dev up1 src 10.0.0.1 metric 2")
    made.tunnel.sockets = open_udp(["0.0.0.0:0"])
    heard(made.devices[1], "10.0.0.2", "10.0.0.1", socket.if_nametoindex("up1"))
    heard(made.devices[2], "10.0.0.2", "10.0.0.3", socket.if_nametoindex("up3"))
    heard(made.devices[3], "127.0.0.2", "127.0.0.1", socket.if_nametoindex("lo"))
    heard(made.devices[5], "10.0.0.2", "10.0.0.1", 0)
    made.devices[4].remote[:28] = list(pack_sockaddr("2001:db8::7", 9))
    made.devices[4].remote_length, made.devices[4].local_length = 28, 40
    trio.run(_better_route, made)
    (command,) = made.commands()  # the others came by the way that is left, or nobody knows by which
    assert (command.kind, command.owner) == (Command.FORGET_SOURCE, 1)
    assert bytes(command.local) == bytes(made.devices[1].local)
    made.tunnel.sockets[0].close()


async def _better_route(made: Rig) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.tunnel.follow_routes)
        await trio.testing.wait_all_tasks_blocked()
        assert made.commands() == []
        ip("route add 10.0.0.0/24 dev up3 src 10.0.0.3 metric 1")
        with trio.move_on_after(5):
            await trio.lowlevel.wait_readable(made.supervisor._theirs)
        nursery.cancel_scope.cancel()


def heard(row: Any, remote: str, local: str, ifindex: int) -> None:
    """As the data path notes it."""
    row.remote[:16] = list(pack_sockaddr(remote, 9))
    row.local[16:20] = row.local[24:28] = 0
    row.local[20:24] = list(socket.inet_aton(local))
    row.local[28:32] = list(ifindex.to_bytes(4, "little"))
    row.remote_length, row.local_length = 16, 32
