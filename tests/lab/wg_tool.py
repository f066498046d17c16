"""`wg` on one interface of the lab: the stock tool, and its socket spoken to by hand."""

import contextlib
import json
import socket
import subprocess
import textwrap

from clients import QuickFile
from gateways import Egress
from topology import GATEWAY4, WIREGUARD_PORT, Lab, run

FILE = "wg-test.conf"


def key() -> tuple[str, str]:
    """A fresh (private, public) key pair."""
    private = run(["wg", "genkey"]).stdout.strip()
    return private, run(["wg", "pubkey"], stdin=private).stdout.strip()


def sections(text: str) -> set[str]:
    """A configuration without the order of its peers and lines."""
    return {"\n".join(sorted(section.strip().splitlines())) for section in text.split("\n\n")}


def interface_of(gateway: Egress) -> str:
    """The name of a running gateway's interface."""
    return json.loads(gateway.lab.processes.output(gateway.name).splitlines()[0])["interface"]


class Wg:
    """`wg` on one interface, and what it is told by files."""

    def __init__(self, lab: Lab, namespace: str, interface: str) -> None:
        self.lab = lab
        self.namespace = namespace
        self.interface = interface

    def __call__(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.lab.run(self.namespace, "wg", *argv, check=check, timeout=120)

    def set(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self("set", self.interface, *argv, check=check)

    def show(self, what: str) -> str:
        return self("show", self.interface, what).stdout.strip()

    def showconf(self) -> str:
        return self("showconf", self.interface).stdout

    def conf(self, verb: str, text: str) -> None:
        """setconf, addconf or syncconf with a file of this text."""
        self(verb, self.interface, self.file(textwrap.dedent(text)))

    def file(self, content: str) -> str:
        """A file that only root reads."""
        path = self.lab.run_directory / FILE
        path.touch(mode=0o600)
        path.write_text(content)
        return str(path)

    def peers(self) -> dict[str, list[str]]:
        """The lines of `dump`, by public key: preshared key, endpoint, allowed IPs, handshake, received, sent, keepalive."""
        lines = [line.split("\t") for line in self.show("dump").splitlines()[1:]]
        return {line[0]: line[1:] for line in lines}

    def connect(self) -> socket.socket:
        """A connection to the control socket, which is found by its path from every namespace."""
        with contextlib.ExitStack() as on_failure:
            one = on_failure.enter_context(socket.socket(socket.AF_UNIX))
            one.connect(str(self.lab.run_directory / "wireguard" / self.namespace / f"{self.interface}.sock"))
            one.settimeout(60)
            on_failure.pop_all()
        return one

    def ask(self, text: str) -> str:
        """What the socket answers to these octets."""
        heard = b""
        with self.connect() as one, contextlib.suppress(ConnectionResetError, BrokenPipeError):
            one.sendall(text.encode())
            one.shutdown(socket.SHUT_WR)
            while octets := one.recv(65536):
                heard += octets
        return heard.decode()

    def quick_file(self, private: str, addresses: str) -> QuickFile:
        """For a client of this gateway."""
        return QuickFile.parse(
            f"[Interface]\nPrivateKey = {private}\nAddress = {addresses}\nMTU = 1420\n"
            f"[Peer]\nPublicKey = {self.show('public-key')}\nEndpoint = {GATEWAY4}:{WIREGUARD_PORT}\nAllowedIPs = 0.0.0.0/0, ::/0\n"
        )
