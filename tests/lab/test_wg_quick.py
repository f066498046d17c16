"""The file that `egressvpn peer add … --conf` prints works with a stock wg-quick, without any edit.

wg-quick hands the DNS servers to `resolvconf`, which would change the machine's own resolver: in a private mount namespace it is
a stub here that writes down what it was told.
"""

import ipaddress
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import traffic
from gateways import Egress
from topology import INTERNET4, POOL4, POOL6, Lab, LabError

STUB = """#!/bin/sh
echo "$@" >> {log}
[ "$1" = -d ] || cat >> {log}
"""


class Quick:
    """`wg-quick` inside client 2, where `resolvconf` is the stub."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.log = directory / "resolvconf.log"
        self.stub = directory / "resolvconf"
        self.stub.write_text(STUB.format(log=self.log))
        self.stub.chmod(0o755)
        self.file = directory / "phone.conf"

    def __call__(self, verb: str) -> str:
        script = f"for f in /usr/bin /usr/sbin /bin /sbin; do [ ! -e $f/resolvconf ] || mount --bind {self.stub} $f/resolvconf; done; "
        script += f"export PATH={self.stub.parent}:$PATH; exec wg-quick {verb} {self.file}"
        done = self.lab.run(self.lab.client(2), "sh", "-c", script, check=False)
        if done.returncode:
            raise LabError(f"wg-quick {verb} exited {done.returncode}: {done.stderr}")
        return done.stderr


@pytest.fixture
def quick(lab: Lab, gateway: Egress) -> Iterator[Quick]:
    directory = lab.run_directory / "wg-quick"
    directory.mkdir(exist_ok=True)
    runner = Quick(lab, directory)
    gateway.command("peer", "add", "phone", "--conf", str(runner.file))
    runner("up")
    yield runner
    runner("down")


def test_a_stock_client_works_with_the_printed_file(lab: Lab, quick: Quick) -> None:
    namespace = lab.client(2)
    assert traffic.first_answer(lab, namespace, INTERNET4[0])
    for version, pool in ((4, POOL4), (6, POOL6)):
        assert ipaddress.ip_address(traffic.seen_address(lab, namespace, version)[0]) in ipaddress.ip_network(pool)
        assert traffic.download(lab, namespace, version, 5_000_000).intact
    told = quick.log.read_text()
    assert f"nameserver {INTERNET4[0]}" in told
    assert oct(quick.file.stat().st_mode & 0o777) == "0o600"
    assert lab.run(namespace, "wg", "show", "phone", "latest-handshakes").stdout.split()[-1] > str(int(time.time()) - 60)
