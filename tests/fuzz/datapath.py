"""Targets of the data path: whole datagrams with their control messages, frames from the TUN, and coalescing.

A bench is a worker's data path (tests/dataplane/rig.py) with devices, sessions and flows. Before each input its tables are
put back as they were. Datagrams are put where recvmmsg would put them; no address is ever sent to but the bench's own.
"""

import struct
from functools import cache
from typing import Any

import numpy as np

from egressvpn.addresses import pack_sockaddr
from egressvpn.dataplane.channel import Command
from egressvpn.dataplane.coalesce import emit, flush_all
from egressvpn.dataplane.forward import forward
from egressvpn.dataplane.local import (
    CONTROL_STRIDE,
    CONTROLS,
    MESSAGE_WORDS,
    MESSAGES,
    NAME_STRIDE,
    NAMES,
    RING,
    RING_STRIDE,
    TUN_IN,
    WAITING,
)
from egressvpn.dataplane.receive import MSG_TRUNC, _datagram
from egressvpn.dataplane.segment import handle_tun
from egressvpn.dataplane.tables import CLIENT, GATEWAY, Counter
from egressvpn.dataplane.transmit import flush_run
from egressvpn.packet.checksum import transport_checksum_ok
from egressvpn.packet.headers import PACKET, header_checksum_ok, parse
from egressvpn.verdict import Verdict
from egressvpn.wireguard.mac import add_macs, mac1_key
from tests.dataplane.rig import LIMITS, PUBLIC_KEY, START, Rig, open_sealed, rig, seal
from tests.fuzz.harness import Reader, target
from tests.fuzz.twins import VNET, cut, with_checksums, with_header_checksum
from tests.packet.support import as_words

DEVICE4, DEVICE6 = "100.64.0.5", "fd64::5"
SEALED, KEEP_SOURCE, REPEAT, FORGED, UNPADDED = 1, 2, 4, 8, 16  # of a message: what is done to its text
DATAGRAMS = 4  # at once
MTU = LIMITS.mtu
SIZES = (0, 148, 92, 64)  # of handshake messages, by type
SYN = 2


class Bench:
    """One data path in its first state, with two devices; the second has no session."""

    def __init__(self, mode: int) -> None:
        self.rig: Rig = rig(mode)
        high, low = as_words(DEVICE6)
        subscriber = {"external4": 1, "external6_hi": as_words("2001:db8:113::1")[0], "external6_lo": 1}
        if mode == GATEWAY:
            self.rig.add_pool(1, "203.0.113.1")
            self.rig.add_egress("2001:db8:113::/64")
        self.index = self.rig.add_device(1, as_words(DEVICE4)[1], internal6_hi=high, internal6_lo=low, **subscriber)
        self.rig.add_prefixes(1, f"{DEVICE6}/128", "100.64.1.0/24")
        self.rig.command(Command.SET_DEVICE, owner=2, state=1, internal4=as_words("100.64.0.6")[1], **subscriber)
        self.rig.add_prefixes(2, "100.64.0.6/32")
        self.rig.command(Command.SET_COOKIE_SECRET, receive_key=bytes([9]) * 32)
        self.names = [pack_sockaddr(*self.rig.peer.getsockname()), pack_sockaddr("127.0.0.1", 0), pack_sockaddr("::1", 9)]
        self._kept = {id(table): (table, table.copy()) for table in self._tables()}

    def _tables(self) -> list[Any]:
        """What an input may change, but for what is only reached through it."""
        work, wg, local = self.rig.b.work, self.rig.b.wg, self.rig.b.local
        of_worker = (work.worker, work.counters, work.staged, work.identifications)
        of_wireguard = (wg.sessions, wg.devices, wg.limiter_heads, wg.limiter_state, wg.shares)
        of_process = (local.supers, local.run, local.datagrams, local.covered)
        return [*of_worker, *of_wireguard, self.rig.b.prefixes, *self.rig.b.nat, *of_process]

    def reset(self, fill: int) -> None:
        """As it was. Where datagrams and frames will stand there is something else."""
        for table, kept in self._kept.values():
            table[...] = kept
        octets = self.rig.b.local.octets
        octets[NAMES:RING] = fill
        for slot in range(DATAGRAMS):
            octets[RING + slot * RING_STRIDE : RING + slot * RING_STRIDE + 8192] = fill
        octets[TUN_IN : TUN_IN + 8192] = fill
        self.drain()

    def drain(self) -> tuple[list[bytes], list[bytes]]:
        """Frames written to the TUN and datagrams sent."""
        self.rig.events()
        return self.rig.written(), self.rig.sent()

    def changed(self) -> bool:
        """Whether any session or device is not as it was."""
        wg = self.rig.b.wg
        return any((table != self._kept[id(table)][1]).any() for table in (wg.sessions, wg.devices))

    def put(self, slot: int, octets: bytes, name: bytes, control: bytes, flags: int) -> None:
        """A datagram as recvmmsg leaves it."""
        local = self.rig.b.local
        for at, part in (
            (NAMES + slot * NAME_STRIDE, name),
            (CONTROLS + slot * CONTROL_STRIDE, control),
            (RING + slot * RING_STRIDE, octets),
        ):
            local.octets[at : at + len(part)] = np.frombuffer(part, np.uint8)
        message = MESSAGES + slot * MESSAGE_WORDS
        local.words[message + 1], local.words[message + 5], local.words[message + 6] = len(name), len(control), flags
        local.words[message + 7] = len(octets)


@cache
def bench(mode: int) -> Bench:
    return Bench(mode)


@target
def datagrams(octets: bytes) -> None:
    """Datagrams to a reference client: raw ones, GRO batches, handshakes with a right MAC1, and sealed packets of any content."""
    _alike(octets, CLIENT, _receive)


@target
def datagrams_at_the_gateway(octets: bytes) -> None:
    """The same through policy and translation."""
    _alike(octets, GATEWAY, _receive)


@target
def frames(octets: bytes) -> None:
    """Frames from the TUN to a reference client's peer; what the peer decrypts is what a kernel would have made of them."""
    _alike(octets, CLIENT, _send)


@target
def frames_at_the_gateway(octets: bytes) -> None:
    """Frames from the TUN through translation, after a packet out of the device."""
    _alike(octets, GATEWAY, _send)


def _alike(octets: bytes, mode: int, run: Any) -> None:
    """The outcome does not depend on what happens to stand around the datagrams."""
    outcomes = []
    for fill in (0x00, 0xFF):
        made = bench(mode)
        made.reset(fill)
        outcomes.append(run(made, Reader(octets)))
    assert outcomes[0] == outcomes[1]


def _receive(made: Bench, reader: Reader) -> Any:
    authentic, came, slot, counter, repeated, as_it_is = 0, 0, 0, 0, 0, 0
    if reader.number() & 1:
        made.rig.b.work.worker[0].under_load_until = 1 << 62
    while reader and slot < DATAGRAMS:
        shape = reader.number()
        messages = []
        truncated = shape >> 5 == 7
        for _ in range(1 + (shape & 3)):
            kind = reader.number()
            octets = reader.block()
            message, used = _message(made, kind, octets, counter)
            messages.append(message)
            as_it_is += kind & KEEP_SOURCE or len(octets) < 20
            repeated += used == 0
            authentic += used >= 0 and not truncated
            counter += used == 1
        datagram = b"".join(messages)[:8000]
        name = made.names[reader.number() % 3 if shape & 4 else 0]
        made.put(slot, datagram, name, _control(reader, shape >> 3 & 3, messages[0]), MSG_TRUNC if truncated else 0)
        came += len(datagram)
        slot += 1
    for number in range(slot):
        _handle(made.rig.b, number, START + number)
    flush_all(made.rig.b.local, made.rig.b.work.counters)
    flush_run(made.rig.b)
    written, sent = made.drain()
    assert made.rig.drops().get("replayed", 0) <= repeated
    if not authentic:
        assert not written
        assert not made.changed()
        assert sum(map(len, sent)) <= came
    for frame in written:
        _check_frame(frame, right=not as_it_is)
    return written, [datagram[:8] if datagram[0] == 3 else datagram for datagram in sent], made.rig.b.work.counters.tolist()


def _handle(b: Any, slot: int, now: int) -> None:
    """A datagram, as `receive` handles it."""
    _datagram(b, 0, slot, now)
    for position in range(int(b.local.words[WAITING])):
        forward(b, position, now)
    b.local.words[WAITING] = 0


def _message(made: Bench, kind: int, octets: bytes, counter: int) -> tuple[bytes, int]:
    """One message; 1 when it is sealed and uses up the counter, 0 when it repeats the one before, -1 when it does not authenticate."""
    if kind & 0xF0 == 0xF0:  # a handshake message with a right MAC1
        message = struct.pack("<I", 1 + (kind & 1)) + octets
        size = SIZES[1 + (kind & 1)] - 32
        return add_macs(mac1_key(PUBLIC_KEY), message[:size].ljust(size, b"\0")), -1
    if not kind & SEALED:
        return octets, -1
    if octets and not kind & KEEP_SOURCE:
        octets = _from_device(octets)
    repeats = bool(kind & REPEAT and counter)
    message = seal(made.index, counter - repeats, octets, padded=not kind & UNPADDED)
    if kind & FORGED:
        return message[:-1] + bytes([message[-1] ^ 1]), -1
    return message, 0 if repeats else 1


def _from_device(octets: bytes) -> bytes:
    """With the device's source address and right checksums."""
    if octets[:1] < b"\x40":
        return octets
    if octets[0] >> 4 == 4 and len(octets) >= 20:
        return with_checksums(octets[:12] + bytes([100, 64, 0, 5]) + octets[16:])
    if octets[0] >> 4 == 6 and len(octets) >= 40:
        return with_checksums(octets[:8] + bytes.fromhex("fd640000000000000000000000000005") + octets[24:])
    return octets


def _control(reader: Reader, choice: int, message: bytes) -> bytes:
    """Control messages: none, a GRO size that fits, PKTINFO and ECN of a length and level anybody chose, or any octets."""
    if choice == 0:
        return b""
    if choice == 1:
        return struct.pack("<QIIiI", 20, 17, 104, len(message), 0)
    if choice == 2:
        level, kind, size = ((0, 8, 12), (41, 50, 20), (0, 1, 1), (41, 67, 4), (17, 104, 4))[reader.number() % 5]
        data = reader.take(size)
        return (struct.pack("<QII", 16 + len(data), level, kind) + data).ljust(CONTROL_STRIDE, b"\0")
    return reader.take(CONTROL_STRIDE)


def _check_frame(frame: bytes, right: bool = False) -> None:
    """Its virtio header fits, and every packet a kernel makes of it parses and has right checksums if it is one of many.

    `right`: header checksums were right when the packets came.
    """
    flags, kind, headers, size, start, field = VNET.unpack_from(frame)
    assert kind in (0, 1, 4, 5)
    if kind == 0:
        assert frame[: VNET.size] == bytes(VNET.size)
        buffer, row = _parsed(frame[VNET.size :])
        assert not right or header_checksum_ok(buffer, row) == 1
        return
    assert flags == 1
    assert size > 0
    assert start + field < headers < len(frame) - VNET.size
    for packet in cut(frame):
        buffer, row = _parsed(packet)
        assert header_checksum_ok(buffer, row) == 1
        assert transport_checksum_ok(buffer, row) == 1


def _parsed(packet: bytes) -> tuple[Any, Any]:
    buffer, row = np.frombuffer(packet, np.uint8).copy(), np.zeros(1, PACKET).view(np.recarray)[0]
    assert parse(buffer, 0, len(packet), row) == Verdict.PASS
    return buffer, row


def _send(made: Bench, reader: Reader) -> Any:
    flags = reader.number()
    b = made.rig.b
    if flags & 1 and b.work.worker[0].mode == GATEWAY:
        out = _from_device(reader.block())
        made.put(0, seal(made.index, 0, out), made.names[0], b"", 0)
        _handle(b, 0, START)
        flush_all(b.local, b.work.counters)
    outward = made.drain()[0]
    frame = reader.take(VNET.size).ljust(VNET.size, b"\0") + reader.rest(6000)
    if not flags & 2:
        frame = _to_device(frame) if b.work.worker[0].mode == CLIENT else _back(frame, outward)
    b.local.octets[TUN_IN : TUN_IN + len(frame)] = np.frombuffer(frame, np.uint8)
    verdict = int(handle_tun(b, len(frame), START))
    flush_run(b)
    written, sent = made.drain()
    texts = [open_sealed(datagram)[2] for datagram in sent]
    for text in texts:
        assert len(text) <= MTU
        _parsed(text)
    if verdict == Verdict.PASS and texts and b.work.worker[0].mode == CLIENT:
        _check_cut(frame, texts)
    return verdict, written, sent, b.work.counters.tolist()


def _to_device(frame: bytes) -> bytes:
    """To the device's address; the checksums are those the sender left."""
    packet = frame[VNET.size :]
    if packet[:1] and packet[0] >> 4 == 4 and len(packet) >= 20:
        packet = packet[:16] + bytes([100, 64, 0, 5]) + packet[20:]
    elif packet[:1] and packet[0] >> 4 == 6 and len(packet) >= 40:
        packet = packet[:24] + bytes.fromhex("fd640000000000000000000000000005") + packet[40:]
    return frame[: VNET.size] + packet


def _back(frame: bytes, outward: list[bytes]) -> bytes:
    """As an answer to the packet that went out: to the address, and the port or identifier, that it left from."""
    packet = frame[VNET.size :]
    if not outward or not packet or packet[0] >> 4 != outward[0][VNET.size] >> 4 or packet[0] >> 4 not in (4, 6):
        return frame
    left, first, size = (outward[0][VNET.size :], 12, 4) if packet[0] >> 4 == 4 else (outward[0][VNET.size :], 8, 16)
    _, row = _parsed(left)
    start = (packet[0] & 15) * 4 if size == 4 else 40
    if len(packet) < start + 8:
        return frame
    port = struct.pack("!H", row.source_port)
    packet = packet[: first + size] + left[first : first + size] + packet[first + 2 * size :]
    at = start + (2 if row.icmp_type < 0 else 4)
    packet = packet[:at] + port + packet[at + 2 :]
    return frame[: VNET.size] + (packet if frame[0] & 1 else with_checksums(packet))


def _check_cut(frame: bytes, texts: list[bytes]) -> None:
    """The device gets what a kernel makes of the frame; MSS clamping aside."""
    _, row = _parsed(frame[VNET.size :])
    frame = frame[: VNET.size + int(row.length)]
    if row.tcp_flags & SYN or row.fragment or (row.version == 6 and row.transport != 40):
        return
    assert [text[: len(packet)] for text, packet in zip(texts, cut(frame), strict=True)] == cut(frame)


@target
def coalescing(octets: bytes) -> None:
    """Packets of a few flows, with any octets of them changed: flow by flow, what comes out is what went in."""
    made, reader = bench(CLIENT), Reader(octets)
    made.reset(0)
    b, packet = made.rig.b, made.rig.b.local.packet[0]
    went, at = [], RING + VNET.size
    while reader and len(went) < 24:
        text = _of_a_flow(reader, len(went))
        b.local.octets[at : at + len(text)] = np.frombuffer(text, np.uint8)
        if parse(b.local.octets, at, len(text), packet) == Verdict.PASS:
            went.append(text[: int(packet.length)])
            emit(b.local, b.work.counters, packet, 1)
        at += 2048
    flush_all(b.local, b.work.counters)
    frames_out, _ = made.drain()
    for frame in frames_out:
        _check_frame(frame)
    came = [packet for frame in frames_out for packet in cut(frame)]
    assert _by_flow(came) == _by_flow(went)
    assert made.rig.counter(Counter.TUN_WRITES) == len(frames_out)


def _of_a_flow(reader: Reader, number: int) -> bytes:
    """A packet next in sequence, then changed in up to three places."""
    choice, size, changes = reader.number(), reader.number(2) % 1400, reader.number()
    six, udp, port, step = choice & 1, choice >> 1 & 1, 1000 + (choice >> 2 & 3), choice >> 4 & 3
    payload = bytes([number]) * size
    if udp:
        transport = struct.pack("!HHHH", port, 53, 8 + size, 0)
    else:
        transport = struct.pack("!HHIIBBHHH", port, 80, (1 << 32) - 3000 + step * size & 0xFFFFFFFF, 7, 0x50, 0x10, 512, 0, 0)
    if six:
        network = struct.pack("!IHBB", 6 << 28, len(transport) + size, 17 if udp else 6, 64) + bytes(15) + b"\5" + bytes(15) + b"\7"
    else:
        total = 20 + len(transport) + size
        network = struct.pack("!BBHHHBBHII", 0x45, 0, total, number, 0x4000, 64, 17 if udp else 6, 0, 0x64400005, 0xC6336407)
    made = bytearray(with_checksums(network + transport + payload))
    for _ in range(changes & 3):
        place, value = reader.number(), reader.number()
        if place < len(made):
            made[place] = value
    return with_checksums(bytes(made)) if changes & 4 and made[0] >> 4 in (4, 6) else bytes(made)


def _by_flow(packets: list[bytes]) -> dict[bytes, list[bytes]]:
    """In their order. Identifications of packets that must not be fragmented mean nothing (RFC 6864)."""
    flows: dict[bytes, list[bytes]] = {}
    for packet in packets:
        _, row = _parsed(packet)
        if row.version == 4:
            key = packet[12:20]
            if packet[6] & 0x40 and row.fragment == 0:
                right = with_header_checksum(packet) == packet
                packet = packet[:4] + bytes([0, 0]) + packet[6:10] + bytes([right, 0]) + packet[12:]
        else:
            key = packet[8:40]
        flows.setdefault(key + bytes([row.version, row.protocol]) + struct.pack("!HH", row.source_port, row.destination_port), []).append(
            packet
        )
    return flows
