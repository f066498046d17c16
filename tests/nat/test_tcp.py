"""The TCP table is whole, and the life of a connection goes through it as RFC 7857 draws it."""

import itertools

import numpy as np
import pytest

from egressvpn.nat.tables import SETTINGS
from egressvpn.nat.tcp import (
    BOTH_FIN,
    CLIENT,
    CLIENT_FIN,
    CLOSING,
    DATA,
    ESTABLISHED,
    FIN,
    INIT,
    NEXT,
    NO_TIMER,
    OPEN,
    OPENING,
    REMOTE_INIT,
    RST,
    SEGMENTS,
    SERVER,
    SERVER_FIN,
    STATE_NAMES,
    STATES,
    SYN,
    SYN_ACK,
    TABLE,
    TIMER,
    TIMERS,
    TRANS,
)
from egressvpn.nat.wheel import timeout_of
from egressvpn.packet.headers import TCP as TCP_PROTOCOL
from tests.nat.connection import Connection

CONNECTION_STATES = range(INIT, STATES)


def test_the_table_answers_every_state_direction_and_segment_with_a_state() -> None:
    assert set(TABLE) == set(itertools.product(CONNECTION_STATES, (CLIENT, SERVER)))
    assert all(len(row) == SEGMENTS and set(row) <= set(CONNECTION_STATES) for row in TABLE.values())
    assert len(STATE_NAMES) == STATES == len(TIMERS)


def test_the_flat_tables_are_the_tables() -> None:
    for (state, direction), row in TABLE.items():
        for segment, after in enumerate(row):
            assert NEXT[(state * 2 + direction) * SEGMENTS + segment] == after
    assert list(TIMER) == [TIMERS[state] for state in range(STATES)]
    assert not NEXT.flags.writeable
    assert not TIMER.flags.writeable


def test_every_state_can_be_reached_from_a_syn() -> None:
    reached = {INIT, REMOTE_INIT}
    while more := {after for (state, _), row in TABLE.items() if state in reached for after in row} - reached:
        reached |= more
    assert reached == set(CONNECTION_STATES)


def test_every_state_has_the_timer_of_its_phase() -> None:
    """RFC 7857 2.1: separate idle timers for opening and closing."""
    settings = np.zeros(1, SETTINGS).view(np.recarray)[0]
    settings.tcp_opening, settings.tcp_established, settings.tcp_closing = 1, 2, 3
    expected = {OPENING: 1, OPEN: 2, CLOSING: 3}
    for state, timer in TIMERS.items():
        assert timer == NO_TIMER or timeout_of(settings, TCP_PROTOCOL, state) == expected[timer]


@pytest.mark.parametrize(
    ("state", "direction", "segment", "after"),
    [  # RFC 7857 figure 1, edge by edge
        (INIT, SERVER, SYN, ESTABLISHED),
        (INIT, SERVER, SYN_ACK, ESTABLISHED),
        (REMOTE_INIT, CLIENT, SYN, ESTABLISHED),
        (REMOTE_INIT, CLIENT, SYN_ACK, ESTABLISHED),
        (ESTABLISHED, CLIENT, FIN, CLIENT_FIN),
        (ESTABLISHED, SERVER, FIN, SERVER_FIN),
        (CLIENT_FIN, SERVER, FIN, BOTH_FIN),
        (SERVER_FIN, CLIENT, FIN, BOTH_FIN),
        (ESTABLISHED, CLIENT, RST, TRANS),
        (ESTABLISHED, SERVER, RST, TRANS),
        (TRANS, CLIENT, DATA, ESTABLISHED),
        (TRANS, SERVER, DATA, ESTABLISHED),
    ],
)
def test_every_edge_of_the_figure_is_in_the_table(state: int, direction: int, segment: int, after: int) -> None:
    assert TABLE[state, direction][segment] == after


def test_established_is_entered_only_by_both_syns_or_from_a_connection() -> None:
    """No single packet of a stranger, and no data, make a short-lived flow a long-lived one."""
    ways = {(state, side, segment) for (state, side), row in TABLE.items() for segment, after in enumerate(row) if after == ESTABLISHED}
    assert {way for way in ways if way[0] in (INIT, REMOTE_INIT, BOTH_FIN, TRANS)} == {
        (INIT, SERVER, SYN),
        (INIT, SERVER, SYN_ACK),
        (REMOTE_INIT, CLIENT, SYN),
        (REMOTE_INIT, CLIENT, SYN_ACK),
        (TRANS, CLIENT, SYN_ACK),
        (TRANS, CLIENT, DATA),
        (TRANS, SERVER, DATA),
    }


@pytest.mark.parametrize(
    ("exchange", "state", "timer"),
    [
        ("S>", INIT, OPENING),
        ("S> SA<", ESTABLISHED, OPEN),
        ("S> SA< A> PA> A<", ESTABLISHED, OPEN),
        ("S> S< SA> SA<", ESTABLISHED, OPEN),  # simultaneous open
        ("S> RA<", INIT, OPENING),  # refused
        ("S> SA< A> FA>", CLIENT_FIN, OPEN),
        ("S> SA< A> FA> PA<", CLIENT_FIN, OPEN),  # half closed, the server goes on
        ("S> SA< A> FA> FA< A>", BOTH_FIN, CLOSING),
        ("S> SA< A> FA< FA>", BOTH_FIN, CLOSING),
        ("S> SA< A> R<", TRANS, CLOSING),
        ("S> SA< A> R< A>", ESTABLISHED, OPEN),  # the RST was not the peer's, or was lost
        ("S> SA< A> FA> FA< S>", INIT, OPENING),  # reopened, by one side so far
        ("S> SA< A> FA> FA< S> PA< PA> A<", INIT, OPENING),
        ("S> SA< A> FA> FA< S<", REMOTE_INIT, OPENING),
        ("S> SA< A> FA> FA< S< PA> A<", REMOTE_INIT, OPENING),
        ("S> SA< A> FA> FA< S> SA<", ESTABLISHED, OPEN),
        ("S> SA< A> FA> FA< S< SA>", ESTABLISHED, OPEN),
        ("S> SA< A> R> S> SA<", ESTABLISHED, OPEN),
        ("S> SA< A> R> S< SA>", ESTABLISHED, OPEN),
        ("A>", TRANS, CLOSING),  # begun before the gateway was
        ("A> A<", ESTABLISHED, OPEN),
        ("S< SA> A<", ESTABLISHED, OPEN),  # opened from outside
        ("S<", REMOTE_INIT, OPENING),
        ("S< RA>", REMOTE_INIT, OPENING),
    ],
)
def test_a_connection_is_in_the_state_that_the_table_says(exchange: str, state: int, timer: int) -> None:
    connection = play(exchange)
    assert STATE_NAMES[connection.state] == STATE_NAMES[state]
    assert TIMERS[connection.state] == timer


def play(exchange: str) -> Connection:
    """Segments with the right numbers: each side's next, acknowledging all that the other sent; a SYN begins far ahead."""
    first = exchange.split()[0]
    connection = Connection({"S>": INIT, "S<": REMOTE_INIT}.get(first, TRANS))
    sent = [0, 0]
    begun = [first == "A>", first == "A>"]
    for segment in exchange.split():
        side, flags = (CLIENT if segment.endswith(">") else SERVER), segment[:-1]
        if "S" in flags and begun[side]:
            sent[side] += 100_000
        begun[side] = True
        size = 10 if "P" in flags else 0
        connection.segment(side, flags, sent[side], sent[1 - side] if "A" in flags else None, size=size)
        sent[side] += size + sum(letter in flags for letter in "SF")
    return connection
