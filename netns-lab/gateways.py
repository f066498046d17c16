"""The two gateways that can stand in evl-gw: egressvpn, and the one it is measured against, wireguard-go with nftables SNAT.

Both are driven alike: `prepare(clients)` gives a wg-quick file for each client, `start()` returns the seconds until packets can
flow, `stop()` ends it and leaves the namespace as it was.
"""

import json
import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any, Protocol

from clients import DEVICE, EGRESSVPN, ENVIRONMENT, QuickFile, configure, start_wireguard_go, wait_ready
from topology import GATEWAY4, GATEWAY6, INTERNET4, INTERNET6, POOL4, POOL6, WIREGUARD_PORT, Lab, LabError, run

ENDPOINT4 = f"{GATEWAY4}:{WIREGUARD_PORT}"
ENDPOINT6 = f"[{GATEWAY6}]:{WIREGUARD_PORT}"

METRICS = "http://127.0.0.1:9586/metrics"

PEER_RULES = """
table inet peer {
  chain postrouting {
    type nat hook postrouting priority srcnat;
    ip saddr 100.64.0.0/16 oifname "wan0" snat ip to 203.0.113.1
    ip6 saddr fd64::/64 oifname "wan0" snat ip6 to 2001:db8:113::1
  }
}
"""

MASQUERADE_RULES = """
table inet peer {
  chain postrouting {
    type nat hook postrouting priority srcnat;
    iifname "wg0" oifname "wan0" masquerade
  }
}
"""


class Gateway(Protocol):
    """What the demo, the bench and the tests need of a gateway."""

    title: str
    interface: str  # what wg calls it
    pid: int

    def prepare(self, clients: int) -> list[QuickFile]: ...
    def start(self) -> float: ...
    def stop(self) -> int | None: ...


class Egress:
    """egressvpn, from `init` to SIGTERM."""

    title = "egressvpn"
    interface = "egress0"

    def __init__(self, lab: Lab, name: str = "gateway") -> None:
        self.lab = lab
        self.name = name
        self.directory = lab.run_directory / f"{name}.d"
        self.pid = 0

    def command(self, *argv: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """`egressvpn --config … argv`, in the gateway's namespace. Raises LabError when it fails."""
        return self._egressvpn("--config", str(self.directory / "gateway.toml"), *argv, check=check, timeout=timeout)

    def _egressvpn(self, *argv: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        full = self.lab.inside(self.lab.gateway, "env", *(f"{k}={v}" for k, v in ENVIRONMENT.items()), *EGRESSVPN, *argv)
        return run(full, check, timeout, called=f"egressvpn {shlex.join(argv)}")

    def json(self, *argv: str) -> dict[str, Any]:
        """The JSON that a command prints, whatever its exit status."""
        done = self.command("-o", "json", *argv, check=False)
        try:
            return json.loads(done.stdout)
        except ValueError:
            raise LabError(f"egressvpn {' '.join(argv)} printed no JSON: {done.stderr.strip()}") from None

    def init(self) -> None:
        """Write the configuration; what a lab needs to differ from the defaults is edited in, as an operator would."""
        listen = ["--listen", ENDPOINT4, "--listen", ENDPOINT6, "--endpoint", ENDPOINT4]
        pool = ["--pool", POOL4, "--pool", POOL6]
        self._egressvpn("init", "--dir", str(self.directory), *pool, *listen)
        self.edit(r"(?m)^#? ?dns = .*$", f'dns = ["{INTERNET4[0]}", "{INTERNET6[0]}"]')

    def edit(self, pattern: str, replacement: str) -> None:
        """Change the configuration file. Raises LabError when there is nothing to change."""
        file = Path(self.directory / "gateway.toml")
        text, count = re.subn(pattern, replacement, file.read_text(), count=1)
        if not count:
            raise LabError(f"{file} has nothing that matches {pattern!r}")
        file.write_text(text)

    def add_peer(self, name: str) -> QuickFile:
        return QuickFile.parse(self.command("peer", "add", name, "--conf", "-").stdout)

    def prepare(self, clients: int) -> list[QuickFile]:
        if not self.directory.exists():
            self.init()
        return [self.add_peer(f"client{number}") for number in range(1, clients + 1)]

    def start(self, echo: bool = False) -> float:
        begun = time.monotonic()
        self.pid = self.launch()
        wait_ready(self.lab, self.name, echo)
        return time.monotonic() - begun

    def launch(self) -> int:
        """Start it without waiting."""
        config = str(self.directory / "gateway.toml")
        return self.lab.start(self.name, self.lab.gateway, *EGRESSVPN, "--config", config, "up", environment=ENVIRONMENT)

    def worker(self) -> int:
        """The pid of the first worker."""
        return int(self.json("status")["workers"][0]["pid"])

    def drops(self) -> dict[str, int]:
        """The drop counters of the running gateway, by reason."""
        text = self.lab.run(self.lab.gateway, "curl", "-sS", "--max-time", "5", METRICS).stdout
        found = re.findall(r'(?m)^egress_drops_total\{[^}]*reason="([a-z0-9_]+)"[^}]*\} ([0-9.e+]+)$', text)
        if not found:
            raise LabError("no egress_drops_total in the metrics")
        counted: dict[str, int] = {}
        for reason, value in found:
            counted[reason] = counted.get(reason, 0) + int(float(value))
        return counted

    def stop(self) -> int | None:
        return self.lab.processes.stop(self.name)


class Peer:
    """wireguard-go as the gateway, the kernel's conntrack as its NAT."""

    interface = DEVICE

    def __init__(self, lab: Lab, binary: str = "wireguard-go", rules: str = PEER_RULES) -> None:
        self.lab = lab
        self.binary = binary
        self.rules = rules
        self.title = f"{Path(binary).name} + nftables"
        self.name = "peer-gateway"
        self.pid = 0
        self._stripped = ""

    def prepare(self, clients: int) -> list[QuickFile]:
        private, public = key_pair()
        self._stripped = f"[Interface]\nPrivateKey = {private}\nListenPort = {WIREGUARD_PORT}\n"
        files = []
        for number in range(1, clients + 1):
            client_private, client_public = key_pair()
            addresses = f"100.64.0.{number + 1}/32, fd64::{number + 1}/128"
            self._stripped += f"[Peer]\nPublicKey = {client_public}\nAllowedIPs = {addresses}\n"
            text = (
                f"[Interface]\nPrivateKey = {client_private}\nAddress = {addresses}\nDNS = {INTERNET4[0]}\nMTU = 1420\n"
                f"[Peer]\nPublicKey = {public}\nEndpoint = {ENDPOINT4}\nAllowedIPs = 0.0.0.0/0, ::/0\n"
            )
            files.append(QuickFile.parse(text))
        return files

    def start(self) -> float:
        begun = time.monotonic()
        self.pid = start_wireguard_go(self.lab, self.name, self.lab.gateway, self.binary)
        configure(self.lab, self.name, self.lab.gateway, self._stripped)
        self.lab.ip(
            self.lab.gateway,
            f"addr add 100.64.0.1/16 dev {DEVICE}",
            f"addr add fd64::1/64 dev {DEVICE}",
            f"link set {DEVICE} mtu 1420 up",
        )
        run(["ip", "netns", "exec", self.lab.gateway, "nft", "-f", "-"], stdin=self.rules)
        return time.monotonic() - begun

    def stop(self) -> int | None:
        run(["ip", "netns", "exec", self.lab.gateway, "nft", "delete", "table", "inet", "peer"], check=False)
        return self.lab.processes.stop(self.name)


def key_pair() -> tuple[str, str]:
    private = run(["wg", "genkey"]).stdout.strip()
    return private, run(["wg", "pubkey"], stdin=private).stdout.strip()
