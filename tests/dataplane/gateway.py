"""A gateway on the bench with two devices: packets in and out of the tunnel and of the TUN, as scapy packets.

Both devices share one pool address; each has an IPv6 address of its own.
"""

from ipaddress import ip_address
from typing import Any, Final

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6, IPv6ExtHdrFragment

from egressvpn.addresses import words
from egressvpn.dataplane.channel import Command
from egressvpn.dataplane.layout import Limits
from egressvpn.dataplane.receive import receive
from egressvpn.dataplane.segment import read_tun
from egressvpn.dataplane.tables import GATEWAY, Counter
from egressvpn.dataplane.transmit import flush_run
from egressvpn.nat.tables import configure
from tests.dataplane.offload import packets_of
from tests.dataplane.rig import LIMITS, START, open_sealed, rig, seal

ONE, TWO = "100.64.0.2", "100.64.0.3"
ONE6, TWO6 = "fd64::2", "fd64::3"
POOL: Final = "203.0.113.1"
EXTERNAL6: Final = {1: "2001:db8:113::2", 2: "2001:db8:113::3"}
REMOTE, REMOTE6 = "198.51.100.2", "2001:db8:99::2"
INNER, INNER6 = "100.64.0.1", "fd64::1"  # the gateway's own address in the tunnel
RECEIVER: Final = 0x1000  # of what is sealed for device n: RECEIVER + n


def address_words(text: str) -> tuple[int, int]:
    return words(ip_address(text))


class Gateway:
    """Time stands still unless a test says otherwise."""

    def __init__(self, limits: Limits = LIMITS, **behaviour: int) -> None:
        self.rig = rig(GATEWAY, limits)
        self.b = self.rig.b
        configure(self.b.nat, **behaviour)
        self.rig.add_pool(1, POOL)
        self.rig.add_egress("2001:db8:113::/64")
        high, low = address_words(INNER6)
        self.rig.command(Command.OPEN, internal4=address_words(INNER)[1], internal6_hi=high, internal6_lo=low)
        self.index, self._sent = {}, {1: 0, 2: 0}
        for number, inner, inner6 in ((1, ONE, ONE6), (2, TWO, TWO6)):
            high, low = address_words(inner6)
            high_out, low_out = address_words(EXTERNAL6[number])
            self.index[number] = self.rig.add_device(
                number,
                address_words(inner)[1],
                internal6_hi=high,
                internal6_lo=low,
                external4=1,
                external6_hi=high_out,
                external6_lo=low_out,
            )
            self.rig.add_prefixes(number, f"{inner6}/128")
        self.rig.events()

    def close(self) -> None:
        self.rig.close()

    def send(self, number: int, *packets: Any, now: int = START) -> list[Any]:
        """Packets from a device; what comes out on the TUN for them, cut as the kernel would."""
        for first in range(0, len(packets), 32):
            for packet in packets[first : first + 32]:
                self.rig.send(seal(self.index[number], self._sent[number], bytes(packet)))
                self._sent[number] += 1
            receive(self.b, 0, 64, now)
        return [parsed(octets) for frame in self.rig.written() for octets in packets_of(frame)]

    def arrive(self, *packets: Any, now: int = START) -> list[tuple[int, Any]]:
        """Packets from outside; what devices get for them, with their numbers."""
        for packet in packets:
            self.rig.tun.send(bytes(10) + bytes(packet))
            assert read_tun(self.b, now) == 1
        flush_run(self.b)
        return self.delivered()

    def delivered(self) -> list[tuple[int, Any]]:
        """What devices got, with their numbers."""
        return [(index - RECEIVER, unpadded(text)) for index, _, text in map(open_sealed, self.rig.sent())]

    def external(self, number: int, packet: Any, now: int = START) -> int:
        """The port that a packet of the device leaves from."""
        (out,) = self.send(number, packet, now=now)
        return int(out.sport if UDP in out or TCP in out else out[ICMP].id)

    def drops(self) -> dict[str, int]:
        return self.rig.drops()

    def counter(self, which: Counter) -> int:
        return self.rig.counter(which)


def parsed(octets: bytes) -> Any:
    packet = IP(octets) if octets[0] >> 4 == 4 else IPv6(octets)
    assert_right(packet)
    return packet


def unpadded(text: bytes) -> Any:
    """Without the padding of the tunnel; checksums are right."""
    length = int.from_bytes(text[2:4], "big") if text[0] >> 4 == 4 else 40 + int.from_bytes(text[4:6], "big")
    assert text[length:] == bytes(len(text) - length)
    return parsed(text[:length])


def assert_right(packet: Any) -> None:
    """Its checksums are those that scapy computes; a fragment's transport checksum is not looked at."""
    fresh = packet.copy()
    if IP in packet:
        fresh[IP].chksum = None
        fragment = packet[IP].frag or packet[IP].flags.MF
    else:
        fragment = IPv6ExtHdrFragment in packet
    if not fragment:
        for layer in (TCP, UDP, ICMP):
            if layer in packet and (layer is not UDP or packet[UDP].chksum != 0):
                fresh[layer].chksum = None
        if ICMPv6DestUnreach in packet:
            fresh[ICMPv6DestUnreach].cksum = None
    assert bytes(fresh) == bytes(packet)


def udp(source: str, destination: str, sport: int = 5000, dport: int = 1053, payload: bytes = b"question", **fields: Any) -> Any:
    """A UDP packet, IPv4 with DF."""
    if ":" in source:
        return IPv6(src=source, dst=destination, **fields) / UDP(sport=sport, dport=dport) / payload
    return IP(src=source, dst=destination, **({"flags": "DF"} | fields)) / UDP(sport=sport, dport=dport) / payload
