"""The timers of a device as named moments (kernel: timers.c; whitepaper 6): each arms or clears deadlines in its DEVICE row.

    moment                    keepalive_due    handshake_due     persistent_due   zero_due
    data sent                                  arm if clear
    data received             arm if clear
    authenticated sent        clear                              re-arm
    authenticated received                     clear             re-arm
    session installed                          clear             re-arm           re-arm
    handshake given up        clear
    sessions cleared          clear            clear                              clear

A keepalive is authenticated but is not data, so it is never answered by another. The sweep of the worker asks `due`.
Handshake retries are not here: they belong to the handshake, see peer.py.
"""

from egressvpn.kernel import Row, Word, kernel
from egressvpn.wireguard.constants import (
    DUE_HANDSHAKE,
    DUE_KEEPALIVE,
    DUE_PERSISTENT,
    DUE_ZERO,
    KEEPALIVE_TIMEOUT,
    MILLISECOND,
    NEW_HANDSHAKE_TIMEOUT,
    REJECT_AFTER_TIME,
    REKEY_AFTER_MESSAGES,
    REKEY_AFTER_TIME,
    REKEY_ON_RECEIVE_TIME,
    REKEY_TIMEOUT,
    REKEY_TIMEOUT_JITTER_MAX,
    SECOND,
    ZERO_KEYS_TIMEOUT,
)


@kernel
def on_data_sent(device: Row, now: Word) -> None:
    """A packet with content was sealed for the device. Call `on_authenticated_sent` as well."""
    if device.handshake_due == 0:
        device.handshake_due = now + NEW_HANDSHAKE_TIMEOUT + jitter(device)


@kernel
def on_data_received(device: Row, now: Word) -> None:
    """A packet with content was opened. Call `on_authenticated_received` as well."""
    if device.keepalive_due == 0:
        device.keepalive_due = now + KEEPALIVE_TIMEOUT


@kernel
def on_authenticated_sent(device: Row, now: Word) -> None:
    """Any message that the peer can authenticate was sent: data, keepalive, handshake."""
    device.last_sent = now
    device.keepalive_due = 0
    if device.persistent_interval != 0:
        device.persistent_due = now + device.persistent_interval


@kernel
def on_authenticated_received(device: Row, now: Word) -> None:
    """Any message that authenticated came: data, keepalive, handshake."""
    device.last_received = now
    device.handshake_due = 0
    if device.persistent_interval != 0:
        device.persistent_due = now + device.persistent_interval


@kernel
def on_session_installed(device: Row, now: Word) -> None:
    """New keys were derived, in either role: a message of the peer authenticated to get here."""
    on_authenticated_received(device, now)
    device.zero_due = now + ZERO_KEYS_TIMEOUT
    device.handshake_asked = 0


@kernel
def on_handshake_complete(device: Row, now: Word) -> None:
    """The peer has proved that it holds the new keys: a response accepted, or first data on the next session."""
    device.last_handshake = now
    device.handshake_asked = 0


@kernel
def on_handshake_given_up(device: Row) -> None:
    """Every repetition went unanswered (kernel: wg_expired_retransmit_handshake)."""
    device.keepalive_due = 0


@kernel
def on_sessions_cleared(device: Row) -> None:
    """No session is left."""
    device.keepalive_due = 0
    device.handshake_due = 0
    device.zero_due = 0


@kernel
def on_persistent_interval(device: Row, interval: Word, now: Word) -> None:
    """The persistent keepalive interval was configured; from off to on, the first is due at once. Setting it again changes nothing."""
    if interval == device.persistent_interval:
        return
    if interval == 0:
        device.persistent_due = 0
    elif device.persistent_interval == 0:
        device.persistent_due = now
    else:
        device.persistent_due = now + interval
    device.persistent_interval = interval


@kernel
def due(device: Row, now: Word) -> Word:
    """Which deadlines have passed, as DUE_ bits; each is reported once and then cleared or re-armed.

    Zeroing comes every second until `on_sessions_cleared`: a worker killed before it must not leave keys behind.
    """
    bits = 0
    if device.keepalive_due != 0 and device.keepalive_due <= now:
        device.keepalive_due = 0
        bits |= DUE_KEEPALIVE
    if device.handshake_due != 0 and device.handshake_due <= now:
        device.handshake_due = 0
        bits |= DUE_HANDSHAKE
    if device.persistent_due != 0 and device.persistent_due <= now:
        device.persistent_due = now + device.persistent_interval
        bits |= DUE_PERSISTENT
    if device.zero_due != 0 and device.zero_due <= now:
        device.zero_due = now + SECOND
        bits |= DUE_ZERO
    return bits


@kernel
def due_again(device: Row, bits: Word, now: Word) -> None:
    """What `due` reported did not reach anybody: it is due still. A persistent keepalive comes again by itself."""
    if bits & DUE_KEEPALIVE:
        device.keepalive_due = now
    if bits & DUE_HANDSHAKE:
        device.handshake_due = now
    if bits & DUE_ZERO:
        device.zero_due = now


@kernel
def ask_for_session(device: Row, now: Word) -> Word:
    """1 when control should be asked for a handshake now: at most once per REKEY_TIMEOUT, not once per packet."""
    if device.handshake_asked != 0 and now - device.handshake_asked < REKEY_TIMEOUT:
        return 0
    device.handshake_asked = now
    return 1


@kernel
def session_usable_to_send(session: Row, now: Word) -> Word:
    """1 while the session is younger than REJECT_AFTER_TIME and has nonces left (far below 2^63 in practice)."""
    return 1 if session.index != 0 and now - session.created < REJECT_AFTER_TIME and session.send_counter >= 0 else 0


@kernel
def session_usable_to_receive(session: Row, now: Word) -> Word:
    """1 while the session is younger than REJECT_AFTER_TIME; the packet's counter is `replay.counter_usable`'s concern."""
    return 1 if session.index != 0 and now - session.created < REJECT_AFTER_TIME else 0


@kernel
def rekey_wanted_on_send(session: Row, now: Word) -> Word:
    """1 when the current session, about to be sent on, is old: by messages in either role, by time only for its initiator."""
    if session.send_counter >= REKEY_AFTER_MESSAGES or session.send_counter < 0:
        return 1
    return 1 if session.initiator != 0 and now - session.created >= REKEY_AFTER_TIME else 0


@kernel
def rekey_wanted_on_receive(session: Row, now: Word) -> Word:
    """1, once per session, when its initiator receives on the current session so late that it may expire unnoticed."""
    if session.initiator == 0 or session.rekey_asked != 0 or now - session.created < REKEY_ON_RECEIVE_TIME:
        return 0
    session.rekey_asked = 1
    return 1


@kernel
def jitter(device: Row) -> Word:
    """0 to 333 ms, from the moment of the last handshake: random enough that two sides do not keep step, without a generator."""
    return (device.last_handshake // MILLISECOND) % (REKEY_TIMEOUT_JITTER_MAX // MILLISECOND) * MILLISECOND
