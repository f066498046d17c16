"""Commands from control, applied between two turns of the packet loop. Each is idempotent."""

import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from egressvpn.dataplane.aead import forget
from egressvpn.dataplane.bundle import Bundle
from egressvpn.dataplane.channel import COMMAND, Command, Event
from egressvpn.dataplane.local import ICMP
from egressvpn.dataplane.loop import run
from egressvpn.dataplane.recovery import recover
from egressvpn.dataplane.transmit import drop_staged, keepalive, report, report_freed, send_octets
from egressvpn.kernel import Row
from egressvpn.nat.expiry import remove_device as forget_flows
from egressvpn.nat.tables import set_pool, subscribe
from egressvpn.prefixes import insert, remove_value
from egressvpn.wireguard.keypairs import clear, install, recover_sessions
from egressvpn.wireguard.tables import FREE
from egressvpn.wireguard.timers import on_persistent_interval, on_session_installed, on_sessions_cleared

DENIED: Final = 1  # the value of a prefix in the deny list


def entry_points(b: Bundle) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Every kernel that Python calls, with arguments of the types it is called with."""
    key = np.frombuffer(bytes(32), np.uint8)  # read-only, as in a command: another type for the compiler
    device = b.wg.devices[0]
    yield insert, (b.prefixes, 4, 0, 0, 0, 0)
    yield remove_value, (b.prefixes, 0)
    yield install, (b.wg, 1, 1, 1, 0, key, key, b.local.freed, 0)
    yield clear, (b.wg, 1, b.local.freed)
    yield on_session_installed, (device, 0)
    yield on_sessions_cleared, (device,)
    yield on_persistent_interval, (device, 0, 0)
    yield forget, (b.local.contexts, 1)
    yield forget_flows, (b.nat, 1)
    yield send_octets, (b, 1, ICMP, 0)
    yield drop_staged, (b, 1)
    yield report, (b, 0, 0, 0, 0)
    yield report_freed, (b, 1, 0)
    yield keepalive, (b, 1, 0)
    yield recover, (b,)
    yield recover_sessions, (b.wg, 1, 1)
    yield run, (b, 1)


def apply_waiting(b: Bundle, link: socket.socket) -> bool:
    """Apply every command that waits. False when control is gone."""
    while True:
        try:
            octets = link.recv(COMMAND.itemsize, socket.MSG_DONTWAIT | socket.MSG_PEEK)
        except BlockingIOError:
            return True
        if len(octets) != COMMAND.itemsize:
            return False
        command = np.frombuffer(octets, COMMAND).view(np.recarray)[0]
        try:
            apply(b, command, time.monotonic_ns())
        except Exception:  # noqa: BLE001  (a bug: taken off all the same, or every successor would meet it again)
            sys.stderr.write(f"command {int(command.kind)} failed\n{traceback.format_exc()}")
            report(b, int(Event.REFUSED), int(command.owner), 0, int(command.kind))
        link.recv(COMMAND.itemsize, socket.MSG_DONTWAIT)


def apply(b: Bundle, command: Row, now: int) -> None:
    """One command, a record of dtype COMMAND."""
    _APPLY[Command(int(command.kind))](b, command, int(command.owner), now)


def _open(b: Bundle, command: Row, number: int, now: int) -> None:
    worker = b.work.worker[0]
    worker.inner4, worker.inner6_hi, worker.inner6_lo = command.internal4, command.internal6_hi, command.internal6_lo
    worker.open = 1


def _install(b: Bundle, command: Row, number: int, now: int) -> None:
    """A session from a finished handshake; the response leaves only now, so that data cannot arrive before its session."""
    freed = install(
        b.wg,
        number,
        int(command.index),
        int(command.remote_index),
        int(command.initiator),
        command.receive_key,
        command.send_key,
        b.local.freed,
        now,
    )
    if freed < 0:  # the device was removed while its handshake ran
        b.local.freed[0] = command.index
        report_freed(b, number, 1)
        return
    report_freed(b, number, int(freed))
    device = b.wg.devices[number]
    on_session_installed(device, now)
    _set_path(b, command, number, now)
    device.last_handshake, device.last_handshake_wall = now, command.wall
    if command.length:
        length = int(command.length)
        b.local.octets[ICMP : ICMP + length] = command.octets[:length]
        send_octets(b, number, ICMP, length)


def _clear(b: Bundle, command: Row, number: int, now: int) -> None:
    device = b.wg.devices[number]
    for slot in (device.current, device.previous, device.next):
        forget(b.local.contexts, int(slot))
    freed = int(clear(b.wg, number, b.local.freed))
    on_sessions_cleared(device)
    report_freed(b, number, freed)


def _keepalive(b: Bundle, command: Row, number: int, now: int) -> None:
    keepalive(b, number, now)


def _drop_staged(b: Bundle, command: Row, number: int, now: int) -> None:
    drop_staged(b, number)


def _set_device(b: Bundle, command: Row, number: int, now: int) -> None:
    """Addresses and state of a device; its allowed IPs follow as ADD_PREFIX."""
    device, worker = b.wg.devices[number], b.work.worker[0]
    device.internal4 = command.internal4
    device.internal6_hi, device.internal6_lo = command.internal6_hi, command.internal6_lo
    subscribe(b.nat, number, int(command.external4), int(command.external6_hi), int(command.external6_lo))
    on_persistent_interval(device, int(command.persistent_interval), now)
    worker.device_limit = max(int(worker.device_limit), number + 1)
    device.state = command.state


def _remove_device(b: Bundle, command: Row, number: int, now: int) -> None:
    """From here on nothing of the device is let through; its sessions, flows and addresses are gone."""
    device = b.wg.devices[number]
    device.state = FREE
    remove_value(b.prefixes, number)
    _clear(b, command, number, now)
    drop_staged(b, number)
    forget_flows(b.nat, number)
    b.wg.devices[number : number + 1] = np.zeros(1, b.wg.devices.dtype)


def _add_prefix(b: Bundle, command: Row, number: int, now: int) -> None:
    if not insert(b.prefixes, int(command.version), int(command.high), int(command.low), int(command.prefix_length), number):
        report(b, int(Event.REFUSED), number, 0, int(command.kind))


def _add_denied(b: Bundle, command: Row, number: int, now: int) -> None:
    if not insert(b.denied, int(command.version), int(command.high), int(command.low), int(command.prefix_length), DENIED):
        report(b, int(Event.REFUSED), number, 0, int(command.kind))


def _add_pool(b: Bundle, command: Row, number: int, now: int) -> None:
    set_pool(b.nat, int(command.external4), int(command.low), int(command.port_low), int(command.port_high))


def _sync(b: Bundle, command: Row, number: int, now: int) -> None:
    report(b, int(Event.SYNCED), 0, 0, int(command.index))


def _set_path(b: Bundle, command: Row, number: int, now: int) -> None:
    device = b.wg.devices[number]
    if command.remote_length:
        device.remote_length = 0
        device.remote[:] = command.remote
        device.remote_length = command.remote_length
        device.local[:], device.local_length = command.local, command.local_length
        device.socket, device.plain_sends = command.socket, 0


_APPLY: Final[dict[Command, Callable[[Bundle, Row, int, int], None]]] = {
    Command.OPEN: _open,
    Command.INSTALL: _install,
    Command.KEEPALIVE: _keepalive,
    Command.CLEAR: _clear,
    Command.DROP_STAGED: _drop_staged,
    Command.SET_DEVICE: _set_device,
    Command.REMOVE_DEVICE: _remove_device,
    Command.ADD_PREFIX: _add_prefix,
    Command.ADD_DENIED: _add_denied,
    Command.ADD_POOL: _add_pool,
    Command.SET_PATH: _set_path,
    Command.SYNC: _sync,
}
