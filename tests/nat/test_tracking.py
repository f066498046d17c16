"""What the window tracker learns of a connection, what it believes, and what prolongs a flow."""

from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egressvpn.nat.tcp import BOTH_FIN, CLIENT, ESTABLISHED, INIT, REMOTE_INIT, SERVER, SERVER_FIN, TRANS
from egressvpn.nat.tracking import opening_state, plausible_sequence
from egressvpn.verdict import Verdict
from tests.nat.connection import WRAP, Connection, established, tcp

PASS, OUT = Verdict.PASS, Verdict.TCP_OUT_OF_WINDOW
HALF: Final = WRAP // 2


def test_each_side_is_known_by_what_it_sent_acknowledged_and_offered() -> None:
    connection = established(win=1000)
    connection.client("P", 1, 1, size=100, win=900)
    connection.server("P", 1, 101, size=300, win=700)
    assert (connection.next(CLIENT), connection.next(SERVER)) == (101, 301)
    assert (connection.acknowledged(CLIENT), connection.acknowledged(SERVER)) == (1, 101)
    assert (connection.window(CLIENT), connection.window(SERVER)) == (1000, 900)  # 900 more were offered before: never taken back


def test_the_right_edge_of_an_offer_is_the_highest_ever() -> None:
    connection = established(win=1000)
    connection.client(".", 1, 1, win=500)
    assert connection.window(CLIENT) == 1000
    connection.server("P", 1, 1, size=600)
    connection.client(".", 1, 601, win=100)
    assert connection.window(CLIENT) == 400
    connection.client(".", 1, 601, win=2000)
    assert connection.window(CLIENT) == 2000


def test_what_is_sent_again_or_out_of_order_takes_nothing_back() -> None:
    connection = established()
    connection.server("P", 1001, 1, size=500)
    connection.server("P", 1, 1, size=1000)
    connection.server("P", 1, 1, size=100)
    assert connection.next(SERVER) == 1501
    connection.client(".", 1, 1501)
    connection.client(".", 1, 700)
    assert connection.acknowledged(CLIENT) == 1501


@pytest.mark.parametrize(
    ("client", "server", "window"), [(7, 2, 1000 << 7), (0, 2, 1000), (None, 7, 1000), (7, None, 1000), (14, 0, 1000 << 14)]
)
def test_windows_are_scaled_when_both_sides_can(client: int | None, server: int | None, window: int) -> None:
    connection = Connection()
    connection.client("S", 0, scale=client, win=800)
    connection.server("S", 0, 1, scale=server, win=800)
    assert connection.window(SERVER) == 800  # never in a SYN itself (RFC 7323 2.2): rounded up to the unit
    connection.client(".", 1, 1, win=1000)
    assert connection.window(CLIENT) == window


def test_a_scale_beyond_14_is_14_and_broken_options_are_none() -> None:
    connection = established(scale=15, win=1)
    connection.client(".", 1, 1, win=3)
    assert connection.window(CLIENT) == 3 << 14
    connection = Connection()
    octets = bytearray(tcp(0x02, 1000, 0, 100, scale=7))
    octets[20 + 20 + 1] = 0  # the length of the first option
    connection.take(CLIENT, bytes(octets))
    assert not connection.scales(CLIENT)


def test_a_super_packet_counts_with_all_its_octets() -> None:
    connection = established(scale=7)
    connection.client("P", 1, 1, size=60_000)
    connection.server("P", 1, 60_001, size=44_000)
    assert (connection.next(CLIENT), connection.next(SERVER)) == (60_001, 44_001)
    assert connection.acknowledged(SERVER) == 60_001


@pytest.mark.parametrize("isn", [WRAP - 1, WRAP - 2, WRAP - 500, HALF - 1, HALF - 500, 0])
def test_sequence_numbers_wrap_around(isn: int) -> None:
    connection = established(isn, (isn + 7) % WRAP)
    for step in range(20):
        assert connection.server("P", 1 + step * 1000, 1 + step * 100, size=1000) == PASS
        assert connection.client("P", 1 + step * 100, 1001 + step * 1000, size=100) == PASS
    assert (connection.next(CLIENT), connection.next(SERVER)) == (2001, 20_001)
    assert connection.acknowledged(CLIENT) == 20_001
    assert connection.server("R", 20_000) == OUT
    assert connection.server("R", 20_001) == PASS
    assert connection.state == TRANS


def test_more_than_4_gib_go_through_one_connection() -> None:
    connection = established(scale=14)
    block = 65_000
    for step in range(0, 5 << 30, 1 << 29):  # leaps inside the window stand for what lies between
        assert connection.server("P", 1 + step, 1, size=block) == PASS
        assert connection.client(".", 1, 1 + step + block) == PASS
    assert connection.server("R", 1 + step + block) == PASS
    assert connection.state == TRANS


@pytest.mark.parametrize(("below", "counts"), [(60_000, True), (66_000, True), (66_001, False)])
def test_what_was_acknowledged_may_be_repeated_from_far_below_a_small_window(below: int, counts: bool) -> None:
    connection = established(win=1000)
    for step in range(70):
        connection.server("P", 1 + step * 1000, 1, size=1000)
        connection.client(".", 1, 1001 + step * 1000, win=1000)
    connection.server("P", 70_001 - below, 1, now=9)
    assert connection.seen == (9 if counts else 0)


def test_a_flow_begins_with_a_syn_or_was_begun_before() -> None:
    assert opening_state(0x02) == opening_state(0xC2) == INIT
    assert opening_state(0x12) == opening_state(0x10) == opening_state(0x11) == opening_state(0x18) == TRANS


def test_a_server_acknowledges_only_what_was_sent() -> None:
    connection = established()
    connection.client("P", 1, 1, size=100)
    connection.server(".", 1, 5000)
    assert connection.acknowledged(SERVER) == 1
    connection.server(".", 1, 101)
    assert connection.acknowledged(SERVER) == 101


@pytest.mark.parametrize(
    ("at", "verdict", "state"),
    [
        (0, OUT, ESTABLISHED),  # what was acknowledged before
        (1, PASS, TRANS),  # what the client expects next
        (2, PASS, ESTABLISHED),
        (501, PASS, TRANS),  # what the server has sent up to, still under way
        (1000, PASS, ESTABLISHED),
        (1001, PASS, ESTABLISHED),  # the right edge
        (1002, OUT, ESTABLISHED),
        (HALF, OUT, ESTABLISHED),
        (-HALF + 2, OUT, ESTABLISHED),
    ],
)
@pytest.mark.parametrize("flags", ["R", "RA"])
def test_a_reset_from_outside_ends_a_connection_only_when_it_is_exact(flags: str, at: int, verdict: Verdict, state: int) -> None:
    connection = established(win=1000)
    connection.server("P", 1, 1, size=500)
    assert connection.server(flags, at, 1) == verdict
    assert connection.state == state


def test_a_reset_inside_the_window_passes_and_the_challenge_ack_too() -> None:
    """RFC 5961 9.3: the middlebox must neither clear its state nor drop the challenge ACK, which the exact RST answers."""
    connection = established()
    assert connection.server("R", 100, now=10) == PASS
    assert (connection.state, connection.seen) == (ESTABLISHED, 0)
    assert connection.client(".", 1, 1, now=11) == PASS
    assert connection.server("R", 1, now=12) == PASS
    assert (connection.state, connection.seen) == (TRANS, 12)


@pytest.mark.parametrize(("at", "state"), [(1, TRANS), (301, TRANS), (0, ESTABLISHED), (302, ESTABLISHED), (1 << 20, ESTABLISHED)])
def test_a_reset_from_inside_always_leaves_and_ends_a_connection_only_when_it_is_exact(at: int, state: int) -> None:
    connection = established()
    connection.client("P", 1, 1, size=300)
    assert connection.client("R", at) == PASS
    assert connection.state == state


def test_a_connection_ended_by_a_false_reset_comes_back_with_the_next_segment() -> None:
    connection = established()
    connection.server("R", 1)
    assert connection.state == TRANS
    connection.client(".", 1, 1)
    assert connection.state == ESTABLISHED


def test_data_outside_the_window_does_not_bring_a_reset_connection_back() -> None:
    connection = established(win=1000)
    connection.server("R", 1)
    connection.server("P", 70_000, 1, size=10, now=5)
    assert (connection.state, connection.seen) == (TRANS, 0)


def test_a_refused_connection_is_refused_by_the_answer_to_its_syn() -> None:
    """The second connection of a flow: the client has no sequence number to compare, only its own (RFC 9293 3.10.7.3)."""
    connection = established()
    assert connection.client("S", 1 << 20) == PASS
    assert connection.server("RA", 0x7000, (1 << 20) + 2) == PASS
    assert connection.state == ESTABLISHED  # acknowledges something else
    assert connection.server("R", 0x7000) == PASS
    assert connection.state == ESTABLISHED
    assert connection.server("RA", 0x7000, (1 << 20) + 1) == PASS
    assert connection.state == TRANS


def test_resets_while_closing_pass_and_change_nothing() -> None:
    connection = established()
    connection.server("F", 1, 1)
    connection.client("F", 1, 2)
    assert connection.state == BOTH_FIN
    assert connection.server("R", 0) == PASS
    assert connection.client("R", 77) == PASS
    assert (connection.state, connection.seen) == (BOTH_FIN, 0)


@given(
    st.integers(-HALF, HALF - 1), st.integers(0, 255), st.integers(-HALF, HALF - 1), st.integers(0, 1400), st.sampled_from([None, 0, 14])
)
@settings(max_examples=400)
def test_nothing_from_outside_the_window_changes_anything(at: int, flags: int, ack: int, size: int, scale: int | None) -> None:
    connection = established(server_isn=0xFFFF_FF00, win=2000)
    connection.client("P", 1, 1, size=50, win=2000)
    if at <= 2001 and at + size + 2 >= 1 - 66_000:
        return
    before = connection.flow.tobytes()
    octets = tcp(flags, (connection.isn[SERVER] + at) % WRAP, (connection.isn[CLIENT] + ack) % WRAP, 65535, size, scale)
    verdict = connection.take(SERVER, octets, now=99)
    assert connection.flow.tobytes() == before
    assert verdict == (OUT if flags & 4 else PASS)


def test_a_forged_syn_takes_nothing_from_a_connection() -> None:
    connection = established()
    before = connection.flow.tobytes()
    for flags, at in (("S", 1), ("S", 40_000), ("S", 1 << 25)):
        assert connection.server(flags, at, now=50) == PASS
        assert connection.server(flags, at, 1, now=50) == PASS
    assert connection.flow.tobytes() == before


def test_a_forged_fin_closes_nothing() -> None:
    connection = established(win=1000)
    connection.server("F", 5000, 1)
    assert connection.state == ESTABLISHED
    connection.server("F", 1, 1)
    assert connection.state == SERVER_FIN


def test_a_forged_answer_to_a_syn_opens_nothing() -> None:
    connection = Connection()
    connection.client("S", 0)
    connection.server("S", 0, -70_000)
    connection.server("S", 0, 2)
    assert connection.state == INIT
    connection.server("S", 0, 1)
    assert connection.state == ESTABLISHED


def test_an_unconfirmed_flow_is_not_prolonged_from_outside() -> None:
    connection = Connection(REMOTE_INIT, confirmed=False)
    connection.server("S", 0, now=1)
    connection.server("S", 0, now=5)
    assert connection.seen == 0


def test_an_attempt_to_connect_is_prolonged_by_its_client_only() -> None:
    connection = Connection()
    connection.client("S", 0, now=1)
    connection.server(".", 77, 88, now=2)
    connection.server("R", 77, now=3)
    assert connection.seen == 1
    connection.client("S", 0, now=4)
    assert connection.seen == 4


def test_resets_and_what_follows_both_fins_prolong_nothing() -> None:
    connection = established()
    connection.client("F", 1, 1, now=1)
    connection.server("F", 1, 2, now=2)
    connection.client(".", 2, 2, now=3)
    connection.server("P", 2, 2, size=5, now=4)
    assert connection.seen == 2
    connection = established()
    connection.server("R", 1, now=2)
    connection.server("R", 1, now=3)
    connection.client("R", 1, now=4)
    assert connection.seen == 2


@pytest.mark.parametrize(("at", "plausible"), [(100, False), (101, True), (300, True), (501, True), (502, False), (HALF, False)])
def test_a_quoted_segment_was_sent_and_not_acknowledged(at: int, plausible: bool) -> None:
    connection = established(client_isn=WRAP - 200)
    connection.client("P", 1, 1, size=500)
    connection.server(".", 1, 101)
    assert plausible_sequence(connection.flow, CLIENT, (connection.isn[CLIENT] + at) % WRAP) == plausible


def test_a_quote_is_plausible_while_nothing_is_known() -> None:
    connection = Connection()
    connection.client("S", 0)
    assert plausible_sequence(connection.flow, CLIENT, 12345)
    assert plausible_sequence(connection.flow, SERVER, 12345)
