"""From datagram to TUN: every rule of the receive path, and that nothing sent from outside does harm."""

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP

from egressvpn.dataplane.channel import COMMAND, Command, Event, pack_command
from egressvpn.dataplane.commands import apply_waiting
from egressvpn.dataplane.local import NAMES
from egressvpn.dataplane.receive import _move_endpoint, receive
from egressvpn.dataplane.segment import read_tun
from egressvpn.dataplane.tables import GATEWAY, Counter
from egressvpn.dataplane.transmit import flush_run
from egressvpn.nat.tables import ENDPOINT_INDEPENDENT
from egressvpn.wireguard.indexes import slot_of
from tests.dataplane.rig import SECOND, START, Rig, open_sealed, rig, seal

INNER, OTHER, POOL, REMOTE = "100.64.0.2", "100.64.0.3", "203.0.113.1", "198.51.100.2"


def word(address: str) -> int:
    return int.from_bytes(socket.inet_aton(address), "big")


def gateway() -> tuple[Rig, int]:
    """A gateway with one device and one pool address, and private addresses denied."""
    made = rig(GATEWAY)
    made.add_pool(1, POOL)
    made.command(Command.ADD_DENIED, version=4, low=word("10.0.0.0"), prefix_length=8)
    made.command(Command.OPEN, internal4=word("100.64.0.1"))
    return made, made.add_device(1, word(INNER), external4=1)


def inner(**fields: Any) -> bytes:
    return bytes(IP(src=INNER, dst=fields.pop("dst", REMOTE), **fields) / UDP(sport=5000, dport=53) / b"question")


def take(made: Rig, *datagrams: bytes, now: int = START) -> list[Any]:
    """Receive the datagrams; the packets that came out on the TUN, without virtio headers."""
    made.send(*datagrams)
    receive(made.b, 0, 64, now)
    return [IP(frame[10:]) for frame in made.written()]


def test_a_packet_leaves_from_the_pool_with_one_hop_less() -> None:
    made, index = gateway()
    (out,) = take(made, seal(index, 0, inner(ttl=9)))
    assert (out.src, out.dst, out.ttl, bytes(out[UDP].payload)) == (POOL, REMOTE, 8, b"question")
    assert bytes(out) == bytes(_renewed(out))
    made.close()


def test_the_answer_comes_back_to_the_device() -> None:
    made, index = gateway()
    (out,) = take(made, seal(index, 0, inner()))
    made.tun.send(bytes(10) + bytes(IP(src=REMOTE, dst=POOL) / UDP(sport=53, dport=out[UDP].sport) / b"answer"))
    assert read_tun(made.b, START) == 1
    flush_run(made.b)
    (datagram,) = made.sent()
    back = IP(open_sealed(datagram)[2])
    assert (back.src, back.dst, back[UDP].dport, bytes(back[UDP].payload)[:6]) == (REMOTE, INNER, 5000, b"answer")
    made.close()


def _renewed(packet: Any) -> Any:
    packet = packet.copy()
    packet[IP].chksum = packet[UDP].chksum = None
    return packet


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("malformed_message", lambda index: seal(index, 0, inner())[:31]),
        ("malformed_message", lambda index: b"\5" + bytes(60)),
        ("malformed_message", lambda index: b"\4\0\0\1" + bytes(60)),
        ("malformed_message", lambda index: b"\1\0\0\0" + bytes(143)),
        ("malformed_message", lambda index: b""),
        ("unknown_index", lambda index: seal(index + 64, 0, inner())),
        ("unknown_index", lambda index: seal(0, 0, inner())),
        ("authentication_failed", lambda index: seal(index, 0, inner(), key=bytes(32))),
        ("authentication_failed", lambda index: seal(index, 0, inner())[:-1] + b"\0"),
        ("counter_exhausted", lambda index: seal(index, (1 << 64) - 1, inner())),
        ("malformed_packet", lambda index: seal(index, 0, b"\x45" + bytes(15))),
        ("malformed_packet", lambda index: seal(index, 0, b"\x75" + bytes(63))),
        ("source_mismatch", lambda index: seal(index, 0, bytes(IP(src=OTHER, dst=REMOTE) / UDP() / b"x"))),
        ("policy_denied", lambda index: seal(index, 0, inner(dst="10.1.2.3"))),
        ("policy_denied", lambda index: seal(index, 0, inner(dst="127.0.0.1"))),
        ("policy_denied", lambda index: seal(index, 0, inner(dst="224.0.0.251"))),
        ("ttl_exceeded", lambda index: seal(index, 0, inner(ttl=1))),
        ("unsupported_protocol", lambda index: seal(index, 0, bytes(IP(src=INNER, dst=REMOTE, proto=47) / bytes(20)))),
    ],
)
def test_what_is_not_let_through_is_counted_once_by_its_reason(reason: str, change: Any) -> None:
    made, index = gateway()
    assert take(made, change(index)) == []
    assert made.drops() == {reason: 1}
    made.close()


def test_a_replayed_message_is_dropped_and_its_first_copy_is_not() -> None:
    made, index = gateway()
    message = seal(index, 5, inner())
    assert len(take(made, message, message)) >= 1
    assert made.drops() == {"replayed": 1}
    made.close()


def test_a_forged_message_moves_nothing() -> None:
    made, index = gateway()
    before = made.b.wg.devices[1].copy(), made.b.wg.sessions[slot_of(index, made.b.wg.sessions.size)].copy()
    stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    stranger.sendto(seal(index, 1000, inner(), key=bytes(32)), made.kept[0].getsockname())
    receive(made.b, 0, 64, START + SECOND)
    after = made.b.wg.devices[1], made.b.wg.sessions[slot_of(index, made.b.wg.sessions.size)]
    assert [bytes(row) for row in before] == [bytes(row) for row in after]
    stranger.close()
    made.close()


def test_a_device_is_answered_where_it_was_heard_last() -> None:
    made, index = gateway()
    moved = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    moved.sendto(seal(index, 0, inner()), made.kept[0].getsockname())
    receive(made.b, 0, 64, START)
    (out,) = [IP(frame[10:]) for frame in made.written()]
    made.tun.send(bytes(10) + bytes(IP(src=REMOTE, dst=POOL) / UDP(sport=53, dport=out[UDP].sport) / b"answer"))
    read_tun(made.b, START)
    flush_run(made.b)
    moved.settimeout(2)
    assert open_sealed(moved.recv(2000))[0] == 0x1001
    assert made.sent() == []
    moved.close()
    made.close()


def test_a_session_older_than_180_seconds_opens_nothing() -> None:
    made, index = gateway()
    assert len(take(made, seal(index, 0, inner()), now=START + 179 * SECOND)) == 1
    assert take(made, seal(index, 1, inner()), now=START + 180 * SECOND) == []
    assert made.drops() == {"expired_session": 1}
    made.close()


def test_late_data_on_an_old_session_asks_for_no_new_one_when_there_is_one() -> None:
    made, index = gateway()
    made.session(1, made.index(2), START + 100 * SECOND)
    made.events()
    take(made, seal(index, 0, inner()), now=START + 170 * SECOND)
    assert made.event_kinds() == []
    take(made, seal(index, 1, inner()), now=START + 179 * SECOND)
    take(made, seal(made.index(2), 0, inner()), now=START + 265 * SECOND - 1)
    assert made.event_kinds() == []
    take(made, seal(made.index(2), 1, inner()), now=START + 265 * SECOND)
    assert made.event_kinds() == [Event.WANTED]
    made.close()


def test_nothing_leaves_before_the_configuration_is_loaded() -> None:
    made, index = gateway()
    made.b.work.worker[0].open = 0
    assert take(made, seal(index, 0, inner())) == []
    assert made.drops() == {"not_configured": 1}
    made.close()


def test_a_removed_device_is_gone_at_once() -> None:
    made, index = gateway()
    take(made, seal(index, 0, inner()))
    made.command(Command.REMOVE_DEVICE, owner=1)
    assert take(made, seal(index, 1, inner())) == []
    assert made.drops() == {"unknown_index": 1}
    assert int(made.b.nat.settings[0].flows) == 0
    assert Event.FREED in made.event_kinds()
    made.close()


def test_a_packet_at_its_last_hop_is_answered_from_inside_the_tunnel() -> None:
    made, index = gateway()
    take(made, seal(index, 0, inner(ttl=1)))
    (datagram,) = made.sent()
    answer = IP(open_sealed(datagram)[2])
    assert (answer.src, answer.dst, answer[ICMP].type, answer[ICMP].code) == ("100.64.0.1", INNER, 11, 0)
    assert bytes(answer[ICMP].payload)[:20] == inner(ttl=1)[:20]
    made.close()


def test_errors_made_here_are_limited_in_rate() -> None:
    made, index = gateway()
    made.b.work.worker[0].icmp_tokens = 3
    take(made, *(seal(index, counter, inner(ttl=1)) for counter in range(10)))
    assert len(made.sent()) == 3
    assert made.counter(Counter.ICMP_SUPPRESSED) == 7
    assert made.drops() == {"ttl_exceeded": 10}
    made.close()


def test_the_segment_size_of_a_connection_is_clamped_to_the_tunnel() -> None:
    made, index = gateway()
    syn = bytes(IP(src=INNER, dst=REMOTE) / TCP(sport=1, dport=80, flags="S", options=[("MSS", 8960)]))
    (out,) = take(made, seal(index, 0, syn))
    assert dict(out[TCP].options)["MSS"] == 1380
    assert bytes(out) == bytes(_recomputed(out))
    made.close()


def _recomputed(packet: Any) -> Any:
    packet = packet.copy()
    packet[IP].chksum = packet[TCP].chksum = None
    return packet


def test_a_keepalive_is_no_packet() -> None:
    made, index = gateway()
    assert take(made, seal(index, 0, b"")) == []
    assert made.counter(Counter.RX_KEEPALIVES) == 1
    assert made.drops() == {}
    made.close()


@given(st.lists(st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda tail: b"\4\0\0\0" + tail)), max_size=20))
def test_any_datagram_is_dropped_once_and_answered_by_nothing(datagrams: list[bytes]) -> None:
    made, _ = gateway()
    try:
        assert take(made, *datagrams) == []
        handed_up = len(made.events())
        assert sum(made.drops().values()) + handed_up == len(datagrams)
        assert made.sent() == []
    finally:
        made.close()


@given(st.lists(st.binary(min_size=1, max_size=120), max_size=10))
def test_any_inner_packet_is_let_through_or_dropped_once(texts: list[bytes]) -> None:
    made, index = gateway()
    try:
        out = take(made, *(seal(index, counter, text) for counter, text in enumerate(texts)))
        assert sum(made.drops().values()) + len(out) == len(texts)
    finally:
        made.close()


def test_an_endpoint_nothing_can_be_sent_to_is_not_learnt() -> None:
    made, index = gateway()
    before = bytes(made.b.wg.devices[1].remote)
    made.send(seal(index, 0, inner()))
    name = made.b.local.octets[NAMES : NAMES + 32]
    receive(made.b, 0, 64, START)
    name[2:4] = 0
    _move_endpoint(made.b, 0, 0, made.b.wg.devices[1])
    assert bytes(made.b.wg.devices[1].remote) == before
    made.close()


def test_a_denied_host_opens_no_flow_from_outside() -> None:
    made, index = gateway()
    made.b.nat.settings[0].filtering = ENDPOINT_INDEPENDENT
    (out,) = take(made, seal(index, 0, inner()))
    made.tun.send(bytes(10) + bytes(IP(src="10.1.2.3", dst=POOL) / UDP(sport=53, dport=out[UDP].sport) / b"come in"))
    read_tun(made.b, START)
    assert made.drops() == {"policy_denied": 1}
    assert take(made, seal(index, 1, inner(dst="10.1.2.3"))) == []
    made.close()


def test_a_command_that_cannot_be_carried_out_is_taken_off_and_reported() -> None:
    made, _ = gateway()
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    there.send(pack_command(Command.ADD_POOL, external4=999))
    there.send(pack_command(Command.SYNC, index=7))
    assert apply_waiting(made.b, here)
    assert apply_waiting(made.b, here)
    assert made.event_kinds() == [Event.REFUSED, Event.SYNCED]
    assert not _waits(here)
    here.close()
    there.close()
    made.close()


def _waits(end: socket.socket) -> bool:
    try:
        return bool(end.recv(COMMAND.itemsize, socket.MSG_DONTWAIT | socket.MSG_PEEK))
    except BlockingIOError:
        return False
