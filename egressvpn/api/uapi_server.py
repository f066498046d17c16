"""Where `wg` finds an interface: the unix socket /var/run/wireguard/NAME.sock (wireguard.com/xplatform, "Interface").

Every connection is a task of its own, so one that is silent, slow or cut off holds up nobody. What a `set` says is carried out in
one piece after the other, each part by the backend, under a lock; `get` is answered meanwhile. The directory is 0700, the socket
0600. Somebody removes the socket: that is how wireguard's tools on other systems end an interface, and it ends this one.
"""

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import structlog
import trio

from egressvpn.api.http import unix_socket
from egressvpn.api.uapi import Get, HangUp, InterfaceState, Request, Requests, answer, errno_answer
from egressvpn.api.uapi_lines import IO, UNKNOWN, ListenPort, PrivateKey, RefusedError, Set, Setting
from egressvpn.control.peers import PeerChange
from egressvpn.errors import OperatorError

log = structlog.get_logger(__name__)

DIRECTORY: Final = Path("/var/run/wireguard")
BACKLOG: Final = 64
MAX_CONNECTIONS: Final = 64  # the one that has been silent longest gives way to a new one
RECEIVE_BYTES: Final = 8192  # some 300 lines: 2 ms of work between two turns of everybody else
PATIENCE: Final = 60.0  # s for a client to say the next thing, or to take what it was told
WATCH_INTERVAL: Final = 0.5  # s between two looks at the socket's file


class Backend(Protocol):
    """The interface behind the socket. Every change raises RefusedError, or OperatorError, when it cannot be made."""

    def state(self) -> InterfaceState: ...
    async def set_private_key(self, key: bytes | None) -> None: ...
    async def set_listen_port(self, port: int) -> None: ...
    async def set_fwmark(self, mark: int) -> None: ...
    async def change_peers(self, changes: Sequence[PeerChange], *, replace: bool) -> None: ...


def socket_path(interface: str) -> Path:
    """Where the interface of that name is found."""
    return DIRECTORY / f"{interface}.sock"


def may_serve() -> bool:
    """Whether sockets can be made where `wg` looks for them: not without root, nor where the directory is read-only."""
    return os.access(DIRECTORY if DIRECTORY.exists() else DIRECTORY.parent, os.W_OK)


@contextlib.contextmanager
def control_socket(interface: str) -> Iterator[socket.socket]:
    """The listening socket of an interface. One left behind is replaced. Raises OperatorError for one that answers.

    It is never seen before it listens: wg(8) removes a socket that refuses it.
    """
    with unix_socket(socket_path(interface), "give the interface another name", 0o700, BACKLOG) as bound:
        yield bound


async def serve_control(backend: Backend, interface: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Answer on the socket of an interface until somebody removes it. Raises OperatorError when there is one already."""
    path = socket_path(interface)
    with control_socket(interface) as bound:
        made = _inode(path)
        async with trio.open_nursery() as nursery:
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(bound.dup()))
            await nursery.start(trio.serve_listeners, ControlServer(backend).converse, [listener])
            task_status.started()
            await _until_removed(path, made)
            nursery.cancel_scope.cancel()
    log.info("the control socket was removed, which ends the interface", socket=str(path))


async def _until_removed(path: Path, made: int) -> None:
    while _inode(path) == made:  # noqa: ASYNC110  (only the file system knows)
        await trio.sleep(WATCH_INTERVAL)


def _inode(path: Path) -> int:
    try:
        return path.lstat().st_ino
    except OSError:
        return 0


class ControlServer:
    """Connections to one backend."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._changing = trio.Lock()
        self._waiting: dict[trio.CancelScope, None] = {}  # connections that wait for their client, the longest first
        self._connections = 0

    async def converse(self, stream: trio.SocketStream) -> None:
        """Answer one client to its end. What goes wrong with it ends nothing else."""
        async with stream:
            if self._connections >= MAX_CONNECTIONS:
                if not self._waiting:
                    return
                next(iter(self._waiting)).cancel()
            self._connections += 1
            try:
                await self._answer_all(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                log.debug("a control connection broke off")
            finally:
                self._connections -= 1

    async def _answer_all(self, stream: trio.SocketStream) -> None:
        requests = Requests()
        while octets := await self._hear(stream):
            for request in requests.feed(octets):
                if not await self._carry_out(request, requests, stream):
                    return
        if octets is not None and (last := requests.end()) is not None:
            await self._carry_out(last, requests, stream)

    async def _carry_out(self, request: Request, requests: Requests, stream: trio.SocketStream) -> bool:
        """Do what is asked and answer it. False to end the connection."""
        if isinstance(request, HangUp):
            log.debug("a control connection asked for no operation there is")
            return False
        if isinstance(request, Get):
            return await self._tell(stream)
        code, why = await self._change(request)
        if code is None:
            return True
        if request.code is None:
            requests.pass_over()
        if code:
            log.warning("a control operation was refused", errno=code, why=why)
        return await self._say(stream, errno_answer(code))

    async def _tell(self, stream: trio.SocketStream) -> bool:
        try:
            for block in answer(self._backend.state()):
                if not await self._say(stream, block):
                    return False
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise
        except Exception:
            log.exception("the state of the interface cannot be told")
            return await self._say(stream, errno_answer(-IO))
        return True

    async def _change(self, request: Set) -> tuple[int | None, str]:
        """Carry out a part; its answer and the reason."""
        if not (request.settings or request.peers or request.replace_peers):
            return request.code, request.why
        try:
            async with self._changing:
                for setting in request.settings:
                    await self._set(setting)
                if request.peers or request.replace_peers:
                    await self._backend.change_peers(request.peers, replace=request.replace_peers)
        except RefusedError as error:
            return error.code, str(error)
        except OperatorError as error:
            return UNKNOWN, str(error)
        except Exception:
            log.exception("a control operation failed")
            return UNKNOWN, "a bug, see above"
        return request.code, request.why

    async def _set(self, setting: Setting) -> None:
        if isinstance(setting, PrivateKey):
            await self._backend.set_private_key(setting.key)
        elif isinstance(setting, ListenPort):
            await self._backend.set_listen_port(setting.port)
        else:
            await self._backend.set_fwmark(setting.mark)

    async def _hear(self, stream: trio.SocketStream) -> bytes | None:
        """What the client says next: empty when it has closed its side, None when it has been silent too long."""
        heard = None
        with self._patience():
            heard = bytes(await stream.receive_some(RECEIVE_BYTES))
        return heard  # noqa: RET504  (None when patience ended)

    async def _say(self, stream: trio.SocketStream, octets: bytes) -> bool:
        """Whether the client took it in time."""
        with self._patience() as scope:
            await stream.send_all(octets)
        return not scope.cancelled_caught

    @contextlib.contextmanager
    def _patience(self) -> Iterator[trio.CancelScope]:
        """While a connection waits for its client: not for ever, and it may be told to give way to another one."""
        with trio.move_on_after(PATIENCE) as scope:
            self._waiting[scope] = None
            try:
                yield scope
            finally:
                self._waiting.pop(scope, None)
