"""Pools change under a running gateway: who must move moves, and all others notice nothing."""

import time
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import trio

from egressvpn.app.explain import Explanation, destination, explain
from egressvpn.app.pools import Slice
from egressvpn.control.config import parse
from egressvpn.control.store import DeviceKey
from egressvpn.errors import OperatorError
from egressvpn.nat.tables import BLOCK_HELD, BLOCK_OWNED, SECOND
from tests.app.bench import Bench, bench

TEXT = """
[wireguard]
max_devices = 8
[tunnel]
networks = ["100.64.0.0/24", "fd64::/64"]
[[pool]]
name = "default"
addresses = ["203.0.113.0/30", "2001:db8:113::/64"]
ports = "1024-2047"
block_size = 256
max_blocks = 2
[nat]
max_flows = 1024
"""
NAMES = "abcdef"

pytestmark = pytest.mark.timeout(300)  # s: whoever comes first compiles what the worker's commands call


def add(made: Bench, *names: str, pool: str = "default") -> None:
    for name in names:
        number = NAMES.index(name) + 2
        made.store.add_device(
            name,
            DeviceKey(bytes([number]) * 32),
            pool=pool,
            allocate=lambda _, number=number: [ip_address(f"100.64.0.{number}"), ip_address(f"fd64::{number}")],
            limit=100,
            now=0,
        )


def paired(made: Bench, name: str) -> str:
    """The external address that the data path has for a device."""
    slot = int(made.b.nat.subscribers[made.slot(name)].external4)
    return str(ip_address(int(made.b.nat.pool[slot].address))) if slot else ""


def blocks(made: Bench, address: str) -> list[tuple[int, int]]:
    """State and identity of every block of an address."""
    slot = next(slot for slot in range(1, made.b.nat.pool.size) if made.b.nat.pool[slot].address == int(IPv4Address(address)))
    stride = made.b.nat.blocks.size // made.b.nat.pool.size
    rows = made.b.nat.blocks[slot * stride : slot * stride + int(made.b.nat.pool[slot].blocks)]
    return [(int(row.state), int(row.identity)) for row in rows]


async def log_is_written(made: Bench) -> None:
    made.accounts.follow()
    await made.log.flush()


async def test_devices_of_an_address_that_goes_move_and_all_others_stay(tmp_path: Path) -> None:
    async with bench(tmp_path, TEXT) as made:
        add(made, *NAMES)
        await made.step()
        before = {name: made.give_block(name) for name in NAMES}
        gone = {name for name in NAMES if before[name][0] in ("203.0.113.2", "203.0.113.3")}
        assert gone
        assert gone < set(NAMES)
        slots = {name: made.slot(name) for name in NAMES}
        await made.change(TEXT.replace("203.0.113.0/30", "203.0.113.0/31"))
        assert {name for name in NAMES if paired(made, name) != before[name][0]} == gone
        assert {paired(made, name) for name in NAMES} <= {"203.0.113.0", "203.0.113.1"}
        assert {name: made.slot(name) for name in NAMES} == slots
        owned = {
            identity for address in ("203.0.113.0", "203.0.113.1") for state, identity in blocks(made, address) if state == BLOCK_OWNED
        }
        assert owned == {made.fleet.members[name].device.id for name in set(NAMES) - gone}
        await log_is_written(made)
        released = [(device, external) for event, device, external in made.events() if event == "block-released"]
        assert sorted(released) == sorted((name, before[name][0]) for name in gone)


async def test_an_address_that_comes_back_is_held_back_for_those_who_had_it(tmp_path: Path) -> None:
    async with bench(tmp_path, TEXT) as made:
        add(made, "a")
        await made.step()
        address, low = made.give_block("a")
        await made.change(TEXT.replace("203.0.113.0/30", "198.51.100.0/30"))
        assert paired(made, "a").startswith("198.51.100.")
        await made.change(
            TEXT.replace('"203.0.113.0/30"', '"203.0.113.0/30", "198.51.100.0/30"').replace("block_size = 256", "block_size = 128")
        )
        number = made.fleet.members["a"].device.id
        first = (low - 1024) // 128
        held = [place for place, block in enumerate(blocks(made, address)) if block == (BLOCK_HELD, number)]
        assert held == [first, first + 1]  # both halves of the block that it was


async def test_a_quota_changes_in_place(tmp_path: Path) -> None:
    async with bench(tmp_path, TEXT) as made:
        add(made, "a")
        await made.step()
        before = made.give_block("a")
        await made.change(TEXT.replace("max_blocks = 2", "max_blocks = 3"))
        assert paired(made, "a") == before[0]
        assert {int(row.max_blocks) for row in made.b.nat.pool if row.address} == {3}
        await log_is_written(made)
        assert not [event for event, *_ in made.events() if event == "block-released"]


async def test_other_ports_of_an_address_are_another_slice(tmp_path: Path) -> None:
    async with bench(tmp_path, TEXT) as made:
        add(made, *NAMES)
        await made.step()
        for name in NAMES:
            made.give_block(name)
        await made.change(TEXT.replace("1024-2047", "4096-8191"))
        assert {made.give_block(name)[1] >= 4096 for name in NAMES} == {True}
        rows = [row for row in made.b.nat.pool if row.address]
        assert {(int(row.port_low), int(row.port_high)) for row in rows} == {(4096, 8191)}
        assert len(rows) == 4


async def test_devices_of_a_pool_that_goes_stay_outside_until_it_comes_back(tmp_path: Path) -> None:
    async with bench(tmp_path, TEXT) as made:
        add(made, "a")
        add(made, "b", pool="other")
        await made.step()
        assert made.fleet.left_out == {"b": "b is in pool other, which is not configured"}
        await made.change(TEXT.replace('name = "default"', 'name = "other"'))
        assert set(made.fleet.members) == {"b"}
        assert made.fleet.left_out == {"a": "a is in pool default, which is not configured"}
        assert made.owner("100.64.0.2/32") == ""
        await made.change(TEXT)
        assert set(made.fleet.members) == {"a"}
        assert made.owner("100.64.0.2/32") == "a"


async def test_another_ipv6_prefix_gives_new_addresses_and_the_old_ones_are_held_back(tmp_path: Path) -> None:
    async with bench(tmp_path, TEXT) as made:
        add(made, "a")
        await made.step()
        before, address4 = made.fleet.members["a"].external6, paired(made, "a")
        await made.change(TEXT.replace("2001:db8:113::/64", "2001:db8:114::/64"))
        after = made.fleet.members["a"].external6
        assert after in ip_network("2001:db8:114::/64")
        row = made.b.nat.subscribers[made.slot("a")]
        assert IPv6Address((int(row.external6_hi) % 2**64 << 64) | int(row.external6_lo) % 2**64) == after
        assert paired(made, "a") == address4
        await log_is_written(made)
        assert [entry for entry in made.events() if entry[0].startswith("address")] == [
            ("address-allocated", "a", str(before)),
            ("address-released", "a", str(before)),
            ("address-allocated", "a", str(after)),
        ]
        await made.change(TEXT)
        assert made.fleet.members["a"].external6 == before  # held back for this very device


async def test_an_ipv6_address_is_nobody_elses_for_a_while(tmp_path: Path) -> None:
    async with bench(tmp_path, TEXT.replace("2001:db8:113::/64", "2001:db8:113::/126")) as made:
        add(made, "a")
        await made.step()
        before = made.fleet.members["a"].external6
        made.store.remove_device("a")
        await made.step()
        add(made, "b", "c")
        await made.step()
        others = {made.fleet.members[name].external6 for name in "bc"}
        assert None not in others
        assert before not in others


async def test_pools_that_there_is_no_room_for_are_refused_before_anything_changes(tmp_path: Path) -> None:
    async with bench(tmp_path, TEXT) as made:
        for text, says in (
            (TEXT.replace("203.0.113.0/30", "203.0.113.0/24"), "more pool addresses"),
            (TEXT.replace("1024-2047", "1024-65535").replace("block_size = 256", "block_size = 8"), "blocks for each address"),
        ):
            with pytest.raises(OperatorError, match=says):
                made.fleet.pools.check(parse(text, made.config.path))


async def test_blocks_of_before_a_restart_are_held_back_in_the_data_path(tmp_path: Path) -> None:
    async with bench(tmp_path, TEXT) as made:
        add(made, "a")
        await made.step()
        address, low = made.give_block("a")
        number = made.fleet.members["a"].device.id
        await log_is_written(made)
    async with bench(tmp_path, TEXT) as again:  # the first was killed
        place = (low - 1024) // 256
        assert blocks(again, address)[place] == (BLOCK_HELD, number)
        stride = again.b.nat.blocks.size // again.b.nat.pool.size
        slot = next(slot for slot in range(1, again.b.nat.pool.size) if again.b.nat.pool[slot].address == int(IPv4Address(address)))
        left = int(again.b.nat.blocks[slot * stride + place].hold_until) - time.monotonic_ns()
        assert 100 * SECOND < left <= 120 * SECOND
        assert again.give_block("a") == (address, low)


async def test_devices_of_a_deterministic_pool_have_the_block_that_the_plan_says(tmp_path: Path) -> None:
    text = TEXT.replace("max_blocks = 2", 'max_blocks = 2\nallocation = "deterministic"\ninside = "100.64.0.0/29"\ndynamic_factor = 2')
    async with bench(tmp_path, text) as made:
        add(made, *NAMES)
        await made.step()
        # hosts .1 to .6, two on each of four addresses (the last has none), and two shares for further blocks: 1024 / 4 ports
        assert [paired(made, name) for name in NAMES[:5]] == [f"203.0.113.{number}" for number in (0, 1, 1, 2, 2)]
        assert [made.fleet.members[name].egress.fixed for name in NAMES] == [2, 1, 2, 1, 2, 0]  # f is .7, outside
        for name, low in zip(NAMES[:5], (1280, 1024, 1280, 1024, 1280), strict=True):
            assert made.give_block(name)[1] == low
        await log_is_written(made)
        assert [event for event, *_ in made.events() if event == "deterministic"] == ["deterministic"]


# explain


async def explained(made: Bench, name: str, written: str) -> Explanation:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_answer, made)
        told = await explain(made.config, made.fleet, made.tunnel, name, written)
        nursery.cancel_scope.cancel()
    return told


async def _answer(made: Bench) -> None:
    from egressvpn.dataplane.channel import EVENT, unpack_event

    while True:
        made.work()
        try:
            made.tunnel.handle(unpack_event(made.supervisor._ours.recv(EVENT.itemsize)))
        except BlockingIOError:
            await trio.sleep(0.001)


async def test_explain_names_verdict_rule_pool_address_and_block(tmp_path: Path) -> None:
    text = TEXT.replace("[nat]", '[nat]\nexempt = ["10.9.0.0/16"]')
    async with bench(tmp_path, text) as made:
        add(made, "a")
        await made.step()
        fresh = await explained(made, "a", "198.51.100.2:443/tcp")
        assert (fresh["verdict"], fresh["pool"], fresh["external"], fresh["block"]) == ("pass", "default", paired(made, "a"), None)
        _, low = made.give_block("a")
        again = await explained(made, "a", "198.51.100.2:53/udp")
        assert (again["internal"], again["block"], again["way"]) == ("100.64.0.2", {"ports": [low, low + 255]}, "translated")
        six = await explained(made, "a", "2001:db8:51::2")
        assert (six["protocol"], six["external"], six["block"]) == ("icmp", str(made.fleet.members["a"].external6), None)
        for destination_, verdict, rule in (
            ("10.1.2.3:80", "policy_denied", "policy.deny 10.0.0.0/8"),
            ("100.64.0.3:80", "policy_denied", "policy.deny 100.64.0.0/10"),
            ("127.0.0.1:80", "policy_denied", "never a destination on the Internet"),
            ("10.9.2.3:80", "pass", "nat.exempt 10.9.0.0/16"),
        ):
            told = await explained(made, "a", destination_)
            assert told["verdict"] == verdict
            assert told["rule"] is not None
            assert told["rule"].startswith(rule)
        hairpin = await explained(made, "a", "203.0.113.1:1500/udp")
        assert (hairpin["way"], hairpin["verdict"] != "policy_denied") == ("hairpin", True)
        with pytest.raises(LookupError):
            await explain(made.config, made.fleet, made.tunnel, "nobody", "198.51.100.2")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("198.51.100.2", ("198.51.100.2", 0, "icmp")),
        ("198.51.100.2:443", ("198.51.100.2", 443, "tcp")),
        ("198.51.100.2:53/udp", ("198.51.100.2", 53, "udp")),
        ("2001:db8::2", ("2001:db8::2", 0, "icmp")),
        ("2001:db8::2/icmp", ("2001:db8::2", 0, "icmp")),
        ("[2001:db8::2]:53/udp", ("2001:db8::2", 53, "udp")),
        ("[2001:db8::2]", ("2001:db8::2", 0, "icmp")),
    ],
)
def test_destinations_are_read(written: str, read: Any) -> None:
    address, port, protocol = destination(written)
    assert (str(address), port, protocol) == read


@pytest.mark.parametrize(
    "written", ["", "x", "198.51.100.2:", "198.51.100.2/tcp", "198.51.100.2:1/gre", "198.51.100.2:65536", "fe80::1%eth0", ":1"]
)
def test_what_is_no_destination_is_refused(written: str) -> None:
    with pytest.raises(OperatorError, match="is not a destination"):
        destination(written)


def test_a_slice_tells_which_blocks_some_ports_touch() -> None:
    one = Slice(IPv4Address("203.0.113.1"), "default", 1000, 1999, block_size=100, max_blocks=1, fixed_blocks=2, fixed_size=150)
    assert one.blocks == 2 + 7
    assert list(one.begins(1149, 1150)) == [1000, 1150]
    assert list(one.begins(1299, 1400)) == [1150, 1300, 1400]
    assert list(one.begins(500, 999)) == []
