"""What control decides about a device's sessions and datagrams, carried out as one kernel call each (see commands.py)."""

from typing import Final

import numpy as np

from egressvpn.dataplane.bundle import Bundle
from egressvpn.dataplane.datagrams import HANDSHAKE_TOS, send_along, send_to_device, source_is_gone
from egressvpn.dataplane.local import ICMP
from egressvpn.dataplane.syscalls import copy
from egressvpn.dataplane.tables import Counter
from egressvpn.dataplane.transmit import NONE, drop_staged, report_freed
from egressvpn.kernel import Row, Word, kernel
from egressvpn.verdict import Verdict
from egressvpn.wireguard.keypairs import clear, find, install
from egressvpn.wireguard.timers import (
    on_authenticated_sent,
    on_handshake_complete,
    on_handshake_given_up,
    on_session_installed,
    on_sessions_cleared,
)

INITIATION_BYTES: Final = 148
RESPONSE_BYTES: Final = 92
START: Final = np.int64(ICMP)  # where datagrams that control made stand
SEND_FAILED: Final = int(Counter.DROPS + Verdict.SEND_FAILED)


@kernel
def install_session(b: Bundle, command: Row, number: Word, now: Word) -> None:
    """A session from a finished handshake; the response leaves only now, so that data cannot arrive before its session."""
    known = find(b.wg, command.index)
    freed = install(
        b.wg, number, command.index, command.remote_index, command.initiator, command.receive_key, command.send_key, b.local.freed, now
    )
    if freed < 0:  # the device was removed while its handshake ran
        b.local.freed[0] = command.index
        report_freed(b, number, np.int64(1))
        return
    report_freed(b, number, freed)
    device = b.wg.devices[number]
    on_session_installed(device, now)
    set_path(device, command)
    if command.initiator != 0:
        on_handshake_complete(device, now)
        device.last_handshake_wall = command.wall
    else:
        device.next_wall = command.wall
    if known == 0:
        device.received_bytes += RESPONSE_BYTES if command.initiator != 0 else INITIATION_BYTES
    if command.length > 0:
        copy(b.local.octets, ICMP, command.octets, 0, command.length)
        if send_to_device(b, device, START, command.length, NONE, HANDSHAKE_TOS) < 0:
            b.work.counters[SEND_FAILED] += 1
        else:
            device.sent_bytes += command.length
            on_authenticated_sent(device, now)


@kernel
def transmit_handshake(b: Bundle, command: Row, number: Word, now: Word) -> None:
    """A handshake datagram along the command's path; where the device is heard stays as it is."""
    copy(b.local.octets, ICMP, command.octets, 0, command.length)
    device, length, remote, local = b.wg.devices[number], command.length, command.remote, command.local
    far, near = command.remote_length, command.local_length
    sent = send_along(b, command.socket, remote, NONE, far, local, NONE, near, START, length, NONE, HANDSHAKE_TOS)
    if sent < 0 and near > 0 and source_is_gone(b):
        sent = send_along(b, command.socket, remote, NONE, far, local, NONE, NONE, START, length, NONE, HANDSHAKE_TOS)
    if sent < 0:
        b.work.counters[SEND_FAILED] += 1
    else:
        device.sent_bytes += length
        on_authenticated_sent(device, now)


@kernel
def clear_sessions(b: Bundle, number: Word) -> None:
    """Wipe every session of a device, its cipher contexts with them."""
    device = b.wg.devices[number]
    freed = clear(b.wg, number, b.local.freed)
    on_sessions_cleared(device)
    report_freed(b, number, freed)


@kernel
def give_up(b: Bundle, number: Word) -> None:
    """Nobody answers: what waits for a session is dropped, counted, and no keepalive asks for another."""
    drop_staged(b, number)
    on_handshake_given_up(b.wg.devices[number])


@kernel
def forget_source(device: Row, command: Row) -> None:
    """Let routing choose where a device is written to from, unless it has been heard elsewhere in the meantime."""
    if device.local_length != command.local_length:
        return
    for position in range(device.local_length):
        if device.local[position] != command.local[position]:
            return
    device.local_length = 0


@kernel
def set_path(device: Row, command: Row) -> None:
    """Where a device is: in between there is no endpoint, rather than half of each."""
    if command.remote_length > 0:
        device.remote_length = 0
        copy(device.remote, 0, command.remote, 0, 32)
        device.remote_length = command.remote_length
        copy(device.local, 0, command.local, 0, 40)
        device.local_length = command.local_length
        device.socket = command.socket
        device.plain_sends = 0
