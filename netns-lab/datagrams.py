"""WireGuard data messages in a pcap file, super-packets taken apart; used to show that no nonce was used twice."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DATA_HEADER = 16  # type and reserved 4, receiver index 4, counter 8
SLL2 = 276  # LINKTYPE_LINUX_SLL2, of `tcpdump -i any`
ETHERNET = 1
UDP = 17


@dataclass(frozen=True)
class DataMessage:
    """The clear part of one transport data message."""

    source: bytes
    receiver: int
    counter: int


def packets(file: Path) -> Iterator[bytes]:
    """The IP packets of a pcap file in this machine's byte order."""
    raw = file.read_bytes()
    magic, _, _, _, _, _, link = struct.unpack_from("=IHHiIII", raw)
    if magic not in {0xA1B2C3D4, 0xA1B23C4D}:
        raise ValueError(f"{file} is not a pcap file of this machine")
    skip = {ETHERNET: 14, SLL2: 20}[link]
    at = 24
    while at + 16 <= len(raw):
        captured = struct.unpack_from("=I", raw, at + 8)[0]
        yield raw[at + 16 + skip : at + 16 + captured]
        at += 16 + captured


def data_messages(file: Path) -> Iterator[DataMessage]:
    """Every data message over UDP, in the order of the capture."""
    for packet in packets(file):
        version = packet[0] >> 4 if packet else 0
        if version == 4 and packet[9] == UDP:
            source, payload = packet[12:16], packet[(packet[0] & 15) * 4 + 8 :]
        elif version == 6 and packet[6] == UDP:
            source, payload = packet[8:24], packet[48:]
        else:
            continue
        yield from _apart(source, payload)


def _apart(source: bytes, payload: bytes) -> Iterator[DataMessage]:
    """The messages of a super-packet: a sealer counts up by one, so each is found by the header it must have."""
    while len(payload) >= DATA_HEADER and payload[:4] == b"\4\0\0\0":
        receiver, counter = struct.unpack_from("<IQ", payload, 4)
        yield DataMessage(source, receiver, counter)
        following = payload.find(struct.pack("<IIQ", 4, receiver, counter + 1), DATA_HEADER)
        payload = payload[following:] if following > 0 else b""
