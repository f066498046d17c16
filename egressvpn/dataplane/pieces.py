"""Sending a datagram in pieces: one that came so, or one with DF clear that does not fit the tunnel (RFC 791 3.2, RFC 4787 REQ-13).

Each piece is made in place: its header goes right in front of its data, over the piece before, which has left already.
A piece to the TUN has as many data as the longest fragment had, whatever its header: as many go as came, unless a long
header leaves less room in the tunnel's MTU. Were the octets of whole packets counted, a long header on the first of many
short fragments would multiply them.
"""

from typing import Final

import numpy as np

from egressvpn.dataplane.bundle import Bundle
from egressvpn.dataplane.coalesce import flush_all, write_packet
from egressvpn.dataplane.local import HEADER
from egressvpn.dataplane.syscalls import copy
from egressvpn.dataplane.transmit import sealing_session, transmit
from egressvpn.kernel import Row, Word, kernel
from egressvpn.packet.fragments import UNIT, keep_copied_options, piece_header4, piece_header6
from egressvpn.verdict import Verdict

PASS: Final = int(Verdict.PASS)


@kernel
def send_pieces(b: Bundle, packet: Row, slot: Word, number: Word, now: Word) -> Word:
    """Send `packet` in pieces that fit the tunnel to a device, 0: to the TUN, in order. Returns the verdict on the last.

    `slot` is where it was put together; 0: an IPv4 packet that came whole. When the device cannot be sent to it stands as it was.
    """
    if number != 0:
        session = sealing_session(b, number, now)
        if session < 0:
            return -session
    octets, row = b.local.octets, b.local.datagrams[slot]
    header = row.header if packet.version == 6 else (np.int64(octets[packet.start]) & 0x0F) * 4
    inserted = np.int64(8) if packet.version == 6 else np.int64(0)
    data, end = packet.start + header, packet.start + packet.length
    room = np.int64(_room(b, slot, number, header + inserted))
    copy(octets, HEADER, octets, packet.start, header)
    if number == 0:
        flush_all(b.local, b.work.counters)
    verdict = np.int64(PASS)
    at = data
    while at < end:
        count = end - at if end - at <= room else room // UNIT * UNIT
        start, length = at - inserted - header, header + inserted + count
        more = np.int64(1) if at + count < end else np.int64(0)
        copy(octets, start, octets, HEADER, header)
        if packet.version == 4:
            piece_header4(octets, start, length, at - data, more)
        else:
            piece_header6(octets, start, row, length, at - data, more)
        if number != 0:
            verdict = transmit(b, number, start, length, now)
        else:
            write_packet(b.local, b.work.counters, start, length)
        if at == data and packet.version == 4 and header > 20:
            header = keep_copied_options(octets, HEADER)
            room = np.int64(_room(b, slot, number, header))
        at += count
    return verdict


@kernel
def _room(b: Bundle, slot: Word, number: Word, headers: Word) -> Word:
    """Octets of data for a piece with so many of headers."""
    room = b.work.worker[0].mtu - headers
    if number == 0:
        room = min(room, b.local.datagrams[slot].largest)
    return max(room, np.int64(UNIT))
