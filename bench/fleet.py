"""The part of the bench with many devices configured: start, change, look-up, handshakes. Both gateways get their peers by `wg addconf`."""

import base64
import json
import re
import secrets
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from clients import WireGuardGo
from gateways import Egress, Gateway
from processes import cpu_seconds
from topology import GATEWAY4, INTERNET4, ROOT, WIREGUARD_PORT, Lab, LabError

sys.path.insert(0, str(ROOT))

from egressvpn.wireguard.noise import public_of

DEVICES = 10_000
COUNT = 6000  # handshakes with as many under way as AT_ONCE
AT_ONCE = 32
ALONE = 300  # handshakes one by one
PAUSE = 0.01  # s between them
CHANGES = 9


@dataclass(frozen=True)
class Devices:
    """Key pairs and addresses of a fleet that no client runs for."""

    private: list[str]
    conf: str  # what `wg addconf` takes

    @classmethod
    def make(cls, count: int) -> "Devices":
        private, sections = [], []
        for number in range(count):
            key = secrets.token_bytes(32)
            private.append(base64.b64encode(key).decode())
            public = base64.b64encode(public_of(key)).decode()
            high, low = divmod(number, 250)
            sections.append(f"[Peer]\nPublicKey = {public}\nAllowedIPs = 100.64.{high + 100}.{low + 2}/32, fd64::1:{number:x}/128\n")
        return cls(private, "".join(sections))


def write(file: Path, text: str) -> str:
    file.touch(mode=0o600)
    file.write_text(text)
    return str(file)


def addconf(lab: Lab, gateway: Gateway, text: str) -> None:
    lab.run(lab.gateway, "wg", "addconf", gateway.interface, write(lab.run_directory / "fleet.conf", text), timeout=120)


def handshakes(lab: Lab, gateway: Gateway, keys: list[str], at_once: int, pause: float) -> dict[str, float]:
    """The report of netns-lab/handshakes.py, with gateway CPU seconds added."""
    public = lab.run(lab.gateway, "wg", "show", gateway.interface, "public-key").stdout.strip()
    file = write(lab.run_directory / "fleet.keys", "\n".join(keys))
    script = str(ROOT / "netns-lab/handshakes.py")
    argv = [sys.executable, script, GATEWAY4, str(WIREGUARD_PORT), public, file, str(len(keys)), str(at_once), str(pause)]
    before = cpu_seconds(gateway.pid)
    report = json.loads(lab.run(lab.client(1), *argv, timeout=180).stdout)
    report["cpu"] = cpu_seconds(gateway.pid) - before
    if report["lost"]:
        raise LabError(f"{report['lost']:.0f} of {len(keys)} handshakes were not answered")
    return report


def start(lab: Lab, gateway: Gateway, devices: Devices) -> float:
    """Start a prepared gateway with its devices; how long it took."""
    if isinstance(gateway, Egress):  # keeps what wg told it
        gateway.start()
        addconf(lab, gateway, devices.conf)
        gateway.stop()
        return gateway.start()
    begun = time.monotonic()
    gateway.start()
    addconf(lab, gateway, devices.conf)
    return time.monotonic() - begun


def measure(lab: Lab, gateway: Gateway, devices: Devices, result: dict[str, float]) -> None:
    """Handshakes and changes on a running gateway with many devices."""
    alone = handshakes(lab, gateway, devices.private[-ALONE:], 1, PAUSE)
    result["handshake_p50"], result["handshake_p99"] = alone["p50"], alone["p99"]
    many = handshakes(lab, gateway, devices.private[:COUNT], AT_ONCE, 0)
    result["handshakes_core"] = many["handshakes"] / many["cpu"]
    result["handshakes_second"] = many["handshakes"] / many["seconds"]
    result["fleet_added"] = statistics.median(_added(lab, gateway, number) for number in range(CHANGES))


def _added(lab: Lab, gateway: Gateway, number: int) -> float:
    """Milliseconds from just before `wg set` to the first answered handshake of the new device."""
    key = secrets.token_bytes(32)
    public = base64.b64encode(public_of(key)).decode()
    begun = time.monotonic()
    lab.run(lab.gateway, "wg", "set", gateway.interface, "peer", public, "allowed-ips", f"100.64.250.{number + 2}/32")
    set_at = time.monotonic() - begun
    report = handshakes(lab, gateway, [base64.b64encode(key).decode()], 1, 0)
    return (set_at + report["seconds"]) * 1000


def removed(lab: Lab, gateway: Gateway, client: WireGuardGo) -> float:
    """Milliseconds from just before `wg set … remove` to the last ping of the device that was answered."""
    key = re.search(r"(?m)^PrivateKey = (.*)$", client.quick.text)
    assert key
    public = base64.b64encode(public_of(base64.b64decode(key[1]))).decode()
    argv = lab.inside(client.namespace, "ping", "-n", "-D", "-i", "0.002", "-c", "700", "-W", "1", INTERNET4[0])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as pinging:
        time.sleep(0.5)
        begun = time.time()
        lab.run(lab.gateway, "wg", "set", gateway.interface, "peer", public, "remove")
        answers = [float(at) for at in re.findall(r"\[([0-9.]+)\] \d+ bytes from", pinging.communicate(timeout=30)[0])]
    late = [at - begun for at in answers if at > begun]
    return max(late, default=0.0) * 1000
