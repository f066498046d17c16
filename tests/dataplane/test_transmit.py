"""Sending: runs, what happens when the kernel refuses segmentation, and the nonce that is never used twice."""

import socket
from typing import Any

from scapy.layers.inet import IP, UDP

from egressvpn.addresses import Path, pack_sockaddr
from egressvpn.dataplane import aead, arena, local
from egressvpn.dataplane.bundle import bundle
from egressvpn.dataplane.channel import Command, Event
from egressvpn.dataplane.layout import layout
from egressvpn.dataplane.loop import sweep
from egressvpn.dataplane.receive import receive
from egressvpn.dataplane.recovery import recover_all
from egressvpn.dataplane.segment import read_tun
from egressvpn.dataplane.tables import Counter
from egressvpn.dataplane.transmit import flush_run
from egressvpn.wireguard.constants import DUE_KEEPALIVE, KEEPALIVE_TIMEOUT, REJECT_AFTER_TIME, REKEY_AFTER_TIME
from tests.dataplane.rig import LIMITS, START, Rig, open_sealed, rig, seal

SO_NO_CHECK = 11  # asm-generic/socket.h
DEVICES = {1: "100.64.0.2", 2: "100.64.0.3"}


def word(address: str) -> int:
    return int.from_bytes(socket.inet_aton(address), "big")


def bench() -> Rig:
    made = rig()
    for number, address in DEVICES.items():
        made.add_device(number, word(address))
    return made


def packet(number: int, size: int = 100) -> bytes:
    return bytes(10) + bytes(IP(src="198.51.100.2", dst=DEVICES[number]) / UDP(sport=1, dport=2) / bytes(size - 28))


def from_tun(made: Rig, *frames: bytes, now: int = START) -> list[bytes]:
    """Everything the devices got for these frames, read in one turn."""
    for frame in frames:
        made.tun.send(frame)
        read_tun(made.b, now)
    flush_run(made.b)
    return made.sent()


def test_equal_packets_for_one_device_leave_with_one_send() -> None:
    made = bench()
    assert len(from_tun(made, *[packet(1)] * 10)) == 10
    assert made.counter(Counter.TX_SENDS) == 1
    made.close()


def test_another_device_or_a_longer_packet_begins_a_new_run() -> None:
    made = bench()
    sent = from_tun(made, packet(1), packet(2), packet(2), packet(2, 300), packet(2, 300), packet(2, 40), packet(2, 40))
    assert [open_sealed(datagram)[0] for datagram in sent] == [0x1001] + [0x1002] * 6
    assert made.counter(Counter.TX_SENDS) == 4  # one; two; two and a shorter last one; the rest
    made.close()


def test_segmentation_the_route_refuses_falls_back_to_plain_sends_and_loses_nothing() -> None:
    made = bench()
    udp = made.kept[0]
    udp.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)  # UDP_SEGMENT without checksums is refused with EINVAL
    assert len(from_tun(made, *[packet(1)] * 5)) == 5
    assert made.counter(Counter.GSO_REFUSED) == 1
    assert int(made.b.wg.devices[1].plain_sends) == 1
    assert int(made.b.work.worker[0].gso) == 1  # one device's path is no reason to slow the others
    assert made.drops() == {}
    made.close()


def test_padding_keeps_to_an_mtu_that_was_changed() -> None:
    made = bench()
    sizes = []
    for mtu in (1420, 1300, 1295):
        made.command(Command.SET_MTU, index=mtu)
        (sent,) = from_tun(made, packet(1, mtu - 3))
        sizes.append(len(sent) - 32)
    assert sizes == [1420, 1300, 1295]
    made.close()


def test_what_cannot_be_sent_is_counted() -> None:
    made = bench()
    unreachable = pack_sockaddr("127.0.0.1", 0)
    made.command(Command.SET_PATH, owner=1, path=Path(unreachable))
    assert from_tun(made, packet(1)) == []
    assert made.drops() == {"send_failed": 1}
    made.close()


def test_a_device_that_was_never_heard_has_no_endpoint() -> None:
    made = bench()
    made.b.wg.devices[1].remote_length = 0
    assert from_tun(made, packet(1)) == []
    assert made.drops() == {"no_endpoint": 1}
    made.close()


def test_a_packet_for_nobody_has_no_route() -> None:
    made = bench()
    made.tun.send(bytes(10) + bytes(IP(src="198.51.100.2", dst="100.64.0.9") / UDP() / b"x"))
    read_tun(made.b, START)
    assert made.drops() == {"no_route": 1}
    made.close()


def test_an_old_session_asks_for_the_next_one_and_an_expired_one_seals_nothing() -> None:
    made = bench()
    made.events()
    assert len(from_tun(made, packet(1), now=START + REKEY_AFTER_TIME - 1)) == 1
    assert made.event_kinds() == []
    assert len(from_tun(made, packet(1), now=START + REKEY_AFTER_TIME)) == 1
    assert made.event_kinds() == [Event.WANTED]
    assert from_tun(made, packet(1), now=START + REJECT_AFTER_TIME) == []
    assert int(made.b.wg.devices[1].staged) == 1
    made.close()


def test_the_sweep_reports_a_keepalive_that_is_due() -> None:
    made = bench()
    made.send(seal(made.index(1), 0, bytes(IP(src=DEVICES[1], dst="198.51.100.2") / UDP() / b"x")))
    receive(made.b, 0, 64, START)
    made.events()
    sweep(made.b, START + KEEPALIVE_TIMEOUT - 1)
    assert made.events() == []
    sweep(made.b, START + KEEPALIVE_TIMEOUT)
    (event,) = made.events()
    assert (Event(int(event.kind)), int(event.owner), int(event.first)) == (Event.DUE, 1, DUE_KEEPALIVE)
    made.command(Command.KEEPALIVE, owner=1, now=START + KEEPALIVE_TIMEOUT)
    (datagram,) = made.sent()
    assert len(datagram) == 32
    made.close()


def test_a_successor_on_the_same_arena_goes_on_and_repeats_no_nonce() -> None:
    made = bench()
    first = [open_sealed(datagram)[1] for datagram in from_tun(made, *[packet(1)] * 3)]
    made.command(Command.CLEAR, owner=2)
    from_tun(made, packet(2))  # staged
    successor, memory = _successor(made)
    recover_all(successor.b, memory, START)
    assert int(successor.b.wg.devices[2].staged) == 1
    second = [open_sealed(datagram)[1] for datagram in from_tun(successor, *[packet(1)] * 3)]
    assert first + second == [0, 1, 2, 3, 4, 5]
    made.close()


def _successor(made: Rig) -> tuple[Rig, arena.Arena]:
    """Another process's view: the same arena and descriptors, memory of its own."""
    memory = arena.attach(made.fd, layout(LIMITS))
    fds: Any = made.b.local.fds
    own = local.create(memory.tables["sessions"].size, int(fds[0]), int(fds[1]), [int(fds[3])])
    aead.prepare(own)
    return Rig(bundle(own, memory), made.tun, made.peer, made.channel, [], made.fd), memory
