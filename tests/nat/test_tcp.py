"""The TCP table is whole, and the life of a connection goes through it as RFC 7857 draws it."""

import itertools

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP

from egressvpn.nat.tcp import (
    BOTH_FIN,
    CLIENT,
    CLIENT_FIN,
    DATA,
    ESTABLISHED,
    EXPIRES_SOON,
    FIN,
    INIT,
    NEXT,
    REMOTE_INIT,
    RST,
    SERVER,
    SERVER_FIN,
    STATE_NAMES,
    STATES,
    SYN,
    TABLE,
    TRANS,
    TRANSITORY,
)
from egressvpn.verdict import Verdict
from tests.nat.support import Gateway

CONNECTION_STATES = range(INIT, STATES)
REMOTE = "198.51.100.7"


def test_the_table_answers_every_state_direction_and_segment_with_a_state() -> None:
    assert set(TABLE) == set(itertools.product(CONNECTION_STATES, (CLIENT, SERVER)))
    assert all(len(row) == 4 and set(row) <= set(CONNECTION_STATES) for row in TABLE.values())
    assert len(STATE_NAMES) == STATES == len(EXPIRES_SOON)
    assert {state for state in range(STATES) if EXPIRES_SOON[state]} == TRANSITORY


def test_the_flat_table_is_the_table() -> None:
    for (state, direction), row in TABLE.items():
        for segment, after in enumerate(row):
            assert NEXT[(state * 2 + direction) * 4 + segment] == after
    assert not NEXT.flags.writeable


def test_every_state_can_be_reached_from_a_syn() -> None:
    reached = {INIT, REMOTE_INIT}
    while more := {after for (state, _), row in TABLE.items() if state in reached for after in row} - reached:
        reached |= more
    assert reached == set(CONNECTION_STATES)


@pytest.mark.parametrize(
    ("state", "direction", "segment", "after"),
    [  # RFC 7857 figure 1, edge by edge
        (INIT, SERVER, SYN, ESTABLISHED),
        (REMOTE_INIT, CLIENT, SYN, ESTABLISHED),
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


@pytest.mark.parametrize(
    ("exchange", "state", "timeout"),
    [
        ("S>", INIT, 240),
        ("S> SA<", ESTABLISHED, 7440),
        ("S> SA< A> PA> A<", ESTABLISHED, 7440),
        ("S> S< SA> SA<", ESTABLISHED, 7440),  # simultaneous open
        ("S> RA<", INIT, 240),  # refused
        ("S> SA< A> FA>", CLIENT_FIN, 7440),
        ("S> SA< A> FA> PA<", CLIENT_FIN, 7440),  # half closed, the server goes on
        ("S> SA< A> FA> FA< A>", BOTH_FIN, 240),
        ("S> SA< A> FA< FA>", BOTH_FIN, 240),
        ("S> SA< A> R<", TRANS, 240),
        ("S> SA< A> R< A>", ESTABLISHED, 7440),  # the RST was not the peer's, or was lost
        ("S> SA< A> FA> FA< S>", INIT, 240),  # reopened, by one side so far
        ("S> SA< A> FA> FA< S> SA<", ESTABLISHED, 7440),
        ("S> SA< A> R> S> SA<", ESTABLISHED, 7440),
        ("A>", TRANS, 240),  # begun before the gateway was
        ("A> A<", ESTABLISHED, 7440),
    ],
)
def test_a_connection_is_in_the_state_and_lives_as_long_as_the_table_says(exchange: str, state: int, timeout: int) -> None:
    gateway = Gateway()
    play(gateway, exchange)
    flow = gateway.nat.flows[1]
    assert STATE_NAMES[flow["state"]] == STATE_NAMES[state]
    assert alive_after(gateway, exchange, timeout - 0.5)
    assert not alive_after(gateway, exchange, timeout)


def test_a_reset_that_changes_nothing_does_not_prolong_a_flow() -> None:
    gateway = Gateway()
    play(gateway, "S>")
    port = external_port(gateway)
    assert gateway.receive(server(port, "RA"), 200)[0] == Verdict.PASS
    assert gateway.receive(server(port, "SA"), 239.9)[0] == Verdict.PASS
    gateway = Gateway()
    play(gateway, "S>")
    port = external_port(gateway)
    assert gateway.receive(server(port, "RA"), 200)[0] == Verdict.PASS
    assert gateway.receive(server(port, "SA"), 240)[0] == Verdict.NO_MAPPING


def test_packets_after_both_fins_do_not_prolong_a_flow() -> None:
    gateway = Gateway()
    play(gateway, "S> SA< A> FA> FA<")
    assert gateway.send(1, client("A"), 200)[0] == Verdict.PASS
    assert gateway.receive(server(external_port(gateway), "A"), 240)[0] == Verdict.NO_MAPPING


def test_a_reset_without_a_flow_makes_none() -> None:
    gateway = Gateway()
    assert gateway.send(1, client("R"))[0] == Verdict.NO_MAPPING
    assert gateway.nat.settings[0].flows == 0


def client(flags: str) -> IP:
    return IP(src="100.64.0.5", dst=REMOTE) / TCP(sport=4000, dport=443, flags=flags)


def server(port: int, flags: str) -> IP:
    return IP(src=REMOTE, dst=Gateway.external4(1)) / TCP(sport=443, dport=port, flags=flags)


def external_port(gateway: Gateway) -> int:
    return int(gateway.nat.flows[1]["external_key"]) >> 16 & 0xFFFF


def play(gateway: Gateway, exchange: str) -> None:
    for segment in exchange.split():
        if segment.endswith(">"):
            assert gateway.send(1, client(segment[:-1]))[0] == Verdict.PASS
        else:
            assert gateway.receive(server(external_port(gateway), segment[:-1]))[0] == Verdict.PASS


def alive_after(gateway: Gateway, exchange: str, idle: float) -> bool:
    """Whether a server's ACK still gets through so long after; on a copy of the tables."""
    copy = Gateway()
    for mine, theirs in zip(copy.nat, gateway.nat, strict=True):
        np.copyto(mine, theirs)
    return copy.receive(server(external_port(gateway), "A"), idle)[0] == Verdict.PASS
