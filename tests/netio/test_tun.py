import fcntl
import os
import socket
import subprocess
from collections.abc import Callable

import pytest

from egressvpn.errors import OperatorError
from egressvpn.netio import tun as tun_module
from egressvpn.netio.tun import VNET_BYTES, open_tun
from tests.netio.namespace import CLONE_NEWUSER, changes, crash, ip, isolated, snapshot, unshare


@isolated
def test_a_tun_is_nonblocking_closed_on_exec_and_takes_every_offload() -> None:
    tun = open_tun("egress0", 1420)
    assert (tun.name, tun.ifindex) == ("egress0", socket.if_nametoindex("egress0"))
    assert not os.get_blocking(tun.fd)
    assert fcntl.fcntl(tun.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert tun.offloads & tun_module.TCP_OFFLOADS == tun_module.TCP_OFFLOADS
    assert tun.udp_segmentation == (tun.offloads == 0x67)
    assert "mtu 1420" in ip("link show egress0")
    tun.close()


@isolated
def test_a_kernel_that_refuses_an_offload_still_gives_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tun_module, "UDP_OFFLOADS", 0x1060)  # a bit that no kernel knows, as USO is to one before 6.2
    tun = open_tun("egress0", 1420)
    assert tun.offloads == tun_module.TCP_OFFLOADS
    assert not tun.udp_segmentation
    tun.close()


@isolated
def test_packets_come_with_a_virtio_header_in_front_and_nothing_of_the_kernels_own() -> None:
    tun = open_tun("egress0", 1420)
    ip("link set egress0 up")
    ip("route add 203.0.113.0/28 dev egress0")
    ip("addr add 198.51.100.1/32 dev lo")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("198.51.100.1", 0))
        sender.sendto(b"hello", ("203.0.113.5", 9))
    packets = _drain(tun.fd)
    from_kernel = [packet for packet in packets if packet[VNET_BYTES] >> 4 == 6 and packet[VNET_BYTES + 8 : VNET_BYTES + 10] == b"\xfe\x80"]
    assert [packet[-5:] for packet in packets if packet[VNET_BYTES] == 0x45] == [b"hello"]
    assert from_kernel == []  # no link-local address, so no router solicitations
    tun.close()


@isolated
def test_it_has_as_many_queues_as_asked_for_and_dies_with_the_last() -> None:
    before = snapshot()
    tun = open_tun("egress0", 1420, queues=3)
    assert len(set(tun.fds)) == 3
    tun.close()
    assert changes(before, snapshot()) == {}


@isolated
def test_a_deleted_interface_is_told_from_a_renamed_one() -> None:
    tun = open_tun("egress0", 1420)
    ip("link set egress0 name other0")
    assert not tun.deleted()
    ip("link delete other0")
    assert tun.deleted()
    tun.close()


@isolated
def test_a_crash_leaves_no_interface() -> None:
    before = snapshot()
    crash(lambda: _keep(open_tun("egress0", 1420)))
    assert changes(before, snapshot()) == {}


@isolated
@pytest.mark.parametrize("queues", [1, 2])
def test_a_taken_name_is_refused_whoever_took_it(queues: int) -> None:
    tun = open_tun("egress0", 1420, queues)
    for name in ("egress0", "lo"):
        with pytest.raises(OperatorError, match=rf"{name} exists already; .*\[tunnel\] interface"):
            open_tun(name, 1420, queues)
    tun.close()


@isolated
def test_a_refused_mtu_leaves_no_interface() -> None:
    before = snapshot()
    with pytest.raises(OperatorError, match="MTU of 20"):
        open_tun("egress0", 20)
    assert changes(before, snapshot()) == {}


@isolated
def test_without_the_device_it_says_how_to_get_it() -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", "/dev/net"], check=True)
    with pytest.raises(OperatorError, match=r"no /dev/net/tun; `modprobe tun`.*mknod.*container"):
        open_tun("egress0", 1420)


@isolated
def test_without_cap_net_admin_it_says_so() -> None:
    unshare(CLONE_NEWUSER)
    with pytest.raises(OperatorError, match=r"no permission to create the interface egress0; .*CAP_NET_ADMIN"):
        open_tun("egress0", 1420)


@isolated
def test_an_ordinary_user_is_told_to_be_root() -> None:
    os.setuid(65534)
    with pytest.raises(OperatorError, match=r"no permission to (open|create)"):
        open_tun("egress0", 1420)


@isolated
def test_a_device_that_may_not_be_opened_is_told_apart() -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nodev", "none", "/dev/net"], check=True)
    subprocess.run(["mknod", "/dev/net/tun", "c", "10", "200"], check=True)
    with pytest.raises(OperatorError, match="no permission to open /dev/net/tun"):
        open_tun("egress0", 1420)


@pytest.mark.parametrize("name", ["", "a/b", "sixteen-letters-", "egress%d", "two words", "..", "eth0:1"])
def test_an_invalid_name_is_refused_before_the_kernel_sees_it(name: str) -> None:
    with pytest.raises(OperatorError, match=r"is no interface name; .*\[tunnel\] interface"):
        open_tun(name, 1420)


def _keep(_: object) -> None:
    """Holds the interface open until the process dies."""


def _drain(fd: int, read: Callable[[int, int], bytes] = os.read) -> list[bytes]:
    packets = []
    while True:
        try:
            packets.append(read(fd, 70_000))
        except BlockingIOError:
            return packets
