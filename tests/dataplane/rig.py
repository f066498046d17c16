"""A worker's data path on a bench: real tables and kernels, a UDP socket on loopback, and a socket pair in the TUN's place.

A SEQPACKET pair keeps message boundaries as a TUN does, so what the kernels write can be read one super-packet at a time.
Time is a number that the test passes in.
"""

import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from nacl.bindings import crypto_aead_chacha20poly1305_ietf_decrypt, crypto_aead_chacha20poly1305_ietf_encrypt

from egressvpn.addresses import pack_sockaddr
from egressvpn.dataplane import aead, arena, local
from egressvpn.dataplane.bundle import Bundle, bundle
from egressvpn.dataplane.channel import COMMAND, EVENT, Command, Event
from egressvpn.dataplane.commands import apply
from egressvpn.dataplane.layout import Limits, layout
from egressvpn.dataplane.tables import CLIENT, COUNTERS, Counter
from egressvpn.verdict import Verdict

SECOND = 1_000_000_000
START = 1000 * SECOND
LIMITS = Limits(max_devices=16, max_prefixes=64, max_flows=1024, pool_addresses=4, mtu=1420)
TO_GATEWAY = bytes([1]) * 32  # the key a device seals with
TO_DEVICE = bytes([2]) * 32


@dataclass
class Rig:
    """`b` is the bundle under test; the other fields are the far ends of its descriptors."""

    b: Bundle
    tun: socket.socket
    peer: socket.socket
    channel: socket.socket
    kept: list[Any]
    fd: int  # of the arena

    def close(self) -> None:
        os.close(self.fd)
        for end in (self.tun, self.peer, self.channel, *self.kept):
            end.close()

    def command(self, kind: Command, now: int = START, **fields: Any) -> None:
        record = np.zeros(1, COMMAND).view(np.recarray)
        record["kind"] = kind
        for name, value in fields.items():
            if isinstance(value, bytes):
                record[name][0, : len(value)] = np.frombuffer(value, np.uint8)
            else:
                record[name] = value
        apply(self.b, record[0], now)

    def counter(self, which: Counter) -> int:
        return int(self.b.work.counters[which])

    def drops(self) -> dict[str, int]:
        """Drop counters that are not zero, by label."""
        row = self.b.work.counters[Counter.DROPS : COUNTERS]
        return {Verdict(i).label: int(n) for i, n in enumerate(row) if n}

    def add_device(self, number: int, internal4: int, now: int = START, **fields: Any) -> int:
        """An enabled device that owns one address, with a session and the peer socket as its endpoint. Returns its receiver index."""
        index = (number << 6) | 0x5A5A0000
        self.command(Command.SET_DEVICE, now, owner=number, state=1, internal4=internal4, **fields)
        self.command(Command.ADD_PREFIX, now, owner=number, version=4, low=internal4, prefix_length=32)
        self.session(number, index, now)
        return index

    def session(self, number: int, index: int, now: int = START, initiator: int = 1) -> None:
        remote = pack_sockaddr(*self.peer.getsockname())
        self.command(
            Command.INSTALL,
            now,
            owner=number,
            index=index,
            remote_index=0x1000 + number,
            initiator=initiator,
            receive_key=TO_GATEWAY,
            send_key=TO_DEVICE,
            remote=remote,
            remote_length=len(remote),
        )

    def send(self, *datagrams: bytes) -> None:
        """Datagrams from the peer to the data path's UDP socket."""
        for datagram in datagrams:
            self.peer.sendto(datagram, self.kept[0].getsockname())

    def written(self) -> list[bytes]:
        """Everything written to the TUN, virtio headers included."""
        return _drain(self.tun, 1 << 17)

    def sent(self) -> list[bytes]:
        """Datagrams that arrived at the peer."""
        return _drain(self.peer, 1 << 16)

    def events(self) -> list[Any]:
        return [np.frombuffer(octets, EVENT).view(np.recarray)[0] for octets in _drain(self.channel, EVENT.itemsize)]

    def event_kinds(self) -> list[Event]:
        return [Event(int(event.kind)) for event in self.events()]


def rig(mode: int = CLIENT, limits: Limits = LIMITS) -> Rig:
    """A data path with nothing configured but its mode; packets may flow."""
    memory = arena.create(layout(limits))
    inner_tun, outer_tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    inner_channel, outer_channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    udp, peer = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for end in (udp, peer):
        end.bind(("127.0.0.1", 0))
    for end in (inner_tun, outer_tun, inner_channel, outer_channel, udp, peer):
        end.setblocking(False)
    udp.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
    own = local.create(memory.tables["sessions"].size, inner_channel.fileno(), inner_tun.fileno(), [udp.fileno()])
    aead.prepare(own)
    b = bundle(own, memory)
    worker = b.work.worker[0]
    worker.mode, worker.mtu, worker.gso, worker.uso, worker.open = mode, limits.mtu, 1, 1, 1
    worker.icmp_tokens = 100
    worker.handshake_tokens = 10_000
    return Rig(b, outer_tun, peer, outer_channel, [udp, inner_tun, inner_channel], memory.fd)


def seal(index: int, counter: int, text: bytes, key: bytes = TO_GATEWAY, padded: bool = True) -> bytes:
    """A data message as a device sends it."""
    text += bytes(-len(text) % 16) if padded else b""
    nonce = bytes(4) + counter.to_bytes(8, "little")
    return struct.pack("<IIQ", 4, index, counter) + crypto_aead_chacha20poly1305_ietf_encrypt(text, b"", nonce, key)


def open_sealed(datagram: bytes, key: bytes = TO_DEVICE) -> tuple[int, int, bytes]:
    """(receiver index, counter, text) of a data message."""
    kind, index, counter = struct.unpack_from("<IIQ", datagram)
    assert kind == 4
    nonce = bytes(4) + counter.to_bytes(8, "little")
    return index, counter, crypto_aead_chacha20poly1305_ietf_decrypt(datagram[16:], b"", nonce, key)


def _drain(end: socket.socket, size: int) -> list[bytes]:
    received = []
    try:
        while True:
            received.append(end.recv(size))
    except BlockingIOError:
        return received
