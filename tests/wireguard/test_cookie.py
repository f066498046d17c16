"""MAC1, cookies and MAC2 in kernels against the standard library's BLAKE2s (whitepaper 5.4.4, 5.4.7; W2, W4 to W7)."""

import hashlib
import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressvpn.verdict import Verdict
from egressvpn.wireguard import cookie
from egressvpn.wireguard.blake2s import scratch
from egressvpn.wireguard.constants import SECOND
from egressvpn.wireguard.mac import add_macs, cookie_key, mac, mac1_key
from tests.wireguard.doorstep import octets, small_tables, sockaddr

START = 1000 * SECOND
KEYS = [bytes([number]) * 32 for number in (1, 2, 3, 4)]  # public keys of ours
SECRET = bytes(range(32))
HERE = sockaddr("192.0.2.1", 51820)

bodies = st.sampled_from([116, 60]).flatmap(lambda size: st.binary(min_size=size, max_size=size))
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
ports = st.integers(0, 65_535)


@given(bodies, st.integers(0, 3), st.integers(0, 13))
def test_w2_mac1_tells_which_identity_is_meant(body: bytes, number: int, start: int) -> None:
    door = Door()
    message = add_macs(mac1_key(KEYS[number]), body)

    assert door.identity_meant(message, start) == number


@given(bodies, st.data())
def test_w2_a_message_changed_anywhere_before_mac2_is_meant_for_nobody(body: bytes, data: st.DataObject) -> None:
    message = bytearray(add_macs(mac1_key(KEYS[0]), body))
    bit = data.draw(st.integers(0, 8 * (len(message) - 16) - 1))

    message[bit // 8] ^= 1 << bit % 8

    assert Door().identity_meant(bytes(message)) == -1


def test_w2_without_identities_and_after_one_is_cleared_nothing_is_meant_for_us() -> None:
    message = add_macs(mac1_key(KEYS[1]), bytes(116))
    assert Door(keys=[]).identity_meant(message) == -1
    door = Door()
    assert door.identity_meant(message) == 1

    cookie.clear_identity(door.wg, 1)

    assert door.identity_meant(message) == -1


def test_w22_an_identity_that_is_replaced_is_not_answered_any_more() -> None:
    door = Door(keys=KEYS[:1])
    door.set_identity(0, KEYS[1])
    assert door.identity_meant(add_macs(mac1_key(KEYS[0]), bytes(116))) == -1
    assert door.identity_meant(add_macs(mac1_key(KEYS[1]), bytes(116))) == 0


@given(addresses, ports, st.binary(min_size=32, max_size=32))
def test_w6_a_cookie_is_the_mac_of_address_and_port(address: str, port: int, secret: bytes) -> None:
    assert Door(secret).cookie(sockaddr(address, port)) == mac(secret, ipaddress.ip_address(address).packed + port.to_bytes(2, "big"))


@given(bodies, addresses, ports)
def test_w4_mac2_under_the_senders_cookie_is_valid_and_no_other_is(body: bytes, address: str, port: int) -> None:
    door, remote = Door(), sockaddr(address, port)
    key, right = mac1_key(KEYS[0]), door.cookie(remote)
    message = add_macs(key, body, right)

    assert door.judge(message, remote) is Verdict.PASS
    assert door.judge(add_macs(key, body), remote) is Verdict.COOKIE_REQUIRED
    assert door.judge(message[:-1] + bytes([message[-1] ^ 1]), remote) is Verdict.COOKIE_REQUIRED
    assert door.judge(message[:4] + bytes([message[4] ^ 1]) + message[5:], remote) is Verdict.COOKIE_REQUIRED
    assert door.judge(message, sockaddr(address, port ^ 1)) is Verdict.COOKIE_REQUIRED
    assert door.judge(
        message, sockaddr(str(ipaddress.ip_address(address) + (1 if int(ipaddress.ip_address(address)) % 2 == 0 else -1)), port)
    ) is (Verdict.COOKIE_REQUIRED)


@pytest.mark.parametrize("remote", [HERE, sockaddr("2001:db8::1", 51820)], ids=["IPv4", "IPv6"])
def test_w6_a_cookie_ends_with_the_secret_it_was_made_from(remote: bytes) -> None:
    door = Door()
    message = add_macs(mac1_key(KEYS[0]), bytes(116), door.cookie(remote))
    assert door.judge(message, remote) is Verdict.PASS

    door.set_secret(bytes(32))

    assert door.judge(message, remote) is Verdict.COOKIE_REQUIRED


def test_a_mac2_of_zeros_is_none_even_if_it_were_right() -> None:
    """Nobody can find such a message; that it is not computed is what counts in a flood."""
    door = Door()
    assert door.judge(bytes(148), HERE) is Verdict.COOKIE_REQUIRED
    assert not door.scratch.state.any()


def test_w5_a_source_with_a_valid_mac2_is_limited_and_not_asked_for_a_cookie_again() -> None:
    door = Door()
    message = add_macs(mac1_key(KEYS[0]), bytes(116), door.cookie(HERE))
    assert [door.judge(message, HERE) for _ in range(7)] == [Verdict.PASS] * 5 + [Verdict.RATE_LIMITED] * 2


def test_w5_all_addresses_of_an_ipv6_network_share_a_limit() -> None:
    door, verdicts = Door(), []
    for number in range(7):
        remote = sockaddr(f"2001:db8::{number + 1}", 1000 + number)
        verdicts.append(door.judge(add_macs(mac1_key(KEYS[0]), bytes(116), door.cookie(remote)), remote))
    assert verdicts == [Verdict.PASS] * 5 + [Verdict.RATE_LIMITED] * 2


def test_a_source_without_a_valid_mac2_takes_no_room_in_the_rate_limiter() -> None:
    door = Door()
    for number in range(200):
        door.judge(add_macs(mac1_key(KEYS[0]), bytes(116), bytes(16)), sockaddr("192.0.2.1", number))
    assert door.wg.limiter_state[0].used == 0


def test_before_there_is_a_secret_nobody_gets_a_cookie() -> None:
    """Its state is zero then, which anybody could compute with."""
    assert Door(secret=b"").judge(bytes(148), HERE) is Verdict.HANDSHAKE_OVERLOAD


def test_a_second_secret_leaves_the_rate_limiter_its_key() -> None:
    door = Door()
    before = door.wg.limiter_state[0].state.copy()
    door.set_secret(bytes(32))
    assert (door.wg.limiter_state[0].state == before).all()
    assert before.any()


@given(st.integers(0, 2**32 - 1), st.integers(1, 2))
def test_w7_a_reply_names_the_senders_index(sender: int, kind: int) -> None:
    door, out = Door(), octets(bytes([0xEE]) * 80)
    message = octets(struct.pack("<II", kind, sender) + bytes(140))

    cookie.begin_reply(door.wg, door.scratch, message, 0, octets(HERE), 0, out, 8)

    assert out.tobytes()[:16] == bytes([0xEE]) * 8 + struct.pack("<II", 3, sender)
    assert out.tobytes()[40:] == door.cookie(HERE) + bytes([0xEE]) * 24


def test_the_labels_are_those_of_the_paper() -> None:
    assert mac1_key(KEYS[0]) == hashlib.blake2s(b"mac1----" + KEYS[0]).digest()
    assert cookie_key(KEYS[0]) == hashlib.blake2s(b"cookie--" + KEYS[0]).digest()
    assert Door().wg.identities[2].cookie_key.tobytes() == cookie_key(KEYS[2])


class Door:
    """The kernels as methods."""

    def __init__(self, secret: bytes = SECRET, keys: list[bytes] = KEYS) -> None:
        self.wg, self.scratch = small_tables(), scratch()
        for number, key in enumerate(keys):
            self.set_identity(number, key)
        if secret:
            self.set_secret(secret)
        self.scratch.state[:] = 0

    def set_identity(self, number: int, key: bytes) -> None:
        cookie.set_identity(self.wg, self.scratch, number, octets(mac1_key(key)), octets(cookie_key(key)))

    def set_secret(self, secret: bytes) -> None:
        cookie.set_secret(self.wg, self.scratch, octets(secret))

    def identity_meant(self, message: bytes, start: int = 0) -> int:
        return int(cookie.identity_meant(self.wg, self.scratch, octets(bytes(start) + message + bytes(3)), start, len(message)))

    def cookie(self, remote: bytes) -> bytes:
        out = octets(bytes(16))
        cookie.put_cookie(self.wg, self.scratch, octets(remote), 0, out, 0)
        return bytes(out)

    def judge(self, message: bytes, remote: bytes, now: int = START) -> Verdict:
        return Verdict(int(cookie.judge(self.wg, self.scratch, octets(message), 0, len(message), octets(remote), 0, now)))
