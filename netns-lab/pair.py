"""The two nodes of netns.sh, set up as its `configure_peers` does; every test begins with them like new.

`wg setconf` with everything in it makes a node forget its sessions, so a test costs milliseconds and not the start of a process.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from triangle import EGRESS, GO, Node, Triangle

SIDES = {"ours and wireguard-go": (EGRESS, GO), "wireguard-go and ours": (GO, EGRESS), "both ours": (EGRESS, EGRESS)}
if os.environ.get("EVL_INTEROP") == "control":  # what do two wireguard-go do? For whoever mends a test
    SIDES = {"both wireguard-go": (GO, GO)}

INSIDE4 = {1: "192.168.241.1", 2: "192.168.241.2"}
INSIDE6 = {1: "fd00::1", 2: "fd00::2"}
MTU = 1420
BIG_MTU = 34816 - 1500 + MTU


class Pair:
    """Nodes 1 and 2 and the keys of netns.sh."""

    def __init__(self, lab: Triangle, kinds: tuple[str, str], together: bool) -> None:
        self.lab = lab
        self.kinds = kinds
        self.together = together  # both at home in n0; or else each beside its interface
        self.key1, self.key2, self.key3, self.key4 = (lab.keys() for _ in range(4))
        self.psk = lab.run_directory / "psk"
        self.psk.touch(mode=0o600)
        self.psk.write_text(lab.keys().private)
        self.one = Node(lab, kinds[0], 1, 0 if together else 1)
        self.two = Node(lab, kinds[1], 2, 0 if together else 2)

    def start(self) -> None:
        for node in (self.one, self.two):
            node.start()
            if self.together:
                node.move(node.number)

    def stop(self) -> None:
        for node in (self.one, self.two):
            node.stop()

    def configure(self) -> None:
        """Keys, ports 1 and 2, a preshared key, allowed IPs, addresses: as new. No endpoints yet."""
        for node, key, other in ((self.one, self.key1, 2), (self.two, self.key2, 1)):
            peer = self.key2 if other == 2 else self.key1
            node.ip(f"link set {node.device} down", f"address flush dev {node.device}")
            node.set("fwmark", "0")
            node.setconf(
                f"[Interface]\nPrivateKey = {key.private}\nListenPort = {node.number}\n[Peer]\nPublicKey = {peer.public}\n"
                f"PresharedKey = {self.psk.read_text()}\nAllowedIPs = {INSIDE4[other]}/32, {INSIDE6[other]}/128\n"
            )
            node.ip(
                f"address add {INSIDE4[node.number]}/24 dev {node.device}",
                f"link set {node.device} mtu {MTU} up",
                f"address add {INSIDE6[node.number]}/112 dev {node.device} nodad",
            )

    def meet(self, first: str, second: str) -> None:
        """Tell node 1 that node 2 is at `first`, and node 2 that node 1 is at `second`."""
        self.one.set("peer", self.key2.public, "endpoint", first)
        self.two.set("peer", self.key1.public, "endpoint", second)

    def set_mtu(self, mtu: int) -> None:
        for node in (self.one, self.two):
            node.ip(f"link set {node.device} mtu {mtu}")

    @contextmanager
    def second(self, device: str, numbers: tuple[int, ...] = (1, 2)) -> Iterator[list[Node]]:
        """Another interface beside those of the pair, of the same kinds, for a while."""
        nodes = [Node(self.lab, self.kinds[number - 1], number, number, device) for number in numbers]
        try:
            for node in nodes:
                node.start()
            yield nodes
        finally:
            for node in nodes:
                node.stop()
