"""Tests in a network namespace of their own: forked child, no name, gone with the child. And what such a namespace looks like."""

import ctypes
import functools
import os
import subprocess
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

Test = TypeVar("Test", bound=Callable[..., None])
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
VOLATILE = ("nf_conntrack_count", "stable_secret", "random", "fib_notify", "if_lowest")


def isolated(test: Test) -> Test:
    """Run the test as root in a fresh network and mount namespace with `lo` up; skip it where that cannot be."""

    @functools.wraps(test)
    def wrapped(*arguments: Any, **fixtures: Any) -> None:
        status, told = _in_child(lambda: test(*arguments, **fixtures))
        if status:
            pytest.fail(f"in the namespace:\n{told}", pytrace=False)

    missing = "root" if os.geteuid() != 0 else "/dev/net/tun" if not Path("/dev/net/tun").exists() else ""
    return cast("Test", pytest.mark.skipif(bool(missing), reason=f"needs {missing}")(wrapped))


def unshare(flags: int) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")


def ip(command: str) -> str:
    return subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=True).stdout


def uplink() -> None:
    """An outside: up0 with 192.0.2.2/24, 2001:db8:2::2/64 and default routes through a neighbour that never answers."""
    ip("link add up0 type veth peer name up1")
    for command in ("link set up0 up", "link set up1 up", "addr add 192.0.2.2/24 dev up0", "addr add 2001:db8:2::2/64 dev up0 nodad"):
        ip(command)
    ip("route add default via 192.0.2.1")
    ip("-6 route add default via 2001:db8:2::1")
    for neighbour in ("192.0.2.1", "2001:db8:2::1"):
        ip(f"neigh add {neighbour} lladdr 02:00:00:00:00:01 dev up0 nud permanent")


def snapshot() -> dict[str, str]:
    """Everything that the gateway might change: links, addresses, routes, rules, sysctls."""
    commands = ("-br link", "-br addr", "route show table all", "-6 route show table all", "rule", "-6 rule")
    state = {command: ip(command) for command in commands}
    for path in Path("/proc/sys/net").rglob("*"):
        if path.is_file() and not any(word in path.name for word in VOLATILE):
            try:
                state[str(path)] = path.read_text()
            except OSError:
                continue  # write-only
    return state


def changes(before: dict[str, str], after: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
    return {key: (before.get(key), after.get(key)) for key in before | after if before.get(key) != after.get(key)}


def crash(work: Callable[[], None]) -> None:
    """Do it in a process that dies without any way to clean up."""
    pid = _fork()
    if not pid:
        try:
            work()
        finally:
            os.kill(os.getpid(), 9)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == 9


def _in_child(work: Callable[[], None]) -> tuple[int, str]:
    reading, writing = os.pipe()
    pid = _fork()
    if not pid:
        _run_and_tell(work, writing)
    os.close(writing)
    with os.fdopen(reading, errors="replace") as pipe:
        told = pipe.read()
    return os.waitpid(pid, 0)[1], told


def _run_and_tell(work: Callable[[], None], writing: int) -> None:
    status = 1
    try:
        unshare(CLONE_NEWNET | CLONE_NEWNS)
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        ip("link set lo up")
        work()
        status = 0
    except BaseException:  # noqa: BLE001  (a failed assertion, a skip, an exit: the parent tells)
        os.write(writing, traceback.format_exc().encode()[-60_000:])
    finally:
        os._exit(status)


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of other threads, which the child does not need
        return os.fork()
