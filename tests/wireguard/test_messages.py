"""Message layouts, with scapy's WireGuard dissector as the oracle; MAC1; and what a message is by type and length."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.contrib.wireguard import Wireguard, WireguardCookieReply, WireguardInitiation, WireguardResponse

from egressvpn.wireguard import messages
from egressvpn.wireguard.mac import add_macs, mac1_key, mac1_valid
from egressvpn.wireguard.messages import CookieReply, Initiation, Response, kind_of, unpack_cookie_reply, unpack_initiation, unpack_response

INDEX = st.integers(0, 2**32 - 1)


def octets(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


def test_lengths_are_the_papers() -> None:
    assert (messages.INITIATION_BYTES, messages.RESPONSE_BYTES, messages.COOKIE_REPLY_BYTES) == (148, 92, 64)


@given(st.builds(Initiation, INDEX, octets(32), octets(48), octets(28)), octets(32))
def test_scapy_reads_the_initiation_we_write(message: Initiation, key: bytes) -> None:
    datagram = add_macs(key, message.pack())
    seen = Wireguard(datagram)

    assert seen.message_type == 1
    assert seen[WireguardInitiation].sender_index == message.sender
    assert bytes(seen[WireguardInitiation].unencrypted_ephemeral) == message.ephemeral
    assert bytes(seen[WireguardInitiation].encrypted_static) == message.static
    assert bytes(seen[WireguardInitiation].encrypted_timestamp) == message.timestamp
    assert bytes(seen[WireguardInitiation].mac1) == datagram[116:132]
    assert bytes(seen[WireguardInitiation].mac2) == bytes(16)
    assert unpack_initiation(datagram) == message
    assert kind_of(datagram) == messages.INITIATION


@given(st.builds(Response, INDEX, INDEX, octets(32), octets(16)), octets(32))
def test_scapy_reads_the_response_we_write(message: Response, key: bytes) -> None:
    datagram = add_macs(key, message.pack())
    seen = Wireguard(datagram)

    assert seen.message_type == 2
    assert seen[WireguardResponse].sender_index == message.sender
    assert seen[WireguardResponse].receiver_index == message.receiver
    assert bytes(seen[WireguardResponse].unencrypted_ephemeral) == message.ephemeral
    assert bytes(seen[WireguardResponse].encrypted_nothing) == message.empty
    assert bytes(seen[WireguardResponse].mac1) == datagram[60:76]
    assert unpack_response(datagram) == message
    assert kind_of(datagram) == messages.RESPONSE


@given(st.builds(CookieReply, INDEX, octets(24), octets(32)))
def test_scapy_reads_the_cookie_reply_we_write(message: CookieReply) -> None:
    datagram = message.pack()
    seen = Wireguard(datagram)

    assert seen.message_type == 3
    assert seen[WireguardCookieReply].receiver_index == message.receiver
    assert bytes(seen[WireguardCookieReply].nonce) == message.nonce
    assert bytes(seen[WireguardCookieReply].encrypted_cookie) == message.cookie
    assert unpack_cookie_reply(datagram) == message
    assert kind_of(datagram) == messages.COOKIE_REPLY


@pytest.mark.parametrize("kind", range(256))
def test_w1_only_three_types_at_their_exact_length(kind: int) -> None:
    right = {1: 148, 2: 92, 3: 64}

    for length in range(201):
        datagram = (bytes([kind, 0, 0, 0]) + bytes(200))[:length]
        assert kind_of(datagram) == (kind if right.get(kind) == length else 0)


@pytest.mark.parametrize("position", (1, 2, 3))
def test_w1_reserved_bytes_must_be_zero(position: int) -> None:
    datagram = bytearray(148)
    datagram[0] = 1
    datagram[position] = 1

    assert kind_of(bytes(datagram)) == 0


@given(octets(32), octets(116), st.integers(0, 131))
def test_mac1_covers_every_byte_before_it(public_key: bytes, message: bytes, position: int) -> None:
    key = mac1_key(public_key)
    datagram = bytearray(add_macs(key, message))
    assert mac1_valid(key, bytes(datagram))

    datagram[position] ^= 0x80

    assert not mac1_valid(key, bytes(datagram))


@given(octets(32), octets(116), octets(16), st.integers(0, 131))
def test_mac2_covers_every_byte_before_it_mac1_included(public_key: bytes, message: bytes, cookie: bytes, position: int) -> None:
    key = mac1_key(public_key)
    datagram = bytearray(add_macs(key, message, cookie))
    assert mac1_valid(key, bytes(datagram))
    assert hashlib.blake2s(datagram[:-16], key=cookie, digest_size=16).digest() == datagram[-16:]

    datagram[position] ^= 0x80

    assert hashlib.blake2s(datagram[:-16], key=cookie, digest_size=16).digest() != datagram[-16:]


@given(octets(16))
def test_w3_mac2_is_not_looked_at(mac2: bytes) -> None:
    key = mac1_key(bytes(32))

    assert mac1_valid(key, add_macs(key, bytes(60))[:-16] + mac2)
