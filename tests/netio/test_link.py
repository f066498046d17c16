"""The MTU of an interface, and that its changes are heard of, in whatever namespace it is."""

import select
import subprocess
import sys
from pathlib import Path

from egressvpn.netio.link import Link
from egressvpn.netio.tun import open_tun
from tests.netio.namespace import ip, isolated

ELSEWHERE = "import ctypes, sys; ctypes.CDLL(None).unshare(0x40000000); print('there', flush=True); sys.stdin.readline()"


def heard(link: Link) -> bool:
    return bool(select.select([link.changes], [], [], 5)[0])


@isolated
def test_a_changed_mtu_is_heard_of_and_told_under_any_name() -> None:
    tun = open_tun("egress0", 1420)
    link = Link(tun)
    link.settle()
    assert link.mtu() == 1420
    ip("link set egress0 mtu 1300")
    assert heard(link)
    link.settle()
    assert link.mtu() == 1300
    ip("link set egress0 name other0")
    assert link.mtu() == 1300
    ip("link delete other0")
    assert link.mtu() == 0
    link.close()
    tun.close()


@isolated
def test_an_interface_is_followed_to_another_namespace() -> None:
    tun = open_tun("egress0", 1420)
    link = Link(tun)
    link.settle()
    with subprocess.Popen([sys.executable, "-c", ELSEWHERE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdin
        assert other.stdout.readline() == "there\n"
        inside = ["nsenter", f"--net=/proc/{other.pid}/ns/net", "ip", "link", "set", "egress0", "mtu", "1280"]
        before = Path("/proc/self/ns/net").stat().st_ino
        ip(f"link set egress0 netns {other.pid}")
        assert heard(link)
        link.settle()
        assert link.mtu() == 1420
        subprocess.run(inside, check=True)
        assert heard(link)
        link.settle()
        assert link.mtu() == 1280
        assert Path("/proc/self/ns/net").stat().st_ino == before
        other.stdin.write("\n")
        other.stdin.flush()
        other.wait(5)
    link.close()
    tun.close()
