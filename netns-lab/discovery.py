"""An independent judge of NATs: coturn in evl-inet, and its turnutils_natdiscovery (RFC 5780) in a client's namespace.

coturn answers on both IPv4 addresses of evl-inet and on two ports of each, beside the lab's own STUN server. Of the tool's output
only facts are taken: its verdicts, the external endpoints it saw in the order it saw them, and how often it waited in vain.
"""

import re
import time
from dataclasses import dataclass

from topology import INTERNET4, Lab, LabError, run

PORT, OTHER_PORT = 3480, 3481
COTURN = "turnserver"
NATDISCOVERY = "turnutils_natdiscovery"
STARTED = 10.0  # s
PATIENCE = 60.0  # s for the tool, besides its own sleep
EMPTY_WAIT = 3.0  # s, how long the tool waits for an answer


@dataclass(frozen=True)
class Discovered:
    """What one run of the tool said."""

    text: str

    def _verdict(self, of: str) -> str:
        found = re.search(rf"NAT with (.*) {of}!", self.text)
        return found[1] if found else ""

    @property
    def mapping(self) -> str:
        """ "Endpoint Independent", "Address Dependent", "Address and Port Dependent"; empty when there was no verdict."""
        return self._verdict("Mapping")

    @property
    def filtering(self) -> str:
        return self._verdict("Filtering")

    @property
    def seen(self) -> list[tuple[str, int]]:
        """The external endpoint of each answer."""
        return [(address, int(port)) for address, port in re.findall(r"UDP reflexive addr: ([0-9.]+):(\d+)", self.text)]

    @property
    def came_round(self) -> bool:
        """Whether a request to the client's own external endpoint arrived at the client."""
        return "successful hairpinning" in self.text

    @property
    def timeouts(self) -> int:
        return self.text.count("receive timeout")

    @property
    def payload_untouched(self) -> bool:
        """Whether the addresses written into payloads in clear and masked were always the same."""
        return "No ALG" in self.text and "ALG detected" not in self.text


def start_coturn(lab: Lab) -> None:
    """Run it until the lab goes down, or `stop_coturn`. Raises LabError when it does not start."""
    addresses = [argument for address in INTERNET4 for argument in ("--listening-ip", address)]
    ports = ["--listening-port", str(PORT), "--alt-listening-port", str(OTHER_PORT)]
    only_stun = ["--stun-only", "--no-auth", "--no-cli", "--no-tcp", "--no-tls", "--no-dtls", "--relay-threads", "1"]
    files = ["--log-file", "/dev/null", "--simple-log", "--pidfile", str(lab.run_directory / "coturn.id")]
    lab.start(COTURN, lab.internet, COTURN, "-n", *only_stun, *addresses, *ports, *files)
    deadline = time.monotonic() + STARTED
    while run(["ip", "netns", "exec", lab.internet, "ss", "-Hlun", f"sport = :{OTHER_PORT}"]).stdout.count(str(OTHER_PORT)) < 2:
        if lab.processes.returncode(COTURN) is not None or time.monotonic() > deadline:
            raise LabError(f"coturn did not start in {lab.internet}: {lab.processes.output(COTURN, 'err').strip()[-500:]}")
        time.sleep(0.02)


def stop_coturn(lab: Lab) -> None:
    lab.processes.stop(COTURN)


def natdiscovery(lab: Lab, namespace: str, local: str, *options: str, port: int = 0) -> Discovered:
    """Run the tool from address `local` and, if not 0, from `port`."""
    return Discovered(lab.run(namespace, *command(local, *options, port=port), check=False, timeout=PATIENCE).stdout)


def command(local: str, *options: str, port: int = 0) -> list[str]:
    """The tool's command line."""
    return [NATDISCOVERY, *options, "-L", local, *(["-l", str(port)] if port else []), "-p", str(PORT), INTERNET4[0]]
