"""WireGuard clients of the lab: Debian's wireguard-go, and the reference client. Both take a wg-quick file as it was printed.

Only what is outside WireGuard is done here by hand: the addresses, the MTU and the routes that wg-quick would set. (The access
network is on the link, so the default route may point into the tunnel without wg-quick's policy routing.)
"""

import re
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from topology import ROOT, Lab, LabError

DEVICE = "wg0"
SOCKET_PATIENCE = 10.0  # s


@dataclass(frozen=True)
class QuickFile:
    """A wg-quick file with one peer. `text` is the file; the other fields are what wg itself does not take."""

    text: str
    addresses: tuple[str, ...]
    dns: tuple[str, ...]
    mtu: int
    allowed: tuple[str, ...]
    public_key: str

    @classmethod
    def parse(cls, text: str) -> "QuickFile":
        return cls(
            text=text,
            addresses=_values(text, "Address"),
            dns=_values(text, "DNS"),
            mtu=int((_values(text, "MTU") or ("1420",))[0]),
            allowed=_values(text, "AllowedIPs"),
            public_key=_values(text, "PublicKey")[0],
        )

    def with_endpoint(self, endpoint: str) -> "QuickFile":
        """The same client, told another of the gateway's addresses."""
        return replace(self, text=re.sub(r"(?m)^Endpoint\s*=.*$", f"Endpoint = {endpoint}", self.text))

    def stripped(self) -> str:
        """What `wg setconf` takes (as `wg-quick strip` prints it)."""
        lines = self.text.splitlines(keepends=True)
        return "".join(line for line in lines if not re.match(r"\s*(Address|DNS|MTU|Table|SaveConfig|(Pre|Post)(Up|Down))\s*=", line))


def _values(text: str, key: str) -> tuple[str, ...]:
    found = re.findall(rf"(?m)^\s*{key}\s*=\s*(.*?)\s*$", text)
    return tuple(value.strip() for line in found for value in line.split(",") if value.strip())


class WireGuardGo:
    """Debian's wireguard-go as client `number`, configured by wg and ip."""

    def __init__(self, lab: Lab, number: int, quick: QuickFile) -> None:
        self.lab = lab
        self.namespace = lab.client(number)
        self.name = f"client{number}"
        self.quick = quick

    def start(self) -> None:
        start_wireguard_go(self.lab, self.name, self.namespace, "wireguard-go")
        configure(self.lab, self.name, self.namespace, self.quick.stripped())
        routes = [f"route replace {net} dev {DEVICE}" for net in self.quick.allowed]
        addresses = [f"addr add {a} dev {DEVICE}" for a in self.quick.addresses]
        self.lab.ip(self.namespace, *addresses, f"link set {DEVICE} mtu {self.quick.mtu} up", *routes)

    def handshake_age(self) -> float | None:
        """Seconds since the last handshake; None when there was none."""
        return handshake_age(self.lab, self.namespace)

    def stop(self) -> None:
        self.lab.processes.stop(self.name)


class ReferenceClient:
    """`egressvpn client up` as client `number`."""

    def __init__(self, lab: Lab, number: int, quick: QuickFile, single_datagrams: bool = False) -> None:
        self.lab = lab
        self.namespace = lab.client(number)
        self.name = f"client{number}"
        self.quick = quick
        self.options = ["--no-gso"] if single_datagrams else []

    def start(self) -> None:
        directory = self.lab.run_directory / f"{self.name}.d"
        directory.mkdir(mode=0o700, exist_ok=True)
        file = directory / f"{self.name}.conf"
        file.touch(mode=0o600)
        file.write_text(self.quick.text)
        self.lab.start(
            self.name, self.namespace, *EGRESSVPN, "client", "up", "--dir", str(directory), *self.options, environment=ENVIRONMENT
        )
        wait_ready(self.lab, self.name)

    def stop(self) -> None:
        self.lab.processes.stop(self.name)


EGRESSVPN = (sys.executable, "-m", "egressvpn")
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
READY_PATIENCE = 300.0  # s; a first start compiles


def wait_ready(lab: Lab, name: str, echo: bool = False) -> None:
    """Until `name` prints its ready event; with `echo`, what it says on stderr meanwhile is passed on."""
    deadline = time.monotonic() + READY_PATIENCE
    shown = 0
    while '"ready"' not in lab.processes.output(name):
        said = lab.processes.output(name, "err")
        if echo and said[shown:]:
            sys.stdout.write(said[shown:])
            sys.stdout.flush()
        shown = len(said)
        if lab.processes.returncode(name) is not None:
            raise LabError(f"{name} ended with status {lab.processes.returncode(name)}: {said.strip()[-2000:]}")
        if time.monotonic() > deadline:
            raise LabError(f"{name} was not ready in {READY_PATIENCE:.0f} s: {said.strip()[-2000:]}")
        time.sleep(0.01)


def start_wireguard_go(lab: Lab, name: str, namespace: str, binary: str) -> int:
    """Start it in the foreground of the background; returns its pid once its control socket is there."""
    socket = lab.run_directory / "wireguard" / namespace / f"{DEVICE}.sock"
    socket.unlink(missing_ok=True)
    pid = lab.start(name, namespace, binary, "-f", DEVICE, environment={"LOG_LEVEL": "error", "WG_PROCESS_FOREGROUND": "1"})
    deadline = time.monotonic() + SOCKET_PATIENCE
    while not socket.exists():
        if lab.processes.returncode(name) is not None or time.monotonic() > deadline:
            raise LabError(f"{binary} did not start in {namespace}: {lab.processes.output(name, 'err').strip()}")
        time.sleep(0.005)
    return pid


def configure(lab: Lab, name: str, namespace: str, stripped: str) -> None:
    """`wg setconf`, by a file that only root reads."""
    file = Path(lab.run_directory / f"{name}.setconf")
    file.touch(mode=0o600)
    file.write_text(stripped)
    lab.run(namespace, "wg", "setconf", DEVICE, str(file))


def handshake_age(lab: Lab, namespace: str) -> float | None:
    """Seconds since the newest handshake of the WireGuard interface in `namespace`; None when there was none."""
    lines = lab.run(namespace, "wg", "show", DEVICE, "latest-handshakes").stdout.split("\n")
    newest = max((int(line.split("\t")[1]) for line in lines if line), default=0)
    return time.time() - newest if newest else None
