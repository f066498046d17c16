import ipaddress
import socket
import subprocess

import pytest

from egressvpn.errors import OperatorError
from egressvpn.netio.client_routes import MARK, ClientRoutes, bring_up, tear_down
from egressvpn.netio.netlink import Netlink, route_to
from egressvpn.netio.tun import VNET_BYTES, open_tun
from egressvpn.netio.udp import open_udp
from tests.netio.namespace import changes, crash, ip, isolated, snapshot, uplink

ENDPOINT4, ENDPOINT6 = ipaddress.ip_address("198.51.100.1"), ipaddress.ip_address("2001:db8:51::1")
FAR4, FAR6 = ipaddress.ip_address("198.51.100.9"), ipaddress.ip_address("2001:db8:99::9")
FULL = ClientRoutes(
    addresses=(ipaddress.ip_interface("100.64.0.2/32"), ipaddress.ip_interface("fd64::2/128")),
    allowed_ips=(ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")),
    endpoints=((ENDPOINT4, 51820), (ENDPOINT6, 51820), (ENDPOINT4, 51820)),
    mtu=1420,
)


@isolated
def test_traffic_goes_into_the_tunnel_and_marked_datagrams_outside() -> None:
    uplink()
    tun = open_tun("client0", 1420)
    with Netlink() as netlink:
        bring_up(netlink, tun.ifindex, FULL)
        for far, endpoint, inside in ((FAR4, ENDPOINT4, "100.64.0.2"), (FAR6, ENDPOINT6, "fd64::2")):
            within, outside = route_to(far), route_to(endpoint, MARK)
            assert within is not None
            assert outside is not None
            assert (within.interface, str(within.source)) == ("client0", inside)
            assert outside.interface == "up0"
        connected = route_to(ipaddress.ip_address("192.0.2.7"))  # what the main table knows better than by default
        assert connected is not None
        assert connected.interface == "up0"
    tun.close()


@isolated
def test_datagrams_really_take_those_ways() -> None:
    uplink()
    tun = open_tun("client0", 1420)
    with Netlink() as netlink, socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003)) as wire:
        bring_up(netlink, tun.ifindex, FULL)
        wire.bind(("up1", 0x0003))
        wire.settimeout(5)
        (outer,) = open_udp(["0.0.0.0:0"], MARK)
        (inner,) = open_udp(["0.0.0.0:0"])
        inner.socket.sendto(b"inner", (str(FAR4), 9))
        outer.socket.sendto(b"outer", (str(ENDPOINT4), 51820))
        while not (seen := wire.recv(2048)).endswith((b"outer", b"inner")):
            pass
        assert seen.endswith(b"outer")
        with open(tun.fd, "rb", buffering=0, closefd=False) as device:
            while (packet := device.read(70_000))[VNET_BYTES] >> 4 != 4:
                pass
        assert packet.endswith(b"inner")
        for opened in (outer, inner):
            opened.close()
    tun.close()


@isolated
def test_a_strict_rp_filter_outside_accepts_the_gateways_answers_and_only_those() -> None:
    uplink()
    tun = open_tun("client0", 1420)
    subprocess.run(["sysctl", "-qw", "net.ipv4.conf.up0.rp_filter=1"], check=True)
    with Netlink() as netlink:
        bring_up(netlink, tun.ifindex, FULL)
        assert "local 192.0.2.2" in ip(f"route get 192.0.2.2 from {ENDPOINT4} iif up0 ipproto udp sport 51820 dport 5000")
        with pytest.raises(subprocess.CalledProcessError):
            ip(f"route get 192.0.2.2 from {FAR4} iif up0 ipproto udp sport 51820 dport 5000")
    tun.close()


@isolated
def test_everything_is_undone_on_exit() -> None:
    uplink()
    before = snapshot()
    tun = open_tun("client0", 1420)
    with Netlink() as netlink:
        bring_up(netlink, tun.ifindex, FULL)
        assert set(changes(before, snapshot())) >= {"rule", "-6 rule", "route show table all", "-br addr"}
    tun.close()
    assert changes(before, snapshot()) == {}


@isolated
def test_a_crash_and_a_restart_end_where_they_began() -> None:
    uplink()
    before = snapshot()
    for _ in range(2):
        crash(_start)
        assert set(changes(before, snapshot())) == {"rule", "-6 rule"}
    tun = open_tun("client0", 1420)
    with Netlink() as netlink:
        bring_up(netlink, tun.ifindex, FULL)
        assert ip("rule").count("proto 222") == 3
    tun.close()
    assert changes(before, snapshot()) == {}


@isolated
def test_what_a_crash_left_can_be_removed_without_a_start() -> None:
    uplink()
    before = snapshot()
    crash(_start)
    assert tear_down() == 6
    assert tear_down() == 0
    assert changes(before, snapshot()) == {}


@isolated
def test_a_failure_half_way_leaves_nothing() -> None:
    uplink()
    ip("route add 198.51.100.0/24 via 192.0.2.1")
    before = snapshot()
    tun = open_tun("client0", 1420)
    networks = (*FULL.allowed_ips, ipaddress.ip_network("198.51.100.0/24"))
    wanted = ClientRoutes(FULL.addresses, networks, FULL.endpoints, 1420)
    with pytest.raises(OperatorError, match="already there"), Netlink() as netlink:
        bring_up(netlink, tun.ifindex, wanted)
    tun.close()
    assert changes(before, snapshot()) == {}


@isolated
def test_a_table_that_another_tunnel_uses_is_refused() -> None:
    uplink()
    ip(f"route add default dev up0 table {MARK}")
    before = snapshot()
    tun = open_tun("client0", 1420)
    with pytest.raises(OperatorError, match=r"table 51820 is in use: 0\.0\.0\.0/0 leads to up0"), Netlink() as netlink:
        bring_up(netlink, tun.ifindex, FULL)
    tun.close()
    assert changes(before, snapshot()) == {}


@isolated
@pytest.mark.parametrize(("table", "where"), [(None, "main"), (7, "7")])
def test_a_split_tunnel_has_plain_routes_and_no_rules(table: int | None, where: str) -> None:
    uplink()
    tun = open_tun("client0", 1420)
    rules = ip("rule")
    address = ipaddress.ip_interface("100.64.0.2/24")
    networks = (address.network, ipaddress.ip_network("198.51.100.0/24"), ipaddress.ip_network("2001:db8:99::/48"))
    with Netlink() as netlink:
        bring_up(netlink, tun.ifindex, ClientRoutes((address,), networks, (), 1420, table=table))
        assert "198.51.100.0/24 dev client0" in ip(f"route show table {where}")
        assert "2001:db8:99::/48 dev client0" in ip(f"-6 route show table {where}")
        assert ip("rule") == rules
    tun.close()


@isolated
def test_table_off_adds_no_routes() -> None:
    uplink()
    tun = open_tun("client0", 1420)
    with Netlink() as netlink:
        bring_up(netlink, tun.ifindex, ClientRoutes(FULL.addresses, FULL.allowed_ips, FULL.endpoints, 1420, table=0))
        outside = route_to(FAR4)
        assert outside is not None
        assert outside.interface == "up0"
        assert "proto 222" not in ip("route show table all") + ip("rule")
    tun.close()


@isolated
def test_an_mtu_too_small_for_ipv6_is_told() -> None:
    tun = open_tun("client0", 1200)
    wanted = ClientRoutes(FULL.addresses, FULL.allowed_ips, (), 1200)
    with pytest.raises(OperatorError, match=r"1200 is too small .*fd64::2/128"), Netlink() as netlink:
        bring_up(netlink, tun.ifindex, wanted)
    tun.close()


def _start() -> None:
    bring_up(Netlink(), open_tun("client0", 1420).ifindex, FULL)
