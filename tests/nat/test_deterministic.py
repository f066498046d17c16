"""RFC 7422: its example to the letter, every algorithm a bijection, and a subscriber found from the log alone."""

import json
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressvpn.nat.deterministic import ALGORITHMS, INTERLACED, ROUND_ROBIN, SEQUENTIAL, STAGGERED, Deterministic
from egressvpn.nat.slices import block_count
from tests.nat.block_support import Pools

EXAMPLE = Deterministic(IPv4Network("198.51.100.0/28"), (IPv4Network("192.0.2.1/32"),), dynamic_factor=2, max_ports=5040)
TABLE = {
    1: (1024, 5055),
    2: (5056, 9087),
    3: (9088, 13119),
    4: (13120, 17151),
    5: (17152, 21183),
    6: (21184, 25215),
    7: (25216, 29247),
    8: (29248, 33279),
    9: (33280, 37311),
    10: (37312, 41343),
    11: (41344, 45375),
    12: (45376, 49407),
    13: (49408, 53439),
    14: (53440, 57471),
}
CSIT = {16: 4032, 32: 2016, 64: 1008, 128: 504, 256: 252, 512: 126, 1024: 63}  # hosts per address: ports per host
OUTSIDE = IPv4Address("192.0.2.1")

configurations = st.builds(
    Deterministic,
    inside=st.integers(26, 32).map(lambda length: IPv4Network(f"100.64.0.0/{length}")),
    outside=st.sampled_from(["203.0.113.0/30", "203.0.113.9/32", "203.0.113.0/31"]).map(
        lambda first: (IPv4Network(first), IPv4Network("198.51.100.7/32"))
    ),
    dynamic_factor=st.integers(0, 5),
    ports=st.tuples(st.integers(1024, 1500), st.integers(1800, 2100)),
    algorithm=st.sampled_from(ALGORITHMS),
)


@pytest.mark.parametrize(("host", "ports"), TABLE.items())
def test_rfc7422_example_forward(host: int, ports: tuple[int, int]) -> None:
    assert EXAMPLE.forward(IPv4Address(f"198.51.100.{host}")) == (OUTSIDE, *ports)


def test_rfc7422_example_has_4032_ports_per_user_and_a_dynamic_range_from_57472() -> None:
    assert EXAMPLE.ports_per_user == 4032
    assert EXAMPLE.dynamic_ports == (57472, 65535)


def test_rfc7422_example_reverse() -> None:
    assert EXAMPLE.reverse(OUTSIDE, 2001) == IPv4Address("198.51.100.1")
    assert EXAMPLE.reverse(OUTSIDE, 58204) is None
    for host, (low, high) in TABLE.items():
        assert EXAMPLE.reverse(OUTSIDE, low) == EXAMPLE.reverse(OUTSIDE, high) == IPv4Address(f"198.51.100.{host}")


@pytest.mark.parametrize("port", [0, 1, 1023, 57472, 65535])
def test_rfc7422_reserved_and_dynamic_ports_are_nobodys(port: int) -> None:
    assert EXAMPLE.reverse(OUTSIDE, port) is None
    assert EXAMPLE.reverse(IPv4Address("192.0.2.2"), 2001) is None


@pytest.mark.parametrize(("hosts", "ports"), CSIT.items())
def test_csit_ports_per_host(hosts: int, ports: int) -> None:
    inside = IPv4Network(f"20.0.0.0/{32 - hosts.bit_length() - 1}")  # more hosts than wanted, and as many addresses more
    addresses = -(-(inside.num_addresses - 2) // hosts)
    made = Deterministic(inside, tuple(IPv4Network((int(IPv4Address("68.142.0.0")) + n, 32)) for n in range(addresses)))
    assert made.compression == hosts
    assert made.ports_per_user == ports


@pytest.mark.parametrize("host", ["198.51.100.0", "198.51.100.15", "198.51.99.255", "198.51.101.1", "0.0.0.0", "255.255.255.255"])
def test_an_address_that_is_no_host_of_the_inside_has_no_ports(host: str) -> None:
    assert EXAMPLE.forward(IPv4Address(host)) is None
    assert EXAMPLE.block(IPv4Address(host)) is None
    assert EXAMPLE.endpoints(IPv4Address(host)) == []


@given(configurations)
def test_rfc7422_every_port_is_one_users_or_dynamic_and_both_ways_agree(made: Deterministic) -> None:
    given_to: dict[tuple[IPv4Address, int], IPv4Address] = {}
    hosts = list(made.inside) if made.inside.prefixlen >= 31 else list(made.inside)[1:-1]
    for internal in hosts:
        endpoints = made.endpoints(internal)
        assert len(set(endpoints)) == len(endpoints) == made.ports_per_user
        for endpoint in endpoints:
            assert endpoint not in given_to
            assert made.ports[0] <= endpoint[1] <= made.ports[1]
            given_to[endpoint] = internal
    for address in made.addresses:
        for port in range(made.ports[0] - 1, made.ports[1] + 2):
            assert made.reverse(address, port) == given_to.get((address, port))
    assert made.dynamic_ports is None or all(port < made.dynamic_ports[0] for _, port in given_to)


@given(configurations)
def test_rfc7422_the_share_of_an_address_that_is_dynamic_is_at_least_d_of_c_and_d(made: Deterministic) -> None:
    low, high = made.dynamic_ports or (0, -1)
    assert (high - low + 1) * (made.compression + made.dynamic_factor) >= (made.ports[1] - made.ports[0] + 1) * made.dynamic_factor


def test_rfc7422_staggered_users_have_every_cth_port() -> None:
    made = Deterministic(IPv4Network("10.0.0.0/29"), (IPv4Network("192.0.2.1"), IPv4Network("192.0.2.2")), algorithm=STAGGERED)
    assert made.compression == 3
    ports = [port for address, port in made.endpoints(IPv4Address("10.0.0.2")) if address == OUTSIDE]
    assert ports[:3] == [1025, 1028, 1031]
    assert {after - before for before, after in pairwise(ports)} == {3}


def test_rfc7422_round_robin_gives_the_same_ports_on_all_addresses() -> None:
    outside = tuple(IPv4Network(f"192.0.2.{n}") for n in range(10))
    made = Deterministic(IPv4Network("10.0.0.0/23"), outside, ports=(2000, 2000 + 51 * 100 - 1), algorithm=ROUND_ROBIN)
    assert (made.compression, made.ports_per_user) == (51, 100)
    endpoints = made.endpoints(IPv4Address("10.0.0.1"))
    assert {port for _, port in endpoints} == set(range(2000, 2010))
    assert len({address for address, _ in endpoints}) == 10


def test_rfc7422_interlaced_users_have_every_cth_port_spread_over_the_addresses() -> None:
    outside = tuple(IPv4Network(f"192.0.2.{n}") for n in (1, 2, 3))
    made = Deterministic(IPv4Network("10.0.0.0/28"), outside, algorithm=INTERLACED)
    endpoints = made.endpoints(IPv4Address("10.0.0.1"))
    assert {after[1] - before[1] for before, after in pairwise(endpoints)} == {made.compression}
    assert [int(address) & 0xFF for address, _ in endpoints[:4]] == [1, 2, 3, 1]


def test_rfc7422_section3_a_subscriber_is_found_from_the_log_alone_after_three_changes() -> None:
    changes = [
        (100, EXAMPLE),
        (200, Deterministic(IPv4Network("198.51.100.0/27"), (IPv4Network("192.0.2.1/32"),), dynamic_factor=2, max_ports=3000)),
        (300, Deterministic(IPv4Network("198.51.100.0/27"), (IPv4Network("192.0.2.0/31"),), dynamic_factor=1, ports=(2048, 65535))),
        (400, Deterministic(IPv4Network("198.51.100.0/27"), (IPv4Network("192.0.2.0/31"),), algorithm=STAGGERED)),
    ]
    log = [json.dumps({"time": time, **made.record()}) for time, made in changes]
    for time, made in changes:
        for host in range(1, 15):
            internal = IPv4Address(f"198.51.100.{host}")
            external, port = made.endpoints(internal)[7]
            known = [json.loads(line) for line in log]
            then = max((line for line in known if line["time"] <= time + 50), key=lambda line: line["time"])
            assert Deterministic.from_record(then).reverse(external, port) == internal


@given(configurations)
def test_a_record_holds_all_that_the_mapping_depends_on(made: Deterministic) -> None:
    assert Deterministic.from_record(json.loads(json.dumps(made.record()))) == made


@given(configurations, st.data())
def test_the_data_path_uses_the_ports_that_the_formula_says(any_algorithm: Deterministic, data: st.DataObject) -> None:
    made = Deterministic.from_record(any_algorithm.record() | {"algorithm": SEQUENTIAL})
    low, high = made.ports
    count = block_count(low, high, 32, made.compression, made.ports_per_user)
    pools = Pools(
        addresses=len(made.addresses),
        low=low,
        high=high,
        size=32,
        most=0,
        fixed_blocks=made.compression,
        fixed_size=made.ports_per_user,
    )
    assert pools.nat.pool[1].blocks == count
    internal = data.draw(st.sampled_from(list(made.inside.hosts())))
    block, forward = made.block(internal), made.forward(internal)
    assert block is not None
    assert forward is not None
    pools.subscribe(1, 1001, block[0] + 1, fixed=block[1] + 1)
    ports = pools.fill(1)
    assert {slot for slot, _, _ in ports} == {made.addresses.index(forward[0]) + 1}
    assert sorted(port for _, _, port in ports) == list(range(forward[1], forward[2] + 1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"algorithm": 4}, "not offered"),
        ({"algorithm": -1}, "not offered"),
        ({"outside": ()}, "no outside address"),
        ({"ports": (0, 10)}, "range of ports"),
        ({"ports": (2000, 1999)}, "range of ports"),
        ({"ports": (1024, 65536)}, "range of ports"),
        ({"dynamic_factor": -1}, "negative"),
        ({"inside": IPv4Network("10.0.0.0/8")}, "not enough"),
        ({"dynamic_factor": 10**6}, "not enough"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(wrong: dict[str, object], message: str) -> None:
    good = {"inside": IPv4Network("10.0.0.0/24"), "outside": (IPv4Network("192.0.2.1/32"),)}
    with pytest.raises(ValueError, match=message):
        Deterministic(**(good | wrong))  # type: ignore[arg-type]
