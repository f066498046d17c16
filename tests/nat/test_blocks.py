"""Blocks: given, held, given back to their last owner or to others, within the quota."""

import pytest

from egressvpn.nat.blocks import block_high, block_low, hold_block, release_device, release_expired
from egressvpn.nat.pools import clear_pool, set_pool
from egressvpn.nat.tables import (
    BLOCK_GIVEN,
    BLOCK_HELD,
    BLOCK_OWNED,
    BLOCK_TAKEN_BACK,
    PORT_KINDS,
    UDP_PORTS,
)
from egressvpn.verdict import Verdict
from tests.nat.block_support import ADDRESS, Pools, ns
from tests.nat.test_ports import chi_square_is_likely, octets

HOLD_DOWN = 120  # s


def test_a_device_has_one_block_until_its_ports_of_a_kind_are_used_up() -> None:
    pools = Pools()
    for kind in range(PORT_KINDS):
        for _ in range(16):
            pools.port(1, kind)
    assert pools.nat.subscribers[1].blocks == 1
    pools.port(1)
    assert pools.nat.subscribers[1].blocks == 2
    pools.assert_whole()


def test_rfc6888_req4_a_device_gets_no_more_blocks_than_its_quota_and_harms_no_other() -> None:
    pools = Pools(most=3)
    assert len(pools.fill(1)) == 48
    assert pools.take(1) == Verdict.QUOTA_EXCEEDED
    assert pools.take(1, UDP_PORTS) != Verdict.QUOTA_EXCEEDED
    assert isinstance(pools.take(2), tuple)
    assert pools.nat.pool[1].exhausted == 0
    pools.assert_whole()


def test_held_blocks_count_for_the_quota() -> None:
    pools = Pools(most=2, high=1024 + 16 * 8 - 1)
    ports = pools.fill(1)
    for port in ports:
        if pools.row(1, 0) and port[2] < max(p for _, _, p in ports) - 15:
            pools.free(port, 10)
    assert pools.nat.subscribers[1].blocks == 2
    assert pools.nat.pool[1].held == 1
    assert len(pools.fill(1, now=20)) == 16
    assert pools.take(1, now=20) == Verdict.QUOTA_EXCEEDED
    assert {low for _, _, low, _ in pools.journal()} == {int(low) for low in {(p - 1024) // 16 * 16 + 1024 for _, _, p in ports}}
    pools.assert_whole()


def test_rfc6888_req8_a_freed_block_is_nobody_elses_for_120_seconds() -> None:
    pools = Pools(high=1024 + 15, most=1)
    port = pools.port(1)
    pools.free(port, now=1000)
    assert pools.take(2, now=1000) == Verdict.PORTS_EXHAUSTED
    assert pools.take(2, now=1000 + HOLD_DOWN - 0.001) == Verdict.PORTS_EXHAUSTED
    assert pools.nat.pool[1].exhausted == 2
    assert isinstance(pools.take(2, now=1000 + HOLD_DOWN), tuple)
    pools.assert_whole()


def test_rfc6888_req8_its_last_owner_has_a_freed_block_back_at_once() -> None:
    pools = Pools()
    before = pools.port(1)
    low = block_low(pools.nat, pools.nat.subscribers[1].first_block)
    pools.free(before, now=5)
    assert pools.block(before).state == BLOCK_HELD
    after = pools.port(1, now=5.001)
    assert block_low(pools.nat, pools.nat.subscribers[1].first_block) == low <= after[2] <= block_high(pools.nat, pools.row(1, 3))
    assert [kind for kind, *_ in pools.journal()] == [BLOCK_GIVEN, BLOCK_TAKEN_BACK, BLOCK_GIVEN]
    pools.assert_whole()


def test_rfc6888_req8_the_hold_down_is_configurable() -> None:
    pools = Pools(high=1024 + 15, most=1, hold_down=7_000_000_000)
    pools.free(pools.port(1), now=0)
    assert pools.take(2, now=6.999) == Verdict.PORTS_EXHAUSTED
    assert isinstance(pools.take(2, now=7), tuple)


def test_a_hold_that_is_over_ends_without_anybody_asking_for_ports() -> None:
    pools = Pools()
    for device in (1, 2, 3):
        pools.free(pools.port(device), now=device)
    assert release_expired(pools.nat, 1, ns(HOLD_DOWN + 2), 1) == 1
    assert release_expired(pools.nat, 1, ns(HOLD_DOWN + 2), 16) == 1
    assert release_expired(pools.nat, 1, ns(HOLD_DOWN + 2), 16) == 0
    assert (pools.nat.pool[1].free, pools.nat.pool[1].held) == (3, 1)
    pools.assert_whole()


def test_a_device_that_is_removed_leaves_its_blocks_held_for_its_identity() -> None:
    pools = Pools(high=1024 + 31)
    pools.fill(1)
    pools.remove(1, now=100)
    pools.assert_whole()
    assert pools.nat.pool[1].held == 2
    assert pools.nat.subscribers[1].blocks == 0
    assert pools.take(2, now=219) == Verdict.PORTS_EXHAUSTED
    pools.subscribe(4, 1001, 1)  # the same device in another slot
    assert len(pools.fill(4, now=219)) == 32
    pools.assert_whole()


def test_s4_a_device_in_the_slot_of_a_removed_one_does_not_get_its_blocks() -> None:
    pools = Pools(high=1024 + 15, most=1)
    pools.port(1)
    pools.remove(1, now=100)
    pools.subscribe(1, 2001, 1)
    assert pools.take(1, now=219.9) == Verdict.PORTS_EXHAUSTED
    assert isinstance(pools.take(1, now=220), tuple)
    pools.assert_whole()


def test_removing_and_adding_a_device_does_not_raise_its_quota() -> None:
    pools = Pools(high=1024 + 16 * 16 - 1, most=3)
    for turn in range(5):
        first = pools.fill(1, now=turn)
        assert len(first) == 48
        pools.remove(1, now=turn)
        pools.subscribe(1, 1001, 1)
    assert pools.nat.pool[1].held == 3
    pools.assert_whole()


def test_blocks_of_an_address_that_ends_are_free_at_once() -> None:
    pools = Pools()
    pools.port(1)
    pools.free(pools.port(2), now=0)
    pools.remove(1, now=1, held=0)
    pools.remove(2, now=1, held=0)
    assert (pools.nat.pool[1].free, pools.nat.pool[1].held) == (4, 0)
    assert [kind for kind, *_ in pools.journal()].count(BLOCK_TAKEN_BACK) == 2
    pools.assert_whole()


def test_a_block_whose_ports_are_in_use_stays_with_its_device() -> None:
    pools = Pools()
    port = pools.port(1)
    release_device(pools.nat, 1, ns(0), 1)
    pools.assert_whole()
    assert pools.block(port).state == BLOCK_OWNED


def test_rfc4787_req2_all_ports_of_a_device_are_of_one_address() -> None:
    pools = Pools(addresses=3, devices=6, most=4)
    for device in range(1, 7):
        slots = {pools.port(device, kind, port)[0] for kind in range(PORT_KINDS) for port in range(10)}
        assert slots == {1 + (device - 1) % 3}
    pools.assert_whole()


def test_rfc7857_4_a_device_with_blocks_is_refused_rather_than_paired_anew() -> None:
    pools = Pools(addresses=2, high=1024 + 31, most=4)
    pools.port(1)
    pools.fill(3)  # takes the other block of the first address
    while isinstance(taken := pools.take(1), tuple):
        pass
    assert taken == Verdict.PORTS_EXHAUSTED
    assert pools.nat.pool[2].free == 2
    pools.assert_whole()


def test_a_device_without_blocks_is_paired_with_another_address_of_its_group() -> None:
    pools = Pools(addresses=2, high=1024 + 15, most=4)
    pools.port(1)
    assert pools.port(3)[0] == 2
    assert pools.nat.subscribers[3].external4 == 2
    assert pools.take(2) == Verdict.PORTS_EXHAUSTED
    pools.assert_whole()


def test_a_device_is_never_paired_with_an_address_of_another_group_or_one_that_ends() -> None:
    for change in ("group", "ending"):
        pools = Pools(addresses=2, high=1024 + 15)
        pools.port(1)
        pools.nat.pool[2][change] = 2
        assert pools.take(3) == Verdict.PORTS_EXHAUSTED


def test_a_device_that_has_blocks_held_elsewhere_is_paired_there_again() -> None:
    pools = Pools(addresses=2)
    assert hold_block(pools.nat, 2, 1040, 1001, ns(100)) == 1
    slot, _, port = pools.port(1)
    assert (slot, (port - 1024) // 16) == (2, 1)
    pools.assert_whole()


def test_which_free_block_a_device_gets_is_random() -> None:
    pools = Pools(high=1024 + 8 * 32 - 1, size=8, hold_down=0)
    seen = [0] * 32
    for _ in range(640):
        port = pools.port(1)
        seen[(port[2] - 1024) // 8] += 1
        pools.free(port)
        pools.expire(1)
    assert chi_square_is_likely(seen)


def test_rfc6888_req8_blocks_of_an_earlier_run_are_held_for_who_had_them() -> None:
    pools = Pools(high=1024 + 31, most=2)
    assert hold_block(pools.nat, 1, 1040, 1002, ns(60)) == 1
    assert hold_block(pools.nat, 1, 1045, 1002, ns(60)) == 0  # it is held already
    assert hold_block(pools.nat, 1, 1024, 0, ns(60)) == 1  # for nobody
    pools.assert_whole()
    assert pools.take(1, now=59.9) == Verdict.PORTS_EXHAUSTED
    assert 1040 <= pools.port(2, now=1)[2] <= 1055
    assert 1024 <= pools.port(1, now=60)[2] <= 1039
    pools.assert_whole()


@pytest.mark.parametrize(("slot", "port"), [(0, 1024), (2, 1024), (-1, 1024), (99, 1024), (1, 1023), (1, 1088), (1, 0), (1, 65535)])
def test_a_block_that_is_not_ours_is_not_held(slot: int, port: int) -> None:
    pools = Pools()
    before = octets(pools)
    assert hold_block(pools.nat, slot, port, 5, ns(60)) == 0
    assert octets(pools) == before


def test_rfc7422_a_device_uses_its_predefined_block_before_all_others() -> None:
    pools = Pools(fixed_blocks=2, fixed_size=8, size=16, high=1024 + 16 + 32 - 1, most=1)
    pools.subscribe(1, 1001, 1, fixed=2)
    pools.subscribe(2, 1002, 1, fixed=1)
    first = [pools.port(1)[2] for _ in range(8)]
    assert sorted(first) == list(range(1032, 1040))
    dynamic = [pools.port(1) for _ in range(16)]
    assert min(port for _, _, port in dynamic) >= 1040
    assert pools.take(1) == Verdict.QUOTA_EXCEEDED
    assert 1024 <= pools.port(2)[2] < 1032
    pools.assert_whole()


def test_rfc7422_a_port_of_the_predefined_block_comes_before_parity() -> None:
    pools = Pools(fixed_blocks=2, fixed_size=8, size=16, high=1024 + 16 + 32 - 1, most=1)
    pools.subscribe(1, 1001, 1, fixed=2)
    pools.fill(1)
    even = next(port for port in pools.owners if port[2] >= 1040 and port[2] % 2 == 0)
    pools.free(even)
    pools.free((1, 0, 1033))
    assert pools.port(1, internal_port=4000) == (1, 0, 1033)
    assert pools.port(1, internal_port=4000) == even
    pools.assert_whole()


def test_rfc7422_a_predefined_block_is_given_once_and_taken_back_with_the_device() -> None:
    pools = Pools(fixed_blocks=2, fixed_size=8, size=16, high=1024 + 16 + 32 - 1, most=1)
    pools.subscribe(1, 1001, 1, fixed=2)
    for turn in range(5):
        pools.free(pools.port(1, now=turn), now=turn)
    assert pools.journal() == [(BLOCK_GIVEN, 1001, 1032, 1039)]
    pools.remove(1, now=10)
    assert pools.journal()[1:] == [(BLOCK_TAKEN_BACK, 1001, 1032, 1039)]
    pools.subscribe(3, 1003, 1, fixed=2)
    assert pools.port(3, now=20)[2] >= 1040  # another device, before the hold-down is over: a dynamic one
    pools.remove(3, now=20)
    pools.subscribe(3, 1003, 1, fixed=2)
    assert pools.port(3, now=131)[2] < 1040
    pools.assert_whole()


def test_rfc7422_without_a_dynamic_range_a_full_predefined_block_is_the_end() -> None:
    pools = Pools(fixed_blocks=4, fixed_size=8, size=16, high=1024 + 31, most=4)
    pools.subscribe(1, 1001, 1, fixed=1)
    assert len(pools.fill(1)) == 8
    assert pools.take(1) == Verdict.PORTS_EXHAUSTED
    pools.subscribe(2, 1002, 1, fixed=5)  # there is no such block
    assert pools.take(2) == Verdict.PORTS_EXHAUSTED


def test_set_pool_again_changes_quota_and_group_of_a_live_address_and_nothing_else() -> None:
    pools = Pools(most=1)
    port = pools.port(1)
    assert set_pool(pools.nat, 1, ADDRESS + 1, 3, 1024, 1087, 16, 2, 0, 0) == 1
    assert len(pools.fill(1)) == 31
    assert pools.nat.pool[1].group == 3
    assert set_pool(pools.nat, 1, ADDRESS + 1, 1, 1024, 1087, 8, 2, 0, 0) == 0
    assert set_pool(pools.nat, 1, ADDRESS + 2, 1, 1024, 1087, 16, 2, 0, 0) == 0
    assert pools.block(port).state == BLOCK_OWNED
    pools.assert_whole()


@pytest.mark.parametrize(
    "wrong",
    [
        {"slot": 0},
        {"slot": 3},
        {"slot": -1},
        {"address": 0},
        {"address": 1 << 32},
        {"address": ADDRESS + 1},
        {"group": 0},
        {"port_low": 0},
        {"port_low": 2000},
        {"port_high": 65536},
        {"block_size": 0},
        {"block_size": 1},
        {"max_blocks": 257},
        {"max_blocks": -1},
        {"fixed_blocks": 1},
        {"fixed_blocks": 9, "fixed_size": 8},
        {"fixed_blocks": -1},
        {"fixed_blocks": 1 << 40, "fixed_size": 1 << 40},
    ],
)
def test_an_impossible_address_is_refused_and_changes_nothing(wrong: dict[str, int]) -> None:
    pools = Pools(addresses=2)
    clear_pool(pools.nat, 2)
    good = {"slot": 2, "address": ADDRESS + 2, "group": 1, "port_low": 1024, "port_high": 1087, "block_size": 16, "max_blocks": 2}
    before = octets(pools)
    assert set_pool(pools.nat, *(good | {"fixed_blocks": 0, "fixed_size": 0} | wrong).values()) == 0
    assert octets(pools) == before


def test_an_address_is_cleared_only_when_no_device_has_a_block_of_it() -> None:
    pools = Pools(addresses=2)
    port = pools.port(1)
    assert clear_pool(pools.nat, 1) == 0
    pools.free(port)
    assert clear_pool(pools.nat, 1) == 1
    pools.subscribe(1, 1001, 0)
    assert pools.nat.subscribers[1].first_block == 0
    assert pools.take(1) == Verdict.NO_EXTERNAL_ADDRESS
    pools.assert_whole()


def test_a_slot_is_used_again_for_another_address_with_other_blocks() -> None:
    pools = Pools(size=16, most=4)
    for port in pools.fill(1) + pools.fill(1, UDP_PORTS):
        pools.free(port)
    assert clear_pool(pools.nat, 1) == 1
    pools.subscribe(1, 1001, 0)
    assert set_pool(pools.nat, 1, ADDRESS + 9, 1, 1001, 1100, 10, 4, 0, 0) == 0  # 10 blocks are more than there is room for
    assert set_pool(pools.nat, 1, ADDRESS + 9, 1, 1001, 1100, 25, 4, 0, 0) == 1
    pools.subscribe(1, 1001, 1)
    for kind in range(PORT_KINDS):
        assert sorted(port for _, _, port in pools.fill(1, kind)) == list(range(1001, 1101))
    pools.assert_whole()
