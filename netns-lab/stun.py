"""Ask STUN servers from one UDP socket: stun.py PORT ADDRESS… Prints, as JSON, the address and port that each saw."""

import ipaddress
import json
import os
import socket
import struct
import sys

MAGIC = struct.pack("!I", 0x2112A442)  # RFC 5389 section 6


def ask(client: socket.socket, address: str, port: int) -> tuple[str, int]:
    """One binding request, three tries. Raises TimeoutError."""
    transaction = os.urandom(12)
    request = struct.pack("!HH", 0x0001, 0) + MAGIC + transaction
    for _ in range(3):
        client.sendto(request, (address, port))
        try:
            response = client.recv(1500)
        except TimeoutError:
            continue
        mask = MAGIC + transaction
        packed = bytes(a ^ b for a, b in zip(response[28:], mask, strict=False))
        return str(ipaddress.ip_address(packed)), struct.unpack_from("!H", response, 26)[0] ^ 0x2112
    raise TimeoutError(f"no answer from {address}")


def main(port: int, addresses: list[str]) -> None:
    client = socket.socket(socket.AF_INET6 if ":" in addresses[0] else socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(1)
    print(json.dumps([ask(client, address, port) for address in addresses]))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
