"""The flood generator makes what it says: datagrams that only a Diffie-Hellman tells from handshakes."""

import socket

import flood
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from egressvpn.wireguard.mac import add_macs, mac1_key, mac1_valid
from egressvpn.wireguard.messages import INITIATION_BYTES, MAC_BYTES, MACS_BYTES

KEY = bytes(range(32))
COOKIE = bytes(range(16))


def test_an_initiation_has_a_valid_mac1_and_no_mac2() -> None:
    made = flood.initiation(KEY)
    assert len(made) == INITIATION_BYTES
    assert mac1_valid(mac1_key(KEY), made)
    assert made[-MAC_BYTES:] == bytes(MAC_BYTES)


def test_with_a_cookie_its_mac2_is_the_one_that_our_initiator_would_write() -> None:
    made = flood.initiation(KEY, COOKIE)
    assert made == add_macs(mac1_key(KEY), made[:-MACS_BYTES], COOKIE)


def test_a_frame_is_ethernet_ip_and_udp_with_everything_right() -> None:
    made = flood.frame(b"\2" * 6, b"\4" * 6, "198.18.0.7", "192.0.2.1", 51820, b"payload")
    read = Ether(made)
    assert (read.dst, read.src) == ("02:02:02:02:02:02", "04:04:04:04:04:04")
    assert (read[IP].src, read[IP].dst, read[IP].len) == ("198.18.0.7", "192.0.2.1", len(made) - 14)
    assert (read[UDP].dport, bytes(read[UDP].payload)) == (51820, b"payload")
    del read[IP].chksum
    assert Ether(bytes(read))[IP].chksum == Ether(made)[IP].chksum


def test_batches_follow_each_other_and_begin_again() -> None:
    messages = [number.to_bytes(2, "big") for number in range(2 * flood.BATCH)]
    batches = flood.Batches(messages)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    here.setblocking(False)
    there.settimeout(5)
    with here, there:
        for first in (0, flood.BATCH, 0):
            taken = batches.send(here.fileno())  # a socket pair holds fewer than a batch
            assert taken > 0
            assert [there.recv(9) for _ in range(taken)] == messages[first : first + taken]
