"""Commands from control, applied between two turns of the packet loop. Each is idempotent. Those that come often: orders.py."""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from egressvpn.dataplane.bundle import Bundle
from egressvpn.dataplane.channel import COMMAND, Command, Event
from egressvpn.dataplane.door import refill, set_cookie_secret, set_identity
from egressvpn.dataplane.egress import begin_ending, note_egress
from egressvpn.dataplane.explain import explain
from egressvpn.dataplane.local import SOCKETS, UDP_FDS
from egressvpn.dataplane.loop import run
from egressvpn.dataplane.orders import carry_out
from egressvpn.dataplane.recovery import recover
from egressvpn.dataplane.sessions import clear_sessions
from egressvpn.dataplane.transmit import drop_staged, report
from egressvpn.kernel import Row, Table
from egressvpn.nat.blocks import hold_block
from egressvpn.nat.expiry import drop_flows6
from egressvpn.nat.expiry import remove_device as forget_flows
from egressvpn.nat.pools import set_pool
from egressvpn.prefixes import insert, remove, remove_value
from egressvpn.wireguard import cookie
from egressvpn.wireguard.keypairs import recover_sessions
from egressvpn.wireguard.tables import FREE


def entry_points(b: Bundle) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Every kernel that Python calls, with arguments of the types it is called with."""
    command = b.local.commands[0]
    yield insert, (b.prefixes, 4, 0, 0, 0, 0)
    yield note_egress, (b, 4, 0)
    yield begin_ending, (b, 1, 0)
    yield remove, (b.egress, 6, 0, 0, 0)
    yield remove_value, (b.prefixes, 0)
    yield carry_out, (b, 0)
    yield explain, (b, 1, 0)
    yield drop_flows6, (b.nat, 1, 0)
    yield clear_sessions, (b, 1)
    yield forget_flows, (b.nat, 1, 0)
    yield set_pool, (b.nat, 1, 0, 0, 0, 0, 0, 0, 0, 0)
    yield hold_block, (b.nat, 1, 0, 0, 0)
    yield drop_staged, (b, 1)
    yield report, (b, 0, 0, 0, 0)
    yield cookie.set_identity, (b.wg, b.local.scratch, 0, command.receive_key, command.send_key)
    yield cookie.clear_identity, (b.wg, 0)
    yield cookie.set_secret, (b.wg, b.local.scratch, command.receive_key)
    yield refill, (b, 0)
    yield recover, (b, 0)
    yield recover_sessions, (b.wg, 1, 1)
    yield run, (b, 1)


def apply_waiting(b: Bundle, link: socket.socket) -> bool:
    """Apply the command that waits, if there is one. False when control is gone."""
    try:
        octets = link.recv(COMMAND.itemsize, socket.MSG_DONTWAIT | socket.MSG_PEEK)
    except BlockingIOError:
        return True
    if len(octets) != COMMAND.itemsize:
        return False
    b.local.commands[:] = np.frombuffer(octets, COMMAND)
    command = b.local.commands[0]
    if command.kind == Command.SET_SOCKET:
        _set_socket(b, command, link)
        return True
    try:
        apply(b, time.monotonic_ns())
    except Exception:  # noqa: BLE001  (a bug: taken off all the same, or every successor would meet it again)
        sys.stderr.write(f"command {int(command.kind)} failed\n{traceback.format_exc()}")
        report(b, int(Event.REFUSED), int(command.owner), 0, int(command.kind))
    link.recv(1, socket.MSG_DONTWAIT)
    return True


def apply(b: Bundle, now: int) -> None:
    """The command in `commands`."""
    command = b.local.commands[0]
    if carry_out(b, now) == 0:
        _APPLY[Command(int(command.kind))](b, command, int(command.owner), now)


def _open(b: Bundle, command: Row, number: int, now: int) -> None:
    worker = b.work.worker[0]
    worker.inner4, worker.inner6_hi, worker.inner6_lo = command.internal4, command.internal6_hi, command.internal6_lo
    worker.open = 1


def _set_mtu(b: Bundle, command: Row, number: int, now: int) -> None:
    b.work.worker[0].mtu = command.index


def _set_socket(b: Bundle, command: Row, link: socket.socket) -> None:
    """Another UDP socket in the place of the old one, under the same descriptor. A death before that does no harm: a successor gets it."""
    number = int(command.socket)
    _, descriptors, _, _ = socket.recv_fds(link, COMMAND.itemsize, 1, socket.MSG_DONTWAIT)
    known = 0 <= number < int(b.local.fds[SOCKETS])
    for descriptor in descriptors:
        if known:
            os.dup2(descriptor, int(b.local.fds[UDP_FDS + number]))
        os.close(descriptor)
    if not known or not descriptors:
        report(b, int(Event.REFUSED), 0, 0, int(command.kind))


def _readdress(b: Bundle, command: Row, number: int, now: int) -> None:
    """SET_DEVICE with another external IPv6 address or predefined block: flows that have the old one end."""
    owner = b.nat.subscribers[number]
    if owner.fixed != 0 or command.fixed != 0:
        forget_flows(b.nat, number, now)
    else:
        drop_flows6(b.nat, number, now)
        owner.external6_hi, owner.external6_lo = command.external6_hi, command.external6_lo
    if not carry_out(b, now):
        raise ValueError(f"no pool slot {command.external4}")


def _explain(b: Bundle, command: Row, number: int, now: int) -> None:
    explain(b, number, now)


def _remove_device(b: Bundle, command: Row, number: int, now: int) -> None:
    """From here on nothing of the device is let through; its sessions, flows and addresses are gone."""
    device = b.wg.devices[number]
    device.state = FREE
    remove_value(b.prefixes, number)
    clear_sessions(b, number)
    drop_staged(b, number)
    forget_flows(b.nat, number, now)
    b.wg.devices[number : number + 1] = np.zeros(1, b.wg.devices.dtype)


def _add_denied(b: Bundle, command: Row, number: int, now: int) -> None:
    _list(b, b.denied, command)


def _add_exempt(b: Bundle, command: Row, number: int, now: int) -> None:
    _list(b, b.exempt, command)


def _list(b: Bundle, table: Table, command: Row) -> None:
    """The longer of two prefixes counts: its value says which that is (policy/deny.py)."""
    if not insert(table, *_prefix(command), int(command.prefix_length) + 1):
        report(b, int(Event.REFUSED), 0, 0, int(command.kind))


def _prefix(command: Row) -> tuple[int, int, int, int]:
    return int(command.version), int(command.high), int(command.low), int(command.prefix_length)


def _add_pool(b: Bundle, command: Row, number: int, now: int) -> None:
    slot, address = int(command.external4), int(command.low)
    if command.version == 6:
        note_egress(b, 6, int(command.high))
        _list(b, b.egress, command)
        return
    if not 0 < slot < b.nat.pool.size:
        raise ValueError(f"no pool slot {slot}")
    note_egress(b, 4, address)
    settings = ("group", "port_low", "port_high", "block_size", "max_blocks", "fixed_blocks", "fixed_size")
    if not set_pool(b.nat, slot, address, *(int(command[name]) for name in settings)):
        report(b, int(Event.REFUSED), 0, 0, int(command.kind))


def _remove_pool(b: Bundle, command: Row, number: int, now: int) -> None:
    """An IPv4 address ends step by step in the packet loop."""
    if command.version == 6:
        remove(b.egress, *_prefix(command))
    elif 0 < command.external4 < b.nat.pool.size:
        begin_ending(b, int(command.external4), now)


def _hold_block(b: Bundle, command: Row, number: int, now: int) -> None:
    hold_block(b.nat, int(command.external4), int(command.port_low), int(command.identity), int(command.wall))


_APPLY: Final[dict[Command, Callable[[Bundle, Row, int, int], None]]] = {
    Command.OPEN: _open,
    Command.SET_DEVICE: _readdress,
    Command.EXPLAIN: _explain,
    Command.SET_MTU: _set_mtu,
    Command.REMOVE_DEVICE: _remove_device,
    Command.ADD_DENIED: _add_denied,
    Command.ADD_EXEMPT: _add_exempt,
    Command.ADD_POOL: _add_pool,
    Command.REMOVE_POOL: _remove_pool,
    Command.HOLD_BLOCK: _hold_block,
    Command.SET_IDENTITY: set_identity,
    Command.SET_COOKIE_SECRET: set_cookie_secret,
}
