"""External addresses that come and go under live flows, what expires between packets, and a successor that goes on with all of it."""

import os
from collections.abc import Iterator

import pytest
from scapy.layers.inet import UDP

from egressvpn.dataplane import aead, arena, local
from egressvpn.dataplane.bundle import bundle
from egressvpn.dataplane.channel import Command, Event
from egressvpn.dataplane.egress import ENDING_BUDGET
from egressvpn.dataplane.layout import Limits, layout
from egressvpn.dataplane.loop import tidy
from egressvpn.dataplane.recovery import recover_all
from egressvpn.nat.expiry import STEP
from egressvpn.nat.tables import DERIVED, SECOND, UDP_TIMEOUT
from tests.dataplane.gateway import EXTERNAL6, ONE, ONE6, POOL, REMOTE, REMOTE6, TWO, TWO6, Gateway, address_words, udp
from tests.dataplane.rig import LIMITS, START

OTHER = "203.0.113.7"


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    yield made
    made.close()


def pair(gateway: Gateway, number: int, slot: int, external6: str) -> None:
    """SET_DEVICE with these external addresses."""
    inner, inner6 = ((ONE, ONE6), (TWO, TWO6))[number - 1]
    fields = dict(zip(("internal6_hi", "internal6_lo"), address_words(inner6), strict=True))
    fields |= dict(zip(("external6_hi", "external6_lo"), address_words(external6), strict=True))
    internal4 = address_words(inner)[1]
    gateway.rig.command(Command.SET_DEVICE, owner=number, identity=number, state=1, internal4=internal4, external4=slot, **fields)


def flows(gateway: Gateway) -> int:
    return int(gateway.b.nat.settings[0].flows)


def test_flows_on_an_address_that_goes_end_and_all_others_stay(gateway: Gateway) -> None:
    gateway.rig.add_pool(2, OTHER)
    pair(gateway, 2, 2, EXTERNAL6[2])
    gateway.send(1, udp(ONE, REMOTE), udp(ONE6, REMOTE6))
    gateway.send(2, udp(TWO, REMOTE))
    gateway.rig.command(Command.REMOVE_POOL, external4=1)
    while tidy(gateway.b, START):
        pass
    (event,) = [event for event in gateway.rig.events() if event.kind == Event.POOL_REMOVED]
    assert int(event.first) == 1
    assert int(gateway.b.nat.pool[1].address) == 0
    assert flows(gateway) == 2
    assert gateway.send(1, udp(ONE, REMOTE)) == []
    assert gateway.drops() == {"no_external_address": 1}
    assert [len(gateway.send(*sent)) for sent in ((1, udp(ONE6, REMOTE6)), (2, udp(TWO, REMOTE)))] == [1, 1]
    pair(gateway, 1, 2, EXTERNAL6[1])
    (out,) = gateway.send(1, udp(ONE, REMOTE))
    assert out.src == OTHER
    gateway.rig.command(Command.REMOVE_POOL, external4=1)  # twice as well as once


def test_an_address_with_many_flows_ends_in_steps_and_packets_pass_between() -> None:
    gateway = Gateway(Limits(max_devices=16, max_prefixes=64, max_flows=2048, pool_addresses=4))
    gateway.send(2, udp(TWO6, REMOTE6))
    for first in range(0, ENDING_BUDGET + 24, 64):
        gateway.send(1, *[udp(ONE, f"198.51.{n >> 8}.{n & 255}") for n in range(first, first + 64)])
    gateway.send(2, udp(TWO, REMOTE))
    gateway.rig.command(Command.REMOVE_POOL, external4=1)
    assert int(gateway.b.nat.pool[1].address) != 0
    gateway.send(2, udp(TWO, REMOTE, sport=5001))  # what is opened until its device's turn comes ends with the rest
    assert len(gateway.send(2, udp(TWO6, REMOTE6))) == 1
    assert tidy(gateway.b, START) == 0
    assert (int(gateway.b.nat.pool[1].address), flows(gateway)) == (0, 1)
    gateway.close()


def test_a_report_of_an_address_that_is_gone_is_made_when_there_is_room(gateway: Gateway) -> None:
    end = gateway.rig.kept[2]
    while True:
        try:
            end.send(bytes(8))
        except BlockingIOError:
            break
    gateway.rig.command(Command.REMOVE_POOL, external4=1)
    assert tidy(gateway.b, START) == 1
    while True:
        try:
            gateway.rig.channel.recv(4096)
        except BlockingIOError:
            break
    assert tidy(gateway.b, START) == 0
    assert gateway.rig.event_kinds() == [Event.POOL_REMOVED]


def test_another_external_ipv6_address_ends_the_flows_on_the_old_one_alone(gateway: Gateway) -> None:
    port = gateway.external(1, udp(ONE, REMOTE))
    gateway.send(1, udp(ONE6, REMOTE6))
    pair(gateway, 1, 1, EXTERNAL6[1])  # the same again changes nothing
    assert flows(gateway) == 2
    pair(gateway, 1, 1, "2001:db8:113::99")
    assert flows(gateway) == 1
    (out,) = gateway.send(1, udp(ONE6, REMOTE6))
    assert out.src == "2001:db8:113::99"
    assert gateway.external(1, udp(ONE, REMOTE)) == port
    assert gateway.arrive(udp(REMOTE6, EXTERNAL6[1], sport=53, dport=5000)) == []
    assert gateway.rig.event_kinds() == []


def test_an_ipv6_network_that_goes_is_the_outsides_again(gateway: Gateway) -> None:
    assert gateway.send(1, udp(ONE6, "2001:db8:113::77")) == []
    high, low = address_words("2001:db8:113::")
    gateway.rig.command(Command.REMOVE_POOL, version=6, high=high, low=low, prefix_length=64)
    assert len(gateway.send(1, udp(ONE6, "2001:db8:113::77"))) == 1


def test_a_block_that_is_held_for_a_device_is_given_to_it_and_to_nobody_else() -> None:
    gateway = Gateway()
    gateway.rig.add_pool(2, OTHER, port_low=2000, port_high=2015, block_size=8)
    pair(gateway, 1, 2, EXTERNAL6[1])
    pair(gateway, 2, 2, EXTERNAL6[2])
    gateway.rig.command(Command.HOLD_BLOCK, external4=2, port_low=2008, identity=1, wall=START + 60 * SECOND)
    theirs = [gateway.external(2, udp(TWO, REMOTE, sport=port)) for port in range(4000, 4008)]
    assert all(port < 2008 for port in theirs)
    assert gateway.send(2, udp(TWO, REMOTE, sport=4999)) == []
    assert gateway.external(1, udp(ONE, REMOTE)) >= 2008
    gateway.close()


@pytest.mark.parametrize("slot", [0, -1, 5, 1 << 40])
def test_a_pool_slot_that_there_is_not_is_refused(gateway: Gateway, slot: int) -> None:
    with pytest.raises(ValueError, match="no pool slot"):
        gateway.rig.add_pool(slot, OTHER)
    gateway.rig.command(Command.REMOVE_POOL, external4=slot)
    assert flows(gateway) == 0


def test_a_live_slot_does_not_change_its_address(gateway: Gateway) -> None:
    gateway.rig.add_pool(1, OTHER)
    (event,) = gateway.rig.events()
    assert (event.kind, event.first) == (Event.REFUSED, Command.ADD_POOL)
    assert gateway.send(1, udp(ONE, REMOTE))[0].src == POOL


def test_flows_expire_in_steps_between_packets() -> None:
    gateway = Gateway(Limits(max_devices=16, max_prefixes=64, max_flows=2048, pool_addresses=4))
    count = STEP + 100
    for first in range(0, count, 60):
        gateway.send(1, *[udp(ONE, f"198.51.{n >> 8}.{n & 255}") for n in range(first, min(first + 60, count))])
    now = START + UDP_TIMEOUT + SECOND
    assert tidy(gateway.b, now) == 1
    assert flows(gateway) == count - STEP
    assert tidy(gateway.b, now) == 0
    assert flows(gateway) == 0
    assert tidy(gateway.b, now) == 0
    gateway.close()


def test_a_successor_goes_on_with_every_flow_and_with_the_address_that_was_ending(gateway: Gateway) -> None:
    port = gateway.external(1, udp(ONE, REMOTE))
    gateway.send(1, udp(ONE6, REMOTE6))
    gateway.rig.add_pool(2, OTHER)
    gateway.b.work.endings[2] = 1  # a death right after the command
    memory = arena.attach(gateway.rig.fd, layout(LIMITS))
    for name in DERIVED:
        memory.tables[name][:1] = 77  # what a death in mid-write leaves
    fds = gateway.b.local.fds
    own = local.create(memory.tables["sessions"].size, int(fds[0]), int(fds[1]), [int(fds[3])])
    aead.prepare(own)
    gateway.b = gateway.rig.b = bundle(own, memory)
    recover_all(gateway.b, memory, START)
    assert flows(gateway) == 2
    (out,) = gateway.send(1, udp(ONE, REMOTE))
    assert out[UDP].sport == port
    assert [number for number, _ in gateway.arrive(udp(REMOTE, POOL, sport=53, dport=port))] == [1]
    assert tidy(gateway.b, START) == 0
    assert int(gateway.b.nat.pool[2].address) == 0


def test_a_cleared_table_is_empty_and_takes_no_memory() -> None:
    memory = arena.create(layout(LIMITS))
    empty = os.fstat(memory.fd).st_blocks
    memory.tables["ports"][:] = 7
    memory.tables["flows"][3].key = 9
    memory.clear("ports")
    assert os.fstat(memory.fd).st_blocks <= empty + 16
    assert not memory.tables["ports"].any()  # to read is to touch
    assert int(memory.tables["flows"][3].key) == 9
    os.close(memory.fd)
