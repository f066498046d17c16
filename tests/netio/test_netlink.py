import ipaddress
import socket
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressvpn.addresses import IPNetwork
from egressvpn.errors import OperatorError
from egressvpn.netio.netlink import (
    PROTOCOL,
    Netlink,
    Route,
    Rule,
    interface_exists,
    local_addresses,
    remove_route,
    remove_stale,
    route_to,
)
from egressvpn.netio.tun import Tun, open_tun
from tests.netio.namespace import CLONE_NEWUSER, changes, crash, ip, isolated, snapshot, unshare, uplink

POOL4 = ipaddress.ip_network("203.0.113.0/28")
POOL6 = ipaddress.ip_network("2001:db8:113::/64")


@isolated
def test_everything_that_was_added_is_removed_again() -> None:
    uplink()
    tun = open_tun("egress0", 1420)
    before = snapshot()
    with Netlink() as netlink:
        _all_of_it(netlink, tun)
        assert f"proto {PROTOCOL}" in ip("route show 203.0.113.0/28")
        assert "mtu 1400" in ip("link show egress0")
        added = snapshot()
        assert all(added[table] != before[table] for table in ("-br link", "-br addr", "rule", "-6 rule", "route show table all"))
    ip("link set egress0 mtu 1420")
    assert changes(before, snapshot()) == {}
    tun.close()


@isolated
@pytest.mark.parametrize("reached", range(7))
def test_a_failure_half_way_leaves_nothing_half_set_up(reached: int) -> None:
    uplink()
    before = snapshot()
    tun = open_tun("egress0", 1420)
    with pytest.raises(OperatorError, match="cannot bring up"):
        _fail_after(reached, tun)
    tun.close()
    assert changes(before, snapshot()) == {}


@isolated
def test_a_crash_leaves_only_rules_and_those_are_found() -> None:
    uplink()
    before = snapshot()
    crash(lambda: _all_of_it(Netlink(), open_tun("egress0", 1420)))
    assert set(changes(before, snapshot())) == {"rule", "-6 rule"}
    assert remove_stale({51820}, range(100, 103)) == 4
    assert changes(before, snapshot()) == {}
    assert remove_stale({51820}, range(100, 103)) == 0


@isolated
def test_what_others_made_is_not_stale() -> None:
    uplink()
    tun = open_tun("egress0", 1420)
    ip("link set egress0 up")
    ip("rule add priority 100 table 51820")
    ip("route add default dev egress0 table 51820")
    ip(f"route add 198.51.100.0/24 dev egress0 proto {PROTOCOL}")  # ours, but not in that table: another gateway's pool
    before = snapshot()
    assert remove_stale({51820}, range(100, 103)) == 0
    assert changes(before, snapshot()) == {}
    tun.close()


@isolated
def test_a_stale_default_route_of_ours_is_removed_from_its_table() -> None:
    uplink()
    before = snapshot()
    for prefix in ("default", "198.51.100.0/24", "-6 default"):
        family, _, target = prefix.rpartition(" ")
        ip(f"{family} route add {target} dev up0 table 51820 proto {PROTOCOL}")
    assert remove_stale({51820}, range(0)) == 3
    assert changes(before, snapshot()) == {}


@isolated
@pytest.mark.parametrize(("prefix", "existing"), [(POOL4, "203.0.113.0/28 dev up0"), (POOL6, "2001:db8:113::/64 via 2001:db8:2::1")])
def test_a_pool_route_that_leads_elsewhere_is_refused(prefix: IPNetwork, existing: str) -> None:
    uplink()
    tun = open_tun("egress0", 1420)
    ip(f"{'-6 ' if prefix.version == 6 else ''}route add {existing} metric 7")
    with Netlink() as netlink:
        netlink.link_up(tun.ifindex, 1420)
        with pytest.raises(OperatorError, match=f"pool route already there: {prefix} leads to up0; remove it .`ip route del {prefix}`"):
            netlink.add_route(prefix, tun.ifindex)
    tun.close()


@isolated
def test_a_blackhole_for_the_pool_is_refused_too() -> None:
    tun = open_tun("egress0", 1420)
    ip("route add blackhole 203.0.113.0/28")
    ip("link set egress0 up")
    with Netlink() as netlink, pytest.raises(OperatorError, match=r"pool route already there: .* is routed already"):
        netlink.add_route(POOL4, tun.ifindex)
    tun.close()


@isolated
def test_a_wider_route_elsewhere_is_no_obstacle_and_a_route_that_is_ours_already_is_kept() -> None:
    uplink()
    tun = open_tun("egress0", 1420)
    ip("route add 203.0.113.0/24 dev up0")
    with Netlink() as netlink:
        netlink.link_up(tun.ifindex, 1420)
        ip("route add 203.0.113.0/28 dev egress0")
        netlink.add_route(POOL4, tun.ifindex)
        netlink.add_route(POOL6, tun.ifindex)
        netlink.add_route(POOL6, tun.ifindex)
        assert route_to(POOL4[5]) == Route("egress0", tun.ifindex, None, ipaddress.ip_address("192.0.2.2"))
        assert route_to(POOL6[5]) is not None
    tun.close()


@isolated
def test_a_pool_with_an_address_of_this_machine_is_refused() -> None:
    ip("addr add 203.0.113.1/32 dev lo")
    tun = open_tun("egress0", 1420)
    with Netlink() as netlink:
        netlink.link_up(tun.ifindex, 1420)
        with pytest.raises(OperatorError, match=r"holds 203\.0\.113\.1, which is an address of this machine \(lo\)"):
            netlink.add_pool_route(POOL4, tun.ifindex)
        netlink.add_pool_route(POOL6, tun.ifindex)
    tun.close()


@isolated
def test_what_is_gone_already_is_no_error_on_the_way_back() -> None:
    uplink()
    before = snapshot()
    tun = open_tun("egress0", 1420)
    netlink = Netlink()
    _all_of_it(netlink, tun)
    remove_route(POOL4, tun.ifindex)
    remove_route(POOL4, tun.ifindex)
    ip("rule del priority 101")
    tun.close()
    netlink.undo()
    netlink.undo()
    assert changes(before, snapshot()) == {}


@isolated
def test_without_cap_net_admin_it_says_so() -> None:
    index = socket.if_nametoindex("lo")
    unshare(CLONE_NEWUSER)
    with Netlink() as netlink, pytest.raises(OperatorError, match=r"no permission to bring up interface lo; .*CAP_NET_ADMIN"):
        netlink.link_up(index, 65_536)


@isolated
def test_addresses_and_routes_are_told_as_they_are() -> None:
    uplink()
    told = {str(local.address): local.interface for local in local_addresses() if not local.address.is_link_local}
    assert told == {"127.0.0.1/8": "lo", "::1/128": "lo", "192.0.2.2/24": "up0", "2001:db8:2::2/64": "up0"}
    up0 = socket.if_nametoindex("up0")
    far = route_to(ipaddress.ip_address("198.51.100.9"))
    assert far == Route("up0", up0, ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2"))
    assert route_to(ipaddress.ip_address("2001:db8:2::7")) == Route("up0", up0, None, ipaddress.ip_address("2001:db8:2::2"))
    ip("route del default")
    assert route_to(ipaddress.ip_address("198.51.100.9")) is None
    assert interface_exists("up0")
    assert not interface_exists("up7")


@isolated
def test_calls_from_several_threads_leave_no_descriptor_open() -> None:
    def descriptors() -> int:
        with socket.socket() as probe:  # the lowest free number
            return probe.fileno()

    local_addresses()
    before = descriptors()
    threads = [threading.Thread(target=local_addresses) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert descriptors() == before


@given(st.sampled_from([4, 6]), st.integers(1, 32_000), st.integers(1, 2**32 - 1), st.integers(0, 2**32 - 1), st.booleans())
def test_every_rule_of_ours_carries_our_protocol_and_priority(version: int, priority: int, table: int, mark: int, suppress: bool) -> None:
    attributes = Rule(version, priority, table, mark, suppress).attributes()
    assert (attributes["protocol"], attributes["priority"], attributes["table"]) == (PROTOCOL, priority, table)
    assert ("fwmark" in attributes) == bool(mark)


def _fail_after(reached: int, tun: Tun) -> None:
    with Netlink() as netlink:
        for step in _steps(netlink, tun)[:reached]:
            step()
        netlink.link_up(9999, 1420)


def _steps(netlink: Netlink, tun: Tun) -> list[Callable[[], None]]:
    return [
        lambda: netlink.link_up(tun.ifindex, 1400),
        lambda: netlink.add_address(tun.ifindex, ipaddress.ip_interface("100.64.0.2/32")),
        lambda: netlink.add_address(tun.ifindex, ipaddress.ip_interface("fd64::2/128")),
        lambda: netlink.add_pool_route(POOL4, tun.ifindex),
        lambda: netlink.add_pool_route(POOL6, tun.ifindex),
        lambda: netlink.add_route(ipaddress.ip_network("::/0"), tun.ifindex, 51820),
        lambda: _rules(netlink),
    ]


def _rules(netlink: Netlink) -> None:
    for version in (4, 6):
        netlink.add_rule(Rule(version, 101, 254, suppress_default=True))
        netlink.add_rule(Rule(version, 102, 51820, not_mark=51820))


def _all_of_it(netlink: Netlink, tun: Tun) -> None:
    for step in _steps(netlink, tun):
        step()
