"""An independent reader, tshark, is given our static and ephemeral keys: every handshake is right to it, and it reads what was sent.

Ours is node 1, wireguard-go node 2; each begins a handshake in turn, with and without a preshared key, over IPv4 and IPv6.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pair import INSIDE4, INSIDE6, Pair
from topology import ROOT, run
from triangle import EGRESS, GO, Node, Triangle

OUTER = {"IPv4": ("10.0.0.2:2", "10.0.0.1:1"), "IPv6": ("[fd00:aa::2]:2", "[fd00:aa::1]:1")}
ZEROS = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
SIZES = (0, 1, 15, 16, 17, 700, 1391, 1392)
RESPONSE = "2"


class RecordedNode(Node):
    """Our node, whose ephemeral keys are written down."""

    def __init__(self, lab: Triangle, number: int) -> None:
        super().__init__(lab, EGRESS, number, number)
        self.ephemerals = lab.run_directory / "ephemerals"

    def _egressvpn(self) -> list[str]:
        options = super()._egressvpn()
        return [sys.executable, str(ROOT / "netns-lab/recorder.py"), str(self.ephemerals), *options[options.index("client") :]]


@pytest.fixture(scope="module")
def _recorded(triangle: Triangle) -> Iterator[Pair]:
    pair = Pair(triangle, (EGRESS, GO), together=False)
    pair.one = RecordedNode(triangle, 1)
    try:
        pair.start()
        triangle.clean()
        triangle.link(1, "veth1", 2, "veth2")
        for number, node in ((1, pair.one), (2, pair.two)):
            node.ip(f"address add 10.0.0.{number}/24 dev veth{number}", f"address add fd00:aa::{number}/96 dev veth{number} nodad")
        yield pair
    finally:
        pair.stop()


@pytest.fixture
def recorded(_recorded: Pair) -> Pair:
    _recorded.configure()
    return _recorded


class Capture:
    """tcpdump in a namespace, until `finish`."""

    def __init__(self, namespace: str, device: str, file: Path, expression: str) -> None:
        self.file = file
        argv = ["tcpdump", "-n", "-i", device, "-U", "--immediate-mode", "-w", str(file), "-Z", "root", expression]
        self._process = subprocess.Popen(["ip", "netns", "exec", namespace, *argv], stderr=subprocess.PIPE, text=True)
        assert self._process.stderr
        while "listening on" not in (line := self._process.stderr.readline()):
            assert line, "tcpdump did not start"

    def finish(self) -> None:
        time.sleep(0.1)  # what is in flight
        self._process.terminate()
        self._process.communicate()


def fields(file: Path, display: str, names: tuple[str, ...], *options: str) -> list[list[str]]:
    """What tshark reads: for each packet that passes the filter, its fields."""
    argv = ["tshark", "-n", "-r", str(file), *options, "-Y", display, "-T", "fields", "-E", "occurrence=l"]
    for name in names:
        argv += ["-e", name]
    return [line.split("\t") for line in run(argv).stdout.splitlines()]


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("preshared", [True, False], ids=["preshared key", "no preshared key"])
@pytest.mark.parametrize("we_begin", [True, False], ids=["we begin", "they begin"])
def test_tshark_approves_each_handshake_and_reads_each_packet(
    recorded: Pair, tmp_path: Path, we_begin: bool, preshared: bool, outer: str
) -> None:
    lab, one, two = recorded.lab, recorded.one, recorded.two
    if not preshared:
        one.set("peer", recorded.key2.public, "preshared-key", "/dev/null")
        two.set("peer", recorded.key1.public, "preshared-key", "/dev/null")
    recorded.meet(*OUTER[outer])
    known = set(one.ephemerals.read_text().split()) if one.ephemerals.exists() else set()
    outside = Capture(lab.namespace(1), "veth1", tmp_path / "outer.pcap", "udp port 1 and udp port 2")
    inside = Capture(lab.namespace(1), "wg0", tmp_path / "inner.pcap", "icmp or icmp6")
    for size in SIZES:
        assert (one.ping(INSIDE4[2], 1, "-s", str(size)) if we_begin else two.ping(INSIDE4[1], 1, "-s", str(size))) == 1
        assert (one.ping(INSIDE6[2], 1, "-s", str(size // 2)) if we_begin else two.ping(INSIDE6[1], 1, "-s", str(size // 2))) == 1
    inside.finish()
    outside.finish()
    keys = key_log(recorded, sorted(set(one.ephemerals.read_text().split()) - known), preshared, tmp_path / "keys")
    responses = fields(outside.file, f"wg.type == {RESPONSE}", ("wg.handshake_ok",), *keys)
    assert responses
    assert {ok for (ok,) in responses} <= {"1", "True"}
    names = ("ip.src", "ipv6.src", "ip.id", "icmp.seq", "icmpv6.echo.sequence_number", "icmp.checksum", "icmpv6.checksum", "data.data")
    read = fields(outside.file, "icmp or icmpv6", names, *keys)
    sent = fields(inside.file, "icmp or icmpv6", names)
    assert len(sent) == 2 * 2 * len(SIZES)
    assert sorted(strip_outer(read)) == sorted(strip_outer(sent))


def strip_outer(packets: list[list[str]]) -> list[list[str]]:
    """Only of an inner packet's own protocol are the fields its own: the others are the datagram's around it."""
    return [["", *packet[1:2], "", *packet[3:]] if packet[4] else [packet[0], "", *packet[2:]] for packet in packets]


def key_log(pair: Pair, ephemerals: list[str], preshared: bool, file: Path) -> tuple[str, ...]:
    """The options that make tshark open what node 1 and node 2 say to each other."""
    lines = [f"LOCAL_STATIC_PRIVATE_KEY = {pair.key1.private}", f"REMOTE_STATIC_PUBLIC_KEY = {pair.key2.public}"]
    for ephemeral in ephemerals:
        lines.append(f"LOCAL_EPHEMERAL_PRIVATE_KEY = {ephemeral}")
        lines.append(f"PRESHARED_KEY = {pair.psk.read_text() if preshared else ZEROS}")
    file.write_text("\n".join(lines) + "\n")
    return ("-o", f"wg.keylog_file:{file}", "-o", "wg.dissect_packet:TRUE", "-d", "udp.port==1,wg", "-d", "udp.port==2,wg")
