"""netns.sh, cases 6 and 18 to 21: the local address of what is sent sticks, but not too long. n1 and n2 share a link."""

import pytest
from pair import INSIDE4, SIDES, Pair
from triangle import EGRESS

OURS = {"10.0.0.1": 24, "10.0.0.2": 24, "fd00:aa::1": 96, "fd00:aa::2": 96}  # of node 1
OURS_FIRST = {name: kinds for name, kinds in SIDES.items() if kinds[0] == EGRESS} or SIDES


def at(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@pytest.fixture
def linked(apart: Pair) -> Pair:
    """veth1 in n1, veth2 in n2, without addresses."""
    lab = apart.lab
    lab.link(1, "veth1", 2, "veth2")
    lab.sysctl(lab.namespace(1), net__ipv4__conf__veth1__promote_secondaries=1)
    return apart


@pytest.mark.parametrize("size", [1268, 1269, 1270, 1271, 1272])
def test_case_6_padding_never_exceeds_the_mtu(linked: Pair, size: int) -> None:
    """The kernel is told a route's MTU of 1299 and must stay below; what a TUN learns is the interface's."""
    for number, node in ((1, linked.one), (2, linked.two)):
        node.ip(f"address add 10.0.0.{number}/24 dev veth{number}")
        linked.lab.nft(number, "table ip f { chain in { type filter hook input priority 0; iifname veth* ip length > 1360 drop; }; }")
    linked.meet("10.0.0.2:2", "10.0.0.1:1")
    linked.set_mtu(1300)
    assert linked.two.ping(INSIDE4[1]) == 1
    assert linked.two.ping(INSIDE4[1], 1, "-s", str(size)) == 1


@pytest.mark.parametrize("_apart", OURS_FIRST.values(), ids=OURS_FIRST, indirect=True)
def test_case_18_a_source_address_that_is_removed_is_given_up(linked: Pair) -> None:
    """Node 1 is ours: Debian's wireguard-go does not give it up."""
    one, two = linked.one, linked.two
    one.ip("address add 10.0.0.1/24 dev veth1", "address add fd00:aa::1/96 dev veth1 nodad")
    two.ip("address add 10.0.0.2/24 dev veth2", "address add fd00:aa::2/96 dev veth2 nodad")
    one.set("peer", linked.key2.public, "endpoint", "10.0.0.2:2")
    assert one.ping(INSIDE4[2]) == 1
    one.ip("address add 10.0.0.10/24 dev veth1", "address delete 10.0.0.1/24 dev veth1")
    assert one.ping(INSIDE4[2]) == 1
    assert two.endpoint(linked.key1) == "10.0.0.10:1"
    one.set("peer", linked.key2.public, "endpoint", "[fd00:aa::2]:2")
    assert one.ping(INSIDE4[2]) == 1
    one.ip("address add fd00:aa::10/96 dev veth1 nodad", "address delete fd00:aa::1/96 dev veth1")
    assert one.ping(INSIDE4[2]) == 1
    assert two.endpoint(linked.key1) == "[fd00:aa::10]:1"


def test_case_19_the_answer_comes_from_the_address_that_was_asked(linked: Pair) -> None:
    one, two = linked.one, linked.two
    one.ip(*(f"address add {address}/{length} dev veth1{' nodad' if length == 96 else ''}" for address, length in OURS.items()))
    two.ip("address add 10.0.0.3/24 dev veth2", "address add fd00:aa::3/96 dev veth2 nodad")
    for address in ("10.0.0.1", "fd00:aa::1", "10.0.0.2", "fd00:aa::2"):
        two.set("peer", linked.key1.public, "endpoint", at(address, 1))
        assert two.ping(INSIDE4[1]) == 1
        assert two.endpoint(linked.key1) == at(address, 1)


def test_case_20_the_address_asked_may_be_another_interfaces(linked: Pair) -> None:
    one, two = linked.one, linked.two
    one.ip("address add 10.0.0.1/24 dev veth1", "link add other type bridge", "address add 10.50.0.1/24 dev other", "link set other up")
    two.ip("address add 10.0.0.3/24 dev veth2", "route add 10.50.0.0/24 dev veth2")
    two.set("peer", linked.key1.public, "endpoint", "10.50.0.1:1")
    assert two.ping(INSIDE4[1]) == 1
    assert two.endpoint(linked.key1) == "10.50.0.1:1"


def test_case_21_a_better_route_brings_its_own_source_address(linked: Pair) -> None:
    one, two = linked.one, linked.two
    linked.lab.link(1, "veth3", 2, "veth4")
    for node, devices in ((one, ("veth1", "all")), (two, ("veth4", "veth2", "all"))):
        linked.lab.sysctl(node.place, **{f"net__ipv4__conf__{device}__rp_filter": 0 for device in devices})
    one.ip("address add 10.0.0.1/24 dev veth1 noprefixroute", "address add 10.0.0.3/24 dev veth3 noprefixroute")
    two.ip("address add 10.0.0.2/24 dev veth2")
    one.ip("route add 10.0.0.0/24 dev veth1 src 10.0.0.1 metric 2")
    one.set("peer", linked.key2.public, "endpoint", "10.0.0.2:2")
    assert one.ping(INSIDE4[2]) == 1
    assert two.endpoint(linked.key1) == "10.0.0.1:1"
    one.ip("route add 10.0.0.0/24 dev veth3 src 10.0.0.3 metric 1")
    assert one.ping(INSIDE4[2]) == 1
    assert two.endpoint(linked.key1) == "10.0.0.3:1"
