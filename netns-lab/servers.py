"""The Internet of the lab, in one process: HTTP, DNS, echo and STUN on every address given. Standard library only.

  HTTP  :80    GET /ip       the peer's address and port as seen here, as JSON
               GET /bytes/N  N pseudo-random bytes, the same every time (see `stream`)
               POST /sink    SHA-256 and size of the body, as JSON
  DNS   :53    UDP; A and AAAA for any name (ADDRESSES, else the first address)
  echo  :7     UDP and TCP
  STUN  :3478  UDP; binding requests (RFC 5389), answered with XOR-MAPPED-ADDRESS

Each address has sockets of its own, so an answer comes from the address that was asked.
"""

import contextlib
import hashlib
import ipaddress
import json
import random
import socket
import socketserver
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BLOCK = random.Random(0x5EED).randbytes(1 << 20)
ADDRESSES = {"www.example.net": ("198.51.100.2", "2001:db8:51::2"), "alt.example.net": ("198.51.100.3", "2001:db8:51::3")}
MAGIC_COOKIE = 0x2112A442  # RFC 5389 section 6

Answer = Callable[[bytes, tuple[str, int]], bytes | None]


def stream(size: int) -> Iterator[bytes]:
    """The bytes of /bytes/N, piece by piece."""
    while size > 0:
        yield BLOCK[:size]
        size -= len(BLOCK)


class Web(BaseHTTPRequestHandler):
    """The three resources above."""

    protocol_version = "HTTP/1.1"
    timeout = 120

    def do_GET(self) -> None:
        if self.path == "/ip":
            self._json({"address": self.client_address[0], "port": self.client_address[1]})
            return
        if self.path.startswith("/bytes/") and self.path[7:].isdigit():
            size = int(self.path[7:])
            self._head(200, "application/octet-stream", size)
            for piece in stream(size):
                self.wfile.write(piece)
            return
        self._json({"error": "not found"}, 404)

    def do_POST(self) -> None:
        remaining = size = int(self.headers.get("Content-Length", 0))
        digest = hashlib.sha256()
        while remaining and (piece := self.rfile.read(min(remaining, 1 << 18))):
            digest.update(piece)
            remaining -= len(piece)
        self._json({"sha256": digest.hexdigest(), "size": size - remaining})

    do_PUT = do_POST

    def _json(self, value: dict[str, object], status: int = 200) -> None:
        body = json.dumps(value).encode() + b"\n"
        self._head(status, "application/json", len(body))
        self.wfile.write(body)

    def _head(self, status: int, kind: str, size: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nobody reads it."""


class WebServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: str, port: int) -> None:
        self.address_family = family(address)
        super().__init__((address, port), Web)


class Echo(socketserver.BaseRequestHandler):
    """TCP: what comes in goes out."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := self.request.recv(1 << 16):
                self.request.sendall(data)


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: str, port: int) -> None:
        self.address_family = family(address)
        super().__init__((address, port), Echo)


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def echo(datagram: bytes, peer: tuple[str, int]) -> bytes:
    return datagram


def dns(query: bytes, peer: tuple[str, int]) -> bytes | None:
    """One answer for a query of one A or AAAA question, an empty one for other types; None for what is no query."""
    if len(query) < 17 or query[2] & 0x80 or struct.unpack_from("!H", query, 4)[0] != 1:
        return None
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("ascii", "replace").lower())
        at += 1 + length
    kind = struct.unpack_from("!H", query, at + 1)[0]
    question = query[12 : at + 5]
    pair = ADDRESSES.get(".".join(labels), ADDRESSES["www.example.net"])
    data = {1: ipaddress.ip_address(pair[0]).packed, 28: ipaddress.ip_address(pair[1]).packed}.get(kind)
    header = query[:2] + struct.pack("!HHHHH", 0x8580, 1, 1 if data else 0, 0, 0)
    record = struct.pack("!HHHIH", 0xC00C, kind, 1, 60, len(data)) + data if data else b""
    return header + question + record


def stun(request: bytes, peer: tuple[str, int]) -> bytes | None:
    """A binding success response to a binding request; None for anything else."""
    if len(request) < 20 or struct.unpack_from("!HHI", request)[0::2] != (0x0001, MAGIC_COOKIE):
        return None
    transaction = request[8:20]
    packed = ipaddress.ip_address(peer[0]).packed
    mask = struct.pack("!I", MAGIC_COOKIE) + transaction
    address = bytes(a ^ b for a, b in zip(packed, mask, strict=False))
    value = struct.pack("!BBH", 0, 1 if len(packed) == 4 else 2, peer[1] ^ MAGIC_COOKIE >> 16) + address
    attribute = struct.pack("!HH", 0x0020, len(value)) + value
    return struct.pack("!HHI", 0x0101, len(attribute), MAGIC_COOKIE) + transaction + attribute


def serve_datagrams(endpoint: socket.socket, answer: Answer) -> None:
    while True:
        datagram, peer = endpoint.recvfrom(65535)
        try:
            reply = answer(datagram, peer[:2])
        except (IndexError, struct.error):
            continue
        if reply is not None:
            with contextlib.suppress(OSError):
                endpoint.sendto(reply, peer)


def main(addresses: list[str]) -> None:
    threads: list[threading.Thread] = []
    for address in addresses:
        servers = (WebServer(address, 80), EchoServer(address, 7))
        threads += [threading.Thread(target=server.serve_forever, daemon=True) for server in servers]
        for port, answer in ((53, dns), (7, echo), (3478, stun)):
            endpoint = socket.socket(family(address), socket.SOCK_DGRAM)
            endpoint.bind((address, port))
            threads.append(threading.Thread(target=serve_datagrams, args=(endpoint, answer), daemon=True))
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1:])
