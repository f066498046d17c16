"""Previous, current and next session of a device (kernel: noise.c add_new_keypair; whitepaper 6.2).

    initiator installs     previous = next if there is one, else current;  current = new;  next = none
    responder installs     previous = none;                                next = new
    first data on next     previous = current;  current = next;            next = none

Only `current` seals; all three open. What drops out is wiped and its index handed back in `freed`.

A row of SESSION counts when its `index` is set, which is the last store of an installation and undone by the first store
of a wipe; a worker killed in between leaves at worst a row that no device refers to. `recover_sessions` wipes those. `install` of what
is installed already changes nothing: repeating a command must not reset a send counter.
"""

import numpy as np

from egressvpn.kernel import Octets, Row, Table, Word, kernel
from egressvpn.wireguard import indexes
from egressvpn.wireguard.tables import FREE, WireGuardTables

slot_of = kernel(indexes.slot_of)

FREED_MAX = 4  # the least size of a `freed` array


@kernel
def find(wg: WireGuardTables, index: Word) -> Word:
    """The slot of the session with this receiver index, 0 when there is none."""
    slot = slot_of(index, np.int64(wg.sessions.size))
    return slot if index != 0 and wg.sessions[slot].index == index else 0


@kernel
def install(
    wg: WireGuardTables,
    device: Word,
    index: Word,
    remote_index: Word,
    initiator: Word,
    receive_key: Octets,
    send_key: Octets,
    freed: Table,
    now: Word,
) -> Word:
    """Put a new session in its place. How many indexes were freed, -1 when the device or the index is not valid."""
    slot = slot_of(index, np.int64(wg.sessions.size))
    if slot == 0 or device <= 0 or device >= wg.devices.size or wg.devices[device].state == FREE:
        return -1
    row = wg.devices[device]
    count = np.int64(0)
    if wg.sessions[slot].index == index and _linked(row, slot):
        return count
    if wg.sessions[slot].index != 0:
        count = _evict(wg, slot, freed, count)
    _fill(wg.sessions[slot], device, index, remote_index, initiator, receive_key, send_key, now)
    return _place(wg, row, slot, initiator, freed, count)


@kernel
def promote_next(wg: WireGuardTables, device: Word, freed: Table) -> Word:
    """The first authenticated data came on `next`: it becomes current. How many indexes were freed."""
    row = wg.devices[device]
    if row.next == 0:
        return 0
    dropped = row.previous
    row.previous = row.current
    row.current = row.next
    row.next = 0
    return _free(wg, dropped, freed, np.int64(0))


@kernel
def clear(wg: WireGuardTables, device: Word, freed: Table) -> Word:
    """Wipe every session of a device. How many indexes were freed."""
    row = wg.devices[device]
    current, previous, upcoming = row.current, row.previous, row.next
    row.current = 0
    row.previous = 0
    row.next = 0
    count = _free(wg, current, freed, np.int64(0))
    count = _free(wg, previous, freed, count)
    return _free(wg, upcoming, freed, count)


@kernel
def recover_devices(wg: WireGuardTables, limit: Word) -> None:
    """After a worker was killed, first: mend the links of the devices below `limit`."""
    for device in range(1, limit):
        _mend(wg, device)


@kernel
def recover_sessions(wg: WireGuardTables, first: Word, end: Word) -> Word:
    """Then: wipe the sessions from `first` to before `end` that no device refers to. How many of them live.

    In parts, because a table is sparse: reading rows that were never written would make memory of them.
    """
    live = 0
    for slot in range(max(1, first), end):
        session = wg.sessions[slot]
        if session.index != 0 and _linked(wg.devices[session.owner], slot):
            live += 1
        elif session.created != 0 or session.index != 0:
            wipe(session)
    return live


@kernel
def wipe(session: Row) -> None:
    """Forget the session and its keys. `index` goes first, `created` last: a row half wiped is seen by `recover_sessions`."""
    session.index = 0
    for position in range(32):
        session.receive_key[position] = 0
        session.send_key[position] = 0
    for word in range(session.window.size):
        session.window[word] = 0
    session.remote_index = 0
    session.owner = 0
    session.initiator = 0
    session.send_counter = 0
    session.newest = 0
    session.rekey_asked = 0
    session.created = 0


@kernel
def _place(wg: WireGuardTables, row: Row, slot: Word, initiator: Word, freed: Table, count: Word) -> Word:
    """Link a filled session to its device: links first, then wipe what dropped out."""
    current, previous, upcoming = row.current, row.previous, row.next
    if initiator == 0:
        row.next = slot
        row.previous = 0
        count = _free(wg, upcoming, freed, count)
        return _free(wg, previous, freed, count)
    row.previous = upcoming if upcoming != 0 else current
    row.current = slot
    row.next = 0
    if upcoming != 0:
        count = _free(wg, current, freed, count)
    return _free(wg, previous, freed, count)


@kernel
def _fill(
    session: Row, device: Word, index: Word, remote_index: Word, initiator: Word, receive_key: Octets, send_key: Octets, now: Word
) -> None:
    wipe(session)
    session.created = now
    session.owner = device
    session.remote_index = remote_index
    session.initiator = initiator
    for position in range(32):
        session.receive_key[position] = receive_key[position]
        session.send_key[position] = send_key[position]
    session.index = index


@kernel
def _linked(row: Row, slot: Word) -> Word:
    return 1 if row.current == slot or row.previous == slot or row.next == slot else 0


@kernel
def _evict(wg: WireGuardTables, slot: Word, freed: Table, count: Word) -> Word:
    """The slot was given out anew while a session is in it: the newer owner wins."""
    row = wg.devices[wg.sessions[slot].owner]
    if row.current == slot:
        row.current = 0
    if row.previous == slot:
        row.previous = 0
    if row.next == slot:
        row.next = 0
    return _free(wg, slot, freed, count)


@kernel
def _free(wg: WireGuardTables, slot: Word, freed: Table, count: Word) -> Word:
    if slot == 0 or wg.sessions[slot].index == 0:
        return count
    freed[count] = wg.sessions[slot].index
    wipe(wg.sessions[slot])
    return count + 1


@kernel
def _mend(wg: WireGuardTables, device: Word) -> None:
    """Drop links to sessions that are gone or not this device's, and the doubles an interrupted move leaves."""
    row = wg.devices[device]
    if row.current != 0 and not _owns(wg, device, row.current):
        row.current = 0
    if row.previous != 0 and (row.previous == row.current or not _owns(wg, device, row.previous)):
        row.previous = 0
    if row.next != 0 and (row.next in (row.current, row.previous) or not _owns(wg, device, row.next)):
        row.next = 0


@kernel
def _owns(wg: WireGuardTables, device: Word, slot: Word) -> Word:
    return 1 if wg.sessions[slot].index != 0 and wg.sessions[slot].owner == device else 0
