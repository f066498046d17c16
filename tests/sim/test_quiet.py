"""Nobody talks more than the rules say: idle hours, keepalives, peers that are away, clocks that jump (whitepaper 6)."""

import itertools

import pytest

from egressvpn.addresses import Path, pack_sockaddr
from egressvpn.wireguard import timers
from egressvpn.wireguard.constants import REJECT_AFTER_TIME, REKEY_AFTER_TIME, REKEY_TIMEOUT, REKEY_TIMEOUT_JITTER_MAX, SECOND
from egressvpn.wireguard.interface import Clear, DropStaged, Transmit

from .world import SWEEP, Wire, World

HOUR = 3600 * SECOND
YEAR = 365 * 86_400 * SECOND
INTERVAL = 25 * SECOND
INITIATION, RESPONSE, DATA = 1, 2, 4


def test_two_that_have_nothing_to_say_say_nothing() -> None:
    world = World()
    world.run(HOUR)

    assert world.log == []


def test_a_session_that_is_not_used_makes_no_packets() -> None:
    world = World()
    first, second = world.nodes
    first.send(b"1")
    world.run(SECOND)
    second.send(b"2")
    world.run(30 * SECOND)
    before = len(world.log)

    world.run(HOUR)

    assert before == 5  # initiation, response, two packets, one keepalive for the last of them
    assert len(world.log) == before
    assert (first.keys_left(), second.keys_left()) == (False, False)


@pytest.mark.parametrize("both", [False, True])
def test_persistent_keepalives_come_exactly_as_the_interval_says(both: bool) -> None:
    world = World()
    talking = world.nodes if both else world.nodes[:1]
    for node in talking:
        timers.on_persistent_interval(node.device, INTERVAL, world.now)
    world.run(SECOND)
    before, began = len(world.log), world.now
    world.run(HOUR)

    handshakes = [when for when in world.sent(RESPONSE) if when >= began]
    confirmed_at = {when + world.wire.delay_max for when in handshakes}
    timely = [(when, who) for when, who, kind in world.log if kind == DATA and when >= began and when not in confirmed_at]
    assert len(world.log) - before == len(timely) + 3 * len(handshakes)  # a rekey is three messages, its keepalive the third
    for node in talking:
        assert sum(who == node.number for _, who in timely) <= HOUR // INTERVAL
    assert len(timely) >= HOUR // INTERVAL - 2
    assert HOUR // REJECT_AFTER_TIME <= len(handshakes) <= HOUR // REKEY_AFTER_TIME
    moments = sorted({when for when, _, _ in world.log if when >= began})
    assert all(later - earlier <= INTERVAL + 2 * SWEEP for earlier, later in itertools.pairwise(moments))


def test_one_way_data_makes_one_keepalive_per_10_s() -> None:
    world = World()
    first, second = world.nodes
    for number in range(600):
        first.send(b"%d" % number)
        world.run(SECOND // 10)
    world.run(60 * SECOND)

    assert 5 <= len(first.keepalives) <= 7
    assert len(second.keepalives) == 0
    assert len(world.sent(INITIATION)) == 1


def test_a_peer_that_is_away_is_tried_20_times_and_then_left_alone() -> None:
    world = World(Wire(loss=1.0))
    first, _ = world.nodes
    for number in range(5):
        first.send(b"%d" % number)
    world.run(HOUR)

    sent = world.sent(INITIATION, 0)
    gaps = [later - earlier for earlier, later in itertools.pairwise(sent)]
    assert 18 <= len(sent) <= 20
    assert all(REKEY_TIMEOUT <= gap <= REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER_MAX + SWEEP for gap in gaps)
    assert len(world.log) == len(sent)
    assert (first.dropped, first.staged, len(first.indexes)) == (5, [], 0)
    assert first.outputs.count(DropStaged(1)) == 1

    first.send(b"again")
    world.run(SECOND)
    assert len(world.sent(INITIATION, 0)) == len(sent) + 1


def test_a_peer_that_is_away_is_tried_for_ever_with_persistent_keepalive_but_never_faster() -> None:
    world = World(Wire(loss=1.0))
    first, _ = world.nodes
    timers.on_persistent_interval(first.device, INTERVAL, world.now)
    world.run(HOUR)

    gaps = [later - earlier for earlier, later in itertools.pairwise(world.sent(INITIATION, 0))]
    assert min(gaps) >= REKEY_TIMEOUT
    assert max(gaps) <= REKEY_TIMEOUT + INTERVAL + REKEY_TIMEOUT_JITTER_MAX + 2 * SWEEP
    assert sum(gap > 2 * REKEY_TIMEOUT for gap in gaps) >= HOUR // (150 * SECOND)  # it rests between its 20 tries


def test_a_peer_that_comes_back_is_found_by_the_next_keepalive() -> None:
    world = World(Wire(loss=1.0))
    first, second = world.nodes
    timers.on_persistent_interval(first.device, INTERVAL, world.now)
    world.run(HOUR)
    world.wire = Wire()
    world.run(INTERVAL + REKEY_TIMEOUT + SECOND)

    assert second.keepalives


@pytest.mark.parametrize("jump", [YEAR, -YEAR])
def test_w11_a_wall_clock_that_jumps_stops_nobody(jump: int) -> None:
    world = World()
    first, second = world.nodes
    for step in range(6):
        first.wall_offset = jump * (step % 2)
        first.send(b"%d" % step)
        world.run(130 * SECOND)

    assert second.delivered == [b"%d" % step for step in range(6)]
    assert len(world.sent(INITIATION)) == len(world.sent(RESPONSE))


def test_w11_a_restart_with_the_clock_gone_back_stops_nobody() -> None:
    world = World()
    first, second = world.nodes
    for step in range(5):
        first.send(b"%d" % step)
        world.run(10 * SECOND)
        first.wall_offset -= YEAR
        first.restart()

    assert second.delivered == [b"%d" % step for step in range(5)]
    assert len(world.sent(INITIATION)) == len(world.sent(RESPONSE)) == 5


def test_w19_data_follows_a_peer_that_moves() -> None:
    world = World()
    first, second = world.nodes
    first.send(b"1")
    world.run(SECOND)
    first.path = Path(pack_sockaddr("2001:db8::1", 9999))
    second.send(b"lost: nobody has heard of the new address")
    world.run(SECOND)
    first.send(b"2")
    world.run(SECOND)
    second.send(b"3")
    world.run(SECOND)

    assert (first.delivered, second.delivered) == ([b"3"], [b"1", b"2"])


def test_w22_a_key_change_on_one_side_is_mended_by_one_handshake() -> None:
    world = World()
    first, second = world.nodes
    first.send(b"1")
    world.run(SECOND)
    key = world.dice.randbytes(32)
    first.interface.change_private_key(key)
    first.door.set_identities(first.interface.identities)
    second.interface.remove_peer(1)
    second.interface.add_peer(1, first.interface.public_key, path=first.path)
    for node in world.nodes:
        node.carry_out()

    first.send(b"2")
    world.run(SECOND)
    second.send(b"3")
    world.run(SECOND)

    assert (first.delivered, second.delivered) == ([b"3"], [b"1", b"2"])
    assert [len([output for output in node.outputs if output == Clear(1)]) for node in world.nodes] == [1, 1]
    assert len([output for output in first.outputs if isinstance(output, Transmit)]) == 2
