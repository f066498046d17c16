"""Handshakes of an interface in both roles: what the rules of test_rules.py leave open."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egressvpn.verdict import Verdict
from egressvpn.wireguard.constants import (
    DUE_HANDSHAKE,
    DUE_KEEPALIVE,
    DUE_PERSISTENT,
    DUE_ZERO,
    MILLISECOND,
    REKEY_TIMEOUT,
    REKEY_TIMEOUT_JITTER_MAX,
    SECOND,
)
from egressvpn.wireguard.interface import Clear, DropStaged, Install, KeepTimestamp, Output, SendKeepalive, Transmit
from egressvpn.wireguard.mac import add_macs, mac1_key
from egressvpn.wireguard.noise import public_of

from .pair import CLIENT, GATEWAY, PSK, T0, WALL, Pair, only, polled


def test_a_handshake_gives_both_sides_the_same_session() -> None:
    pair = Pair(psk=PSK)
    transmit = pair.initiate()
    assert transmit.path == GATEWAY
    assert len(transmit.datagram) == 148

    assert pair.gateway.receive(transmit.datagram, CLIENT, T0, WALL) is Verdict.PASS
    answer = only(polled(pair.gateway), Install)
    assert len(answer.response) == 92
    assert (answer.device, answer.initiator, answer.path) == (1, False, CLIENT)

    assert pair.client.receive(answer.response, GATEWAY, T0, WALL) is Verdict.PASS
    installed, keepalive = polled(pair.client)
    assert isinstance(installed, Install)
    assert (installed.initiator, installed.response) == (True, b"")
    assert (installed.index, installed.remote_index) == (answer.remote_index, answer.index)
    assert (installed.receive_key, installed.send_key) == (answer.send_key, answer.receive_key)
    assert installed.receive_key != installed.send_key
    assert keepalive == SendKeepalive(7)


def test_every_handshake_has_fresh_keys_and_indexes() -> None:
    pair = Pair()
    first = pair.handshake(T0)
    second = pair.handshake(T0 + 10 * SECOND)

    assert len({first.receive_key, first.send_key, second.receive_key, second.send_key}) == 4
    assert first.index != second.index


def test_initiations_less_than_20_ms_apart_are_a_flood() -> None:
    pair = Pair()
    early, later = (pair.initiate(T0 + seconds * SECOND).datagram for seconds in (0, 6))
    pair.gateway.receive(early, CLIENT, T0, WALL)
    polled(pair.gateway)

    assert pair.gateway.receive(later, CLIENT, T0 + 10 * MILLISECOND, WALL) is Verdict.HANDSHAKE_FLOOD
    assert polled(pair.gateway) == []
    assert pair.gateway.receive(later, CLIENT, T0 + 20 * MILLISECOND, WALL) is Verdict.PASS


@pytest.mark.parametrize("position", range(0, 148, 5))
def test_an_initiation_altered_anywhere_meets_silence(position: int) -> None:
    pair = Pair()
    body = bytearray(pair.initiate().datagram[:116])
    if position < 116:
        body[position] ^= 4
    datagram = bytearray(add_macs(mac1_key(pair.gateway.public_key), bytes(body)))
    if 116 <= position < 132:
        datagram[position] ^= 4

    verdict = pair.gateway.receive(bytes(datagram), CLIENT, T0, WALL)

    harmless = 4 <= position < 8 or position >= 132  # the sender index is not authenticated here, MAC2 not looked at
    assert (verdict is Verdict.PASS) == harmless
    assert bool(polled(pair.gateway)) == harmless


def test_an_unanswered_initiation_is_repeated_20_times_and_given_up() -> None:
    pair = Pair()
    sent = [(T0, pair.initiate().datagram)]
    outputs: list[Output] = []
    while (deadline := pair.client.next_deadline()) is not None:
        pair.client.advance(deadline - 1, WALL)
        assert polled(pair.client) == []
        pair.client.advance(deadline, WALL + deadline)
        outputs = polled(pair.client)
        sent += [(deadline, output.datagram) for output in outputs if isinstance(output, Transmit)]
        assert len(pair.client_indexes) <= 1

    assert outputs == [DropStaged(7)]
    assert len(pair.client_indexes) == 0
    assert 18 <= len(sent) <= 20
    assert len({datagram for _, datagram in sent}) == len(sent)
    gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(sent)]
    assert all(REKEY_TIMEOUT <= gap <= REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER_MAX for gap in gaps)
    assert len(set(gaps)) > 10


def test_new_data_starts_the_count_of_retries_again() -> None:
    pair = Pair()
    pair.initiate()
    sent = 0
    for _ in range(40):
        deadline = pair.client.next_deadline()
        assert deadline is not None
        pair.client.on_session_wanted(7, deadline - 1, WALL)
        pair.client.advance(deadline, WALL + deadline)
        sent += len(polled(pair.client))
    assert sent == 40


def test_asking_again_does_not_move_the_next_retry() -> None:
    pair = Pair()
    pair.initiate()
    deadline = pair.client.next_deadline()
    assert deadline is not None
    assert deadline > T0 + REKEY_TIMEOUT

    for wait in (0, SECOND, REKEY_TIMEOUT):
        pair.client.on_session_wanted(7, T0 + wait, WALL)

    assert pair.client.next_deadline() == deadline
    assert polled(pair.client) == []


def test_after_giving_up_new_data_begins_anew() -> None:
    pair = Pair()
    pair.initiate()
    now = T0
    while (deadline := pair.client.next_deadline()) is not None:
        now = deadline
        pair.client.advance(now, WALL)
    polled(pair.client)

    pair.client.on_session_wanted(7, now + SECOND, WALL)

    assert isinstance(polled(pair.client)[0], Transmit)


@given(st.lists(st.tuples(st.sampled_from(("wanted", "timer", "advance", "answer")), st.integers(0, 7 * SECOND)), max_size=60))
@settings(deadline=None)
def test_never_two_initiations_within_5_s(steps: list[tuple[str, int]]) -> None:
    pair = Pair()
    now, last, answered = T0, 0, True
    pending = b""
    for verb, wait in steps:
        now += wait
        if verb == "wanted":
            pair.client.on_session_wanted(7, now, WALL + now)
        elif verb == "timer":
            pair.client.on_timer(7, DUE_HANDSHAKE, now, WALL + now)
        elif verb == "advance":
            pair.client.advance(now, WALL + now)
        elif not answered:
            answered = True
            if pair.gateway.receive(pending, CLIENT, now, WALL) is Verdict.PASS:
                pair.client.receive(only(polled(pair.gateway), Install).response, GATEWAY, now, WALL)
        for output in polled(pair.client):
            if isinstance(output, Transmit):
                assert now - last >= REKEY_TIMEOUT
                last, pending, answered = now, output.datagram, False


def test_data_wanted_too_early_gets_its_handshake_when_5_s_have_passed() -> None:
    pair = Pair()
    pair.handshake(T0)
    pair.client.on_session_wanted(7, T0 + SECOND, WALL)
    assert polled(pair.client) == []

    assert pair.client.next_deadline() == T0 + 5 * SECOND
    pair.client.advance(T0 + 5 * SECOND, WALL + 5 * SECOND)

    assert isinstance(polled(pair.client)[0], Transmit)


def test_a_postponed_initiation_is_dropped_when_the_peer_begins_itself() -> None:
    pair = Pair()
    pair.handshake(T0)
    pair.gateway.on_session_wanted(1, T0 + SECOND, WALL)
    pair.gateway.receive(pair.initiate(T0 + 6 * SECOND).datagram, CLIENT, T0 + 2 * SECOND, WALL)

    assert pair.gateway.next_deadline() is None


def test_a_confirmed_session_ends_our_own_attempt() -> None:
    pair = Pair()
    pair.initiate()

    pair.client.on_session_confirmed(7)

    assert pair.client.next_deadline() is None
    assert len(pair.client_indexes) == 0


def test_timer_bits_become_commands() -> None:
    pair = Pair()
    for bits, expected in [(DUE_KEEPALIVE, [SendKeepalive(7)]), (DUE_PERSISTENT, [SendKeepalive(7)]), (DUE_ZERO, []), (0, [])]:
        pair.client.on_timer(7, bits, T0, WALL)
        assert polled(pair.client) == expected
    pair.client.on_timer(7, DUE_HANDSHAKE, T0, WALL)
    assert isinstance(polled(pair.client)[0], Transmit)


def test_events_about_peers_that_are_gone_do_nothing() -> None:
    pair = Pair()
    pair.initiate()
    pair.client.remove_peer(7)
    assert polled(pair.client) == [Clear(7)]

    pair.client.on_session_wanted(7, T0, WALL)
    pair.client.on_timer(7, 15, T0, WALL)
    pair.client.on_session_confirmed(7)
    pair.client.set_path(7, GATEWAY)
    pair.client.remove_peer(7)
    pair.client.advance(T0 + 100 * SECOND, WALL)

    assert polled(pair.client) == []
    assert pair.client.next_deadline() is None
    assert len(pair.client_indexes) == 0


def test_a_peer_without_a_path_is_not_written_to() -> None:
    pair = Pair()
    pair.gateway.on_session_wanted(1, T0, WALL)

    assert polled(pair.gateway) == []
    assert pair.gateway.next_deadline() is None


def test_indexes_come_back_when_the_worker_frees_its_sessions() -> None:
    pair = Pair()
    installed = pair.handshake(T0)
    assert len(pair.client_indexes) == 1
    pair.initiate(T0 + 10 * SECOND)
    assert len(pair.client_indexes) == 2

    pair.client.on_sessions_freed(installed.index)
    pair.client.on_sessions_freed(installed.index)
    assert len(pair.client_indexes) == 1

    pair.client.retain_sessions([])
    assert len(pair.client_indexes) == 1  # the outstanding handshake's


def test_no_free_index_means_silence_to_an_initiation_and_a_later_try_of_our_own() -> None:
    pair = Pair(slots=2)
    pair.gateway.receive(pair.initiate().datagram, CLIENT, T0, WALL)
    polled(pair.gateway)

    verdict = pair.gateway.receive(pair.initiate(T0 + 6 * SECOND).datagram, CLIENT, T0 + 6 * SECOND, WALL)
    assert verdict is Verdict.HANDSHAKE_FLOOD
    pair.gateway.on_session_wanted(1, T0 + 20 * SECOND, WALL)
    assert polled(pair.gateway) == []
    assert pair.gateway.next_deadline() == T0 + 25 * SECOND


def test_keys_and_devices_cannot_be_taken_twice() -> None:
    pair = Pair()
    with pytest.raises(ValueError, match="in use"):
        pair.client.add_peer(8, pair.gateway.public_key)
    with pytest.raises(ValueError, match="in use"):
        pair.client.add_peer(7, public_of(bytes(range(32))))


def test_secrets_are_in_no_repr() -> None:
    pair = Pair(psk=PSK)
    installed = pair.handshake(T0)
    pair.initiate(T0 + 10 * SECOND)
    shown = repr(installed) + repr(pair.client.peer(7)) + repr(pair.client.identities) + repr(pair.client)

    for secret in (installed.receive_key, installed.send_key, PSK, pair.client.identities[0].private_key):
        assert repr(secret) not in shown


def test_keys_due_to_be_zeroed_forget_the_handshake_but_not_that_one_is_wanted() -> None:
    pair = Pair()
    late = pair.answered()
    deadline = pair.client.next_deadline()

    pair.client.on_timer(7, DUE_ZERO, T0 + SECOND, WALL)

    assert pair.client.poll() == []
    assert len(pair.client_indexes) == 0
    assert pair.client.receive(late, GATEWAY, T0 + SECOND, WALL) is Verdict.UNEXPECTED_RESPONSE
    assert pair.client.next_deadline() == deadline
    assert pair.initiate(T0 + 6 * SECOND).path == GATEWAY


def test_a_timestamp_is_kept_before_the_initiation_that_needs_it_leaves() -> None:
    pair = Pair()
    pair.client.on_session_wanted(7, T0, WALL)
    keep, sent = pair.client.poll()

    assert isinstance(keep, KeepTimestamp)
    assert isinstance(sent, Transmit)
    assert sent.device == 7
    pair.client.advance(T0 + 6 * SECOND, WALL + 6 * SECOND)
    only(pair.client.poll(), Transmit)  # covered by the mark
    pair.client.advance(T0 + 70 * SECOND, WALL + 70 * SECOND)
    assert isinstance(pair.client.poll()[0], KeepTimestamp)


def test_a_mark_that_is_no_timestamp_is_refused() -> None:
    with pytest.raises(ValueError, match="TAI64N"):
        Pair(client_mark=b"no timestamp")
