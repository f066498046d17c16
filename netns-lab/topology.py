"""The namespaces of the lab, their links, addresses and routes. The picture is at the top of the Makefile.

Everything is made inside namespaces whose names begin with the lab's prefix; the host's own network is not touched.
Invariant: `down` removes whatever a complete, failed or interrupted `up` left, and is a no-op when there is nothing.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import Processes, end

ROOT = Path(__file__).resolve().parent.parent
RUN = Path("/run/egressvpn-lab")

GATEWAY4, GATEWAY6 = "192.0.2.1", "2001:db8:2::1"
POOL4, POOL6 = "203.0.113.0/28", "2001:db8:113::/64"
INTERNET4 = ("198.51.100.2", "198.51.100.3")
INTERNET6 = ("2001:db8:51::2", "2001:db8:51::3")
WIREGUARD_PORT = 51820
IPERF_PORTS = (5201, 5202)  # an iperf3 server takes one client at a time

COMMANDS = ("ip", "wg", "wireguard-go", "iperf3", "nft", "ping", "traceroute", "dig", "curl", "tcpdump")
WIREGUARD_SOCKETS = Path("/run/wireguard")  # where wg and wireguard-go meet; each namespace sees a directory of its own there


class LabError(Exception):
    """The lab could not do what was asked; the text says why."""


def require_root() -> None:
    """Raise LabError unless namespaces and a TUN device can be had here."""
    if os.geteuid() != 0:
        raise LabError("the lab needs root: it makes network namespaces")
    if not Path("/dev/net/tun").exists():
        raise LabError("the lab needs /dev/net/tun, which is not there")
    missing = [
        c for c in ("ip", "wg", "wireguard-go", "iperf3", "nft", "ping", "traceroute", "dig", "curl", "tcpdump") if not shutil.which(c)
    ]
    if missing:
        raise LabError(f"the lab misses these commands: {' '.join(missing)}; run `make setup` as root")


def run(
    argv: Sequence[str], check: bool = True, timeout: float = 60, stdin: str | None = None, called: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Raises LabError, with what it wrote to stderr, when it fails; `called` is its name there."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, input=stdin, check=False)
    except subprocess.TimeoutExpired:
        raise LabError(f"{called or shlex.join(argv)} did not end within {timeout:.0f} s") from None
    if check and done.returncode:
        raise LabError(f"{called or shlex.join(argv)} exited {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done


@dataclass
class Lab:
    """One lab. Labs with different prefixes stand side by side."""

    prefix: str = "evl"
    clients: int = 2
    forwarding: bool = True  # whether evl-gw forwards from the start, as a router does
    processes: Processes = field(init=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9]{0,7}", self.prefix):
            raise LabError(f"{self.prefix!r} is not a usable prefix: up to 8 lower-case letters and digits")
        self.run_directory = RUN / self.prefix
        self.gateway = f"{self.prefix}-gw"
        self.internet = f"{self.prefix}-inet"
        self.access = f"{self.prefix}-access"
        self.processes = Processes(self.run_directory)

    def client(self, number: int) -> str:
        return f"{self.prefix}-client{number}"

    def standing(self) -> list[str]:
        """The namespaces of this lab that exist."""
        ours = re.compile(rf"{self.prefix}-(access|gw|inet|client[0-9]+)")
        return sorted(name for line in run(["ip", "netns", "list"]).stdout.splitlines() if ours.fullmatch(name := line.split()[0]))

    def inside(self, namespace: str, *argv: str) -> list[str]:
        """The command line that runs `argv` in `namespace`, with WireGuard control sockets of its own."""
        sockets = self.run_directory / "wireguard" / namespace
        bind = f'mount --bind "$0" {WIREGUARD_SOCKETS} && exec "$@"'
        return ["ip", "netns", "exec", namespace, "sh", "-c", bind, str(sockets), *argv]

    def run(self, namespace: str, *argv: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return run(self.inside(namespace, *argv), check, timeout, called=f"{namespace}: {shlex.join(argv)}")

    def start(self, name: str, namespace: str, *argv: str, environment: dict[str, str] | None = None) -> int:
        return self.processes.start(name, self.inside(namespace, *argv), environment)

    def ip(self, namespace: str, *lines: str) -> None:
        run(["ip", "-n", namespace, "-batch", "-"], stdin="\n".join(lines))

    def ip_json(self, namespace: str, *argv: str) -> list[dict[str, Any]]:
        return json.loads(run(["ip", "-n", namespace, "-json", *argv]).stdout or "[]")

    def sysctl(self, namespace: str, **values: int) -> None:
        """Set sysctls of a namespace; a dot in the name is written as two underscores."""
        script = "; ".join(f"echo {value} > /proc/sys/{key.replace('__', '/')}" for key, value in values.items())
        run(["ip", "netns", "exec", namespace, "sh", "-ec", script])

    def up(self) -> None:
        """Build it. On failure nothing is left."""
        require_root()
        if self.standing():
            raise LabError(f"a lab with the prefix {self.prefix} stands already; `make -C netns-lab down` removes it")
        for directory in (RUN, self.run_directory):
            directory.mkdir(mode=0o700, exist_ok=True)
        WIREGUARD_SOCKETS.mkdir(mode=0o700, exist_ok=True)
        try:
            self._build()
            self._serve()
        except BaseException:
            self.down()
            raise

    def _namespace(self, name: str) -> None:
        run(["ip", "netns", "add", name])
        (self.run_directory / "wireguard" / name).mkdir(parents=True, exist_ok=True)
        self.sysctl(name, net__ipv6__conf__all__accept_dad=0, net__ipv6__conf__default__accept_dad=0)
        self.ip(name, "link set lo up")

    def _link(self, a: str, a_device: str, b: str, b_device: str) -> None:
        run(["ip", "link", "add", a_device, "netns", a, "type", "veth", "peer", "name", b_device, "netns", b])

    def _build(self) -> None:
        self._namespace(self.access)
        self.ip(self.access, "link add switch type bridge mcast_snooping 0", "link set switch up")
        self._namespace(self.gateway)
        self._namespace(self.internet)
        self._plug(self.gateway, "access0", "gw", GATEWAY4, GATEWAY6)
        self._link(self.gateway, "wan0", self.internet, "eth0")
        self.ip(
            self.gateway,
            "link set wan0 up",
            "addr add 198.51.100.1/24 dev wan0",
            "addr add 2001:db8:51::1/64 dev wan0 nodad",
        )
        addresses = [f"addr add {a}/24 dev eth0" for a in INTERNET4] + [f"addr add {a}/64 dev eth0 nodad" for a in INTERNET6]
        routes = [f"route add {POOL4} via 198.51.100.1", f"route add {POOL6} via 2001:db8:51::1"]
        self.ip(self.internet, "link set eth0 up", *addresses, *routes)
        self.ip(self.gateway, "route add default via 198.51.100.2", "route add default via 2001:db8:51::2")
        self.sysctl(self.internet, net__ipv4__icmp_ratelimit=0, net__ipv6__icmp__ratelimit=0)  # the tests ask fast
        forwarding = int(self.forwarding)
        self.sysctl(self.gateway, net__ipv4__ip_forward=forwarding, net__ipv6__conf__all__forwarding=forwarding)
        for number in range(1, self.clients + 1):
            self._namespace(self.client(number))
            self._plug(self.client(number), "eth0", f"client{number}", f"192.0.2.{10 + number}", f"2001:db8:2::{10 + number}")

    def _plug(self, namespace: str, device: str, port: str, address4: str, address6: str) -> None:
        """Connect a namespace to the switch of the access network."""
        self._link(namespace, device, self.access, port)
        self.ip(self.access, f"link set {port} master switch up")
        self.ip(namespace, f"link set {device} up", f"addr add {address4}/24 dev {device}", f"addr add {address6}/64 dev {device} nodad")

    def _serve(self) -> None:
        """Start the servers of the Internet, and wait until they answer."""
        python = str(ROOT / ".venv/bin/python") if (ROOT / ".venv/bin/python").exists() else "python3"
        servers = str(Path(__file__).with_name("servers.py"))
        self.start("servers", self.internet, python, "-u", servers, *INTERNET4, *INTERNET6)
        for port in IPERF_PORTS:
            self.start(f"iperf3-{port}", self.internet, "iperf3", "--server", "--port", str(port))
        deadline = time.monotonic() + 20
        while "ready" not in self.processes.output("servers"):
            if time.monotonic() > deadline or self.processes.returncode("servers") is not None:
                raise LabError(f"the servers of {self.internet} did not start: {self.processes.output('servers', 'err').strip()}")
            time.sleep(0.02)

    def down(self) -> None:
        """Remove all of it, whatever its state."""
        if self.run_directory.exists():
            self.processes.stop_all()
        standing = self.standing()
        for name in standing:
            end([int(pid) for pid in run(["ip", "netns", "pids", name], check=False).stdout.split()], patience=3)
        for name in standing:
            run(["ip", "netns", "delete", name])
        shutil.rmtree(self.run_directory, ignore_errors=True)
        if RUN.exists() and not any(RUN.iterdir()):
            RUN.rmdir()
