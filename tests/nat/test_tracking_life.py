"""Opening, closing and reopening as the tracker sees them, and cases of the public suites: Linux' packetdrill tests, OpenBSD, VPP."""

import pytest

from egressvpn.nat.tcp import BOTH_FIN, CLIENT, CLIENT_FIN, ESTABLISHED, INIT, REMOTE_INIT, SERVER, SERVER_FIN, TRANS
from egressvpn.verdict import Verdict
from tests.nat.connection import Connection, established

PASS, OUT = Verdict.PASS, Verdict.TCP_OUT_OF_WINDOW


def test_simultaneous_open() -> None:
    connection = Connection()
    connection.client("S", 0, scale=3)
    connection.server("S", 0, scale=4)
    assert connection.state == ESTABLISHED
    connection.client("S", 0, 1, scale=3)
    connection.server("S", 0, 1, scale=4)
    connection.client(".", 1, 1, win=1000)
    connection.server(".", 1, 1, win=1000)
    assert connection.state == ESTABLISHED
    assert (connection.acknowledged(CLIENT), connection.acknowledged(SERVER)) == (1, 1)
    assert connection.server("R", 1) == PASS
    assert connection.state == TRANS


def test_opened_from_outside() -> None:
    connection = Connection(REMOTE_INIT, confirmed=False)
    connection.server("S", 0, scale=5, now=1)
    assert (connection.state, connection.seen) == (REMOTE_INIT, 0)  # nobody inside has answered
    connection.client("S", 0, 1, scale=5, now=2)
    connection.server(".", 1, 1, now=3)
    assert (connection.state, connection.seen) == (ESTABLISHED, 2)
    assert (connection.next(CLIENT), connection.next(SERVER)) == (1, 1)


def test_data_on_a_syn_counts() -> None:
    connection = Connection()
    connection.client("S", 0, size=200)
    assert connection.next(CLIENT) == 201
    connection.server("S", 0, 101)  # the first half was accepted (RFC 7413)
    assert connection.state == ESTABLISHED
    connection.server("P", 1, 101, size=50)
    assert (connection.next(SERVER), connection.acknowledged(SERVER)) == (51, 101)


def test_a_syn_that_is_repeated_without_its_data_is_the_same() -> None:
    connection = Connection()
    connection.client("S", 0, size=200)
    connection.client("S", 0)
    connection.server("S", 0, 201)
    assert connection.state == ESTABLISHED


def test_half_close_keeps_both_directions_open() -> None:
    connection = established()
    connection.client("F", 1, 1, now=1)
    for step in range(5):
        connection.server("P", 1 + step * 100, 2, size=100, now=10 + step)
        assert (connection.state, connection.seen) == (CLIENT_FIN, 10 + step)
    connection.server("F", 501, 2)
    assert connection.state == BOTH_FIN
    assert (connection.next(CLIENT), connection.next(SERVER)) == (2, 502)


@pytest.mark.parametrize("side", [CLIENT, SERVER])
def test_one_syn_after_both_fins_makes_no_connection_whatever_follows(side: int) -> None:
    connection = established()
    connection.client("F", 1, 1)
    connection.server("F", 1, 2)
    connection.segment(side, "S", 1 << 20)
    for _ in range(3):
        connection.client("P", 2, 2, size=10)
        connection.server("P", 2, 2, size=10)
        connection.client("F", 12, 2)
        connection.server("F", 12, 2)
    assert connection.state in (INIT, REMOTE_INIT)


@pytest.mark.parametrize("first", [CLIENT, SERVER])
def test_two_syns_after_both_fins_make_the_next_connection(first: int) -> None:
    connection = established()
    connection.client("F", 1, 1)
    connection.server("F", 1, 2)
    connection.segment(first, "S", 1 << 20, scale=2)
    connection.segment(1 - first, "S", 1 << 19, (1 << 20) + 1, scale=2)
    assert connection.state == ESTABLISHED
    connection.segment(first, ".", (1 << 20) + 1, (1 << 19) + 1, win=100)
    assert connection.window(first) == 400
    assert connection.server("R", connection.next(SERVER) or 0) == PASS
    assert connection.state == TRANS


def test_after_a_reset_the_client_begins_anew() -> None:
    connection = established()
    connection.client("R", 1)
    connection.client("S", 1 << 20)
    assert connection.state == INIT
    connection.server("P", 1, 1, size=10)
    assert connection.state == INIT
    connection.server("S", 1 << 21, (1 << 20) + 1)
    assert connection.state == ESTABLISHED


def test_after_a_reset_a_server_may_call_back_when_the_client_answers() -> None:
    connection = established()
    connection.client("R", 1)
    connection.server("S", 1 << 20)
    assert connection.state == TRANS
    connection.client("S", 1 << 21, (1 << 20) + 1)
    assert connection.state == ESTABLISHED
    assert connection.server("R", (1 << 20) + 1) == PASS
    assert connection.state == TRANS


def test_a_client_that_forgot_a_half_closed_connection_gets_its_new_one() -> None:
    connection = established()
    connection.client("F", 1, 1)
    connection.client("S", 1 << 20)
    assert connection.state == CLIENT_FIN
    connection.server("S", 1 << 21, (1 << 20) + 1)
    assert connection.state == ESTABLISHED


def test_a_connection_older_than_the_gateway_is_taken_up() -> None:
    connection = Connection(TRANS)
    connection.client("P", 5000, 9000, size=100, win=4000)
    assert connection.state == TRANS
    assert (connection.next(CLIENT), connection.next(SERVER)) == (5100, 9000)
    assert connection.window(CLIENT) == 4000 << 14  # its scale is not known
    connection.server("P", 9000, 5100, size=100)
    assert connection.state == ESTABLISHED
    assert connection.server("R", -(1 << 30)) == OUT
    assert connection.server("R", 9100) == PASS
    assert connection.state == TRANS


def test_linux_rst_invalid() -> None:
    """Four bad resets leave the connection established; the exact one ends it."""
    connection = data_from_server()
    for at in (0, 1_000_000, 42):
        assert connection.server("R", at, win=0) == OUT
        assert connection.state == ESTABLISHED
    connection.client("P", 1, 3001, size=1000)
    connection.server(".", 3001, 1001)
    assert connection.server("R", 3000, 1001, win=0) == OUT
    assert connection.state == ESTABLISHED
    assert connection.server("R", 3001, 1001, win=0) == PASS
    assert connection.state == TRANS


def test_linux_inexact_rst() -> None:
    """A client that closes with unread data resets; the late reset of the server is no error, the flow is closing already."""
    connection = data_from_server()
    connection.client("P", 1, 3001, size=1000)
    connection.server("F", 3001, 1001)
    connection.client(".", 1001, 3002)
    assert connection.state == SERVER_FIN
    connection.client("R", 1001, 3002)
    assert connection.state == TRANS
    assert connection.server("R", 2001, win=0) == PASS


def test_linux_syn_challenge_ack() -> None:
    """The server still has an older connection: its challenge ACK passes, the client resets that, and the next SYN connects."""
    connection = Connection()
    connection.client("S", 0, scale=8)
    assert connection.server(".", 145_824_453, 643_160_523, win=240) == PASS
    assert connection.state == INIT
    assert connection.client("R", 643_160_523, win=0) == PASS
    assert connection.state == INIT
    connection.client("S", 0, scale=8)
    assert connection.server("S", 0, 1, win=250, scale=0) == PASS
    connection.client(".", 1, 1, win=256)
    assert connection.state == ESTABLISHED


def test_linux_synack_old() -> None:
    """An answer to an older SYN comes first; the client resets it; the right one connects."""
    connection = Connection()
    connection.client("S", 0, scale=8)
    assert connection.server("S", 145_824_453, -643_160_523, win=240, scale=0) == PASS
    assert connection.client("R", -643_160_523, win=0) == PASS
    assert connection.state == INIT
    connection.client("S", 0, scale=8)
    connection.server("S", 0, 1, win=250, scale=0)
    connection.client(".", 1, 1)
    assert connection.state == ESTABLISHED


def test_linux_synack_reuse() -> None:
    """A client uses its port again while the server lingers with a newer sequence number: the answer is believed."""
    connection = established()
    connection.client("F", 1, 1)
    connection.server("F", 1, 2)
    connection.client(".", 2, 2)
    connection.client("S", 200_000, scale=7)
    assert connection.server("S", 300_000, 200_001, scale=7) == PASS
    connection.client(".", 200_001, 300_001)
    assert connection.state == ESTABLISHED


def test_linux_ack_loss_stall() -> None:
    """Data that was acknowledged and is sent again, because the acknowledgment was lost behind us, passes and counts."""
    connection = established(scale=10)
    for step in range(40):
        connection.server("P", 1 + step * 1460, 1, size=1460, now=step)
        connection.client(".", 1, 1 + (step + 1) * 1460, now=step)
    assert connection.server("P", 1, 1, size=1460, now=100) == PASS
    assert connection.seen == 100


def test_openbsd_challenge_ack_and_fake_resets() -> None:
    """A SYN into a connection is answered with an ACK; a reset with the acknowledgment of a forged packet is no reset."""
    connection = established(win=16_384)
    assert connection.server("S", 0) == PASS
    assert connection.client(".", 1, 1, win=16_384) == PASS
    assert connection.server("R", 1 + 20_000) == OUT
    assert connection.state == ESTABLISHED


def data_from_server() -> Connection:
    connection = Connection()
    connection.client("S", 0, scale=8)
    connection.server("S", 0, 1)
    connection.client(".", 1, 1)
    for step in range(3):
        connection.server(".", 1 + step * 1000, 1, size=1000)
    for step in range(3):
        connection.client(".", 1, 1001 + step * 1000)
    assert connection.state == ESTABLISHED
    return connection
