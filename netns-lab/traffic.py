"""What a client does through its tunnel, with the tools any Debian machine has; each function returns what was seen.

Used by the demo, the bench and the tests. A function raises LabError when its tool fails.
"""

import hashlib
import json
import re
import subprocess
from dataclasses import dataclass
from typing import Any

from servers import stream
from topology import INTERNET4, INTERNET6, Lab, LabError

INTERNET = {4: INTERNET4[0], 6: INTERNET6[0]}


def url(version: int, path: str) -> str:
    """A resource of the HTTP server of evl-inet."""
    host = INTERNET[version]
    return f"http://[{host}]{path}" if version == 6 else f"http://{host}{path}"


def ping(lab: Lab, namespace: str, target: str, count: int = 1, interval: float = 0.2, wait: int = 2) -> list[float]:
    """Round-trip times in milliseconds of the answers that came."""
    argv = ["ping", "-n", "-c", str(count), "-i", f"{interval}", "-W", str(wait), target]
    done = lab.run(namespace, *argv, check=False, timeout=count * (interval + wait) + 10)
    return [float(t) for t in re.findall(r"time=([0-9.]+) ms", done.stdout)]


def first_answer(lab: Lab, namespace: str, target: str, tries: int = 10) -> float:
    """The first ping that is answered, in milliseconds: the one that makes the handshake. Raises LabError when none is."""
    for _ in range(tries):
        if times := ping(lab, namespace, target):
            return times[0]
    raise LabError(f"{target} does not answer {namespace}'s pings")


def seen_address(lab: Lab, namespace: str, version: int) -> tuple[str, int]:
    """The address and port that the HTTP server saw the client come from."""
    answer = json.loads(lab.run(namespace, "curl", "-sS", "--max-time", "10", url(version, "/ip")).stdout)
    return answer["address"], answer["port"]


@dataclass(frozen=True)
class Transfer:
    """A transfer whose content was compared at both ends."""

    size: int
    sha256: str
    expected: str
    seconds: float

    @property
    def intact(self) -> bool:
        return self.sha256 == self.expected

    def __str__(self) -> str:
        rate = self.size * 8 / self.seconds / 1e6 if self.seconds else 0.0
        return f"{self.size / 1e6:.0f} MB, {rate:.0f} Mbit/s, sha256 {self.sha256[:12]}… {'equal' if self.intact else 'DIFFERS'}"


def expected_digest(size: int) -> str:
    digest = hashlib.sha256()
    for piece in stream(size):
        digest.update(piece)
    return digest.hexdigest()


def download(lab: Lab, namespace: str, version: int, size: int) -> Transfer:
    argv = ["curl", "-sS", "--max-time", "100", "-w", "%{stderr}%{time_total}", url(version, f"/bytes/{size}")]
    digest, received = hashlib.sha256(), 0
    with subprocess.Popen(lab.inside(namespace, *argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as curl:
        assert curl.stdout and curl.stderr
        while piece := curl.stdout.read(1 << 18):
            digest.update(piece)
            received += len(piece)
        said = curl.stderr.read().decode()
    if curl.returncode:
        raise LabError(f"download over IPv{version} in {namespace}: {said.strip()}")
    return Transfer(received, digest.hexdigest(), expected_digest(size), float(said))


def upload(lab: Lab, namespace: str, version: int, size: int) -> Transfer:
    argv = ["curl", "-sS", "--max-time", "100", "-w", "%{stderr}%{time_total}", "-X", "POST"]
    argv += ["-H", f"Content-Length: {size}", "-H", "Transfer-Encoding:", "-H", "Expect:", "-T", "-", url(version, "/sink")]
    with subprocess.Popen(lab.inside(namespace, *argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as curl:
        assert curl.stdin and curl.stdout and curl.stderr
        try:
            for piece in stream(size):
                curl.stdin.write(piece)
            curl.stdin.close()
        except BrokenPipeError:
            pass  # curl says why below
        answer, said = curl.stdout.read(), curl.stderr.read().decode()
    if curl.returncode or not answer:
        raise LabError(f"upload over IPv{version} in {namespace}: {said.strip()}")
    seen = json.loads(answer)
    return Transfer(seen["size"], seen["sha256"], expected_digest(size), float(said))


def dns(lab: Lab, namespace: str, server: str, name: str, kind: str) -> str:
    """The first record of the answer, over UDP."""
    argv = ["dig", "+short", "+notcp", "+tries=3", "+time=2", f"@{server}", name, kind]
    answer = lab.run(namespace, *argv).stdout.strip()
    if not answer:
        raise LabError(f"{server} did not answer {namespace}'s query for {name} {kind}")
    return answer.splitlines()[0]


def traceroute(lab: Lab, namespace: str, version: int) -> list[str]:
    """The hops to the HTTP server, the last of which is the server; a hop that did not answer is *."""
    argv = ["traceroute", f"-{version}", "-n", "-q", "1", "-w", "2", "-m", "6", INTERNET[version]]
    lines = lab.run(namespace, *argv).stdout.splitlines()[1:]
    return [line.split()[1] for line in lines if line.strip()]


def iperf3(lab: Lab, namespace: str, version: int, seconds: int, reverse: bool = False, port: int = 5201) -> dict[str, Any]:
    """The JSON report of a TCP transfer: upload, or with `reverse` download."""
    argv = iperf3_command(version, seconds, reverse, port)
    done = lab.run(namespace, *argv, check=False, timeout=seconds + 30)
    report = json.loads(done.stdout or "{}")
    if "error" in report or "end" not in report:
        raise LabError(f"iperf3 in {namespace}: {report.get('error', done.stderr.strip())}")
    return report


def iperf3_command(version: int, seconds: int, reverse: bool = False, port: int = 5201) -> list[str]:
    argv = ["iperf3", "--json", f"-{version}", "--client", INTERNET[version], "--port", str(port), "--time", str(seconds)]
    return [*argv, "--interval", "0.1", *(["--reverse"] if reverse else [])]
