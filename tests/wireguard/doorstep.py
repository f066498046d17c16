"""The tables that judge handshakes, small, and socket addresses to knock from."""

import socket
import struct
from typing import Any

import numpy as np

from egressvpn.wireguard.tables import WireGuardTables, tables


def small_tables(max_sources: int = 64, chains: int = 8192) -> WireGuardTables:
    """Empty tables for one device. With one chain every source meets every other."""
    arrays: dict[str, Any] = {name: np.zeros(count, dtype).view(np.recarray) for name, (dtype, count) in tables(1, max_sources).items()}
    arrays["limiter_heads"] = arrays["limiter_heads"][:chains]
    return WireGuardTables(**arrays)


def octets(data: bytes) -> Any:
    return np.frombuffer(bytearray(data), np.uint8)


def sockaddr(address: str, port: int) -> bytes:
    """A struct sockaddr_in or sockaddr_in6."""
    if ":" in address:
        return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI16sI", port, 0, socket.inet_pton(socket.AF_INET6, address), 0)
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, socket.inet_aton(address))
