"""The timer table of a device and the ages of its sessions, in virtual time."""

from typing import Any

import numpy as np
import pytest

from egressvpn.wireguard import timers
from egressvpn.wireguard.constants import (
    DUE_HANDSHAKE,
    DUE_KEEPALIVE,
    DUE_PERSISTENT,
    DUE_ZERO,
    MILLISECOND,
    REKEY_AFTER_MESSAGES,
    REKEY_TIMEOUT_JITTER_MAX,
    SECOND,
)
from egressvpn.wireguard.tables import DEVICE, SESSION

T0 = 1_000 * SECOND


def test_a_keepalive_is_due_10_s_after_data_that_got_no_answer() -> None:
    device = fresh_device()
    receive_data(device, T0)

    assert timers.due(device, T0 + 10 * SECOND - 1) == 0
    assert timers.due(device, T0 + 10 * SECOND) == DUE_KEEPALIVE
    assert timers.due(device, T0 + 60 * SECOND) == 0


def test_the_keepalive_is_counted_from_the_first_unanswered_data() -> None:
    device = fresh_device()
    receive_data(device, T0)
    receive_data(device, T0 + 9 * SECOND)

    assert timers.due(device, T0 + 10 * SECOND) == DUE_KEEPALIVE


def test_anything_sent_makes_the_keepalive_needless() -> None:
    device = fresh_device()
    receive_data(device, T0)
    timers.on_authenticated_sent(device, T0 + SECOND)

    assert timers.due(device, T0 + 100 * SECOND) == 0


def test_a_keepalive_is_not_answered_with_a_keepalive() -> None:
    device = fresh_device()
    timers.on_authenticated_received(device, T0)

    assert timers.due(device, T0 + 100 * SECOND) == 0


def test_a_new_handshake_is_due_15_s_after_data_that_nothing_followed() -> None:
    device = fresh_device()
    send_data(device, T0)
    send_data(device, T0 + 10 * SECOND)

    assert timers.due(device, T0 + 15 * SECOND - 1) == 0
    assert timers.due(device, T0 + 15 * SECOND + REKEY_TIMEOUT_JITTER_MAX) == DUE_HANDSHAKE
    assert timers.due(device, T0 + 60 * SECOND) == 0


def test_anything_received_makes_the_new_handshake_needless() -> None:
    device = fresh_device()
    send_data(device, T0)
    timers.on_authenticated_received(device, T0 + 14 * SECOND)

    assert timers.due(device, T0 + 60 * SECOND) == 0


def test_sending_only_a_keepalive_expects_no_answer() -> None:
    device = fresh_device()
    timers.on_authenticated_sent(device, T0)

    assert timers.due(device, T0 + 60 * SECOND) == 0


@pytest.mark.parametrize("handshake_ms", [0, 1, 332, 333, 123_456_789])
def test_jitter_stays_below_a_third_of_a_second(handshake_ms: int) -> None:
    device = fresh_device()
    device.last_handshake = handshake_ms * MILLISECOND

    assert 0 <= timers.jitter(device) < REKEY_TIMEOUT_JITTER_MAX


def test_the_first_persistent_keepalive_is_due_at_once_and_then_every_interval() -> None:
    device = fresh_device()
    timers.on_persistent_interval(device, 25 * SECOND, T0)

    assert [second for second in range(101) if timers.due(device, T0 + second * SECOND) == DUE_PERSISTENT] == [0, 25, 50, 75, 100]


def test_traffic_in_either_direction_puts_the_persistent_keepalive_off() -> None:
    device = fresh_device()
    timers.on_persistent_interval(device, 25 * SECOND, T0)
    timers.due(device, T0)
    timers.on_authenticated_sent(device, T0 + 20 * SECOND)
    timers.on_authenticated_received(device, T0 + 40 * SECOND)

    assert timers.due(device, T0 + 65 * SECOND - 1) == 0
    assert timers.due(device, T0 + 65 * SECOND) == DUE_PERSISTENT


def test_setting_the_same_interval_again_sends_nothing() -> None:
    device = fresh_device()
    timers.on_persistent_interval(device, 25 * SECOND, T0)
    timers.due(device, T0)
    timers.on_persistent_interval(device, 25 * SECOND, T0 + SECOND)
    assert timers.due(device, T0 + SECOND) == 0

    timers.on_persistent_interval(device, 0, T0 + SECOND)

    assert timers.due(device, T0 + 1000 * SECOND) == 0


def test_keys_are_zeroed_540_s_after_the_last_session_and_reported_until_done() -> None:
    device = fresh_device()
    timers.on_session_installed(device, T0)
    timers.on_session_installed(device, T0 + 100 * SECOND)

    assert timers.due(device, T0 + 640 * SECOND - 1) == 0
    assert timers.due(device, T0 + 640 * SECOND) == DUE_ZERO
    assert timers.due(device, T0 + 641 * SECOND) == DUE_ZERO
    timers.on_sessions_cleared(device)
    assert timers.due(device, T0 + 9999 * SECOND) == 0


def test_several_deadlines_are_reported_together() -> None:
    device = fresh_device()
    timers.on_session_installed(device, T0)
    timers.on_data_sent(device, T0)
    timers.on_data_received(device, T0)

    assert timers.due(device, T0 + 600 * SECOND) == DUE_KEEPALIVE | DUE_HANDSHAKE | DUE_ZERO


def test_what_nobody_heard_of_is_due_again() -> None:
    device = fresh_device()
    timers.on_session_installed(device, T0)
    timers.on_data_sent(device, T0)
    timers.on_data_received(device, T0)
    bits = timers.due(device, T0 + 600 * SECOND)
    timers.on_sessions_cleared(device)
    timers.due_again(device, bits, T0 + 600 * SECOND)

    assert timers.due(device, T0 + 600 * SECOND) == bits


def test_after_giving_up_no_keepalive_is_due() -> None:
    device = fresh_device()
    receive_data(device, T0)
    timers.on_handshake_given_up(device)

    assert timers.due(device, T0 + 60 * SECOND) == 0


def test_control_is_asked_for_a_session_once_per_5_s() -> None:
    device = fresh_device()

    assert [tenth for tenth in range(120) if timers.ask_for_session(device, T0 + tenth * SECOND // 10)] == [0, 50, 100]


def test_a_new_session_lets_control_be_asked_again() -> None:
    device = fresh_device()
    timers.ask_for_session(device, T0)
    timers.on_session_installed(device, T0 + SECOND)

    assert timers.ask_for_session(device, T0 + 2 * SECOND) == 1


def test_a_session_is_usable_for_180_s_both_ways() -> None:
    session = fresh_session(initiator=True)

    for usable in (timers.session_usable_to_send, timers.session_usable_to_receive):
        assert usable(session, T0 + 180 * SECOND - 1) == 1
        assert usable(session, T0 + 180 * SECOND) == 0


def test_a_free_slot_or_spent_nonces_are_not_usable() -> None:
    assert timers.session_usable_to_send(np.zeros(1, SESSION).view(np.recarray)[0], 0) == 0
    session = fresh_session(initiator=True)
    session.send_counter = -(1 << 63)
    assert timers.session_usable_to_send(session, T0) == 0


def test_only_the_initiator_rekeys_by_time_and_only_from_120_s_on() -> None:
    session = fresh_session(initiator=True)

    assert timers.rekey_wanted_on_send(session, T0 + 120 * SECOND - 1) == 0
    assert timers.rekey_wanted_on_send(session, T0 + 120 * SECOND) == 1
    assert timers.rekey_wanted_on_send(fresh_session(initiator=False), T0 + 179 * SECOND) == 0


@pytest.mark.parametrize("initiator", [True, False])
def test_either_role_rekeys_after_2_to_the_60_messages(initiator: bool) -> None:
    session = fresh_session(initiator=initiator)
    session.send_counter = REKEY_AFTER_MESSAGES - 1
    assert timers.rekey_wanted_on_send(session, T0) == 0

    session.send_counter += 1

    assert timers.rekey_wanted_on_send(session, T0) == 1


def test_the_initiator_rekeys_once_on_receiving_from_165_s_on() -> None:
    session = fresh_session(initiator=True)

    assert timers.rekey_wanted_on_receive(session, T0 + 165 * SECOND - 1) == 0
    assert timers.rekey_wanted_on_receive(session, T0 + 165 * SECOND) == 1
    assert timers.rekey_wanted_on_receive(session, T0 + 166 * SECOND) == 0
    assert timers.rekey_wanted_on_receive(fresh_session(initiator=False), T0 + 170 * SECOND) == 0


def receive_data(device: Any, now: int) -> None:
    timers.on_authenticated_received(device, now)
    timers.on_data_received(device, now)


def send_data(device: Any, now: int) -> None:
    timers.on_authenticated_sent(device, now)
    timers.on_data_sent(device, now)


def fresh_device() -> Any:
    return np.zeros(1, DEVICE).view(np.recarray)[0]


def fresh_session(*, initiator: bool) -> Any:
    session = np.zeros(1, SESSION).view(np.recarray)[0]
    session.index = 64
    session.created = T0
    session.initiator = int(initiator)
    return session
