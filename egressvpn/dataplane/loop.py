"""The packet loop: one nogil kernel that polls, reads, processes and writes, and the sweep that runs every 100 ms.

What time brings in great numbers, flows that expire, is handled in steps: while some are left, one between every two turns.
It returns to Python only for a command that comes seldom, or to let Python notice signals. Nothing else is per packet.
"""

from typing import Final

import numpy as np

from egressvpn.dataplane.answers import answer_waiting_syns
from egressvpn.dataplane.bundle import Bundle
from egressvpn.dataplane.channel import Event
from egressvpn.dataplane.door import refill
from egressvpn.dataplane.egress import end_some
from egressvpn.dataplane.local import BATCH, CHANNEL_FD, NAP, NEXT_SWEEP, POLL, SOCKETS, TUN_FD, UDP_FDS
from egressvpn.dataplane.orders import carry_out_waiting
from egressvpn.dataplane.reassembly import give_up_old
from egressvpn.dataplane.receive import LARGE, last_size, receive
from egressvpn.dataplane.segment import read_tun
from egressvpn.dataplane.sessions import clear_sessions
from egressvpn.dataplane.syscalls import POLLIN, clock, nanosleep, poll
from egressvpn.dataplane.tables import ICMP_ERRORS_BURST, ICMP_ERRORS_PER_SWEEP, Counter
from egressvpn.dataplane.transmit import NONE, flush_run, report
from egressvpn.kernel import Octets, Word, kernel, spliced
from egressvpn.nat.expiry import STEP, expire
from egressvpn.wireguard.constants import DUE_ZERO
from egressvpn.wireguard.tables import ENABLED
from egressvpn.wireguard.timers import due, due_again

SWEEP_INTERVAL: Final = 100_000_000  # ns
ROUNDS: Final = 8  # receive batches of a socket before the next reader has its turn
FEW: Final = 4  # datagrams per batch when they are GRO batches: stays in the processor's cache
TUN_READS: Final = 64  # packets from the TUN before the sockets have their turn
DUE: Final = np.int64(Event.DUE)
POLLS: Final = int(Counter.POLLS)
RX_PACKETS: Final = int(Counter.RX_PACKETS)
TX_PACKETS: Final = int(Counter.TX_PACKETS)
BUSY_GAP: Final = 200_000  # ns between two wake-ups that counts as quick succession
BUSY_FEW: Final = 24  # packets of a wake-up that count as one by one
NAP_TIME: Final = 60_000  # ns
COMMAND_WAITING: Final = 1
CHANNEL_CLOSED: Final = 2
POLLHUP: Final = 0x10


@kernel
def run(b: Bundle, rounds: Word) -> Word:
    """Forward packets until there is a command for Python, at most `rounds` polls. Returns COMMAND_WAITING, CHANNEL_CLOSED or 0."""
    words, fds = b.local.words, b.local.fds
    now = clock(words)
    woke = np.int64(0)
    handled = np.int64(0)
    behind = np.int64(0)
    sockets = fds[SOCKETS]
    tun = fds[TUN_FD]
    for _ in range(rounds):
        wait = max(0, (words[NEXT_SWEEP] - now + 999_999) // 1_000_000) if behind == 0 else 0
        ready = _poll(words, fds, tun, wait)
        b.work.counters[POLLS] += 1
        now = clock(words)
        if now >= words[NEXT_SWEEP]:
            sweep(b, now)
            behind = np.int64(1)
            tun = fds[TUN_FD]
        if behind != 0:
            behind = np.int64(tidy(b, now))
        if ready <= 0:
            continue
        done = _handled(b.work.counters)
        if now - woke < BUSY_GAP and done - handled < BUSY_FEW:
            _nap(words)
        woke = now
        handled = done
        for socket in range(sockets):
            if words[POLL + 2 + socket] >> 48 & 0xFFFF:
                _receive_some(b, socket, now)
        events = words[POLL + 1] >> 48 & 0xFFFF
        if events != 0 and events & POLLIN == 0:
            tun = np.int64(-1)  # its link is down: look again after the sweep instead of spinning
        elif events != 0:
            for _ in range(TUN_READS):
                if read_tun(b, now) == 0:
                    break
            flush_run(b)
        events = words[POLL] >> 48 & 0xFFFF
        if events & POLLIN and carry_out_waiting(b) == 0:
            return COMMAND_WAITING
        if events & POLLHUP:
            return CHANNEL_CLOSED
    return 0


@kernel
def _poll(words: Octets, fds: Octets, tun: Word, wait: Word) -> Word:
    """Wait at most so many ms until something can be read. How many descriptors that are."""
    sockets = fds[SOCKETS]
    words[POLL] = fds[CHANNEL_FD] | (POLLIN << 32)
    words[POLL + 1] = (tun & 0xFFFFFFFF) | (POLLIN << 32)
    for socket in range(sockets):
        words[POLL + 2 + socket] = fds[UDP_FDS + socket] | (POLLIN << 32)
    return np.int64(poll(words.ctypes.data + 8 * POLL, 2 + sockets, wait))


@kernel
def _handled(counters: Octets) -> Word:
    return counters[RX_PACKETS] + counters[TX_PACKETS]


@kernel
def _nap(words: Octets) -> None:
    """Packets come in quick succession but one by one: let a few gather, as an adapter moderates its interrupts."""
    words[NAP] = 0
    words[NAP + 1] = NAP_TIME
    nanosleep(words.ctypes.data + 8 * NAP, 0)


@spliced
def _receive_some(b: Bundle, socket: Word, now: Word) -> None:
    limit = np.int64(BATCH)
    for _ in range(ROUNDS):
        if last_size(b.local.words) >= LARGE:
            limit = np.int64(FEW)
        if receive(b, socket, limit, now) < limit:
            return
        limit = np.int64(BATCH)


@kernel
def sweep(b: Bundle, now: Word) -> None:
    """What time brings: timers that are due, answers that were put off, fragments without the rest, the rate of ICMP errors."""
    b.local.words[NEXT_SWEEP] = now + SWEEP_INTERVAL
    worker = b.work.worker[0]
    worker.icmp_tokens = min(ICMP_ERRORS_BURST, worker.icmp_tokens + ICMP_ERRORS_PER_SWEEP)
    refill(b, now)
    for number in range(1, worker.device_limit):
        device = b.wg.devices[number]
        if device.state == ENABLED:
            bits = due(device, now)
            if bits & DUE_ZERO:  # here and now: control's word to do it could cross a fresh session
                clear_sessions(b, number)
            if bits != 0 and report(b, DUE, np.int64(number), NONE, bits) == 0:
                due_again(device, bits, now)
    give_up_old(b, now)
    answer_waiting_syns(b, now)
    if b.local.run[0].count > 0:
        flush_run(b)


@kernel
def tidy(b: Bundle, now: Word) -> Word:
    """One step of what may take many, below a millisecond or so: flows that are idle, pool addresses that go. 1: there is more."""
    handled = expire(b.nat, STEP, now)
    return 1 if handled == STEP or end_some(b, now) > 0 else 0
