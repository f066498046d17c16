"""A worker's data path on a bench: real tables and kernels, a UDP socket on loopback, and a socket pair in the TUN's place.

A SEQPACKET pair keeps message boundaries as a TUN does, so what the kernels write can be read one super-packet at a time.
Time is a number that the test passes in.
"""

import contextlib
import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

import numpy as np
from nacl.bindings import crypto_aead_chacha20poly1305_ietf_decrypt, crypto_aead_chacha20poly1305_ietf_encrypt

from egressvpn.addresses import Path, pack_sockaddr, words
from egressvpn.control.supervisor import SO_SNDBUFFORCE
from egressvpn.dataplane import aead, arena, local
from egressvpn.dataplane.bundle import Bundle, bundle
from egressvpn.dataplane.channel import COMMAND, EVENT, Command, Event, pack_command, pack_prefixes
from egressvpn.dataplane.commands import apply
from egressvpn.dataplane.door import refill
from egressvpn.dataplane.layout import Limits, layout
from egressvpn.dataplane.tables import CLIENT, COUNTERS, Counter
from egressvpn.nat.tables import configure, seed
from egressvpn.verdict import Verdict
from egressvpn.wireguard.indexes import index_of
from egressvpn.wireguard.mac import add_macs, cookie_key, mac1_key

SECOND = 1_000_000_000
START = 1000 * SECOND
IP_PKTINFO, IP_RECVTOS = 8, 13  # linux/in.h
LIMITS = Limits(max_devices=16, max_prefixes=64, max_flows=1024, pool_addresses=4, mtu=1420)
TO_GATEWAY = bytes([1]) * 32  # the key a device seals with
TO_DEVICE = bytes([2]) * 32
PUBLIC_KEY = bytes([3]) * 32  # of the data path's identity


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
        self.b.local.commands[:] = np.frombuffer(pack_command(kind, **fields), COMMAND)
        apply(self.b, now)

    def add_prefixes(self, number: int, *networks: str, now: int = START) -> None:
        for octets in pack_prefixes(ip_network(network) for network in networks):
            self.command(Command.ADD_PREFIXES, now, owner=number, octets=octets)

    def counter(self, which: Counter) -> int:
        return int(self.b.work.counters[which])

    def drops(self) -> dict[str, int]:
        """Drop counters that are not zero, by label."""
        row = self.b.work.counters[Counter.DROPS : COUNTERS]
        return {Verdict(i).label: int(n) for i, n in enumerate(row) if n}

    def add_device(self, number: int, internal4: int, now: int = START, **fields: Any) -> int:
        """An enabled device that owns one address, with a session and the peer socket as its endpoint. Returns its receiver index."""
        index = self.index(number)
        self.command(Command.SET_DEVICE, now, owner=number, state=1, identity=number, internal4=internal4, **fields)
        self.add_prefixes(number, str(ip_address(internal4)), now=now)
        self.session(number, index, now)
        return index

    def add_pool(self, slot: int, address: str, now: int = START, **fields: int) -> None:
        """An external IPv4 address; without more said, all ports from 1024 on in blocks of 256, at most 8 to a device."""
        wanted = {"group": 1, "port_low": 1024, "port_high": 65535, "block_size": 256, "max_blocks": 8} | fields
        self.command(Command.ADD_POOL, now, external4=slot, low=int(ip_address(address)), **wanted)

    def add_egress(self, network: str, now: int = START) -> None:
        """An IPv6 network that external addresses are taken from."""
        prefix = ip_network(network)
        high, low = words(prefix.network_address)
        self.command(Command.ADD_POOL, now, version=6, high=high, low=low, prefix_length=prefix.prefixlen)

    def set_identity(self, number: int, public_key: bytes) -> None:
        """Answer handshakes for the owner of this key."""
        keys = {"receive_key": mac1_key(public_key), "send_key": cookie_key(public_key)}
        self.command(Command.SET_IDENTITY, index=number, state=1, **keys)

    def index(self, slot: int, salt: int = 0x5A5A) -> int:
        """A receiver index of this session slot."""
        return index_of(slot, salt, self.b.wg.sessions.size)

    def session(self, number: int, index: int, now: int = START, initiator: int = 1) -> None:
        remote = pack_sockaddr(*self.peer.getsockname()[:2])
        self.command(
            Command.INSTALL,
            now,
            owner=number,
            index=index,
            remote_index=0x1000 + number,
            initiator=initiator,
            receive_key=TO_GATEWAY,
            send_key=TO_DEVICE,
            path=Path(remote),
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

    def sent_with_tos(self) -> list[tuple[bytes, int]]:
        """Datagrams that arrived at the peer, with the DSCP and ECN octet of each."""
        received = []
        with contextlib.suppress(BlockingIOError):
            while True:
                datagram, control, _, _ = self.peer.recvmsg(1 << 16, 256)
                received.append((datagram, next(data[0] for _, kind, data in control if kind in (socket.IP_TOS, socket.IPV6_TCLASS))))
        return received

    def events(self) -> list[Any]:
        return [np.frombuffer(octets, EVENT).view(np.recarray)[0] for octets in _drain(self.channel, EVENT.itemsize)]

    def event_kinds(self) -> list[Event]:
        return [Event(int(event.kind)) for event in self.events()]


def rig(mode: int = CLIENT, limits: Limits = LIMITS, outer: int = 4, bound: socket.socket | None = None) -> Rig:
    """A data path with nothing configured but its mode; packets may flow, inside datagrams of IP version `outer`.

    Its UDP socket is on loopback, or `bound`.
    """
    memory = arena.create(layout(limits))
    inner_tun, outer_tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    inner_channel, outer_channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.suppress(PermissionError):
        inner_channel.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 4 << 20)  # as the supervisor's
    udp, peer = (socket.socket(socket.AF_INET if outer == 4 else socket.AF_INET6, socket.SOCK_DGRAM) for _ in range(2))
    for end in (udp, peer):
        end.bind(("127.0.0.1" if outer == 4 else "::1", 0))
        for option in (IP_PKTINFO, IP_RECVTOS) if outer == 4 else (socket.IPV6_RECVPKTINFO, socket.IPV6_RECVTCLASS):
            end.setsockopt(socket.IPPROTO_IP if outer == 4 else socket.IPPROTO_IPV6, option, 1)
    for end in (inner_tun, outer_tun, inner_channel, outer_channel, udp, peer):
        end.setblocking(False)
    own = local.create(memory.tables["sessions"].size, inner_channel.fileno(), inner_tun.fileno(), [udp.fileno()])
    aead.prepare(own)
    if bound is not None:
        udp.close()
        udp = bound
        own.fds[local.UDP_FDS] = udp.fileno()
    b = bundle(own, memory)
    worker = b.work.worker[0]
    worker.mode, worker.mtu, worker.gso, worker.uso, worker.open = mode, limits.mtu, 1, 1, 1
    worker.icmp_tokens = 100
    seed(b.nat, 0x1122334455667788, -0x0102030405060708)
    configure(b.nat)
    refill(b, START)
    made = Rig(b, outer_tun, peer, outer_channel, [udp, inner_tun, inner_channel], memory.fd)
    made.set_identity(0, PUBLIC_KEY)
    return made


def handshake(kind: int = 1, sender: int = 7, cookie: bytes = b"", public_key: bytes = PUBLIC_KEY) -> bytes:
    """A message of type 1 or 2 with a right MAC1, with MAC2 when there is a cookie, and zeros for the rest."""
    return add_macs(mac1_key(public_key), struct.pack("<II", kind, sender) + bytes(108 if kind == 1 else 52), cookie)


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
