"""The worker process: attaches to the arena and the descriptors it is given, then alternates between the packet loop and commands.

Started by control as `python -m egressvpn.dataplane.worker --arena FD …`. Killed at any instruction, its successor goes on with
the same arena: packets, timers and counters as they stood, cipher contexts made again from the keys in the arena.
"""

import ctypes
import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Final

import click

from egressvpn.dataplane import cache
from egressvpn.dataplane.channel import DATAGRAM_BYTES, EVENT, Event
from egressvpn.dataplane.layout import Limits, layout

TURNS: Final = 1_000_000  # polls before Python has a look; commands and the end of control bring it back at once
PR_SET_TIMERSLACK: Final = 29


def announce(channel: socket.socket, kind: Event, first: int = 0, second: int = 0, text: str = "") -> None:
    """Tell control; without it there is nothing to go on for."""
    import numpy as np

    event = np.zeros(1, EVENT)
    event["kind"], event["first"], event["second"] = kind, first, second
    octets = text.encode()[:DATAGRAM_BYTES]
    event["octets"][0, : len(octets)] = np.frombuffer(octets, np.uint8)
    event["length"] = len(octets)
    try:
        channel.send(event.tobytes(), socket.MSG_DONTWAIT)
    except ConnectionError:
        os._exit(0)  # control is gone
    except OSError:
        return  # full: it can wait for the next one


@click.command()
@click.option("--arena", type=int, required=True, help="Descriptor of the arena.")
@click.option("--channel", type=int, required=True, help="Descriptor of the SEQPACKET socket to control.")
@click.option("--tun", type=int, required=True, help="Descriptor of the TUN queue.")
@click.option("--udp", type=str, required=True, help="Descriptors of the UDP sockets, separated by commas.")
@click.option("--limits", type=str, required=True, help="What the arena was dimensioned for, as JSON.")
def main(arena: int, channel: int, tun: int, udp: str, limits: str) -> None:
    """One worker of the gateway. Not meant to be started by hand."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no keys in core dumps
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for control, which then tells us
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0)  # ns: short naps are short
    link = socket.socket(fileno=channel)
    try:
        _serve(arena, link, tun, [int(fd) for fd in udp.split(",")], Limits(**json.loads(limits)))
    except Exception:  # noqa: BLE001  (a bug: say it on both ways, and let control start the next worker)
        text = traceback.format_exc()
        announce(link, Event.FAILED, text=text[-DATAGRAM_BYTES:])
        sys.stderr.write(text)
        os._exit(70)
    os._exit(0)


def _serve(arena_fd: int, link: socket.socket, tun: int, sockets: list[int], limits: Limits) -> None:
    warm = cache.prepare()  # before numba is imported: it reads where its cache is only then
    from egressvpn.dataplane import aead, arena, local
    from egressvpn.dataplane.bundle import bundle
    from egressvpn.dataplane.commands import apply_waiting
    from egressvpn.dataplane.door import refill
    from egressvpn.dataplane.loop import CHANNEL_CLOSED, COMMAND_WAITING, SWEEP_INTERVAL, run
    from egressvpn.dataplane.recovery import recover_all
    from egressvpn.kernel import JIT

    memory = arena.attach(arena_fd, layout(limits))
    b = bundle(local.create(memory.tables["sessions"].size, link.fileno(), tun, sockets), memory)
    aead.prepare(b.local)
    _compile(b, link, warm)
    if JIT and not warm and cache.mark_warm():
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606  (the compiler's memory is several times ours: leave it behind)
    worker = b.work.worker[0]
    if worker.starts > 0:
        recover_all(b, memory, time.monotonic_ns())
    worker.pid, worker.starts = os.getpid(), worker.starts + 1
    refill(b, time.monotonic_ns())
    b.local.words[local.NEXT_SWEEP] = time.monotonic_ns() + SWEEP_INTERVAL  # what waits in the channel comes before timers
    announce(link, Event.READY, int(aead.AEAD == "libcrypto"), int(JIT))
    while True:
        outcome = run(b, TURNS)
        if outcome == COMMAND_WAITING and not apply_waiting(b, link):
            return
        if outcome == CHANNEL_CLOSED:
            return


def _compile(b: Any, link: socket.socket, warm: bool) -> None:
    """Have every kernel compiled (or loaded) before the first packet; report how far it is."""
    from egressvpn.dataplane.commands import entry_points
    from egressvpn.kernel import JIT, compile_for, kernels

    if not JIT:
        return

    done = 0

    def progress(name: str) -> None:
        nonlocal done
        done += 1
        if not warm:
            announce(link, Event.PROGRESS, done, max(done, kernels()), name)

    entries = list(entry_points(b))
    if cache.is_prepared():  # else numba keeps what it compiles where others find it
        compile_for([function for function, _ in entries])
    with _compilations(progress):
        for function, arguments in entries:
            _precompile(function, arguments)


def _precompile(function: Any, arguments: tuple[Any, ...]) -> None:
    import numba

    function.compile(tuple(numba.typeof(argument) for argument in arguments))


def _compilations(progress: Callable[[str], None]) -> Any:
    """A context in which `progress` hears the name of each kernel as it has been compiled."""
    from numba.core import event

    class Listener(event.Listener):  # type: ignore[misc]
        def on_start(self, happened: Any) -> None:
            pass

        def on_end(self, happened: Any) -> None:
            progress(happened.data["dispatcher"].py_func.__name__)

    return event.install_listener("numba:compile", Listener())


if __name__ == "__main__":
    main()
