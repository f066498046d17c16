"""netns.sh, cases 22 to 32: what the stock `wg` sets it gets back, however much it is, and what it must not do it does not."""

import os
import socket
import time
from collections.abc import Iterator

import pytest
from topology import LabError
from triangle import EGRESS, GO, KeyPair, Node, Triangle, socket_in

LOW_ORDER = (  # the points of order 1, 2, 4 and 8 on the curve and its twist
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=",
    "X5yVvKNQjCSx0LFVnIPvWwREXMRYHI6G2CJO3dCfEVc=",
    "7P///////////////////////////////////////38=",
    "7f///////////////////////////////////////38=",
    "7v///////////////////////////////////////38=",
)
PORT = 1111
KIND = GO if os.environ.get("EVL_INTEROP") == "control" else EGRESS


@pytest.fixture(scope="module")
def _node(triangle: Triangle) -> Iterator[Node]:
    running = Node(triangle, KIND, 0, 0)
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture
def node(_node: Node, key: KeyPair) -> Iterator[Node]:
    """An interface in n0 with a private key and no peers."""
    _node.setconf(f"[Interface]\nPrivateKey = {key.private}\n")
    yield _node
    assert _node.running()


@pytest.fixture
def key(triangle: Triangle) -> KeyPair:
    return triangle.keys()


@pytest.fixture
def peer(triangle: Triangle) -> KeyPair:
    return triangle.keys()


def test_case_22_one_peer_with_130_560_allowed_ips(node: Node, key: KeyPair, peer: KeyPair) -> None:
    lines = [f"AllowedIPs = {a}.{b}.0.0/16,{a}::{b}/128" for a in range(1, 256) for b in range(256)]
    node.setconf("\n".join([f"[Interface]\nPrivateKey = {key.private}\n[Peer]\nPublicKey = {peer.public}", *lines]))
    (words,) = node.show("allowed-ips")
    assert len(words) == 255 * 256 * 2 + 1
    assert len(set(words)) == len(words)


def test_case_23_forty_peers_with_52_networks_each(node: Node, key: KeyPair, triangle: Triangle) -> None:
    text = f"[Interface]\nPrivateKey = {key.private}\n"
    for a in range(1, 41):
        text += f"[Peer]\nPublicKey = {triangle.keys().public}\n" + "".join(f"AllowedIPs = {a}.{b}.0.0/16\n" for b in range(1, 53))
    node.setconf(text)
    assert [len(words) for words in node.show("allowed-ips")] == [53] * 40


def test_case_24_thirty_peers_of_which_one_has_allowed_ips(node: Node, triangle: Triangle) -> None:
    peers = [triangle.keys().public for _ in range(30)]
    text = "".join(f"[Peer]\nPublicKey = {public}\n" for public in peers)
    node.setconf(text + "AllowedIPs = 255.2.3.4/32,abcd::255/128\n")
    shown = node.wg("showconf", node.device).stdout
    assert shown.count("[Peer]") == 30
    assert "AllowedIPs = 255.2.3.4/32, abcd::255/128" in shown or "AllowedIPs = abcd::255/128, 255.2.3.4/32" in shown


def test_case_25_a_peer_without_and_one_with_197_allowed_ips(node: Node, peer: KeyPair, triangle: Triangle) -> None:
    other = triangle.keys()
    node.set("peer", peer.public)
    node.set("peer", other.public, "allowed-ips", ",".join(f"abcd::{i}" for i in range(1, 198)))
    shown = {words[0]: words[1:] for words in node.show("allowed-ips")}
    assert shown[peer.public] == ["(none)"]
    assert len(shown[other.public]) == 197


def test_case_26_an_interface_that_does_not_exist_is_not_shown(node: Node) -> None:
    with pytest.raises(LabError):
        node.wg("show", "doesnotexist")


def test_case_27_keys_are_set_and_taken_away(node: Node, key: KeyPair, peer: KeyPair, triangle: Triangle) -> None:
    psk = triangle.keys()
    node.set("private-key", str(key.file), "peer", peer.public, "preshared-key", str(psk.file))
    assert node.show("private-key") == [[key.private]]
    assert node.show("preshared-keys") == [[peer.public, psk.private]]
    node.set("private-key", "/dev/null", "peer", peer.public, "preshared-key", "/dev/null")
    assert node.show("private-key") == [["(none)"]]
    assert node.show("preshared-keys") == [[peer.public, "(none)"]]


def test_case_28_nobody_is_his_own_peer(node: Node, key: KeyPair, peer: KeyPair) -> None:
    node.set("peer", peer.public)
    node.set("private-key", str(peer.file))
    assert node.show("public-key") == [[peer.public]]
    assert node.show("peers") == []
    node.set("peer", peer.public)
    assert node.show("peers") == []
    node.set("private-key", str(key.file))
    node.set("peer", peer.public)
    assert node.show("peers") == [[peer.public]]


def test_case_29_a_private_key_is_clamped(node: Node, key: KeyPair, triangle: Triangle) -> None:
    node.set("private-key", str(triangle.secret("/" + key.private[1:])))
    assert node.show("private-key") == [["+" + key.private[1:]]]


@pytest.mark.parametrize(
    "many", ["0.0.0.0/0,10.0.0.0/8,100.0.0.0/10,172.16.0.0/12,192.168.0.0/16", "::/0,1700::/111,5000::/4,e000::/37,9000::/75"]
)
def test_case_30_allowed_ips_that_overlap_are_replaced_by_one(node: Node, peer: KeyPair, many: str) -> None:
    node.set("peer", peer.public, "allowed-ips", many)
    assert set(node.show("allowed-ips")[0][1:]) == set(many.split(","))
    widest = many.partition(",")[0]
    node.set("peer", peer.public, "allowed-ips", widest)
    assert node.show("allowed-ips") == [[peer.public, widest]]
    node.set("peer", peer.public, "remove")
    assert node.show("peers") == []


def test_case_31_no_packet_is_ever_sent_to_a_peer_whose_key_is_a_low_order_point(node: Node) -> None:
    with socket_in(node.home, socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", PORT))
        listening.settimeout(1.2)  # a persistent keepalive would come at once, and again after 1 s
        node.ip("link set wg0 up")
        for public in LOW_ORDER:
            node.set("peer", public, "persistent-keepalive", "1", "endpoint", f"127.0.0.1:{PORT}")
        assert len(node.show("peers")) == len(LOW_ORDER)
        with pytest.raises(TimeoutError):
            listening.recv(2048)


@pytest.mark.parametrize("end", ["its interface is deleted", "its control socket is deleted"])
def test_case_32_nothing_outlives_the_interface(triangle: Triangle, end: str) -> None:
    """The kernel counts objects; here a process must end by itself, as its wg-quick(8) expects, and with it all it held."""
    short_lived = Node(triangle, KIND, 2, 2, "wg7")
    short_lived.start()
    try:
        if end == "its interface is deleted":
            short_lived.ip("link delete wg7")
        else:
            (short_lived.sockets / "wg7.sock").unlink()
        deadline = time.monotonic() + 10
        while short_lived.running():
            assert time.monotonic() < deadline, "it goes on"
            time.sleep(0.01)
        assert triangle.processes.returncode(short_lived.name) == 0
        assert "Traceback" not in short_lived.said()
        assert [link["ifname"] for link in triangle.ip_json(short_lived.place, "link") if link["ifname"] == "wg7"] == []
    finally:
        short_lived.stop()
