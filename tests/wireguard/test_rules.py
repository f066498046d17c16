"""Every receive and state-machine rule W1 to W26, each named after its number, in virtual time (whitepaper 5, 6; kernel sources).

What an Interface decides alone is tested here, and what two nodes make of it over a wire in tests/sim. Rules that the data
path keeps are tested with it: IN_OTHER_FILES says where, and `test_every_rule_has_its_test` that it is so.

    W1  lengths and types            W10 unknown initiator        W19 endpoints
    W2  MAC1                         W11 replayed initiation      W20 routing by key
    W3  no load: any MAC2            W12 low-order points         W21 preshared key changed
    W4  load: cookie reply           W13 which response           W22 private key changed
    W5  load: rate                   W14 confirmation             W23 both begin at once
    W6  what a cookie is bound to    W15 three sessions           W24 nonces
    W7  the cookie reply             W16 order of judgement       W25 indexes
    W8  when it is taken             W17 forged data              W26 local address
    W9  what it is good for          W18 the inner packet
"""

import itertools
import random
import re
from pathlib import Path as File
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressvpn.addresses import Path, pack_sockaddr
from egressvpn.verdict import Verdict
from egressvpn.wireguard.constants import DUE_HANDSHAKE, MILLISECOND, SECOND
from egressvpn.wireguard.indexes import SessionIndexes
from egressvpn.wireguard.interface import Clear, DropStaged, Install, Interface, KeepTimestamp, Transmit
from egressvpn.wireguard.mac import add_macs, mac, mac1_key
from egressvpn.wireguard.noise import diffie_hellman, public_of
from egressvpn.wireguard.timestamps import NO_TIMESTAMP
from tests.sim.door import Door

from .doorstep import small_tables
from .pair import CLIENT, COOKIE, ELSEWHERE, GATEWAY, PSK, T0, WALL, Pair, cookie_reply, only, polled
from .test_noise import LOW_ORDER

# rule: the tests in other files, as file and name below tests/
IN_OTHER_FILES: Final = {
    1: [
        "wireguard/test_messages.py::test_w1_only_three_types_at_their_exact_length",
        "dataplane/test_receive.py::test_any_datagram_is_dropped_once_and_answered_by_nothing",
    ],
    2: ["wireguard/test_cookie.py::test_w2_a_message_changed_anywhere_before_mac2_is_meant_for_nobody"],
    4: ["sim/test_load.py::test_w4_a_responder_under_load_asks_for_a_cookie_and_the_next_try_gets_in"],
    5: [
        "wireguard/test_cookie.py::test_w5_all_addresses_of_an_ipv6_network_share_a_limit",
        "wireguard/test_ratelimiter.py::test_the_kernels_table",
    ],
    6: [
        "wireguard/test_cookie.py::test_w6_a_cookie_is_the_mac_of_address_and_port",
        "sim/test_load.py::test_w6_a_peer_that_moved_needs_another_cookie",
    ],
    8: ["sim/test_load.py::test_w8_a_replayed_cookie_reply_changes_nothing"],
    9: ["sim/test_load.py::test_w9_an_initiator_under_load_asks_the_responder_for_a_cookie_too"],
    11: ["sim/test_quiet.py::test_w11_a_restart_with_the_clock_gone_back_stops_nobody"],
    12: ["wireguard/test_noise.py::test_w12_a_low_order_point_ends_the_handshake"],
    14: [
        "dataplane/test_rules.py::test_w14_a_responder_stages_until_the_first_data_and_then_sends",
        "sim/test_two_interfaces.py::test_w14_a_keepalive_confirms_a_session_when_there_is_no_data",
    ],
    15: [
        "wireguard/test_keypairs.py::test_w15_first_data_promotes_next",
        "dataplane/test_rules.py::test_w15_the_session_before_goes_on_until_the_new_one_is_confirmed_and_still_opens_afterwards",
    ],
    16: [
        "dataplane/test_rules.py::test_w16_a_message_is_judged_in_order_and_w19_its_endpoint_counts_from_authentication_on",
        "dataplane/test_rules.py::test_w16_the_owner_of_the_longest_prefix_is_who_may_send_from_it",
    ],
    17: [
        "dataplane/test_receive.py::test_a_forged_message_moves_nothing",
        "wireguard/test_replay.py::test_w17_a_rejected_counter_changes_nothing",
    ],
    18: [
        "dataplane/test_rules.py::test_w18_only_versions_4_and_6_are_packets",
        "dataplane/test_rules.py::test_w18_a_packet_longer_than_its_message_is_dropped",
        "dataplane/test_rules.py::test_w18_padding_is_cut_off_whatever_its_length",
    ],
    19: [
        "dataplane/test_rules.py::test_w16_a_message_is_judged_in_order_and_w19_its_endpoint_counts_from_authentication_on",
        "sim/test_quiet.py::test_w19_data_follows_a_peer_that_moves",
    ],
    20: [
        "dataplane/test_unreachable.py::test_a_client_answers_for_an_ipv4_destination_nobody_has_or_nobody_heard",
        "dataplane/test_unreachable.py::test_a_client_answers_for_an_ipv6_destination",
        "dataplane/test_unreachable.py::test_the_gateway_answers_in_the_name_of_the_external_address_for_a_device_it_has_not_heard",
    ],
    22: ["sim/test_quiet.py::test_w22_a_key_change_on_one_side_is_mended_by_one_handshake"],
    23: ["sim/test_two_interfaces.py::test_w23_over_a_bad_wire_both_converge_and_every_rule_holds"],
    24: ["dataplane/test_transmit.py::test_a_successor_on_the_same_arena_goes_on_and_repeats_no_nonce"],
    25: [
        "wireguard/test_indexes.py::test_w25_indexes_are_unique_32_bit_numbers_of_this_worker",
        "wireguard/test_indexes.py::test_every_bit_and_every_octet_of_an_index_looks_random",
    ],
}


def test_every_rule_has_its_test() -> None:
    here = {int(number) for number in re.findall(r"^def test_w(\d+)_", File(__file__).read_text(), re.MULTILINE)}
    assert here | set(IN_OTHER_FILES) == set(range(1, 27))
    for named in itertools.chain.from_iterable(IN_OTHER_FILES.values()):
        file, _, name = named.partition("::")
        assert f"\ndef {name}(" in (File(__file__).parent.parent / file).read_text(), named


@given(st.binary(max_size=200))
def test_w1_arbitrary_bytes_are_met_with_silence(datagram: bytes) -> None:
    pair = Pair()

    assert pair.gateway.receive(datagram, ELSEWHERE, T0, WALL) is not Verdict.PASS
    assert polled(pair.gateway) == []


@pytest.mark.parametrize("length", [0, 1, 3, 4, 16, 31, 32, 63, 64, 91, 92, 93, 147, 149, 1500])
def test_w1_wrong_lengths_and_types_are_malformed(length: int) -> None:
    pair = Pair()
    for kind in (0, 1, 2, 4, 5, 255):
        if (kind, length) != (2, 92):
            datagram = (bytes([kind, 0, 0, 0]) + bytes(1500))[:length]
            assert pair.gateway.receive(datagram, ELSEWHERE, T0, WALL) is Verdict.MALFORMED_MESSAGE


def test_w2_mac1_is_checked_before_any_diffie_hellman(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()
    datagram = bytearray(pair.initiate().datagram)
    datagram[116] ^= 1

    def refuse(*_: bytes) -> bytes:
        raise AssertionError("a Diffie-Hellman was computed")

    monkeypatch.setattr("egressvpn.wireguard.noise.crypto_scalarmult", refuse)

    assert pair.gateway.receive(bytes(datagram), CLIENT, T0, WALL) is Verdict.BAD_MAC1
    assert pair.gateway.receive(b"\2" + bytes(91), CLIENT, T0, WALL) is Verdict.BAD_MAC1
    assert polled(pair.gateway) == []


@pytest.mark.parametrize("mac2", [bytes(16), b"\xff" * 16])
def test_w3_without_load_any_mac2_will_do(mac2: bytes) -> None:
    pair = Pair()

    assert pair.gateway.receive(pair.initiate().datagram[:-16] + mac2, CLIENT, T0, WALL) is Verdict.PASS
    response = only(polled(pair.gateway), Install).response
    assert pair.client.receive(response[:-16] + mac2, GATEWAY, T0, WALL) is Verdict.PASS


@pytest.mark.parametrize("mac2", [bytes(16), b"\xff" * 16])
def test_w4_under_load_a_message_without_a_good_mac2_is_answered_by_a_cookie_reply_and_goes_no_further(mac2: bytes) -> None:
    pair = Pair()
    response = pair.answered()

    for receiver, datagram in [(pair.gateway, pair.initiate(T0 + 6 * SECOND).datagram), (pair.client, response)]:
        verdict, reply = knock(loaded_door(receiver), datagram[:-16] + mac2, CLIENT)
        assert verdict is Verdict.COOKIE_REQUIRED
        assert (len(reply), reply[:4], reply[4:8]) == (64, b"\3\0\0\0", datagram[4:8])


def test_w5_under_load_more_than_the_rate_with_a_good_mac2_meets_silence() -> None:
    pair = Pair()
    door = loaded_door(pair.gateway)
    signed = signed_initiation(pair, door)

    judged = [knock(door, signed, CLIENT) for _ in range(7)]

    assert judged == [(Verdict.PASS, b"")] * 5 + [(Verdict.RATE_LIMITED, b"")] * 2
    assert knock(door, signed, CLIENT, T0 + 50 * MILLISECOND) == (Verdict.PASS, b"")


@pytest.mark.parametrize("origin", [("192.0.2.1", 51821), ("192.0.2.2", 51820), ("::ffff:192.0.2.1", 51820)])
def test_w6_a_cookie_is_worth_nothing_from_another_address_or_port_or_after_its_secret(origin: tuple[str, int]) -> None:
    pair = Pair()
    door = loaded_door(pair.gateway)
    signed = signed_initiation(pair, door)
    assert knock(door, signed, Path(pack_sockaddr(*origin)))[0] is Verdict.COOKIE_REQUIRED
    assert knock(door, signed, CLIENT)[0] is Verdict.PASS

    door.set_secret(b"n" * 32)

    assert knock(door, signed, CLIENT)[0] is Verdict.COOKIE_REQUIRED


@pytest.mark.parametrize("position", [8, 20, 31, 32, 47, 48, 63])
def test_w7_an_altered_cookie_reply_is_refused_and_the_true_one_still_taken(position: int) -> None:
    pair = Pair()
    sent = pair.initiate().datagram
    reply = cookie_reply(pair.gateway.public_key, sent)
    altered = bytearray(reply)
    altered[position] ^= 1

    assert pair.client.receive(bytes(altered), GATEWAY, T0, WALL) is Verdict.INVALID_COOKIE_REPLY
    assert pair.client.receive(reply, GATEWAY, T0, WALL) is Verdict.PASS


def test_w7_a_cookie_reply_is_bound_to_the_mac1_and_to_the_index_it_answers_and_to_its_writer() -> None:
    pair = Pair()
    first, second = pair.initiate().datagram, pair.initiate(T0 + 6 * SECOND).datagram
    key = pair.gateway.public_key

    for reply, verdict in [
        (cookie_reply(key, first), Verdict.UNEXPECTED_COOKIE_REPLY),  # its index is not in use any more
        (cookie_reply(key, second, mac1=first[116:132]), Verdict.INVALID_COOKIE_REPLY),
        (cookie_reply(key, second, mac1=b""), Verdict.INVALID_COOKIE_REPLY),
        (cookie_reply(pair.client.public_key, second), Verdict.INVALID_COOKIE_REPLY),
        (cookie_reply(key, second), Verdict.PASS),
    ]:
        assert pair.client.receive(reply, GATEWAY, T0 + 7 * SECOND, WALL) is verdict


def test_w8_a_cookie_reply_is_taken_once_sends_nothing_and_moves_nothing() -> None:
    pair = Pair()
    reply = cookie_reply(pair.gateway.public_key, pair.initiate().datagram)
    deadline = pair.client.next_deadline()

    assert pair.client.receive(reply, ELSEWHERE, T0, WALL) is Verdict.PASS
    assert pair.client.receive(reply, ELSEWHERE, T0, WALL) is Verdict.UNEXPECTED_COOKIE_REPLY

    assert pair.client.poll() == []
    assert pair.client_path() == GATEWAY
    assert pair.client.next_deadline() == deadline


def test_w8_a_cookie_reply_nobody_asked_for_is_refused() -> None:
    pair = Pair()
    forged = cookie_reply(pair.gateway.public_key, bytes(148), mac1=b"")

    assert pair.client.receive(forged, GATEWAY, T0, WALL) is Verdict.UNEXPECTED_COOKIE_REPLY


def test_w8_after_one_cookie_reply_none_is_taken_until_another_message_was_sent() -> None:
    pair = Pair()
    first = pair.initiate().datagram
    pair.client.receive(cookie_reply(pair.gateway.public_key, first), GATEWAY, T0, WALL)
    emptied = cookie_reply(pair.gateway.public_key, first, b"another cookie !", mac1=b"")

    assert pair.client.receive(emptied, GATEWAY, T0, WALL) is Verdict.UNEXPECTED_COOKIE_REPLY
    second = pair.initiate(T0 + 6 * SECOND).datagram
    assert second[-16:] == mac(COOKIE, second[:-16])
    assert pair.client.receive(cookie_reply(pair.gateway.public_key, second), GATEWAY, T0, WALL) is Verdict.PASS


def test_w8_a_cookie_reply_for_a_peer_that_is_gone_is_refused() -> None:
    pair = Pair()
    reply = cookie_reply(pair.gateway.public_key, pair.initiate().datagram)
    pair.client.remove_peer(7)

    assert pair.client.receive(reply, GATEWAY, T0, WALL) is Verdict.UNEXPECTED_COOKIE_REPLY


@pytest.mark.parametrize(("age", "signed"), [(6 * SECOND, True), (115 * SECOND - 1, True), (115 * SECOND, False)])
def test_w9_the_next_initiation_carries_mac2_while_the_cookie_is_younger_than_115_s(age: int, signed: bool) -> None:
    pair = Pair()
    first = pair.initiate().datagram
    pair.client.receive(cookie_reply(pair.gateway.public_key, first), GATEWAY, T0, WALL)

    again = pair.initiate(T0 + age).datagram

    assert first[-16:] == bytes(16)
    assert again[-16:] == (mac(COOKIE, again[:-16]) if signed else bytes(16))


def test_w9_a_response_carries_mac2_too() -> None:
    pair = Pair()
    response = pair.answered()
    assert response[-16:] == bytes(16)
    reply = cookie_reply(pair.client.public_key, response)

    assert pair.gateway.receive(reply, CLIENT, T0, WALL) is Verdict.PASS

    response = pair.answered(T0 + 6 * SECOND)
    assert response[-16:] == mac(COOKIE, response[:-16])
    pair.gateway.on_session_wanted(1, T0 + 20 * SECOND, WALL)
    initiation = only(polled(pair.gateway), Transmit).datagram
    assert initiation[-16:] == mac(COOKIE, initiation[:-16])


def test_w9_a_newer_cookie_replaces_the_older() -> None:
    pair = Pair()
    key = pair.gateway.public_key
    pair.client.receive(cookie_reply(key, pair.initiate().datagram, b"the first cookie"), GATEWAY, T0, WALL)
    second = pair.initiate(T0 + 6 * SECOND).datagram
    pair.client.receive(cookie_reply(key, second), GATEWAY, T0 + 100 * SECOND, WALL)

    third = pair.initiate(T0 + 200 * SECOND).datagram

    assert third[-16:] == mac(COOKIE, third[:-16])


def test_w10_an_unknown_initiator_meets_silence() -> None:
    pair = Pair()
    datagram = pair.initiate().datagram
    pair.gateway.remove_peer(1)
    polled(pair.gateway)

    assert pair.gateway.receive(datagram, CLIENT, T0, WALL) is Verdict.UNKNOWN_PEER
    assert polled(pair.gateway) == []
    assert len(pair.gateway_indexes) == 0


def test_w11_a_replayed_initiation_meets_silence_and_moves_nothing() -> None:
    pair = Pair()
    datagram = pair.initiate().datagram
    pair.gateway.receive(datagram, CLIENT, T0, WALL)
    polled(pair.gateway)

    assert pair.gateway.receive(datagram, ELSEWHERE, T0 + SECOND, WALL) is Verdict.REPLAYED_HANDSHAKE
    assert polled(pair.gateway) == []
    assert pair.gateway_path() == CLIENT


def test_w11_an_initiator_whose_clock_went_back_stays_later_than_before() -> None:
    pair = Pair()
    pair.handshake(T0)

    pair.client.on_session_wanted(7, T0 + 10 * SECOND, WALL - 86_400 * SECOND)
    datagram = only(polled(pair.client), Transmit).datagram

    assert pair.gateway.receive(datagram, CLIENT, T0 + 10 * SECOND, WALL) is Verdict.PASS


def test_w11_a_restarted_responder_given_the_newest_timestamp_refuses_a_replay() -> None:
    pair = Pair()
    datagram = pair.initiate().datagram
    pair.gateway.receive(datagram, CLIENT, T0, WALL)
    peer = pair.gateway.peer(1)
    assert peer is not None
    restarted = Pair()
    restarted.gateway.add_peer(1, pair.client.public_key, newest_timestamp=peer.newest_timestamp)

    assert restarted.gateway.receive(datagram, CLIENT, T0, WALL) is Verdict.REPLAYED_HANDSHAKE


def test_w11_no_timestamp_above_the_mark_kept_is_ever_sent() -> None:
    pair = Pair()
    kept = NO_TIMESTAMP
    for minute in range(10):
        now = T0 + 17 * minute * SECOND
        pair.client.on_session_wanted(7, now, WALL + now - T0)
        pair.client.advance(now, WALL + now - T0)
        for output in pair.client.poll():
            if isinstance(output, KeepTimestamp):
                assert output.mark > kept
                kept = output.mark
            if isinstance(output, Transmit):
                assert pair.gateway.receive(output.datagram, CLIENT, now, WALL) is Verdict.PASS
                assert newest(pair) <= kept


def test_w11_an_initiator_restarted_with_its_mark_is_accepted_though_its_clock_went_back() -> None:
    pair = Pair()
    pair.client.on_session_wanted(7, T0, WALL)
    keep, sent = pair.client.poll()
    assert isinstance(keep, KeepTimestamp)
    assert isinstance(sent, Transmit)
    pair.gateway.receive(sent.datagram, CLIENT, T0, WALL)
    restarted = Pair(client_mark=keep.mark)

    datagram = restarted.initiate(T0, WALL - 365 * 86_400 * SECOND).datagram

    assert pair.gateway.receive(datagram, CLIENT, T0 + SECOND, WALL) is Verdict.PASS
    assert newest(pair) > keep.mark


def test_w11_a_restarted_initiator_without_its_mark_is_refused_until_time_catches_up() -> None:
    pair = Pair()
    pair.handshake(T0)
    restarted = Pair()

    assert pair.gateway.receive(restarted.initiate(T0, WALL - SECOND).datagram, CLIENT, T0 + SECOND, WALL) is Verdict.REPLAYED_HANDSHAKE


@pytest.mark.parametrize("point", LOW_ORDER)
def test_w12_a_low_order_ephemeral_meets_silence(point: bytes) -> None:
    pair = Pair()
    key = mac1_key(pair.gateway.public_key)
    initiation = pair.initiate().datagram
    forged = add_macs(key, initiation[:8] + point + initiation[40:116])

    assert pair.gateway.receive(forged, CLIENT, T0, WALL) is Verdict.INVALID_HANDSHAKE

    pair.gateway.receive(initiation, CLIENT, T0, WALL)
    response = only(polled(pair.gateway), Install).response
    forged = add_macs(mac1_key(pair.client.public_key), response[:12] + point + response[44:60])
    assert pair.client.receive(forged, GATEWAY, T0, WALL) is Verdict.INVALID_HANDSHAKE
    assert polled(pair.client) == []
    assert pair.client.receive(response, GATEWAY, T0, WALL) is Verdict.PASS


@pytest.mark.parametrize("point", LOW_ORDER)
def test_w12_nothing_is_ever_sent_to_a_low_order_public_key(point: bytes) -> None:
    pair = Pair()
    pair.client.add_peer(9, point, path=ELSEWHERE, persistent_keepalive=1)

    for second in range(60):
        pair.client.on_session_wanted(9, T0 + second * SECOND, WALL)
        pair.client.on_timer(9, DUE_HANDSHAKE, T0 + second * SECOND, WALL)
        assert set(polled(pair.client)) == {DropStaged(9)}
    assert pair.client.next_deadline() is None
    assert len(pair.client_indexes) == 0


def test_w13_a_response_is_accepted_once() -> None:
    pair = Pair()
    response = pair.answered()
    assert pair.client.receive(response, GATEWAY, T0, WALL) is Verdict.PASS
    polled(pair.client)

    assert pair.client.receive(response, ELSEWHERE, T0, WALL) is Verdict.UNEXPECTED_RESPONSE
    assert polled(pair.client) == []


def test_w13_a_response_to_a_replaced_initiation_is_ignored() -> None:
    pair = Pair()
    late = pair.answered()
    deadline = pair.client.next_deadline()
    assert deadline is not None
    pair.client.advance(deadline, WALL + 5 * SECOND)
    polled(pair.client)

    assert pair.client.receive(late, GATEWAY, deadline, WALL) is Verdict.UNEXPECTED_RESPONSE


def test_w13_a_forged_response_does_not_end_the_handshake() -> None:
    pair = Pair()
    response = pair.answered()
    body = bytearray(response[:60])
    body[59] ^= 1
    forged = add_macs(mac1_key(pair.client.public_key), bytes(body))

    assert pair.client.receive(forged, ELSEWHERE, T0, WALL) is Verdict.INVALID_HANDSHAKE
    assert polled(pair.client) == []
    assert pair.client.receive(response, GATEWAY, T0, WALL) is Verdict.PASS


def test_w19_paths_follow_authenticated_handshakes_only() -> None:
    pair = Pair()
    initiation = pair.initiate().datagram
    pair.gateway.receive(initiation[:-17] + b"x" + initiation[-16:], ELSEWHERE, T0, WALL)
    assert pair.gateway_path() is None

    pair.gateway.receive(initiation, ELSEWHERE, T0, WALL)
    assert pair.gateway_path() == ELSEWHERE

    pair.client.receive(only(polled(pair.gateway), Install).response, ELSEWHERE, T0, WALL)
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
    pair.handshake(T0)
    stale = pair.answered(T0 + 10 * SECOND)
    key = random.Random(9).randbytes(32)

    shared = diffie_hellman(pair.client.identities[0].private_key, pair.gateway.public_key)
    peer = pair.client.peer(7)
    assert peer is not None
    assert shared in peer._shared.values()

    assert pair.client.change_private_key(key) == []
    assert polled(pair.client) == [Clear(7)]
    assert shared not in peer._shared.values()
    assert len(pair.client_indexes) == 1  # the session's, until the worker has wiped it
    assert pair.client.next_deadline() is None
    assert pair.client.receive(stale, GATEWAY, T0 + 10 * SECOND, WALL) is Verdict.BAD_MAC1

    pair.gateway.add_peer(2, public_of(key))
    pair.client.on_session_wanted(7, T0 + 10 * SECOND, WALL)
    assert pair.gateway.receive(only(polled(pair.client), Transmit).datagram, CLIENT, T0 + 10 * SECOND, WALL) is Verdict.PASS


def test_w22_the_same_private_key_again_changes_nothing() -> None:
    pair = Pair()
    (identity,) = pair.client.identities
    pair.initiate()

    assert pair.client.change_private_key(identity.private_key) == []
    assert pair.client.change_private_key(bytes([identity.private_key[0] | 7]) + identity.private_key[1:]) == []  # alike when clamped

    assert pair.client.poll() == []
    assert len(pair.client_indexes) == 1


def test_w22_without_a_private_key_nobody_is_answered_and_nothing_begins() -> None:
    pair = Pair()
    key = pair.gateway.identities[0].private_key
    initiation = pair.initiate().datagram
    pair.gateway.set_path(1, CLIENT)
    pair.gateway.on_session_wanted(1, T0, WALL)
    polled(pair.gateway)

    pair.gateway.clear_private_key()

    assert polled(pair.gateway) == [Clear(1)]
    assert (pair.gateway.identities, pair.gateway.public_key, len(pair.gateway_indexes)) == ((), b"", 0)
    assert pair.gateway.receive(initiation, CLIENT, T0, WALL) is Verdict.BAD_MAC1
    for minute in range(5):
        pair.gateway.on_session_wanted(1, T0 + minute * 60 * SECOND, WALL)
        pair.gateway.on_timer(1, DUE_HANDSHAKE, T0 + minute * 60 * SECOND, WALL)
    pair.gateway.clear_private_key()
    assert pair.gateway.poll() == []
    assert pair.gateway.next_deadline() is None
    pair.gateway.change_private_key(key)
    assert polled(pair.gateway) == [Clear(1)]
    assert pair.gateway.receive(initiation, CLIENT, T0, WALL) is Verdict.PASS


def test_w22_an_interface_may_begin_without_a_private_key() -> None:
    dice = random.Random(4)
    interface = Interface(None, SessionIndexes(16, 0, dice.randbytes), dice.randbytes)
    interface.add_peer(1, public_of(bytes(range(32))), path=GATEWAY)
    interface.on_session_wanted(1, T0, WALL)
    assert interface.poll() == []

    interface.change_private_key(dice.randbytes(32))
    interface.on_session_wanted(1, T0, WALL)

    assert isinstance(polled(interface)[-1], Transmit)


def test_w22_a_peer_that_is_ourselves_is_removed_and_refused() -> None:
    pair = Pair()
    key = random.Random(9).randbytes(32)
    pair.client.add_peer(8, public_of(key))

    assert pair.client.change_private_key(key) == [8]
    assert pair.client.peer(8) is None
    with pytest.raises(ValueError, match="own key"):
        pair.client.add_peer(8, public_of(key))


def test_w23_two_that_begin_at_once_both_answer_and_both_accept() -> None:
    pair = Pair()
    pair.gateway.set_path(1, CLIENT)
    from_client = pair.initiate().datagram
    pair.gateway.on_session_wanted(1, T0, WALL)
    from_gateway = only(polled(pair.gateway), Transmit).datagram

    assert pair.gateway.receive(from_client, CLIENT, T0, WALL) is Verdict.PASS
    assert pair.client.receive(from_gateway, GATEWAY, T0, WALL) is Verdict.PASS
    to_client, to_gateway = only(polled(pair.gateway), Install).response, only(polled(pair.client), Install).response
    assert pair.client.receive(to_client, GATEWAY, T0, WALL) is Verdict.PASS
    assert pair.gateway.receive(to_gateway, CLIENT, T0, WALL) is Verdict.PASS

    assert pair.client.next_deadline() is None
    assert pair.gateway.next_deadline() is None


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

    assert only(polled(pair.client), Transmit).path == Path(GATEWAY.remote, b"", 1)


def newest(pair: Pair) -> bytes:
    """The newest timestamp the gateway has accepted."""
    peer = pair.gateway.peer(1)
    assert peer is not None
    return peer.newest_timestamp


def loaded_door(interface: Interface) -> Door:
    """What stands before an interface, under load."""
    door = Door(small_tables())
    door.set_identities(interface.identities)
    door.set_secret(b"s" * 32)
    door.loaded = True
    return door


def knock(door: Door, datagram: bytes, origin: Path, now: int = T0) -> tuple[Verdict, bytes]:
    return door.knock(datagram, origin, b"n" * 24, now)


def signed_initiation(pair: Pair, door: Door) -> bytes:
    """An initiation of the client with the MAC2 that its first one's cookie reply makes possible."""
    _, reply = knock(door, pair.initiate().datagram, CLIENT)
    assert pair.client.receive(reply, GATEWAY, T0, WALL) is Verdict.PASS
    return pair.initiate(T0 + 6 * SECOND).datagram
