"""Handshakes of an interface in both roles, rule by rule (the W numbers are those of the WireGuard conformance list)."""

import itertools
import random
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egressvpn.addresses import Path, pack_sockaddr
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
from egressvpn.wireguard.indexes import SessionIndexes
from egressvpn.wireguard.interface import Clear, DropStaged, Install, Interface, Output, SendKeepalive, Transmit
from egressvpn.wireguard.mac import add_macs, mac1_key
from egressvpn.wireguard.noise import InvalidHandshake, diffie_hellman, public_of

from .test_noise import LOW_ORDER

T = TypeVar("T")

T0 = 1_000 * SECOND
WALL = 1_700_000_000 * SECOND
PSK = bytes(range(32))
CLIENT, GATEWAY, ELSEWHERE = (Path(pack_sockaddr(host, 51820)) for host in ("192.0.2.1", "192.0.2.2", "2001:db8::3"))


def test_a_handshake_gives_both_sides_the_same_session() -> None:
    pair = Pair(psk=PSK)
    transmit = pair.initiate()
    assert transmit.path == GATEWAY
    assert len(transmit.datagram) == 148

    assert pair.gateway.receive(transmit.datagram, CLIENT, T0, WALL) is Verdict.PASS
    answer = only(pair.gateway.poll(), Install)
    assert len(answer.response) == 92
    assert (answer.device, answer.initiator, answer.path) == (1, False, CLIENT)

    assert pair.client.receive(answer.response, GATEWAY, T0, WALL) is Verdict.PASS
    installed, keepalive = pair.client.poll()
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


@given(st.binary(max_size=200))
def test_w1_arbitrary_bytes_are_met_with_silence(datagram: bytes) -> None:
    pair = Pair()

    assert pair.gateway.receive(datagram, ELSEWHERE, T0, WALL) is not Verdict.PASS
    assert pair.gateway.poll() == []


@pytest.mark.parametrize("length", [0, 1, 3, 4, 16, 31, 32, 63, 64, 91, 92, 93, 147, 149, 1500])
def test_w1_wrong_lengths_and_types_are_malformed(length: int) -> None:
    pair = Pair()
    for kind in (0, 1, 2, 4, 5, 255):
        if (kind, length) != (2, 92):
            datagram = (bytes([kind, 0, 0, 0]) + bytes(1500))[:length]
            assert pair.gateway.receive(datagram, ELSEWHERE, T0, WALL) is Verdict.MALFORMED_MESSAGE


def test_a_cookie_reply_nobody_asked_for_is_counted() -> None:
    assert Pair().gateway.receive(b"\3" + bytes(63), ELSEWHERE, T0, WALL) is Verdict.UNEXPECTED_RESPONSE


def test_w2_mac1_is_checked_before_any_diffie_hellman(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()
    datagram = bytearray(pair.initiate().datagram)
    datagram[116] ^= 1

    def refuse(*_: bytes) -> bytes:
        raise AssertionError("a Diffie-Hellman was computed")

    monkeypatch.setattr("egressvpn.wireguard.noise.crypto_scalarmult", refuse)

    assert pair.gateway.receive(bytes(datagram), CLIENT, T0, WALL) is Verdict.BAD_MAC1
    assert pair.gateway.receive(b"\2" + bytes(91), CLIENT, T0, WALL) is Verdict.BAD_MAC1
    assert pair.gateway.poll() == []


def test_w3_any_mac2_will_do() -> None:
    pair = Pair()
    datagram = pair.initiate().datagram

    assert pair.gateway.receive(datagram[:-16] + b"\xff" * 16, CLIENT, T0, WALL) is Verdict.PASS


def test_w10_an_unknown_initiator_meets_silence() -> None:
    pair = Pair()
    datagram = pair.initiate().datagram
    pair.gateway.remove_peer(1)
    pair.gateway.poll()

    assert pair.gateway.receive(datagram, CLIENT, T0, WALL) is Verdict.UNKNOWN_PEER
    assert pair.gateway.poll() == []
    assert len(pair.gateway_indexes) == 0


def test_w11_a_replayed_initiation_meets_silence_and_moves_nothing() -> None:
    pair = Pair()
    datagram = pair.initiate().datagram
    pair.gateway.receive(datagram, CLIENT, T0, WALL)
    pair.gateway.poll()

    assert pair.gateway.receive(datagram, ELSEWHERE, T0 + SECOND, WALL) is Verdict.REPLAYED_HANDSHAKE
    assert pair.gateway.poll() == []
    assert pair.gateway_path() == CLIENT


def test_w11_an_initiator_whose_clock_went_back_stays_later_than_before() -> None:
    pair = Pair()
    pair.handshake(T0)

    pair.client.on_session_wanted(7, T0 + 10 * SECOND, WALL - 86_400 * SECOND)
    datagram = only(pair.client.poll(), Transmit).datagram

    assert pair.gateway.receive(datagram, CLIENT, T0 + 10 * SECOND, WALL) is Verdict.PASS


def test_w11_a_restarted_initiator_with_its_clock_back_is_refused_until_time_catches_up() -> None:
    pair = Pair()
    pair.handshake(T0)
    restarted = Pair()

    assert pair.gateway.receive(restarted.initiate(T0, WALL - SECOND).datagram, CLIENT, T0 + SECOND, WALL) is Verdict.REPLAYED_HANDSHAKE


def test_w11_a_restarted_responder_given_the_newest_timestamp_refuses_a_replay() -> None:
    pair = Pair()
    datagram = pair.initiate().datagram
    pair.gateway.receive(datagram, CLIENT, T0, WALL)
    peer = pair.gateway.peer(1)
    assert peer is not None
    restarted = Pair()
    restarted.gateway.add_peer(1, pair.client.public_key, newest_timestamp=peer.newest_timestamp)

    assert restarted.gateway.receive(datagram, CLIENT, T0, WALL) is Verdict.REPLAYED_HANDSHAKE


def test_initiations_less_than_20_ms_apart_are_a_flood() -> None:
    pair = Pair()
    early, later = (pair.initiate(T0 + seconds * SECOND).datagram for seconds in (0, 6))
    pair.gateway.receive(early, CLIENT, T0, WALL)
    pair.gateway.poll()

    assert pair.gateway.receive(later, CLIENT, T0 + 10 * MILLISECOND, WALL) is Verdict.HANDSHAKE_FLOOD
    assert pair.gateway.poll() == []
    assert pair.gateway.receive(later, CLIENT, T0 + 20 * MILLISECOND, WALL) is Verdict.PASS


@pytest.mark.parametrize("point", LOW_ORDER)
def test_w12_a_low_order_ephemeral_meets_silence(point: bytes) -> None:
    pair = Pair()
    key = mac1_key(pair.gateway.public_key)
    initiation = pair.initiate().datagram
    forged = add_macs(key, initiation[:8] + point + initiation[40:116])

    assert pair.gateway.receive(forged, CLIENT, T0, WALL) is Verdict.INVALID_HANDSHAKE

    pair.gateway.receive(initiation, CLIENT, T0, WALL)
    response = only(pair.gateway.poll(), Install).response
    forged = add_macs(mac1_key(pair.client.public_key), response[:12] + point + response[44:60])
    assert pair.client.receive(forged, GATEWAY, T0, WALL) is Verdict.INVALID_HANDSHAKE
    assert pair.client.poll() == []
    assert pair.client.receive(response, GATEWAY, T0, WALL) is Verdict.PASS


@pytest.mark.parametrize("point", LOW_ORDER)
def test_w12_nothing_is_ever_sent_to_a_low_order_public_key(point: bytes) -> None:
    pair = Pair()
    pair.client.add_peer(9, point, path=ELSEWHERE, persistent_keepalive=1)
    pair.client.on_session_wanted(9, T0, WALL)

    assert pair.client.poll() == [DropStaged(9)]
    assert pair.client.next_deadline() is None
    assert len(pair.client_indexes) == 0
    with pytest.raises(InvalidHandshake):
        diffie_hellman(bytes(range(32)), point)


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
    assert bool(pair.gateway.poll()) == harmless


def test_w13_a_response_is_accepted_once() -> None:
    pair = Pair()
    response = pair.answered()
    assert pair.client.receive(response, GATEWAY, T0, WALL) is Verdict.PASS
    pair.client.poll()

    assert pair.client.receive(response, ELSEWHERE, T0, WALL) is Verdict.UNEXPECTED_RESPONSE
    assert pair.client.poll() == []


def test_w13_a_response_to_a_replaced_initiation_is_ignored() -> None:
    pair = Pair()
    late = pair.answered()
    deadline = pair.client.next_deadline()
    assert deadline is not None
    pair.client.advance(deadline, WALL + 5 * SECOND)
    pair.client.poll()

    assert pair.client.receive(late, GATEWAY, deadline, WALL) is Verdict.UNEXPECTED_RESPONSE


def test_w13_a_forged_response_does_not_end_the_handshake() -> None:
    pair = Pair()
    response = pair.answered()
    body = bytearray(response[:60])
    body[59] ^= 1
    forged = add_macs(mac1_key(pair.client.public_key), bytes(body))

    assert pair.client.receive(forged, ELSEWHERE, T0, WALL) is Verdict.INVALID_HANDSHAKE
    assert pair.client.poll() == []
    assert pair.client.receive(response, GATEWAY, T0, WALL) is Verdict.PASS


def test_w19_paths_follow_authenticated_handshakes_only() -> None:
    pair = Pair()
    initiation = pair.initiate().datagram
    pair.gateway.receive(initiation[:-17] + b"x" + initiation[-16:], ELSEWHERE, T0, WALL)
    assert pair.gateway_path() is None

    pair.gateway.receive(initiation, ELSEWHERE, T0, WALL)
    assert pair.gateway_path() == ELSEWHERE

    pair.client.receive(only(pair.gateway.poll(), Install).response, ELSEWHERE, T0, WALL)
    peer = pair.client.peer(7)
    assert peer is not None
    assert peer.path == ELSEWHERE


def test_w21_a_changed_preshared_key_counts_from_the_next_handshake() -> None:
    pair = Pair()
    pair.handshake(T0)
    pair.gateway.add_peer(1, pair.client.public_key, PSK)
    response = pair.answered(T0 + 10 * SECOND)
    assert pair.client.receive(response, GATEWAY, T0, WALL) is Verdict.INVALID_HANDSHAKE

    pair.client.add_peer(7, pair.gateway.public_key, PSK)

    assert pair.client.receive(response, GATEWAY, T0, WALL) is Verdict.PASS


def test_w22_a_new_private_key_ends_every_session_and_allows_a_handshake_at_once() -> None:
    pair = Pair()
    pair.initiate()
    key = random.Random(9).randbytes(32)

    assert pair.client.change_private_key(key) == []
    assert pair.client.poll() == [Clear(7)]
    assert len(pair.client_indexes) == 0
    assert pair.client.next_deadline() is None

    pair.gateway.remove_peer(1)
    pair.gateway.poll()
    pair.gateway.add_peer(1, public_of(key))
    pair.client.on_session_wanted(7, T0 + 6 * SECOND, WALL)
    assert pair.gateway.receive(only(pair.client.poll(), Transmit).datagram, CLIENT, T0, WALL) is Verdict.PASS


def test_w22_a_peer_that_is_ourselves_is_removed_and_refused() -> None:
    pair = Pair()
    key = random.Random(9).randbytes(32)
    pair.client.add_peer(8, public_of(key))

    assert pair.client.change_private_key(key) == [8]
    assert pair.client.peer(8) is None
    with pytest.raises(ValueError, match="own key"):
        pair.client.add_peer(8, public_of(key))


def test_w25_indexes_of_handshakes_and_sessions_never_coincide() -> None:
    pair = Pair()
    seen: list[int] = []
    now = T0
    for _ in range(50):
        now += 10 * SECOND
        installed = pair.handshake(now)
        seen.append(installed.index)
        assert installed.index in pair.client_indexes
    assert len(set(seen)) == 50


def test_w26_retries_leave_the_source_address_to_the_kernel() -> None:
    pair = Pair()
    pair.client.set_path(7, Path(GATEWAY.remote, b"l" * 32, 1))
    assert pair.initiate().path.local == b"l" * 32

    pair.client.advance(T0 + 6 * SECOND, WALL)

    assert only(pair.client.poll(), Transmit).path == Path(GATEWAY.remote, b"", 1)


def test_an_unanswered_initiation_is_repeated_20_times_and_given_up() -> None:
    pair = Pair()
    sent = [(T0, pair.initiate().datagram)]
    outputs: list[Output] = []
    while (deadline := pair.client.next_deadline()) is not None:
        pair.client.advance(deadline - 1, WALL)
        assert pair.client.poll() == []
        pair.client.advance(deadline, WALL + deadline)
        outputs = pair.client.poll()
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
        sent += len(pair.client.poll())
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
    assert pair.client.poll() == []


def test_after_giving_up_new_data_begins_anew() -> None:
    pair = Pair()
    pair.initiate()
    now = T0
    while (deadline := pair.client.next_deadline()) is not None:
        now = deadline
        pair.client.advance(now, WALL)
    pair.client.poll()

    pair.client.on_session_wanted(7, now + SECOND, WALL)

    assert isinstance(pair.client.poll()[0], Transmit)


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
                pair.client.receive(only(pair.gateway.poll(), Install).response, GATEWAY, now, WALL)
        for output in pair.client.poll():
            if isinstance(output, Transmit):
                assert now - last >= REKEY_TIMEOUT
                last, pending, answered = now, output.datagram, False


def test_data_wanted_too_early_gets_its_handshake_when_5_s_have_passed() -> None:
    pair = Pair()
    pair.handshake(T0)
    pair.client.on_session_wanted(7, T0 + SECOND, WALL)
    assert pair.client.poll() == []

    assert pair.client.next_deadline() == T0 + 5 * SECOND
    pair.client.advance(T0 + 5 * SECOND, WALL + 5 * SECOND)

    assert isinstance(pair.client.poll()[0], Transmit)


def test_a_postponed_initiation_is_dropped_when_the_peer_begins_itself() -> None:
    pair = Pair()
    pair.handshake(T0)
    pair.gateway.on_session_wanted(1, T0 + SECOND, WALL)
    pair.gateway.receive(pair.initiate(T0 + 6 * SECOND).datagram, CLIENT, T0 + 2 * SECOND, WALL)

    assert pair.gateway.next_deadline() is None


def test_w23_two_that_begin_at_once_both_answer_and_both_accept() -> None:
    pair = Pair()
    pair.gateway.set_path(1, CLIENT)
    from_client = pair.initiate().datagram
    pair.gateway.on_session_wanted(1, T0, WALL)
    from_gateway = only(pair.gateway.poll(), Transmit).datagram

    assert pair.gateway.receive(from_client, CLIENT, T0, WALL) is Verdict.PASS
    assert pair.client.receive(from_gateway, GATEWAY, T0, WALL) is Verdict.PASS
    to_client, to_gateway = only(pair.gateway.poll(), Install).response, only(pair.client.poll(), Install).response
    assert pair.client.receive(to_client, GATEWAY, T0, WALL) is Verdict.PASS
    assert pair.gateway.receive(to_gateway, CLIENT, T0, WALL) is Verdict.PASS

    assert pair.client.next_deadline() is None
    assert pair.gateway.next_deadline() is None


def test_a_confirmed_session_ends_our_own_attempt() -> None:
    pair = Pair()
    pair.initiate()

    pair.client.on_session_confirmed(7)

    assert pair.client.next_deadline() is None
    assert len(pair.client_indexes) == 0


def test_timer_bits_become_commands() -> None:
    pair = Pair()
    for bits, expected in [(DUE_KEEPALIVE, [SendKeepalive(7)]), (DUE_PERSISTENT, [SendKeepalive(7)]), (DUE_ZERO, [Clear(7)]), (0, [])]:
        pair.client.on_timer(7, bits, T0, WALL)
        assert pair.client.poll() == expected
    pair.client.on_timer(7, DUE_HANDSHAKE, T0, WALL)
    assert isinstance(pair.client.poll()[0], Transmit)


def test_events_about_peers_that_are_gone_do_nothing() -> None:
    pair = Pair()
    pair.initiate()
    pair.client.remove_peer(7)
    assert pair.client.poll() == [Clear(7)]

    pair.client.on_session_wanted(7, T0, WALL)
    pair.client.on_timer(7, 15, T0, WALL)
    pair.client.on_session_confirmed(7)
    pair.client.set_path(7, GATEWAY)
    pair.client.remove_peer(7)
    pair.client.advance(T0 + 100 * SECOND, WALL)

    assert pair.client.poll() == []
    assert pair.client.next_deadline() is None
    assert len(pair.client_indexes) == 0


def test_a_peer_without_a_path_is_not_written_to() -> None:
    pair = Pair()
    pair.gateway.on_session_wanted(1, T0, WALL)

    assert pair.gateway.poll() == []
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
    pair.gateway.poll()

    verdict = pair.gateway.receive(pair.initiate(T0 + 6 * SECOND).datagram, CLIENT, T0 + 6 * SECOND, WALL)
    assert verdict is Verdict.HANDSHAKE_FLOOD
    pair.gateway.on_session_wanted(1, T0 + 20 * SECOND, WALL)
    assert pair.gateway.poll() == []
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
    shown = repr(installed) + repr(pair.client.peer(7)) + repr(pair.client._identities) + repr(pair.client)

    for secret in (installed.receive_key, installed.send_key, PSK, pair.client._identities[0].private_key):
        assert repr(secret) not in shown


def only(outputs: list[Output], kind: type[T]) -> T:
    (output,) = outputs
    assert isinstance(output, kind)
    return output


class Pair:
    """A client (its peer is device 7) and a gateway (its peer is device 1, its path not known yet)."""

    def __init__(self, psk: bytes = bytes(32), slots: int = 256) -> None:
        dice = random.Random(1)
        self.client_indexes = SessionIndexes(slots, 0, dice.randbytes)
        self.gateway_indexes = SessionIndexes(slots, 1, dice.randbytes)
        self.client = Interface(random.Random(2).randbytes(32), self.client_indexes, dice.randbytes)
        self.gateway = Interface(random.Random(3).randbytes(32), self.gateway_indexes, dice.randbytes)
        self.client.add_peer(7, self.gateway.public_key, psk, GATEWAY)
        self.gateway.add_peer(1, self.client.public_key, psk)

    def initiate(self, now: int = T0, wall_ns: int | None = None) -> Transmit:
        """The client's initiation: its first, or the next when that is due."""
        wall_ns = WALL + now - T0 if wall_ns is None else wall_ns
        self.client.advance(now, wall_ns)
        self.client.on_session_wanted(7, now, wall_ns)
        return only(self.client.poll(), Transmit)

    def answered(self, now: int = T0) -> bytes:
        """The gateway's response to the client's initiation."""
        assert self.gateway.receive(self.initiate(now).datagram, CLIENT, now, WALL) is Verdict.PASS
        return only(self.gateway.poll(), Install).response

    def handshake(self, now: int) -> Install:
        """A whole handshake; what the client installs."""
        assert self.client.receive(self.answered(now), GATEWAY, now, WALL) is Verdict.PASS
        installed = self.client.poll()[0]
        assert isinstance(installed, Install)
        return installed

    def gateway_path(self) -> Path | None:
        peer = self.gateway.peer(1)
        return peer.path if peer is not None else None
