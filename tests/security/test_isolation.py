"""S7, S8, S9, S16: a device reaches the Internet and nothing else, as nobody but itself, and no packet goes round for ever.

NAT slipstreaming v1 and v2; Sliver GHSA-q8j9-34qf-7vq7 (devices that reach each other); VU#199397 (tunnels that relay what is
spoofed); routing loops of the kernel's netns.sh and VPP's hairpinning_avoid_inf_loop.
"""

from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest
from scapy.layers.inet import GRE, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from egressvpn.addresses import words
from egressvpn.control.schema import Policy
from egressvpn.dataplane import receive as receiving
from egressvpn.dataplane.channel import Command
from egressvpn.nat.tables import ENDPOINT_INDEPENDENT
from egressvpn.nat.translate import open_outbound, outbound
from egressvpn.packet.rewrite import decrement_ttl
from egressvpn.policy.deny import never4, never6
from egressvpn.policy.martians import from_nowhere
from egressvpn.verdict import Verdict
from tests.dataplane.gateway import ONE, ONE6, POOL, REMOTE, REMOTE6, TWO, TWO6, Gateway, udp
from tests.nat.exchange import connect, out
from tests.nat.support import Gateway as Translator
from tests.security.mutants import always, interpreted_only, mutate

NETWORKS = ("100.64.0.0/16", "fd64::/64")  # of the tunnel: control denies them, and the gateway's own addresses
GATEWAY = ("192.0.2.1/32", "2001:db8:2::1/128")


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway(filtering=ENDPOINT_INDEPENDENT)
    yield made
    made.close()


def deny(gateway: Gateway) -> None:
    """What the default policy denies."""
    for network in (*map(ip_network, (*NETWORKS, *GATEWAY)), *map(ip_network, map(str, Policy().deny))):
        high, low = words(network.network_address)
        gateway.rig.command(Command.ADD_DENIED, version=network.version, high=high, low=low, prefix_length=network.prefixlen)


# S7: what a helper of the NAT would look for; addresses and ports of inside, in the payload

PAYLOADS = {
    "FTP": (21, b"PORT 100,64,0,5,20,256\r\n"),
    "FTP, extended": (21, b"EPRT |1|100.64.0.5|5376|\r\n"),
    "FTP, passive": (21, b"227 Entering Passive Mode (100,64,0,5,21,0)\r\n"),
    "SIP": (5060, b"REGISTER sip:x;transport=TCP SIP/2.0\r\nContact: <sip:a@100.64.0.5:5376>\r\n\r\n"),
    "IRC": (6667, b"PRIVMSG x :\x01DCC SEND f 1681915909 5376 1\x01\r\n"),
    "H.323": (1720, b"\x03\x00\x00\x30\x08\x02\x10\x00\x05" + bytes([100, 64, 0, 5, 0x15, 0])),
    "PPTP": (1723, b"\x00\x9c\x00\x01\x1a\x2b\x3c\x4d\x00\x07\x00\x00" + bytes(20)),
    "TURN": (3478, b"\x00\x03\x00\x08\x21\x12\xa4\x42" + bytes(12) + b"\x00\x12\x00\x08\x00\x01\x15\x00\x64\x40\x00\x05"),
    "RTSP": (554, b"SETUP rtsp://h/ RTSP/1.0\r\nTransport: RTP/AVP;unicast;client_port=5376-5377\r\n\r\n"),
}


def slipstreamed(service: int, payload: bytes) -> tuple[bytes, int]:
    """The payload as it leaves, and how many mappings came of it."""
    translator = Translator()
    connect(translator, rport=service)
    before = int(translator.nat.settings[0].mappings)
    verdict, _, sent = translator.send(1, out("tcp", rport=service, flags="PA", seq=1001, ack=5001) / Raw(payload))
    assert verdict == Verdict.PASS
    return bytes(IP(sent)[TCP].payload), int(translator.nat.settings[0].mappings) - before


@pytest.mark.parametrize(("service", "payload"), PAYLOADS.values(), ids=PAYLOADS)
def test_s7_a_payload_is_never_read(service: int, payload: bytes) -> None:
    assert slipstreamed(service, payload) == (payload, 0)


@interpreted_only
def test_s7_succeeds_where_a_helper_reads_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = outbound

    def helpful(nat: Any, device: int, packet: Any, buffer: Any, now: int) -> int:
        text = buffer[packet.payload : packet.start + packet.length].tobytes()
        own = int(packet.source_port)
        if text.startswith(b"PORT "):
            high, low = map(int, text.split(b",")[4:6])
            packet.source_port = high << 8 | low & 0xFF
            open_outbound(nat, device, packet, now)
            packet.source_port = own
        return int(plain(nat, device, packet, buffer, now))

    mutate(monkeypatch, outbound, helpful)
    assert slipstreamed(*PAYLOADS["FTP"])[1] == 1


# S8: destinations that are not the Internet

FORBIDDEN = [
    *(TWO, TWO6, "100.64.0.1", "fd64::1"),  # another device; the gateway in the tunnel
    *("192.0.2.1", "2001:db8:2::1"),  # the gateway outside
    *("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "::7f00:1", "0.0.0.0", "::"),
    *("169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "fd00:ec2::254"),  # metadata and link-local
    *("10.0.0.1", "172.16.0.1", "192.168.1.1", "fc00::1", "fec0::1"),
    *("224.0.0.1", "239.255.255.250", "255.255.255.255", "ff02::1", "ff0e::1"),
    *("2002:0a00:0001::1", "2002:7f00:0001::1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b::127.0.0.1"),
]


def reached(gateway: Gateway, destination: str) -> int:
    """How many packets came out anywhere for one that device 1 sends there."""
    packet = udp(ONE6 if ":" in destination else ONE, destination)
    return len(gateway.send(1, packet)) + len([text for number, text in gateway.delivered() if number != 1])


def test_s8_a_device_reaches_nothing_but_the_internet(gateway: Gateway) -> None:
    deny(gateway)
    for destination in FORBIDDEN:
        assert reached(gateway, destination) == 0, destination
    assert gateway.drops() == {"policy_denied": len(FORBIDDEN)}
    assert int(gateway.b.nat.settings[0].flows) == 0
    assert reached(gateway, REMOTE) == 1


@interpreted_only
def test_s8_succeeds_without_a_policy(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, never4, always(False))
    mutate(monkeypatch, never6, always(False))
    assert sum(reached(gateway, destination) for destination in FORBIDDEN) == len(FORBIDDEN)


# S9: sources that are not the device's

STOLEN = [
    *(TWO, TWO6, POOL, "198.51.100.66", "2001:db8:66::1", "100.64.0.99", "fd64::99"),
    *("0.0.0.0", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "169.254.1.1"),
    *("::", "::1", "ff02::1", "fe80::1", "::ffff:100.64.0.2"),
]
NESTED: list[Any] = [
    IP(src=ONE, dst=REMOTE) / GRE() / IP(src=REMOTE, dst=REMOTE),
    IP(src=ONE, dst=REMOTE) / IP(src=TWO, dst=REMOTE) / UDP(),
    IP(src=ONE, dst=REMOTE) / IPv6(src=TWO6, dst=REMOTE6) / UDP(),
    IPv6(src=ONE6, dst=REMOTE6) / IPv6(src=TWO6, dst=REMOTE6) / UDP(),
    IP(src=ONE, dst=REMOTE, proto=50) / Raw(bytes(24)),
]


def from_stolen(gateway: Gateway, source: str) -> int:
    return len(gateway.send(1, udp(source, REMOTE6 if ":" in source else REMOTE, sport=5000 + STOLEN.index(source))))


def test_s9_a_device_sends_as_nobody_else(gateway: Gateway) -> None:
    for source in STOLEN:
        assert from_stolen(gateway, source) == 0, source
    assert gateway.drops() == {"source_mismatch": len(STOLEN)}
    assert int(gateway.b.nat.settings[0].flows) == 0


def test_s9_tunnels_in_the_tunnel_end_here(gateway: Gateway) -> None:
    assert gateway.send(1, *NESTED) == []
    assert gateway.drops() == {"unsupported_protocol": len(NESTED)}


@interpreted_only
def test_s9_succeeds_where_the_source_is_not_looked_at(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, receiving._owner, lambda b, device, number, packet: number)
    mutate(monkeypatch, from_nowhere, always(False))
    assert sum(from_stolen(gateway, source) for source in STOLEN) == len(STOLEN)


# S16: round and round

HOPS = 6


def rounds(gateway: Gateway, limit: int = 30) -> int:
    """Two devices send back to the other's external endpoint whatever comes, as routers in a loop would. How often, up to `limit`."""
    ends = {1: (ONE, 5000, gateway.external(1, udp(ONE, REMOTE))), 2: (TWO, 5000, gateway.external(2, udp(TWO, REMOTE)))}
    number, ttl, count = 1, HOPS, 0
    while count < limit:
        address, port, _ = ends[number]
        assert gateway.send(number, udp(address, POOL, sport=port, dport=ends[3 - number][2], ttl=ttl)) == []
        arrived = [(to, packet) for to, packet in gateway.delivered() if to != number]
        if not arrived:
            return count
        ((number, packet),) = arrived
        ttl, count = int(packet.ttl), count + 1
    return count


def test_s16_a_loop_between_devices_ends_with_the_hops(gateway: Gateway) -> None:
    assert rounds(gateway) == HOPS - 1
    assert gateway.drops() == {"ttl_exceeded": 1}


@interpreted_only
def test_s16_a_loop_goes_on_where_hops_do_not_count(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, decrement_ttl, always(None))
    assert rounds(gateway) == 30


def test_s16_what_a_device_sends_to_its_own_external_endpoint_does_not_come_back_to_be_sent_again(gateway: Gateway) -> None:
    """VPP's hairpinning_avoid_inf_loop: nothing goes to the TUN, where the kernel's route would bring it back."""
    mine = gateway.external(1, udp(ONE, REMOTE))
    assert gateway.send(1, udp(ONE, POOL, dport=mine)) == []
    assert gateway.send(1, udp(ONE, POOL, sport=6000, dport=mine ^ 1)) == []
    assert gateway.delivered() == []
    assert gateway.drops() == {"martian": 1, "no_mapping": 1}
