"""Where the API listens: hypercorn on trio, on unix sockets (0600) and TCP. Sockets are made here, before anything is served.

A socket file left behind by a gateway that died is removed; one that still answers belongs to a running gateway and is refused.
"""

import contextlib
import logging
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import trio

from egressvpn.control.schema import Config
from egressvpn.control.values import SocketAddress
from egressvpn.errors import OperatorError
from egressvpn.observe.view import GatewayView

MAX_HEADERS: Final = 16_384  # bytes of a request head
BACKLOG: Final = 64
GRACE: Final = 2.0  # s for requests in flight when the gateway stops


async def serve(nursery: trio.Nursery, config: Config, view: GatewayView) -> None:
    """Start every listener of the configuration in `nursery`; returns when all of them answer. Raises OperatorError.

    Cancel the nursery to stop; socket files are removed then.
    """
    from egressvpn.api.application import application
    from egressvpn.observe.metrics import registry

    measured = registry(view, config.metrics.max_peers)
    with contextlib.ExitStack() as undo:
        local = [undo.enter_context(unix_socket(path)) for path in config.api_sockets]
        remote = [undo.enter_context(tcp_socket(at, "api.listen")) for at in config.api.listen if isinstance(at, SocketAddress)]
        scraped = [undo.enter_context(tcp_socket(config.metrics.listen, "metrics.listen"))] if config.metrics.listen else []
        kept = undo.pop_all()
    await nursery.start(_hold, kept)
    await nursery.start(serve_on, application(view, administration=True, measured=measured), local, None)
    if remote:
        await nursery.start(serve_on, application(view), remote, config.tls_files)
    if scraped:
        await nursery.start(serve_on, application(view, measured=measured), scraped, None)


async def _hold(kept: contextlib.ExitStack, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Own the sockets until the nursery is cancelled."""
    with kept:
        task_status.started()
        await trio.sleep_forever()


async def serve_on(
    app: Any,
    sockets: Sequence[socket.socket],
    tls_files: tuple[Path, Path] | None,
    task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an ASGI application on sockets that are bound already."""
    import hypercorn.trio
    from hypercorn.config import Config as HypercornConfig

    if not sockets:
        task_status.started()
        return
    settings = HypercornConfig()
    fds = [f"fd://{os.dup(at.fileno())}" for at in sockets]  # hypercorn closes what it is given
    settings.bind, settings.backlog = fds, BACKLOG
    settings.errorlog, settings.accesslog = logging.getLogger("egressvpn.api"), None
    settings.include_server_header = False
    settings.h11_max_incomplete_size = MAX_HEADERS
    settings.graceful_timeout = GRACE
    if tls_files is not None:
        settings.certfile, settings.keyfile = map(str, tls_files)
    await hypercorn.trio.serve(app, settings, task_status=task_status)


@contextlib.contextmanager
def unix_socket(
    path: Path, mend: str = "choose another path in api.listen", directory_mode: int = 0o755, backlog: int = 0
) -> Iterator[socket.socket]:
    """A stream socket at `path`, 0600, removed in the end. Raises OperatorError, with `mend`, when somebody answers there already.

    With a backlog it listens from the moment it can be seen, otherwise the caller makes it listen.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            path.parent.mkdir(mode=directory_mode, parents=True, exist_ok=True)
            _remove_stale(path, mend)
            if backlog:
                hidden = path.with_name(f".{path.name}.{os.getpid()}")
                _bind_private(listener, hidden)
                listener.listen(backlog)
                hidden.rename(path)
            else:
                _bind_private(listener, path)
        except OSError as error:
            raise OperatorError(f"cannot listen on {path}: {error.strerror or error}", mend) from None
        made = path.stat().st_ino
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == made:  # not the socket of a successor
                    path.unlink()


def _bind_private(listener: socket.socket, path: Path) -> None:
    before = os.umask(0o177)  # so that nobody can connect between bind and chmod
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)


def _remove_stale(path: Path, mend: str) -> None:
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise OperatorError(f"{path} is there and is not a socket", f"move it away, or {mend}")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OperatorError(f"another process answers on {path}", f"stop it, or {mend}")


@contextlib.contextmanager
def tcp_socket(at: SocketAddress, key: str) -> Iterator[socket.socket]:
    """A bound TCP socket. Raises OperatorError naming the configuration key."""
    listener = socket.socket(socket.AF_INET6 if at.address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if at.address.version == 6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            listener.bind((str(at.address), at.port))
        except OSError as error:
            raise OperatorError(f"cannot listen on {at} ({key}): {error.strerror}", f"free the port, or change {key}") from None
        yield listener
