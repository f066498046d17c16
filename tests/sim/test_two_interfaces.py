"""Two interfaces talk over wires good and bad; minutes pass in virtual time."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egressvpn.verdict import Verdict
from egressvpn.wireguard import timers
from egressvpn.wireguard.constants import MILLISECOND, REKEY_TIMEOUT, REKEY_TIMEOUT_JITTER_MAX, SECOND
from egressvpn.wireguard.interface import DropStaged

from .rules import assert_rules_hold
from .world import SWEEP, Wire, World

INITIATION, RESPONSE, DATA = 1, 2, 4
PSK = bytes(range(32))


@pytest.mark.parametrize("psk", [bytes(32), PSK])
def test_the_first_packet_makes_a_session_and_arrives(psk: bytes) -> None:
    world = World(psk=psk)
    first, second = world.nodes

    first.send(b"hello")
    world.run(SECOND)
    second.send(b"hello yourself")
    world.run(SECOND)

    assert second.delivered == [b"hello"]
    assert first.delivered == [b"hello yourself"]
    assert [len(world.sent(kind)) for kind in (INITIATION, RESPONSE, DATA)] == [1, 1, 2]


def test_w14_a_keepalive_confirms_a_session_when_there_is_no_data() -> None:
    world = World()
    first, second = world.nodes

    first.want()
    world.run(SECOND)

    assert len(second.keepalives) == 1
    assert (second.device.current, second.device.next) != (0, 0)
    assert second.device.next == 0


def test_w14_the_responder_sends_nothing_before_it_was_confirmed() -> None:
    world = World(Wire(delay_min=400 * MILLISECOND, delay_max=400 * MILLISECOND))
    first, second = world.nodes
    first.want()
    world.run(500 * MILLISECOND)
    assert second.device.next != 0

    second.send(b"too early")
    assert world.sent(DATA, 1) == []
    world.run(5 * SECOND)

    assert first.delivered == [b"too early"]
    assert world.sent(DATA, 1)[0] > world.sent(DATA, 0)[0]
    assert world.sent(INITIATION, 1) == []  # confirmed in time, so its own initiation was not needed


def test_w15_data_sealed_with_the_previous_session_is_accepted_after_a_rekey() -> None:
    world = World(Wire(delay_min=10 * MILLISECOND, delay_max=10 * MILLISECOND))
    first, second = world.nodes
    first.send(b"1")
    world.run(10 * SECOND)
    second.send(b"2")
    world.run(SECOND)

    world.wire = Wire(delay_min=3 * SECOND, delay_max=3 * SECOND)
    second.send(b"late")  # three seconds under way
    world.wire = Wire()
    first.want()
    world.run(SECOND)
    assert len(world.sent(INITIATION)) == 2
    world.run(3 * SECOND)

    assert first.delivered == [b"2", b"late"]


def test_w17_a_replayed_or_forged_packet_is_not_delivered() -> None:
    world = World()
    first, second = world.nodes
    first.send(b"once")
    world.run(SECOND)
    before = second.wg.sessions.tobytes(), second.wg.devices.tobytes()

    packet = world.datagrams[-1]
    second.receive(packet, first.path)
    second.receive(packet[:-1] + bytes([packet[-1] ^ 1]), second.path)

    assert second.delivered == [b"once"]
    assert (second.verdicts[Verdict.REPLAYED], second.verdicts[Verdict.AUTHENTICATION_FAILED]) == (1, 1)
    assert (second.wg.sessions.tobytes(), second.wg.devices.tobytes()) == before


def test_w23_two_that_begin_at_once_can_talk_at_once() -> None:
    world = World()
    first, second = world.nodes
    first.send(b"from first")
    second.send(b"from second")
    world.run(SECOND)

    assert (first.delivered, second.delivered) == ([b"from second"], [b"from first"])
    for round_trip in range(20):
        first.send(b"%d" % round_trip)
        second.send(b"%d" % round_trip)
        world.run(SECOND)
    assert len(first.delivered) == len(second.delivered) == 21
    assert len(world.sent(INITIATION)) == 2
    assert all(node.verdicts.keys() == {Verdict.PASS} for node in world.nodes)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.3, 0.5]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_w23_over_a_bad_wire_both_converge_and_every_rule_holds(seed: int, loss: float, both: bool) -> None:
    world = World(Wire(loss, doubling=0.2, delay_min=MILLISECOND, delay_max=800 * MILLISECOND), seed)
    first, second = world.nodes
    sent: dict[int, list[bytes]] = {0: [], 1: []}
    for number in range(60):
        for node in world.nodes if both else [first]:
            sent[node.number].append(b"%d from %d" % (number, node.number))
            node.send(sent[node.number][-1])
        world.run(world.dice.randrange(5 * SECOND))

    assert_rules_hold(world, sent)
    world.wire = Wire()
    world.run(25 * SECOND)  # whatever was broken is found out by the timers
    for node in world.nodes:
        node.send(b"after")
    world.run(12 * SECOND)
    first.send(b"last")
    second.send(b"last")
    world.run(SECOND)
    assert first.delivered[-1] == second.delivered[-1] == b"last"


def test_an_initiator_rekeys_after_120_s_of_traffic_and_nothing_is_lost() -> None:
    world = World()
    first, second = world.nodes
    for number in range(600):
        first.send(b"%d" % number)
        world.run(SECOND // 2)
        second.send(b"%d" % number)
        world.run(SECOND // 2)

    assert first.delivered == second.delivered == [b"%d" % number for number in range(600)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(world.sent(INITIATION))]
    assert len(gaps) == 4
    assert all(120 * SECOND <= gap <= 122 * SECOND for gap in gaps)
    assert world.sent(INITIATION, 1) == []
    assert len(first.indexes) == first.sessions() <= 3
    assert first.dropped == second.dropped == 0


def test_a_passive_keepalive_of_the_initiator_is_a_send_that_rekeys() -> None:
    world = World()
    first, second = world.nodes
    first.send(b"begin")
    world.run(115 * SECOND)
    second.send(b"answered by a keepalive at 125 s")
    world.run(15 * SECOND)

    began, again = world.sent(INITIATION)
    assert 125 * SECOND <= again - began <= 126 * SECOND


def test_an_initiator_that_receives_from_165_s_on_rekeys_at_once() -> None:
    world = World()
    first, second = world.nodes
    first.send(b"begin")
    world.run(160 * SECOND)
    second.send(b"not yet")
    world.run(SECOND)
    assert len(world.sent(INITIATION)) == 1
    world.run(5 * SECOND)
    second.send(b"now")
    second.send(b"not twice")
    world.run(SECOND)

    assert first.delivered == [b"not yet", b"now", b"not twice"]
    assert len(world.sent(INITIATION, 0)) == 2


def test_w15_a_session_dies_at_180_s_and_data_then_makes_a_new_one() -> None:
    world = World()
    first, second = world.nodes
    first.send(b"1")
    world.run(200 * SECOND)

    second.send(b"2")
    assert world.sent(DATA, 1)[-1] < world.now - 100 * SECOND
    world.run(SECOND)

    assert first.delivered == [b"2"]
    assert len(world.sent(INITIATION, 1)) == 1


def test_one_way_data_is_answered_by_one_keepalive_after_10_s_and_that_by_nothing() -> None:
    world = World()
    first, second = world.nodes
    first.send(b"data")
    world.run(SECOND)
    arrived = world.now
    world.run(60 * SECOND)

    assert len(first.keepalives) == 1
    assert 9 * SECOND <= first.keepalives[0] - arrived <= 10 * SECOND + 2 * SWEEP
    assert second.keepalives == []
    assert len(world.sent(INITIATION)) == 1


def test_a_peer_that_fell_silent_is_found_out_after_15_s() -> None:
    world = World()
    first, second = world.nodes
    first.send(b"1")
    world.run(60 * SECOND)
    world.wire.loss = 1.0
    first.send(b"2")
    sent_at = world.now
    world.run(20 * SECOND)

    again = world.sent(INITIATION, 0)[1]
    assert 15 * SECOND <= again - sent_at <= 15 * SECOND + REKEY_TIMEOUT_JITTER_MAX + 2 * SWEEP
    world.wire.loss = 0.0
    world.run(6 * SECOND)
    second.send(b"back")
    world.run(SECOND)
    assert first.delivered == [b"back"]


def test_an_unreachable_peer_is_given_up_after_about_100_s_and_its_packets_dropped() -> None:
    world = World(Wire(loss=1.0))
    first, _ = world.nodes
    first.send(b"lost")
    world.run(300 * SECOND)

    sent = world.sent(INITIATION, 0)
    assert 18 <= len(sent) <= 20
    assert all(REKEY_TIMEOUT <= b - a <= REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER_MAX + 2 * SWEEP for a, b in itertools.pairwise(sent))
    assert first.outputs[-1] == DropStaged(1)
    assert (first.dropped, len(first.indexes)) == (1, 0)


def test_keys_are_zeroed_540_s_after_the_last_session() -> None:
    world = World()
    first, second = world.nodes
    first.send(b"1")
    world.run(539 * SECOND)
    assert first.keys_left()
    assert second.keys_left()

    world.run(3 * SECOND)

    for node in world.nodes:
        assert not node.keys_left()
        assert len(node.indexes) == node.sessions() == 0


def test_a_persistent_keepalive_of_1_s_makes_a_session_and_keeps_it() -> None:
    world = World()
    first, second = world.nodes
    timers.on_persistent_interval(first.device, SECOND, world.now)
    world.run(400 * SECOND)

    assert 350 <= len(second.keepalives) <= 410
    assert 3 <= len(world.sent(INITIATION, 0)) <= 4
    assert world.sent(INITIATION, 1) == []


def test_w25_a_lost_response_costs_no_index() -> None:
    world = World()
    first, second = world.nodes
    world.wire.loss = 1.0
    first.send(b"1")
    world.run(17 * SECOND)
    assert len(first.indexes) == 1
    world.wire.loss = 0.0
    world.run(6 * SECOND)

    assert second.delivered == [b"1"]
    assert len(first.indexes) == first.sessions() == 1
    assert len(second.indexes) == second.sessions() == 1
