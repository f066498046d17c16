"""Many devices and many flows from one process: WireGuard data as devices would send it, sealed here, and the answers from outside.

A device is a key and a session; all of them share one UDP socket in a client's namespace. A flow is a device's UDP port and a remote
endpoint in 198.18.0.0/15 (RFC 2544), which evl-inet has behind it. Packets are built once per flow, with right checksums, by numpy; per
packet only the sealing is left. What a capture in evl-inet sees tells the external endpoint of each flow, so that answers can be made.

Sending is paced and bounded; a train of datagrams is handed to the kernel at once (UDP_SEGMENT, sendmmsg), as good clients do.
"""

import base64
import ctypes
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from handshakes import initiation
from nacl._sodium import ffi, lib  # the public wrapper costs five times as much as the cipher
from topology import GATEWAY4, WIREGUARD_PORT, Lab, LabError
from triangle import socket_in

from egressvpn.addresses import Path, pack_sockaddr
from egressvpn.wireguard.interface import Install

INNER = 96  # octets of an inner packet: 68 of payload, no padding needed
HEADER, TAG = 16, 16
DATAGRAM = HEADER + INNER + TAG
FRAME = 14 + INNER
TRAIN = 60  # datagrams a call
CHUNK = 600  # packets sealed at a time
UDP_SEGMENT = 103  # linux/udp.h
ETH_P_ALL = 0x0003
SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20
RECEIVE_BUFFER = 256 << 20
REMOTES = 198 << 24 | 18 << 16  # 198.18.0.0/15
REMOTE_HOSTS = 1 << 17
REMOTE_PORT = 9
FIRST_PORT = 1024
NUMBER_AT = 28  # the flow's number is the first four octets of the payload
PATIENCE = 3.0  # s

FLOW = np.dtype([("device", "i4"), ("internal", "u4"), ("port", "u2"), ("remote", "u4")])


def plan(count: int, inner: Sequence[int], remotes: int = 1) -> Any:
    """`count` flows, dealt to the devices in turns; `remotes` of them share a port."""
    number = np.arange(count, dtype=np.int64)
    flows = np.zeros(count, FLOW)
    flows["device"] = number % len(inner)
    own = number // len(inner)
    flows["internal"] = np.asarray(inner, np.uint32)[flows["device"]]
    flows["port"] = FIRST_PORT + own // remotes
    scattered = (own // remotes * 40_503 + flows["device"] * 2_654_435 + own % remotes * 4099) % (REMOTE_HOSTS - 2) + 1
    flows["remote"] = REMOTES + scattered
    if own[-1] // remotes + FIRST_PORT > 65_535:
        raise LabError(f"{count} flows need more than {len(inner)} devices")
    return flows


def packets(source: Any, source_port: Any, destination: Any, destination_port: Any, first: int = 0) -> Any:
    """One IPv4 UDP packet of INNER octets a row, carrying its number."""
    count = len(source)
    rows = np.zeros((count, INNER), np.uint8)
    words = np.zeros((count, INNER // 2), np.uint32)
    words[:, 0], words[:, 1], words[:, 3], words[:, 4] = 0x4500, INNER, 0x4000, 64 << 8 | socket.IPPROTO_UDP
    for at, address in ((6, source), (8, destination)):
        words[:, at], words[:, at + 1] = address >> 16, address & 0xFFFF
    words[:, 10], words[:, 11], words[:, 12] = source_port, destination_port, INNER - 20
    number = np.arange(first, first + count, dtype=np.uint32)
    words[:, 14], words[:, 15] = number >> 16, number & 0xFFFF
    words[:, 5] = _checksum(words[:, :10].sum(axis=1))
    words[:, 13] = _checksum(words[:, 6:].sum(axis=1) + socket.IPPROTO_UDP + INNER - 20)
    rows[:, 0::2], rows[:, 1::2] = words >> 8, words & 0xFF
    return rows


def _checksum(total: Any) -> Any:
    for _ in range(2):
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass
class Session:
    """What sealing for one device takes."""

    key: Any
    index: int
    counter: int = 0


class Swarm:
    """The devices with these keys and inner addresses, in the namespace of a client."""

    def __init__(self, lab: Lab, number: int, gateway: str, keys: Sequence[str], inner: Sequence[int]) -> None:
        """Keys are in base64."""
        self.inner = list(inner)
        self._gateway = base64.b64decode(gateway)
        self._keys = [base64.b64decode(key) for key in keys]
        self._path = Path(pack_sockaddr(GATEWAY4, WIREGUARD_PORT))
        self.wire = socket_in(lab.client(number), socket.AF_INET, socket.SOCK_DGRAM)
        self.wire.connect((GATEWAY4, WIREGUARD_PORT))
        self._sessions: list[Session] = []
        self._out = bytearray(CHUNK * DATAGRAM)
        self._nonce = bytearray(12)

    def close(self) -> None:
        self.wire.close()

    def connect(self) -> None:
        """A fresh session for every device. Raises LabError when the gateway leaves one unanswered."""
        self._drain()
        self.wire.settimeout(PATIENCE)
        sessions = []
        for key in self._keys:
            interface, datagram = initiation(key, self._gateway, self._path)
            self.wire.send(datagram)
            deadline = time.monotonic() + PATIENCE
            while not (installed := [o for o in interface.poll() if isinstance(o, Install)]):
                if time.monotonic() > deadline:
                    raise LabError("a handshake was not answered")
                interface.receive(self.wire.recv(2048), self._path, time.monotonic_ns(), time.time_ns())
            sessions.append(Session(ffi.from_buffer(installed[0].send_key), installed[0].remote_index))
        self._sessions = sessions

    def _drain(self) -> None:
        self.wire.setblocking(False)
        try:
            while True:
                self.wire.recv(2048)
        except (BlockingIOError, ConnectionError):
            pass

    def seal(self, rows: Any, devices: Any) -> memoryview:
        """The datagrams of at most CHUNK inner packets, one after the other."""
        out, nonce = self._out, self._nonce
        target, source, number = ffi.from_buffer(out), ffi.from_buffer(rows), ffi.from_buffer(nonce)
        encrypt, null, at = lib.crypto_aead_chacha20poly1305_ietf_encrypt, ffi.NULL, 0
        for position, device in enumerate(devices.tolist()):
            session = self._sessions[device]
            struct.pack_into("<IIQ", out, at, 4, session.index, session.counter)
            struct.pack_into("<Q", nonce, 4, session.counter)
            session.counter += 1
            encrypt(target + at + HEADER, null, source + position * INNER, INNER, null, 0, null, number, session.key)
            at += DATAGRAM
        return memoryview(out)[:at]

    def send(self, flows: Any, rows: Any, order: Any, pace: int) -> float:
        """Seal and send the packets of these flows, in this order, `pace` a second (0: what goes). How long it took, in seconds."""
        self.wire.setblocking(True)
        self.wire.setsockopt(socket.SOL_UDP, UDP_SEGMENT, DATAGRAM)
        begun = time.monotonic()
        for at in range(0, len(order), CHUNK):
            some = order[at : at + CHUNK]
            sealed = self.seal(np.ascontiguousarray(rows[some]), flows["device"][some])
            for train in range(0, len(sealed), TRAIN * DATAGRAM):
                _wait(begun, at + train // DATAGRAM, pace)
                self.wire.send(sealed[train : train + TRAIN * DATAGRAM])
        self.wire.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 0)
        return time.monotonic() - begun


def _wait(begun: float, sent: int, pace: int) -> None:
    while pace and sent > (time.monotonic() - begun) * pace:
        time.sleep(0.0003)


class Outside:
    """The far end of the flows, in evl-inet: sees where they come from, and answers."""

    def __init__(self, lab: Lab, count: int) -> None:
        self._wire = socket_in(lab.internet, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._wire.setsockopt(socket.SOL_SOCKET, 33, RECEIVE_BUFFER)  # SO_RCVBUFFORCE
        self._wire.bind(("eth0", ETH_P_ALL))
        self._wire.setblocking(False)
        self._sender = socket_in(lab.internet, socket.AF_PACKET, socket.SOCK_RAW)  # receives nothing
        self._sender.bind(("eth0", 0))
        self._sender.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        self._ethernet = lab.ip_json(lab.gateway, "link", "show", "wan0")[0]["address"], self._wire.getsockname()[4]
        self.external = np.zeros(count, np.uint32)
        self.port = np.zeros(count, np.uint16)

    def close(self) -> None:
        self._wire.close()
        self._sender.close()

    def look(self) -> None:
        """Read what was captured and note the external endpoints."""
        octets = bytearray()
        try:
            while True:
                frame = self._wire.recv(NUMBER_AT + 14 + 4)
                if len(frame) == NUMBER_AT + 14 + 4 and frame[23] == socket.IPPROTO_UDP and frame[36:38] == b"\0\x09":
                    octets += frame
        except BlockingIOError:
            pass
        rows = np.frombuffer(bytes(octets), np.uint8).reshape(-1, NUMBER_AT + 18)
        number = rows[:, 42:46].copy().view(">u4")[:, 0]
        known = number < len(self.external)
        self.external[number[known]] = rows[known, 26:30].copy().view(">u4")[:, 0]
        self.port[number[known]] = rows[known, 34:36].copy().view(">u2")[:, 0]

    def known(self) -> int:
        """How many flows have been seen."""
        return int(np.count_nonzero(self.external))

    def answers(self, flows: Any) -> Any:
        """A whole frame for every flow."""
        count = len(flows)
        frames = np.zeros((count, FRAME), np.uint8)
        to, source = self._ethernet
        frames[:, :14] = np.frombuffer(bytes.fromhex(to.replace(":", "")) + source + b"\x08\x00", np.uint8)
        ports = np.full(count, REMOTE_PORT)
        frames[:, 14:] = packets(flows["remote"], ports, self.external[:count], self.port[:count].astype(np.uint32))
        return frames

    def send(self, frames: Any, order: Any, pace: int) -> float:
        """Send these frames in this order. How long it took, in seconds."""
        batch = Batch()
        begun = time.monotonic()
        for at in range(0, len(order), Batch.SIZE):
            _wait(begun, at, pace)
            batch.send(self._sender.fileno(), frames[order[at : at + Batch.SIZE]])
        return time.monotonic() - begun


MMSGHDR = np.dtype([("name", "u8"), ("name_length", "u8"), ("iov", "u8"), ("iov_length", "u8"), ("control", "u8", 3), ("sent", "u8")])
IOVEC = np.dtype([("base", "u8"), ("length", "u8")])


class Batch:
    """sendmmsg(2) of frames of one size that lie one after the other."""

    SIZE = 64

    def __init__(self) -> None:
        self._frames = np.zeros((self.SIZE, FRAME), np.uint8)
        self._iov = np.zeros(self.SIZE, IOVEC)
        self._iov["base"] = self._frames.ctypes.data + np.arange(self.SIZE) * FRAME
        self._iov["length"] = FRAME
        self._messages = np.zeros(self.SIZE, MMSGHDR)
        self._messages["iov"] = self._iov.ctypes.data + np.arange(self.SIZE) * IOVEC.itemsize
        self._messages["iov_length"] = 1
        self._send = ctypes.CDLL(None, use_errno=True).sendmmsg

    def send(self, descriptor: int, frames: Any) -> None:
        """What the kernel refuses for want of room is lost, as on a wire."""
        self._frames[: len(frames)] = frames
        self._send(descriptor, ctypes.c_void_p(self._messages.ctypes.data), len(frames), 0)
