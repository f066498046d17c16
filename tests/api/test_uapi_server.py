"""The control socket with real clients on it: bad ones hold up nobody, and its file rules the life of the interface."""

import contextlib
import gc
import ipaddress
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
import trio

from egressvpn.addresses import IPNetwork
from egressvpn.api import uapi_server
from egressvpn.api.uapi import InterfaceState, PeerState
from egressvpn.api.uapi_lines import PORT_IN_USE, RefusedError
from egressvpn.api.uapi_server import MAX_CONNECTIONS, control_socket, may_serve, serve_control, socket_path
from egressvpn.app import collector
from egressvpn.control.peers import PeerChange
from egressvpn.errors import OperatorError

KEY = bytes(range(32))
NET = ipaddress.ip_network


class Memory:
    """An interface that only remembers: what a backend is to the server."""

    def __init__(self) -> None:
        self.key: bytes | None = None
        self.port = 0
        self.mark = 0
        self.peers: dict[bytes, list[IPNetwork]] = {}
        self.parts = 0
        self.trouble: Exception | None = None  # what the next change meets
        self.going_on = trio.Event()  # changes wait for it
        self.going_on.set()

    def state(self) -> InterfaceState:
        if isinstance(self.trouble, ZeroDivisionError):
            raise self.trouble
        peers = [PeerState(key, None, allowed_ips=tuple(networks)) for key, networks in self.peers.items()]
        return InterfaceState(self.key, self.port, self.mark, peers)

    async def set_private_key(self, key: bytes | None) -> None:
        self.key = key

    async def set_listen_port(self, port: int) -> None:
        if port == 666:
            raise RefusedError(PORT_IN_USE, "taken")
        self.port = port

    async def set_fwmark(self, mark: int) -> None:
        self.mark = mark

    async def change_peers(self, changes: Sequence[PeerChange], *, replace: bool) -> None:
        await self.going_on.wait()
        if self.trouble is not None:
            raise self.trouble
        if replace:
            self.peers.clear()
        for change in changes:
            held = self.peers.setdefault(change.public_key, [])
            for start in range(0, len(change.allowed_ips), 1000):
                held += [network for _, network in change.allowed_ips[start : start + 1000]]
                await trio.lowlevel.checkpoint()
        self.parts += 1


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the sockets of these tests are."""
    monkeypatch.setattr(uapi_server, "DIRECTORY", tmp_path / "wireguard")
    return tmp_path / "wireguard"


@pytest.fixture
def collector_as_in_the_gateway() -> Iterator[None]:
    """A full collection of everything these tests have made would be measured with them."""
    thresholds = gc.get_threshold()
    collector.begin()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.fixture
async def backend(directory: Path) -> AsyncIterator[Memory]:
    """A backend that is served as interface wg0."""
    memory = Memory()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, memory, "wg0")
        yield memory
        nursery.cancel_scope.cancel()


class Client:
    """One connection, and what came on it that was not read yet."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.heard = b""

    async def send(self, text: str) -> None:
        await self.stream.send_all(text.encode())

    async def answer(self) -> str:
        """What comes up to the next empty line, or to the end."""
        while b"errno=" not in self.heard or b"\n\n" not in self.heard:
            octets = await self.stream.receive_some(1 << 20)
            if not octets:
                break
            self.heard += octets
        answer, empty, self.heard = self.heard.partition(b"\n\n")
        return (answer + empty).decode()


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[Client]:
    async with await trio.open_unix_socket(str(socket_path("wg0"))) as stream:
        yield Client(stream)


async def ask(text: str) -> str:
    async with connected() as client:
        await client.send(text)
        return await client.answer()


# answers


async def test_what_is_set_is_told(backend: Memory) -> None:
    said = f"set=1\nprivate_key={KEY.hex()}\nlisten_port=51820\nfwmark=3\npublic_key={KEY.hex()}\nallowed_ip=10.0.0.0/8\n\n"
    assert await ask(said) == "errno=0\n\n"
    told = await ask("get=1\n\n")
    assert told.startswith(f"private_key={KEY.hex()}\nlisten_port=51820\nfwmark=3\npublic_key={KEY.hex()}\n")
    assert told.endswith("allowed_ip=10.0.0.0/8\nerrno=0\n\n")


async def test_one_connection_may_ask_many_times(backend: Memory) -> None:
    async with connected() as client:
        for port in range(1, 50):
            await client.send(f"set=1\nlisten_port={port}\n\nget=1\n\n")
            assert await client.answer() == "errno=0\n\n"
            assert await client.answer() == f"listen_port={port}\nerrno=0\n\n"


async def test_a_mistake_is_answered_and_the_connection_lives_on(backend: Memory) -> None:
    async with connected() as client:
        for line, code in (("listen_port=x", -22), ("listen_port", -71), ("listen_port=666", -98), ("nonsense=1", -22)):
            await client.send(f"set=1\nfwmark={-code}\n{line}\nfwmark=1\n\n")
            assert await client.answer() == f"errno={code}\n\n"
            assert backend.mark == -code  # what stood before it is done, what stands behind it is not


async def test_a_wrong_get_is_answered_without_a_sign(backend: Memory) -> None:
    assert await ask("get=1\nx=1\n\n") == "errno=22\n\n"


async def test_what_is_no_operation_is_hung_up_on(backend: Memory) -> None:
    assert await ask("hello\n\n") == ""


async def test_an_error_for_the_operator_is_answered_as_unknown_and_the_next_operation_works(backend: Memory) -> None:
    backend.trouble = OperatorError("the store is locked")
    assert await ask(f"set=1\npublic_key={KEY.hex()}\n\n") == "errno=-55\n\n"
    backend.trouble = None
    assert await ask(f"set=1\npublic_key={KEY.hex()}\n\n") == "errno=0\n\n"


async def test_a_bug_of_the_backend_ends_one_operation_only(backend: Memory) -> None:
    backend.trouble = ZeroDivisionError()
    async with connected() as client:
        await client.send(f"set=1\npublic_key={KEY.hex()}\n\n")
        assert await client.answer() == "errno=-55\n\n"
        await client.send("get=1\n\n")
        assert await client.answer() == "errno=5\n\n"
        backend.trouble = None
        await client.send("get=1\n\n")
        assert await client.answer() == "errno=0\n\n"


async def test_a_part_of_a_large_set_that_fails_ends_it(backend: Memory) -> None:
    backend.trouble = RefusedError(-22, "no room")
    lines = "".join(f"allowed_ip=10.{n >> 8 & 255}.{n & 255}.0/24\n" for n in range(70_000))
    async with connected() as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.send, f"set=1\npublic_key={KEY.hex()}\n{lines}\nget=1\n\n")
        assert await client.answer() == "errno=-22\n\n"  # once, not once for each part
        assert await client.answer() == "errno=0\n\n"


# bad company


async def test_clients_that_are_silent_cut_off_or_do_not_listen_hold_up_nobody(backend: Memory) -> None:
    backend.peers[KEY] = [NET(n << 8) for n in range(60_000)]
    async with connected() as silent, connected() as half_way, connected() as deaf, connected() as endless:
        await silent.send("se")
        await half_way.send("set=1\nfwmark=1\nlisten_po")
        await deaf.send("get=1\n\n" * 10)  # and takes nothing of a megabyte each
        await endless.send("set=1\nfwmark=" + "1" * 200_000)
        with trio.fail_after(5):
            assert await ask("set=1\nfwmark=7\n\n") == "errno=0\n\n"
    assert backend.mark == 7


async def test_a_set_that_is_cut_off_changes_nothing(backend: Memory) -> None:
    async with connected() as client:
        await client.send(f"set=1\nfwmark=1\nreplace_peers=true\npublic_key={KEY.hex()}\n")
        await client.stream.send_eof()
        assert await client.answer() == "errno=-5\n\n"
    backend.peers[KEY] = []
    assert backend.mark == 0
    assert list(backend.peers) == [KEY]


async def test_a_client_that_goes_away_before_its_answer_is_no_trouble(backend: Memory) -> None:
    for _ in range(100):
        async with connected() as client:
            await client.send("set=1\nfwmark=1\n\nget=1\n\nget=1\n\n")
    assert await ask("get=1\n\n") == "fwmark=1\nerrno=0\n\n"


async def test_when_there_are_too_many_the_one_that_was_silent_longest_gives_way(backend: Memory) -> None:
    async with contextlib.AsyncExitStack() as held:
        clients = []
        for _ in range(MAX_CONNECTIONS):
            clients.append(await held.enter_async_context(connected()))
            await clients[-1].send("set=1\n")
            await trio.testing.wait_all_tasks_blocked(0.001)
        with trio.fail_after(5):
            assert await ask("get=1\n\n") == "errno=0\n\n"
            assert await clients[0].answer() == ""
            await clients[1].send("fwmark=5\n\n")
            assert await clients[1].answer() == "errno=0\n\n"


@pytest.mark.usefixtures("collector_as_in_the_gateway")
async def test_a_hundred_thousand_allowed_ips_in_one_set_leave_others_their_turn(backend: Memory) -> None:
    networks = [NET(n << 8) for n in range(100_000)]
    text = f"set=1\npublic_key={KEY.hex()}\n" + "".join(f"allowed_ip={n}\n" for n in networks) + "\n"
    lags: list[float] = []
    answers = 0

    async def keep_asking() -> None:
        nonlocal answers
        while True:
            assert (await ask("get=1\n\n")).endswith("errno=0\n\n")
            answers += 1

    async def keep_looking() -> None:
        while True:
            began = trio.current_time()
            await trio.sleep(0.001)
            lags.append(trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_asking)
        nursery.start_soon(keep_looking)
        assert await ask(text) == "errno=0\n\n"
        nursery.cancel_scope.cancel()
    assert backend.peers[KEY] == networks
    assert backend.parts == 3
    assert answers > 5
    assert max(lags) < 0.1


async def test_others_are_answered_while_a_change_is_carried_out(backend: Memory) -> None:
    backend.going_on = trio.Event()
    async with connected() as client:
        await client.send(f"set=1\npublic_key={KEY.hex()}\n\n")
        with trio.fail_after(5):
            assert await ask("get=1\n\n") == "errno=0\n\n"
            assert await ask("set=1\n\n") == "errno=0\n\n"
            assert await ask("set=1\nwrong\n\n") == "errno=-71\n\n"
        backend.going_on.set()
        assert await client.answer() == "errno=0\n\n"


# the socket


def test_only_the_owner_may_speak(directory: Path) -> None:
    with control_socket("wg0"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(socket_path("wg0").stat().st_mode) == 0o600


def test_the_mask_of_new_files_is_as_before(directory: Path) -> None:
    before = os.umask(0o022)
    try:
        with control_socket("wg0"):
            assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_a_socket_left_behind_is_replaced_and_removed_in_the_end(directory: Path) -> None:
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_path("wg0")))
    with control_socket("wg0"):
        assert socket_path("wg0").is_socket()
    assert not socket_path("wg0").exists()


async def test_a_socket_that_answers_is_not_taken_over(backend: Memory) -> None:
    with pytest.raises(OperatorError, match="another process answers"), control_socket("wg0"):
        pass
    assert await ask("get=1\n\n") == "errno=0\n\n"


async def test_who_removes_the_socket_ends_the_interface(directory: Path) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, Memory(), "wg0")
        async with connected() as client:
            socket_path("wg0").unlink()
            with trio.fail_after(5):
                assert await client.answer() == ""  # the connection ends with it, and so does the nursery


def test_a_socket_listens_from_the_moment_it_is_there(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wg removes a socket that refuses it, which would end the interface as it starts."""
    seen = []

    def listen(self: socket.socket, backlog: int) -> None:
        seen.append(socket_path("wg0").exists())
        real(self, backlog)

    real = socket.socket.listen
    monkeypatch.setattr(socket.socket, "listen", listen)
    with control_socket("wg0"), socket.socket(socket.AF_UNIX) as early:
        early.connect(str(socket_path("wg0")))
    assert seen == [False]
    assert [*directory.iterdir()] == []


@pytest.mark.parametrize("writable", [True, False])
def test_whether_sockets_can_be_made_is_known_before(directory: Path, writable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: writable and (path, mode) == (directory.parent, os.W_OK))
    assert may_serve() == writable
