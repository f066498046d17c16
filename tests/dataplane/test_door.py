"""Handshakes at the door: what goes up to control, what is answered with a cookie, and that all of it is bounded (W2 to W7; W-1 to W-3)."""

import os
import socket
import struct
from collections import Counter as Tally

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt
from nacl.exceptions import CryptoError
from scapy.contrib.wireguard import Wireguard, WireguardCookieReply

from egressvpn.dataplane import door
from egressvpn.dataplane.channel import Command, Event
from egressvpn.dataplane.datagrams import HANDSHAKE_TOS
from egressvpn.dataplane.loop import sweep
from egressvpn.dataplane.receive import receive
from egressvpn.dataplane.recovery import recover
from egressvpn.dataplane.tables import Counter
from egressvpn.dataplane.transmit import report
from egressvpn.wireguard.mac import Macs, cookie_key, mac
from egressvpn.wireguard.messages import CookieReply
from tests.dataplane.rig import PUBLIC_KEY, SECOND, START, Rig, handshake, rig

MILLISECOND = SECOND // 1000
SECRET = bytes(range(32))
OTHER_KEY = bytes([4]) * 32
KINDS = pytest.mark.parametrize("kind", [1, 2], ids=["initiation", "response"])


def bench(*, loaded: bool = False) -> Rig:
    """A data path with an identity and a cookie secret; `loaded`: control lags behind, and the networks' shares are spent."""
    made = rig()
    made.command(Command.SET_COOKIE_SECRET, receive_key=SECRET)
    if loaded:
        made.b.work.worker[0].under_load_until = START + 3600 * SECOND
        made.b.work.worker[0].share_tokens = 0
    return made


def knock(made: Rig, *datagrams: bytes, now: int = START) -> tuple[list[bytes], list[bytes]]:
    """Send the datagrams to the data path. What went up to control, and what came back."""
    up: list[bytes] = []
    for first in range(0, len(datagrams), 64):
        made.send(*datagrams[first : first + 64])
        receive(made.b, 0, 64, now)
        up += [bytes(event.octets[: int(event.length)]) for event in made.events()]
    return up, made.sent()


def cookie_for(end: socket.socket, secret: bytes = SECRET) -> bytes:
    """The cookie of whoever sends from this socket."""
    address, port = end.getsockname()
    return mac(secret, socket.inet_aton(address) + port.to_bytes(2, "big"))


def opened(reply: bytes, message: bytes, public_key: bytes = PUBLIC_KEY) -> bytes:
    """The cookie in a reply to the message."""
    return bytes(crypto_aead_xchacha20poly1305_ietf_decrypt(reply[32:], message[-32:-16], reply[8:32], cookie_key(public_key)))


# not under load


@KINDS
def test_a_handshake_goes_up_with_its_path(kind: int) -> None:
    made, message = bench(), handshake(kind)
    made.send(message)
    receive(made.b, 0, 64, START)
    (event,) = made.events()
    assert Event(int(event.kind)) is Event.HANDSHAKE
    assert bytes(event.octets[: int(event.length)]) == message
    assert int.from_bytes(bytes(event.remote[2:4]), "big") == made.peer.getsockname()[1]
    assert bytes(event.local[20:24]) == socket.inet_aton("127.0.0.1")
    assert made.counter(Counter.HANDSHAKES_UP) == 1
    made.close()


@KINDS
@pytest.mark.parametrize("loaded", [False, True])
def test_w2_a_wrong_mac1_is_silence_and_costs_control_nothing(kind: int, loaded: bool) -> None:
    made, message = bench(loaded=loaded), handshake(kind)
    for wrong in (message[:-32] + bytes(32), message[:9] + b"\1" + message[10:], handshake(kind, public_key=OTHER_KEY)):
        assert knock(made, wrong) == ([], [])
    assert made.drops() == {"bad_mac1": 3}
    made.close()


def test_w2_without_an_identity_everything_is_a_wrong_mac1() -> None:
    made = bench()
    made.command(Command.SET_IDENTITY, index=0, state=0)
    assert knock(made, handshake()) == ([], [])
    assert made.drops() == {"bad_mac1": 1}
    made.close()


def test_while_a_key_is_changed_both_identities_are_answered() -> None:
    made = bench(loaded=True)
    made.set_identity(3, OTHER_KEY)
    for key in (PUBLIC_KEY, OTHER_KEY):
        message = handshake(public_key=key)
        _, (reply,) = knock(made, message)
        assert opened(reply, message, key) == cookie_for(made.peer)
    made.close()


@settings(max_examples=20)
@given(st.binary(min_size=16, max_size=16))
def test_w3_without_load_mac2_is_not_looked_at(mac2: bytes) -> None:
    made = bench()
    try:
        message = handshake()[:-16] + mac2
        assert knock(made, message) == ([message], [])
    finally:
        made.close()


# under load


@KINDS
def test_w4_under_load_a_message_without_mac2_is_answered_with_a_cookie_and_nothing_goes_up(kind: int) -> None:
    made, message = bench(loaded=True), handshake(kind, sender=0xA1B2C3D4)
    up, (reply,) = knock(made, message)
    assert up == []
    assert made.drops() == {"cookie_required": 1}
    parsed = Wireguard(reply)[WireguardCookieReply]
    assert (len(reply), reply[:4], parsed.receiver_index) == (64, b"\3\0\0\0", 0xA1B2C3D4)
    assert parsed.nonce == reply[8:32]
    assert opened(reply, message) == cookie_for(made.peer)
    made.close()


def test_w4_a_wrong_mac2_is_as_good_as_none() -> None:
    made = bench(loaded=True)
    up, replies = knock(made, handshake(cookie=bytes(16)), handshake()[:-1] + b"\1")
    assert (up, len(replies)) == ([], 2)
    assert made.drops() == {"cookie_required": 2}
    made.close()


@KINDS
def test_w5_with_a_right_mac2_five_go_up_at_once_and_the_rest_are_met_by_silence(kind: int) -> None:
    made = bench(loaded=True)
    message = handshake(kind, cookie=cookie_for(made.peer))
    assert knock(made, *[message] * 8) == ([message] * 5, [])
    assert made.drops() == {"rate_limited": 3}
    assert knock(made, message, message, now=START + 50 * MILLISECOND) == ([message], [])
    made.close()


def test_w6_a_cookie_is_worth_nothing_from_another_port_or_another_address() -> None:
    made = bench(loaded=True)
    message = handshake(cookie=cookie_for(made.peer))
    for address in (("127.0.0.1", 0), ("127.0.0.2", made.peer.getsockname()[1])):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(address)
            stranger.settimeout(2)
            stranger.sendto(message, made.kept[0].getsockname())
            receive(made.b, 0, 64, START)
            assert opened(stranger.recv(100), message) == cookie_for(stranger)
    assert made.events() == []
    assert made.drops() == {"cookie_required": 2}
    made.close()


def test_w6_a_cookie_ends_when_the_secret_is_changed() -> None:
    made = bench(loaded=True)
    message = handshake(cookie=cookie_for(made.peer))
    assert knock(made, message) == ([message], [])
    made.command(Command.SET_COOKIE_SECRET, receive_key=bytes(32))
    up, (reply,) = knock(made, message)
    assert up == []
    assert opened(reply, message) == cookie_for(made.peer, bytes(32))
    made.close()


def test_w7_a_reply_is_bound_to_the_message_it_answers() -> None:
    made = bench(loaded=True)
    first, second = handshake(sender=1), handshake(sender=2)
    _, (reply, _) = knock(made, first, second)
    assert opened(reply, first) == cookie_for(made.peer)
    with pytest.raises(CryptoError):
        opened(reply, second)
    made.close()


def test_w7_no_nonce_is_used_twice() -> None:
    made = bench(loaded=True)
    nonces = {reply[8:32] for _ in range(6) for reply in knock(made, *[handshake()] * 64)[1]}
    assert len(nonces) == 6 * 64  # the kernel was asked for random octets three times
    assert all(len(set(nonce)) > 8 for nonce in nonces)
    made.close()


def test_w9_what_an_initiator_makes_of_the_reply_opens_the_door() -> None:
    made, macs = bench(loaded=True), Macs(PUBLIC_KEY)
    body = struct.pack("<II", 1, 9) + bytes(108)
    _, (reply,) = knock(made, macs.complete(body, 9, START))
    assert macs.take_cookie(CookieReply(9, reply[8:32], reply[32:]), START)
    again = macs.complete(body, 9, START + 5 * SECOND)
    assert knock(made, again, now=START + 5 * SECOND) == ([again], [])
    made.close()


def test_a_reply_carries_the_handshakes_dscp() -> None:
    made = bench(loaded=True)
    made.peer.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    made.send(handshake())
    receive(made.b, 0, 64, START)
    _, control, _, _ = made.peer.recvmsg(100, 100)
    assert [data[0] for _, kind, data in control if kind == socket.IP_TOS] == [HANDSHAKE_TOS]
    made.close()


def test_a_reply_leaves_from_the_address_that_was_written_to() -> None:
    made = bench(loaded=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("0.0.0.0", 0))
        udp.setblocking(False)
        udp.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
        made.b.local.fds[3] = udp.fileno()
        made.peer.sendto(handshake(), ("127.0.0.9", udp.getsockname()[1]))
        receive(made.b, 0, 64, START)
        assert made.peer.recvfrom(100)[1] == ("127.0.0.9", udp.getsockname()[1])
    made.close()


def test_before_there_is_a_cookie_secret_nobody_is_answered() -> None:
    made = rig()
    made.b.work.worker[0].under_load_until = START + SECOND
    assert knock(made, handshake(), handshake(cookie=cookie_for(made.peer, bytes(32)))) == ([], [])
    assert made.drops() == {"handshake_overload": 2}
    made.close()


# when there is load


def pile_up(made: Rig, count: int, now: int = START) -> None:
    """Handshakes that control does not get to look at."""
    message = handshake()
    for _ in range(0, count, 50):
        made.send(*[message] * 50)
        receive(made.b, 0, 64, now)


LARGE_BUFFER = pytest.mark.skipif(os.geteuid() != 0, reason="a socket buffer that holds so many events needs root")


def test_load_is_more_handshakes_than_control_gets_to_and_lasts_a_second_longer() -> None:
    made = bench()
    made.b.work.worker[0].share_tokens = 0
    pile_up(made, 100)
    assert made.drops() == {}
    pile_up(made, 50)
    assert set(made.drops()) == {"cookie_required"}
    assert made.sent()[-1][0] == 3
    assert len(made.events()) == door.LOAD_BACKLOG
    assert knock(made, handshake(), now=START + SECOND - 1)[0] == []
    assert len(knock(made, handshake(), now=START + SECOND)[0]) == 1
    made.close()


def test_load_lasts_as_long_as_the_flood_does() -> None:
    """Or it would end each second, and a source get as many Diffie-Hellmans as the backlog holds."""
    made = bench()
    pile_up(made, 150)
    made.events()
    for number in range(1, 40):
        now = START + number * 100 * MILLISECOND
        door.refill(made.b, now)
        made.b.work.worker[0].share_tokens = 0
        assert knock(made, *[handshake()] * (door.LOAD_KNOCKS + 1), now=now)[0] == []
    door.refill(made.b, now + 100 * MILLISECOND)
    for number in range(1, 10):
        door.refill(made.b, now + (1 + number) * 100 * MILLISECOND)
    assert len(knock(made, handshake(), now=now + 1100 * MILLISECOND)[0]) == 1
    made.close()


def test_handshakes_that_control_gets_to_are_no_load_however_many_they_are() -> None:
    made = bench()
    for _ in range(10):
        pile_up(made, 100)
        assert len(made.events()) == 100
    assert made.drops() == {}
    made.close()


def test_under_load_each_network_has_a_share_of_one_a_second_that_needs_no_cookie() -> None:
    made = bench(loaded=True)
    made.b.work.worker[0].share_tokens = 100
    assert [len(side) for side in knock(made, *[handshake()] * 5)] == [2, 3]
    assert [len(side) for side in knock(made, *[handshake()] * 5, now=START + SECOND)] == [1, 4]
    made.close()


def test_all_shares_together_are_bounded() -> None:
    made = bench(loaded=True)
    made.b.work.worker[0].share_tokens = 1
    assert [len(side) for side in knock(made, *[handshake()] * 3)] == [1, 2]
    sweep(made.b, START + 100 * MILLISECOND)
    assert made.b.work.worker[0].share_tokens == door.SHARES_PER_SWEEP
    made.close()


def test_datagrams_that_fail_mac1_are_no_load() -> None:
    """Else anybody could have everybody asked for cookies without knowing our key."""
    made = bench()
    knock(made, *[handshake(public_key=OTHER_KEY)] * 400)
    assert (knock(made, handshake())[0] != [], made.drops()) == (True, {"bad_mac1": 400})
    made.close()


def test_a_full_channel_to_control_is_load() -> None:
    made = bench()
    made.b.work.worker[0].share_tokens = 0
    made.kept[2].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
    pile_up(made, 200)
    assert made.drops()["channel_full"] == 1
    assert set(made.drops()) == {"channel_full", "cookie_required"}
    made.close()


# bounds


@LARGE_BUFFER
def test_what_waits_for_control_is_bounded_for_those_with_a_cookie_too() -> None:
    made = bench()
    made.b.work.worker[0].share_tokens = 10_000
    pile_up(made, 100)
    made.b.work.worker[0].under_load_until = START + SECOND
    for number in range(door.MAX_BACKLOG):  # other events wait too
        report(made.b, int(Event.DUE), 1, 0, number)
    made.send(handshake(cookie=cookie_for(made.peer)))
    receive(made.b, 0, 64, START)
    assert (made.drops(), made.sent()) == ({"handshake_overload": 1}, [])
    made.close()


def test_cookie_replies_before_the_next_sweep_are_bounded() -> None:
    made = bench(loaded=True)
    assert made.b.work.worker[0].cookie_replies == door.COOKIE_REPLIES_PER_SWEEP
    made.b.work.worker[0].cookie_replies = 3
    assert len(knock(made, *[handshake()] * 5)[1]) == 3
    assert made.drops() == {"cookie_required": 3, "handshake_overload": 2}
    sweep(made.b, START + 100 * MILLISECOND)
    made.b.work.worker[0].share_tokens = 0
    assert len(knock(made, handshake())[1]) == 1
    made.close()


@pytest.mark.parametrize("loaded", [False, True])
def test_cookie_replies_to_us_go_up_a_few_at_a_time(loaded: bool) -> None:
    made = bench(loaded=loaded)
    reply = struct.pack("<II", 3, 9) + bytes(56)
    assert knock(made, *[reply] * 25) == ([reply] * door.COOKIE_REPLIES_UP_PER_SWEEP, [])
    assert made.drops() == {"handshake_overload": 5}
    made.close()


def test_a_sweep_forgets_idle_sources() -> None:
    made = bench(loaded=True)
    knock(made, handshake(cookie=cookie_for(made.peer)))
    assert made.b.wg.limiter_state[0].used == 1
    sweep(made.b, START + 2 * SECOND)
    assert made.b.wg.limiter_state[0].used == 0
    made.close()


def test_a_workers_successor_begins_with_an_empty_rate_limiter_and_the_old_keys() -> None:
    made = bench(loaded=True)
    message = handshake(cookie=cookie_for(made.peer))
    knock(made, *[message] * 6)
    made.b.wg.limiter["after"] = 1  # a chain that never ends
    recover(made.b, START)
    assert knock(made, message) == ([message], [])
    made.close()


@settings(max_examples=50)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.sampled_from([1, 2]).flatmap(
                lambda kind: st.binary(min_size=16, max_size=16).map(lambda mac2: handshake(kind)[:-16] + mac2)
            ),
            st.builds(handshake, st.sampled_from([1, 2]), st.integers(0, 2**32 - 1)),
        ),
        max_size=12,
    ),
    st.booleans(),
)
def test_w_2_nobody_gets_more_octets_than_he_sent_and_every_datagram_has_one_end(datagrams: list[bytes], loaded: bool) -> None:
    made = bench(loaded=loaded)
    try:
        up, replies = knock(made, *datagrams)
        assert sum(map(len, replies)) <= sum(map(len, datagrams))
        ends = Tally(made.drops())
        assert len(up) + sum(ends.values()) == len(datagrams)
        assert len(replies) == ends["cookie_required"]
        assert set(map(len, replies)) <= {64}
    finally:
        made.close()


def test_a_command_for_an_identity_there_is_no_room_for_is_refused() -> None:
    made = bench()
    with pytest.raises(ValueError, match="no identity number 4"):
        made.set_identity(4, OTHER_KEY)
    made.close()
