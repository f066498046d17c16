"""After a real exchange no key shows in anything a gateway or a client says: log, metrics, commands, arguments, environment.

The keys are taken from the files they are kept in and out of the memory of both workers: session keys, cookie secrets.
"""

import base64
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import traffic
from clients import EGRESSVPN, ENVIRONMENT, QuickFile, wait_ready
from gateways import METRICS, Egress
from processes import tree
from topology import INTERNET4, INTERNET6, Lab

from egressvpn.dataplane import arena
from egressvpn.dataplane.layout import Limits, layout
from tests.disclosure import disclosed

CLIENT = "secrets-client"
BOTH = ("gateway", "client")


@dataclass
class Exchange:
    """A gateway and a reference client with a session, both logging all they can, and everything that is secret of them."""

    lab: Lab
    gateway: Egress
    client: int  # pid
    secrets: list[bytes]

    def pid(self, who: str) -> int:
        return self.gateway.pid if who == "gateway" else self.client

    def name(self, who: str) -> str:
        return self.gateway.name if who == "gateway" else CLIENT

    def said(self, who: str) -> str:
        return self.lab.processes.output(self.name(who)) + self.lab.processes.output(self.name(who), "err")

    def ask(self, who: str, text: str) -> str:
        """What the control socket answers."""
        namespace = self.lab.gateway if who == "gateway" else self.lab.client(1)
        (path,) = (self.lab.run_directory / "wireguard" / namespace).glob("*.sock")
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.settimeout(10)
            connection.connect(str(path))
            connection.sendall(text.encode())
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()


@pytest.fixture(scope="module")
def exchange(lab: Lab) -> Iterator[Exchange]:
    gateway = Egress(lab, "gateway-secrets")
    gateway.init()
    gateway.edit(r"\[api\]", '[log]\nlevel = "debug"\n\n[api]')
    quick = QuickFile.parse(gateway.command("peer", "add", "laptop", "--psk", "--conf", "-").stdout)
    gateway.start()
    client = start_client(lab, quick.text)
    try:
        traffic.first_answer(lab, lab.client(1), INTERNET4[0])
        assert len(traffic.ping(lab, lab.client(1), INTERNET6[0], count=3)) == 3
        written = [(gateway.directory / "gateway.key").read_text(), *re.findall(r"(?m)^(?:PrivateKey|PresharedKey) = (.*)$", quick.text)]
        secrets = [base64.b64decode(text) for text in written]
        assert len(secrets) == 3
        yield Exchange(lab, gateway, client, secrets + in_memory(gateway.pid) + in_memory(client))
    finally:
        lab.processes.stop(CLIENT)
        gateway.stop()


def start_client(lab: Lab, text: str, ready: bool = True) -> int:
    directory = lab.run_directory / f"{CLIENT}.d"
    directory.mkdir(mode=0o700, exist_ok=True)
    file = directory / "laptop.conf"
    file.touch(mode=0o600)
    file.write_text(text)
    pid = lab.start(CLIENT, lab.client(1), *EGRESSVPN, "-v", "client", "up", "--dir", str(directory), environment=ENVIRONMENT)
    if ready:
        wait_ready(lab, CLIENT)
    return pid


def in_memory(root: int) -> list[bytes]:
    """Session keys of every session, and what cookies are made with, out of the arena of the worker below `root`."""
    found: list[bytes] = []
    for pid in tree(root):
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if "--arena" not in words:
            continue
        limits = Limits(**json.loads(words[words.index("--limits") + 1]))
        fd = os.open(f"/proc/{pid}/fd/{words[words.index('--arena') + 1]}", os.O_RDWR)
        tables = arena.attach(fd, layout(limits)).tables
        os.close(fd)
        sessions: Any = tables["sessions"]
        for row in sessions[sessions["index"] != 0]:
            found += [row["receive_key"].tobytes(), row["send_key"].tobytes()]
        assert tables["cookie"]["known"][0] == 1
        found.append(tables["cookie"]["state"][0].astype("<u4").tobytes())
    assert len(found) >= 3, "no session was found"
    return found


def test_the_logs_hold_no_key(exchange: Exchange) -> None:
    for who in BOTH:
        said = exchange.said(who)
        assert '"ready"' in said
        assert disclosed(exchange.secrets, said) == set()


@pytest.mark.parametrize(
    "command",
    ["status", "peer list", "peer show laptop", "peer config laptop", "flows", "pool list", "check"],
)
@pytest.mark.parametrize("output", ["table", "json"])
def test_no_command_prints_a_key(exchange: Exchange, command: str, output: str) -> None:
    done = exchange.gateway.command("-o", output, *command.split(), check=False)
    assert done.stdout
    secrets = exchange.secrets if command != "peer config laptop" else [exchange.secrets[0], exchange.secrets[1], *exchange.secrets[3:]]
    assert disclosed(secrets, done.stdout + done.stderr) == set()  # the client's file is for the client: its preshared key is in it


def test_the_metrics_hold_no_key(exchange: Exchange) -> None:
    text = exchange.lab.run(exchange.lab.gateway, "curl", "-sS", "--max-time", "5", METRICS).stdout
    assert "egress_" in text
    assert disclosed(exchange.secrets, text) == set()


@pytest.mark.parametrize("who", BOTH)
def test_no_process_has_a_key_among_its_arguments_or_in_its_environment(exchange: Exchange, who: str) -> None:
    pids = tree(exchange.pid(who))
    assert len(pids) >= 2
    for pid in pids:
        for name in ("cmdline", "environ", "comm"):
            assert disclosed(exchange.secrets, Path(f"/proc/{pid}/{name}").read_bytes()) == set()


@pytest.mark.parametrize("who", BOTH)
def test_mistakes_on_the_control_socket_are_answered_and_logged_without_keys(exchange: Exchange, who: str) -> None:
    private, public = exchange.secrets[0].hex(), "5a" * 32
    mistakes = {
        f"set=1\nprivate_key={private}0\n\n": -22,
        f"set=1\n{private}\n\n": -71,
        f"set=1\n{private}={private}\n\n": -22,
        f"set=1\nlisten_port={private}\n\n": -22,
        f"set=1\npublic_key={public}\nupdate_only=true\npreshared_key={private}{private}\n\n": -22,
        f"set=1\npublic_key={public}\nupdate_only=true\nendpoint={private}\n\n": -22,
    }
    for text, code in mistakes.items():
        assert exchange.ask(who, text) == f"errno={code}\n\n"
    exchange.ask(who, f"{private}\n\n")  # no operation: no answer
    time.sleep(0.2)  # what is logged of it comes from another process
    assert disclosed(exchange.secrets, exchange.said(who)) == set()


def test_the_control_socket_gives_the_keys_to_whoever_may_open_it(exchange: Exchange) -> None:
    """So the search finds keys where they are, and the socket is its owner's alone."""
    for who, namespace in (("gateway", exchange.lab.gateway), ("client", exchange.lab.client(1))):
        assert "hexadecimal" in disclosed(exchange.secrets, exchange.ask(who, "get=1\n\n"))
        (path,) = (exchange.lab.run_directory / "wireguard" / namespace).glob("*.sock")
        assert path.stat().st_mode & 0o777 == 0o600


def test_files_with_keys_are_their_owners_alone(exchange: Exchange) -> None:
    holding = [path for path in exchange.gateway.directory.rglob("*") if path.is_file() and disclosed(exchange.secrets, path.read_bytes())]
    assert {path.name for path in holding} >= {"gateway.key"}
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in holding} == {path.name: "0o600" for path in holding}


def test_a_broken_client_file_is_refused_without_its_keys(exchange: Exchange) -> None:
    """Last: the client is started anew, with the key cut short."""
    lab = exchange.lab
    lab.processes.stop(CLIENT)
    written = base64.b64encode(exchange.secrets[1]).decode()
    for text in (f"[Interface]\nPrivateKey = {written[:-3]}\n", f"[Interface]\n{written}\n", f"[Interface]\nMTU = {written}\n"):
        start_client(lab, text, ready=False)
        deadline = time.monotonic() + 60
        while lab.processes.returncode(CLIENT) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert lab.processes.returncode(CLIENT) == 1
        said = exchange.said("client")
        assert "laptop.conf, line" in said
        assert disclosed(exchange.secrets, said) == set()
