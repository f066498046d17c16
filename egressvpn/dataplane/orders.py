"""The commands that come often, carried out without leaving the packet loop: sessions, datagrams, devices, prefixes.

A command is peeked at, carried out, and only then taken off the channel. What is not known here, or not possible, stays there for
Python (commands.py). After COMMANDS_PER_TURN packets have their turn: a hundred thousand prefixes stall nobody.
"""

from typing import Final

import numpy as np

from egressvpn.dataplane.bundle import Bundle
from egressvpn.dataplane.channel import COMMAND, PREFIX_RECORD, Command, Event
from egressvpn.dataplane.local import CHANNEL_FD
from egressvpn.dataplane.sessions import clear_sessions, forget_source, give_up, install_session, set_path, transmit_handshake
from egressvpn.dataplane.syscalls import MSG_DONTWAIT, MSG_PEEK, clock, recv
from egressvpn.dataplane.transmit import NONE, keepalive, report
from egressvpn.kernel import Octets, Row, Table, Word, kernel
from egressvpn.nat import tables as nat_tables
from egressvpn.packet.octets import be32, be64
from egressvpn.prefixes import find, insert, remove
from egressvpn.wireguard.timers import on_persistent_interval

COMMANDS_PER_TURN: Final = 64  # some 20 us each at most
COMMAND_BYTES: Final = COMMAND.itemsize
RECORD_BYTES: Final = PREFIX_RECORD.size

INSTALL: Final = int(Command.INSTALL)
TRANSMIT: Final = int(Command.TRANSMIT)
KEEPALIVE: Final = int(Command.KEEPALIVE)
CLEAR: Final = int(Command.CLEAR)
DROP_STAGED: Final = int(Command.DROP_STAGED)
SET_DEVICE: Final = int(Command.SET_DEVICE)
SET_PATH: Final = int(Command.SET_PATH)
FORGET_SOURCE: Final = int(Command.FORGET_SOURCE)
ADD_PREFIXES: Final = int(Command.ADD_PREFIXES)
REMOVE_PREFIXES: Final = int(Command.REMOVE_PREFIXES)
SYNC: Final = int(Command.SYNC)
SYNCED: Final = np.int64(Event.SYNCED)
REFUSED: Final = np.int64(Event.REFUSED)

subscribe = kernel(nat_tables.subscribe)


@kernel
def carry_out_waiting(b: Bundle) -> Word:
    """Carry out commands that wait, as many as packets can wait for. 0 when the next one is for Python, or the channel is closed."""
    link, room = b.local.fds[CHANNEL_FD], b.local.commands.ctypes.data
    now = clock(b.local.words)
    for _ in range(COMMANDS_PER_TURN):
        size = np.int64(recv(link, room, COMMAND_BYTES, MSG_DONTWAIT | MSG_PEEK))
        if size < 0:
            return 1
        if size != COMMAND_BYTES or carry_out(b, now) == 0:
            return 0
        recv(link, room, 1, MSG_DONTWAIT)
    return 1


@kernel
def carry_out(b: Bundle, now: Word) -> Word:
    """The command in `commands`: 1, or 0 when it is not for here."""
    command = b.local.commands[0]
    kind, number = command.kind, command.owner
    if kind == SYNC:
        report(b, SYNCED, NONE, NONE, command.index)
        return 1
    if number <= 0 or number >= b.wg.devices.size:
        return 0
    if kind == INSTALL:
        install_session(b, command, number, now)
    elif kind == TRANSMIT:
        transmit_handshake(b, command, number, now)
    elif kind == KEEPALIVE:
        keepalive(b, number, now)
    elif kind == CLEAR:
        clear_sessions(b, number)
    elif kind == DROP_STAGED:
        give_up(b, number)
    else:
        return _configure(b, command, kind, number, now)
    return 1


@kernel
def _configure(b: Bundle, command: Row, kind: Word, number: Word, now: Word) -> Word:
    """`carry_out` for what the operator decided."""
    if kind == SET_DEVICE:
        return _set_device(b, command, number, now)
    if kind == SET_PATH:
        set_path(b.wg.devices[number], command)
    elif kind == FORGET_SOURCE:
        forget_source(b.wg.devices[number], command)
    elif kind == ADD_PREFIXES:
        if _add_prefixes(b.prefixes, command.octets, command.length, number) == 0:
            report(b, REFUSED, number, NONE, kind)
    elif kind == REMOVE_PREFIXES:
        _remove_prefixes(b.prefixes, command.octets, command.length, number)
    else:
        return 0
    return 1


@kernel
def _set_device(b: Bundle, command: Row, number: Word, now: Word) -> Word:
    """Addresses and state of a device; its allowed IPs follow as ADD_PREFIXES. 0: what it has outside must end first."""
    if command.external4 < 0 or command.external4 >= b.nat.pool.size:
        return 0
    device, worker, owner = b.wg.devices[number], b.work.worker[0], b.nat.subscribers[number]
    high, low = command.external6_hi, command.external6_lo
    if owner.flows > 0 and (owner.external6_hi != high or owner.external6_lo != low):
        return 0
    if owner.first_block != 0 and (owner.fixed != command.fixed or (owner.fixed != 0 and owner.external4 != command.external4)):
        return 0
    device.internal4 = command.internal4
    device.internal6_hi = command.internal6_hi
    device.internal6_lo = command.internal6_lo
    subscribe(b.nat, number, command.identity, command.external4, high, low, command.fixed)
    on_persistent_interval(device, command.persistent_interval, now)
    worker.device_limit = max(worker.device_limit, number + 1)
    device.state = command.state
    return 1


@kernel
def _add_prefixes(table: Table, octets: Octets, length: Word, value: Word) -> Word:
    """Insert the PREFIX_RECORDs in `octets`. 1; or 0 when the table is full."""
    done = np.int64(1)
    for at in range(0, length - RECORD_BYTES + 1, RECORD_BYTES):
        version, high, low = _prefix(octets, at)
        if insert(table, version, high, low, np.int64(octets[at + 1]), value) == 0:
            done = np.int64(0)
    return done


@kernel
def _remove_prefixes(table: Table, octets: Octets, length: Word, value: Word) -> None:
    """Remove those of the PREFIX_RECORDs that have this value: the others have become another device's."""
    for at in range(0, length - RECORD_BYTES + 1, RECORD_BYTES):
        version, high, low = _prefix(octets, at)
        if find(table, version, high, low, np.int64(octets[at + 1])) == value:
            remove(table, version, high, low, np.int64(octets[at + 1]))


@kernel
def _prefix(octets: Octets, at: Word) -> tuple[Word, Word, Word]:
    """Version and the two words of the address in the PREFIX_RECORD at `at`."""
    if octets[at] == 4:
        return np.int64(4), np.int64(0), be32(octets, at + 2)
    return np.int64(6), be64(octets, at + 2), be64(octets, at + 10)
