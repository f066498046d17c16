"""The rules for data messages, W14 to W19, as the data path keeps them (whitepaper 5.4.6, 6; kernel: receive.c, noise.c).

tests/wireguard/test_rules.py lists all rules.
"""

import socket
from collections.abc import Callable
from typing import Any, Final

import pytest
from scapy.layers.inet import IP, UDP

from egressvpn.addresses import Path, pack_sockaddr
from egressvpn.dataplane.channel import Command, Event
from egressvpn.dataplane.receive import receive
from egressvpn.dataplane.segment import read_tun
from egressvpn.dataplane.tables import CLIENT
from egressvpn.dataplane.transmit import flush_run
from egressvpn.wireguard.indexes import slot_of
from tests.dataplane.rig import SECOND, START, Rig, open_sealed, rig, seal

INNER, OTHER, REMOTE = "10.7.0.2", "10.7.0.3", "198.51.100.2"
NEW_RECEIVE_KEY: Final = bytes([3]) * 32
NEW_SEND_KEY: Final = bytes([4]) * 32
EXPIRED: Final = START + 180 * SECOND
LIMIT: Final = (1 << 64) - 1

FAULTS: Final[list[tuple[str, bool, Callable[[int], bytes], int]]] = [
    # what it is counted as, whether the endpoint moves, the message, when: each has the faults of those below it too
    ("unknown_index", False, lambda index: seal(index ^ 1, LIMIT, b"", key=bytes(32)), EXPIRED),
    ("expired_session", False, lambda index: seal(index, LIMIT, b"", key=bytes(32)), EXPIRED),
    ("counter_exhausted", False, lambda index: seal(index, LIMIT, b"", key=bytes(32)), START),
    ("authentication_failed", False, lambda index: seal(index, 0, inner(OTHER), key=bytes(32)), START),
    ("replayed", False, lambda index: seal(index, 0, inner(OTHER)), START),
    ("malformed_packet", True, lambda index: seal(index, 1, b"\x75" + inner(OTHER)[1:]), START),
    ("source_mismatch", True, lambda index: seal(index, 1, inner(OTHER)), START),
]


@pytest.mark.parametrize(("reason", "moves", "make", "now"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_w16_a_message_is_judged_in_order_and_w19_its_endpoint_counts_from_authentication_on(
    reason: str, moves: bool, make: Callable[[int], bytes], now: int
) -> None:
    made, index = tunnel()
    take(made, seal(index, 0, inner()))
    before = made.b.wg.devices[1].remote.tobytes()

    assert take_from_elsewhere(made, make(index), now) == []

    assert made.drops() == {reason: 1}
    assert (made.b.wg.devices[1].remote.tobytes() != before) == moves
    made.close()


def test_w16_the_owner_of_the_longest_prefix_is_who_may_send_from_it() -> None:
    made, index = tunnel()
    made.add_prefixes(1, "10.7.0.0/24")
    (out,) = take(made, seal(index, 0, inner("10.7.0.99")))
    assert out.src == "10.7.0.99"

    assert take(made, seal(index, 1, inner(OTHER))) == []
    assert made.drops() == {"source_mismatch": 1}
    made.close()


@pytest.mark.parametrize("version", [0, 1, 2, 3, 5, 7, 15])
def test_w18_only_versions_4_and_6_are_packets(version: int) -> None:
    made, index = tunnel()
    assert take(made, seal(index, 0, bytes([version << 4 | 5]) + inner()[1:])) == []
    assert made.drops() == {"malformed_packet": 1}
    made.close()


@pytest.mark.parametrize("excess", [1, 15, 16, 1000])
def test_w18_a_packet_longer_than_its_message_is_dropped(excess: int) -> None:
    made, index = tunnel()
    packet = inner()
    lying = packet[:2] + (len(packet) + excess).to_bytes(2, "big") + packet[4:]
    assert take(made, seal(index, 0, lying, padded=False)) == []
    assert made.drops() == {"malformed_packet": 1}
    made.close()


@pytest.mark.parametrize("padding", [0, 1, 15, 100])
def test_w18_padding_is_cut_off_whatever_its_length(padding: int) -> None:
    made, index = tunnel()
    (out,) = take(made, seal(index, 0, inner() + bytes(padding), padded=False))
    assert bytes(out) == inner()
    made.close()


def test_w18_an_empty_message_is_a_keepalive_and_moves_the_endpoint() -> None:
    made, index = tunnel()
    before = made.b.wg.devices[1].remote.tobytes()
    assert take_from_elsewhere(made, seal(index, 0, b""), START) == []
    assert made.drops() == {}
    assert made.b.wg.devices[1].remote.tobytes() != before
    made.close()


def test_w14_a_responder_stages_until_the_first_data_and_then_sends() -> None:
    made = rig(CLIENT)
    index = made.add_device(1, word(INNER))
    made.command(Command.CLEAR, owner=1)
    respond(made, made.index(2))
    ask(made)
    assert made.sent() == []

    take(made, seal(made.index(2), 0, b"", key=NEW_RECEIVE_KEY))

    (datagram,) = made.sent()
    assert open_sealed(datagram, NEW_SEND_KEY)[:2] == (0x2001, 0)
    assert Event.CONFIRMED in made.event_kinds()
    assert index != made.index(2)
    made.close()


def test_w15_the_session_before_goes_on_until_the_new_one_is_confirmed_and_still_opens_afterwards() -> None:
    made, index = tunnel()
    respond(made, made.index(2))
    ask(made)
    assert [open_sealed(datagram)[0] for datagram in made.sent()] == [0x1001]

    assert len(take(made, seal(made.index(2), 0, inner(), key=NEW_RECEIVE_KEY))) == 1
    ask(made)
    assert [open_sealed(datagram, NEW_SEND_KEY)[0] for datagram in made.sent()] == [0x2001]

    assert made.b.wg.devices[1].previous == slot_of(index, made.b.wg.sessions.size)
    assert len(take(made, seal(index, 0, inner()), now=EXPIRED - 1)) == 1
    assert take(made, seal(index, 1, inner()), now=EXPIRED) == []
    assert made.drops() == {"expired_session": 1}
    made.close()


def tunnel() -> tuple[Rig, int]:
    """An endpoint with two peers, one address each, of which the first has a session. Its receiver index."""
    made = rig(CLIENT)
    index = made.add_device(1, word(INNER))
    made.add_prefixes(1, f"{REMOTE}/32")
    made.command(Command.SET_DEVICE, owner=2, state=1, internal4=word(OTHER))
    made.add_prefixes(2, f"{OTHER}/32")
    return made, index


def respond(made: Rig, index: int) -> None:
    """A session whose handshake the peer began."""
    made.command(
        Command.INSTALL,
        owner=1,
        index=index,
        remote_index=0x2001,
        initiator=0,
        receive_key=NEW_RECEIVE_KEY,
        send_key=NEW_SEND_KEY,
        path=Path(pack_sockaddr(*made.peer.getsockname()[:2])),
    )


def ask(made: Rig) -> None:
    """The machine has a packet for the peer."""
    made.tun.send(bytes(10) + bytes(IP(src="10.7.0.1", dst=INNER) / UDP(sport=53, dport=5000) / b"question"))
    read_tun(made.b, START)
    flush_run(made.b)


def take(made: Rig, *datagrams: bytes, now: int = START) -> list[Any]:
    """Receive the datagrams; the packets that came out on the TUN."""
    made.send(*datagrams)
    return _received(made, now)


def take_from_elsewhere(made: Rig, datagram: bytes, now: int) -> list[Any]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(datagram, made.kept[0].getsockname())
        return _received(made, now)


def inner(source: str = INNER) -> bytes:
    return bytes(IP(src=source, dst="10.7.0.1") / UDP(sport=5000, dport=53) / b"question")


def word(address: str) -> int:
    return int.from_bytes(socket.inet_aton(address), "big")


def _received(made: Rig, now: int) -> list[Any]:
    receive(made.b, 0, 64, now)
    return [IP(frame[10:]) for frame in made.written()]
