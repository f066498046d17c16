"""Handshakes while one side, or both, are under load: cookies end to end, over wires good and bad (whitepaper 5.3)."""

from hypothesis import given, settings
from hypothesis import strategies as st

from egressvpn.addresses import Path, pack_sockaddr
from egressvpn.verdict import Verdict
from egressvpn.wireguard.constants import COOKIE_REFRESH_TIME, MILLISECOND, REKEY_TIMEOUT, REKEY_TIMEOUT_JITTER_MAX, SECOND
from egressvpn.wireguard.interface import Install

from .rules import assert_rules_hold
from .world import SWEEP, Wire, World

INITIATION, RESPONSE, COOKIE_REPLY, DATA = 1, 2, 3, 4
RETRY = REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER_MAX + SWEEP


def test_w4_a_responder_under_load_asks_for_a_cookie_and_the_next_try_gets_in() -> None:
    world = World()
    first, second = world.nodes
    second.door.loaded = True
    first.send(b"hello")
    world.run(SECOND)

    assert [len(world.sent(kind)) for kind in (INITIATION, COOKIE_REPLY, RESPONSE)] == [1, 1, 0]
    assert second.outputs == []
    assert second.verdicts == {Verdict.COOKIE_REQUIRED: 1}
    assert [len(datagram) for datagram in world.datagrams] == [148, 64]

    world.run(RETRY)

    assert [len(world.sent(kind)) for kind in (INITIATION, COOKIE_REPLY, RESPONSE)] == [2, 1, 1]
    assert second.delivered == [b"hello"]


def test_w9_an_initiator_under_load_asks_the_responder_for_a_cookie_too() -> None:
    world = World()
    first, second = world.nodes
    first.door.loaded = True
    first.send(b"hello")
    world.run(SECOND)
    assert [len(world.sent(kind)) for kind in (INITIATION, RESPONSE, COOKIE_REPLY)] == [1, 1, 1]
    assert first.verdicts == {Verdict.COOKIE_REQUIRED: 1}

    world.run(RETRY)

    assert second.delivered == [b"hello"]
    assert first.verdicts == {Verdict.COOKIE_REQUIRED: 1, Verdict.PASS: 1}
    assert len(second.indexes) == second.sessions() == 1  # the session that came to nothing was displaced


def test_two_sides_under_load_need_two_more_tries() -> None:
    world = World()
    first, second = world.nodes
    first.door.loaded = second.door.loaded = True
    first.send(b"hello")

    world.run(2 * RETRY + SECOND)

    assert second.delivered == [b"hello"]
    assert [len(world.sent(kind)) for kind in (INITIATION, RESPONSE, COOKIE_REPLY)] == [3, 2, 2]


def test_w6_a_peer_that_moved_needs_another_cookie() -> None:
    world = World()
    first, second = world.nodes
    second.door.loaded = True
    first.send(b"1")
    world.run(10 * SECOND)
    assert second.delivered == [b"1"]

    first.path = Path(pack_sockaddr("192.0.2.1", 40_000))
    first.want()
    world.run(10 * SECOND)

    assert len(world.sent(COOKIE_REPLY)) == 2
    assert [output.path for output in second.outputs if isinstance(output, Install)][-1] == first.path
    second.send(b"2")
    world.run(SECOND)
    assert first.delivered == [b"2"]


def test_w6_a_cookie_is_worth_nothing_once_the_secret_has_changed() -> None:
    world = World()
    first, second = world.nodes
    second.door.loaded = True
    world.run(COOKIE_REFRESH_TIME - 8 * SECOND)
    first.want()
    world.run(7 * SECOND)  # with a cookie
    world.run(5 * SECOND)  # the secret changes
    first.want()
    world.run(SECOND)

    assert len(world.sent(COOKIE_REPLY)) == 2
    world.run(RETRY)
    assert len(world.sent(RESPONSE)) == 2


def test_w8_a_replayed_cookie_reply_changes_nothing() -> None:
    world = World()
    first, second = world.nodes
    second.door.loaded = True
    first.want()
    world.run(SECOND)
    reply = world.datagrams[-1]

    for _ in range(3):
        first.receive(reply, Path(pack_sockaddr("203.0.113.7", 7)))

    assert first.verdicts == {Verdict.PASS: 1, Verdict.UNEXPECTED_COOKIE_REPLY: 3}
    assert first.endpoint == second.path
    assert len(world.datagrams) == 2
    world.run(RETRY)
    assert len(world.sent(RESPONSE)) == 1


def test_load_that_ends_leaves_no_trace() -> None:
    world = World()
    first, second = world.nodes
    second.door.loaded = True
    first.want()
    world.run(SECOND)
    second.door.loaded = False
    world.run(RETRY)

    assert [len(world.sent(kind)) for kind in (INITIATION, RESPONSE, COOKIE_REPLY)] == [2, 1, 1]


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.2, 0.4]), st.booleans())
@settings(max_examples=15, deadline=None)
def test_over_a_bad_wire_under_changing_load_both_converge_and_every_rule_holds(seed: int, loss: float, both: bool) -> None:
    world = World(Wire(loss, doubling=0.2, delay_min=MILLISECOND, delay_max=800 * MILLISECOND), seed)
    first, second = world.nodes
    sent: dict[int, list[bytes]] = {0: [], 1: []}
    for number in range(40):
        for node in world.nodes:
            node.door.loaded = world.dice.random() < 0.7
        for node in world.nodes if both else [first]:
            sent[node.number].append(b"%d from %d" % (number, node.number))
            node.send(sent[node.number][-1])
        world.run(world.dice.randrange(9 * SECOND))

    assert_rules_hold(world, sent)
    for node in world.nodes:
        node.door.loaded = True
    world.wire = Wire()
    world.run(40 * SECOND)
    for node in world.nodes:
        node.send(b"after")
    world.run(3 * RETRY)
    first.send(b"last")
    second.send(b"last")
    world.run(SECOND)
    assert first.delivered[-1] == second.delivered[-1] == b"last"
