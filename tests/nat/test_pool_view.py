"""What people see of the pool: slices, ports and blocks in use, held and free, and what is left over."""

from egressvpn.nat.blocks import hold_block
from egressvpn.nat.pool_view import block_of, blocks_of, owned, pool_usage
from egressvpn.nat.pools import clear_pool
from egressvpn.nat.tables import UDP_PORTS
from tests.nat.block_support import ADDRESS, Pools, ns


def test_usage_counts_ports_by_protocol_and_blocks_by_state() -> None:
    pools = Pools(addresses=2, most=3)
    pools.fill(1)
    pools.port(1, UDP_PORTS)
    pools.free(pools.port(3, now=10), now=10)
    usage = pool_usage(pools.nat, ns(11))
    assert [row["address"] for row in usage] == ["203.0.113.1", "203.0.113.2"]
    row = usage[0]
    assert (row["tcp"], row["udp"], row["icmp"]) == (48, 1, 0)
    assert (row["blocks"], row["blocks_used"], row["blocks_held"], row["blocks_free"]) == (4, 3, 1, 0)
    assert (row["port_low"], row["port_high"], row["size"], row["unused"], row["devices"]) == (1024, 1087, 64, 0, 2)
    assert (row["slot"], row["group"], row["block_size"], row["max_blocks"], row["exhausted"]) == (1, 1, 16, 3, 0)
    assert usage[1]["blocks_free"] == 4


def test_a_hold_that_is_over_counts_as_free() -> None:
    pools = Pools()
    pools.free(pools.port(1, now=0), now=0)
    assert [row["blocks_held"] for row in (*pool_usage(pools.nat, ns(119)), *pool_usage(pools.nat, ns(120)))] == [1, 0]


def test_a_slice_that_is_no_multiple_of_the_block_size_says_what_is_left_over() -> None:
    (row,) = pool_usage(Pools(low=1000, high=1999, size=256, most=256).nat)
    assert (row["size"], row["blocks"], row["unused"]) == (1000, 3, 232)
    (row,) = pool_usage(Pools(low=1000, high=1999, size=256, fixed_blocks=3, fixed_size=100).nat)
    assert (row["size"], row["blocks"], row["unused"]) == (1000, 5, 188)


def test_exhaustion_is_counted_for_the_address() -> None:
    pools = Pools(high=1024 + 15, most=1)
    pools.port(1)
    pools.take(2)
    pools.take(2)
    assert [row["exhausted"] for row in pool_usage(pools.nat)] == [2]


def test_an_address_that_was_removed_is_not_shown() -> None:
    pools = Pools(addresses=2)
    clear_pool(pools.nat, 1)
    assert [row["slot"] for row in pool_usage(pools.nat)] == [2]


def test_blocks_of_a_device_are_those_it_owns_and_those_held_for_it() -> None:
    pools = Pools(most=2)
    pools.fill(1, now=3)
    first, second = blocks_of(pools.nat, 1)
    assert first["port_low"] < second["port_low"]
    assert first["port_high"] - first["port_low"] == 15
    assert (first["state"], first["ports_used"], first["given"], first["identity"], first["device"]) == ("used", 16, ns(3), 1001, 1)
    for port in [port for port in pools.owners if port[2] <= first["port_high"]]:
        pools.free(port, now=4)
    held = blocks_of(pools.nat, 1)[0]
    assert (held["state"], held["hold_until"]) == ("held", ns(124))
    assert blocks_of(pools.nat, 2) == []


def test_the_block_of_a_port_tells_its_owner_or_that_it_has_none() -> None:
    pools = Pools()
    slot, _, port = pools.port(2)
    block = block_of(pools.nat, slot, port)
    assert block is not None
    assert (block["device"], block["state"], block["address"], block["predefined"]) == (2, "used", "203.0.113.1", False)
    assert hold_block(pools.nat, 1, 1024 if port >= 1040 else 1040, 77, ns(9)) == 1
    other = block_of(pools.nat, 1, 1024 if port >= 1040 else 1040)
    assert other is not None
    assert (other["device"], other["identity"], other["state"]) == (0, 77, "held")
    assert block_of(pools.nat, 1, 1088) is None
    assert block_of(pools.nat, 1, 1023) is None
    assert block_of(pools.nat, 0, 1024) is None
    assert block_of(pools.nat, 9, 1024) is None


def test_owned_lists_every_block_that_a_device_owns() -> None:
    pools = Pools(addresses=2, most=2)
    pools.fill(1, now=1)
    pools.port(2, now=2)
    pools.free(pools.port(3))
    rows = owned(pools.nat)
    assert [(slot, address, identity, given) for slot, address, _, _, identity, given in rows] == [
        (1, ADDRESS + 1, 1001, ns(1)),
        (1, ADDRESS + 1, 1001, ns(1)),
        (2, ADDRESS + 2, 1002, ns(2)),
    ]
    for slot, kind, port in pools.owners:
        assert any(slot == row[0] and row[2] <= port <= row[3] for row in rows), kind
