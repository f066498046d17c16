"""Two WireGuard interfaces and a namespace between them: the places of the kernel's own test, netns.sh.

    n1              n0              n2
    wg0  ─ ─ ─ ─ ─ UDP ─ ─ ─ ─ ─ ─  wg0

A `Node` is one interface with the process behind it. The process, and with it the UDP socket, stays where it was started (its
`home`); the interface may be moved. So both processes can meet on the loopback of n0 while their interfaces are in n1 and n2; or
each is at home beside its interface, and the test builds the network between them.

A node is driven by the stock `wg` alone, whatever is behind it: each has a directory of control sockets of its own.
"""

import ctypes
import itertools
import json
import re
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clients import EGRESSVPN, ENVIRONMENT, wait_ready
from topology import WIREGUARD_SOCKETS, Lab, LabError, run

CLONE_NEWNET = 0x40000000  # linux/sched.h
SOCKET_PATIENCE = 10.0  # s
EGRESS, GO = "egressvpn", "wireguard-go"
NO_LINK_LOCAL = 1  # addr_gen_mode: nothing but what the test sends shall enter the tunnel


@dataclass(frozen=True)
class KeyPair:
    """A private key in a file that `wg` reads, and its public key."""

    file: Path
    private: str = field(repr=False)
    public: str


@dataclass
class Triangle(Lab):
    """The three namespaces, with an iperf3 server in n1 and in n2."""

    clients: int = 0
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count, repr=False)

    def namespace(self, number: int) -> str:
        return f"{self.prefix}-n{number}"

    def standing(self) -> list[str]:
        ours = re.compile(rf"{self.prefix}-n[0-2]")
        return sorted(name for line in run(["ip", "netns", "list"]).stdout.splitlines() if ours.fullmatch(name := line.split()[0]))

    def _build(self) -> None:
        for number in range(3):
            name = self.namespace(number)
            self._namespace(name)
            self.sysctl(name, net__ipv6__conf__default__addr_gen_mode=NO_LINK_LOCAL, net__ipv4__icmp_ratelimit=0)

    def _serve(self) -> None:
        for number in (1, 2):
            self.start(f"iperf3-{number}", self.namespace(number), "iperf3", "--server")

    def link(self, a: int, a_device: str, b: int, b_device: str) -> None:
        """A veth between two of the namespaces, both ends up. Names of devices are the test's to choose."""
        self._link(self.namespace(a), a_device, self.namespace(b), b_device)
        for number, device in ((a, a_device), (b, b_device)):
            self.ip(self.namespace(number), f"link set {device} up")

    def nft(self, number: int, rules: str) -> None:
        run(["ip", "netns", "exec", self.namespace(number), "nft", "-f", "-"], stdin=rules)

    def keys(self) -> KeyPair:
        """A fresh key pair."""
        private = run(["wg", "genkey"]).stdout.strip()
        return KeyPair(self.secret(private), private, run(["wg", "pubkey"], stdin=private).stdout.strip())

    def secret(self, text: str) -> Path:
        """A file with `text` that only root reads."""
        file = self.run_directory / f"secret{next(self._numbers)}"
        file.touch(mode=0o600)
        file.write_text(text)
        return file

    def clean(self) -> None:
        """Take down what a test built: links between the namespaces, packet filters, rules and routes, addresses of lo."""
        for number in range(3):
            name = self.namespace(number)
            veths = [link["ifname"] for link in self.ip_json(name, "link", "show", "type", "veth")]
            veths += [link["ifname"] for link in self.ip_json(name, "link", "show", "type", "bridge")]
            for device in veths:
                run(["ip", "-n", name, "link", "delete", device], check=False)  # its other end has gone with it
            self.nft(number, "flush ruleset")
            for family in ("-4", "-6"):
                for rule in self.ip_json(name, family, "rule", "show"):
                    if 0 < rule["priority"] < 32766:
                        run(["ip", "-n", name, family, "rule", "delete", "priority", str(rule["priority"])])
            self.sysctl(name, net__ipv4__ip_forward=0)
        self.ip(self.namespace(0), "address flush dev lo", "address add 127.0.0.1/8 dev lo", "address add ::1/128 dev lo")


class Node:
    """One WireGuard interface: wireguard-go, or our reference client."""

    def __init__(self, lab: Triangle, kind: str, number: int, home: int, device: str = "wg0") -> None:
        self.lab = lab
        self.kind = kind
        self.number = number
        self.device = device
        self.home = lab.namespace(home)
        self.place = self.home
        self.name = f"{device}-n{number}"
        self.pid = 0
        self.sockets = lab.run_directory / "wireguard" / self.name

    def start(self) -> None:
        self.sockets.mkdir(parents=True, exist_ok=True)
        socket_file = self.sockets / f"{self.device}.sock"
        socket_file.unlink(missing_ok=True)
        argv, environment = (self._egressvpn(), ENVIRONMENT) if self.kind == EGRESS else (self._wireguard_go(), GO_ENVIRONMENT)
        self.pid = self.lab.processes.start(self.name, self._inside(self.home, *argv), environment)
        if self.kind == EGRESS:
            wait_ready(self.lab, self.name)
        deadline = time.monotonic() + SOCKET_PATIENCE
        while not socket_file.exists():
            if not self.running() or time.monotonic() > deadline:
                raise LabError(f"{self.kind} did not start in {self.home}: {self.said()}")
            time.sleep(0.005)

    def _egressvpn(self) -> list[str]:
        """The reference client with nothing but a key: all else comes by `wg` and `ip`."""
        directory = self.lab.run_directory / f"{self.name}.d"
        directory.mkdir(mode=0o700, exist_ok=True)
        file = directory / f"{self.device}.conf"
        file.touch(mode=0o600)
        file.write_text(f"[Interface]\nPrivateKey = {self.lab.keys().private}\n")
        return [*EGRESSVPN, "client", "up", "--dir", str(directory)]

    def _wireguard_go(self) -> list[str]:
        return ["wireguard-go", "-f", self.device]

    def _inside(self, namespace: str, *argv: str) -> list[str]:
        bind = f'mount --bind "$0" {WIREGUARD_SOCKETS} && exec "$@"'
        return ["ip", "netns", "exec", namespace, "sh", "-c", bind, str(self.sockets), *argv]

    def stop(self) -> int | None:
        return self.lab.processes.stop(self.name)

    def running(self) -> bool:
        return self.lab.processes.returncode(self.name) is None

    def said(self) -> str:
        return self.lab.processes.output(self.name, "err").strip()[-2000:]

    def move(self, number: int) -> None:
        """Put the interface into another namespace; it loses addresses and routes and is down."""
        destination = self.lab.namespace(number)
        self.lab.ip(self.place, f"link set {self.device} netns {destination}")
        self.place = destination

    # configuration, by the stock tools

    def wg(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run(self._inside(self.home, "wg", *argv), check, called=f"{self.name}: wg {' '.join(argv)[:300]}")

    def set(self, *argv: str) -> None:
        self.wg("set", self.device, *argv)

    def setconf(self, text: str) -> None:
        self.wg("setconf", self.device, str(self.lab.secret(text)))

    def show(self, what: str) -> list[list[str]]:
        """The lines of `wg show DEVICE WHAT`, in words."""
        return [re.split(r"[\t ]", line) for line in self.wg("show", self.device, what).stdout.splitlines()]

    def endpoint(self, peer: KeyPair) -> str:
        """Where it believes the peer to be."""
        return {line[0]: line[1] for line in self.show("endpoints")}[peer.public]

    def transfer(self, peer: KeyPair) -> tuple[int, int]:
        """Octets received from and sent to the peer."""
        return {line[0]: (int(line[1]), int(line[2])) for line in self.show("transfer")}[peer.public]

    def handshake(self, peer: KeyPair) -> int:
        """When the last one was, in seconds since 1970; 0 never."""
        return {line[0]: int(line[1]) for line in self.show("latest-handshakes")}[peer.public]

    def ip(self, *lines: str, version: int | None = None) -> None:
        """Commands of ip(8) in the namespace of the interface; `version` where they do not show it."""
        run(["ip", "-n", self.place, *([f"-{version}"] if version else []), "-batch", "-"], stdin="\n".join(lines))

    # traffic, from the namespace of the interface

    def run(self, *argv: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return run(["ip", "netns", "exec", self.place, *argv], check, timeout, called=f"{self.place}: {' '.join(argv)}")

    def ping(self, target: str, count: int = 1, *options: str) -> int:
        """How many were answered; `count` of more than one floods."""
        flood = ["-f"] if count > 1 else []
        return answered(self.run("ping", "-n", "-c", str(count), *flood, "-W", "1", *options, target, check=False).stdout)

    def iperf3(self, target: str, *options: str) -> dict[str, Any]:
        """The sums of a transfer to the other node's iperf3 server, while which may still be at the last client."""
        for _ in range(100):
            report = json.loads(self.run("iperf3", "--json", "--client", target, *options, check=False).stdout or "{}")
            if "busy" not in report.get("error", "") and "refused" not in report.get("error", ""):
                break
            time.sleep(0.02)
        if "error" in report or "end" not in report:
            raise LabError(f"iperf3 from {self.place} to {target}: {report.get('error')}")
        return report["end"]


GO_ENVIRONMENT = {"LOG_LEVEL": "error", "WG_PROCESS_FOREGROUND": "1"}


def answered(said: str) -> int:
    """How many answers ping counted."""
    found = re.search(r"(\d+) received", said)
    return int(found[1]) if found else 0


def socket_in(namespace: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket that lives in another namespace, for this process to use. It is made by a thread that enters it and ends."""
    made: list[socket.socket] = []

    def enter() -> None:
        with Path(f"/run/netns/{namespace}").open() as entrance:
            if ctypes.CDLL(None).setns(entrance.fileno(), CLONE_NEWNET) == 0:
                made.append(socket.socket(family, kind, protocol))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if not made:
        raise LabError(f"no socket in {namespace}")
    return made[0]
