"""Commands of control: each does what it says, twice as well as once, and packets do not wait for many of them."""

import socket
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path as File
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressvpn.addresses import Path, pack_sockaddr, words
from egressvpn.dataplane.channel import EVENT, Command, Event, pack_command, pack_prefixes
from egressvpn.dataplane.commands import apply_waiting
from egressvpn.dataplane.layout import Limits
from egressvpn.dataplane.local import UDP_FDS
from egressvpn.dataplane.loop import sweep
from egressvpn.dataplane.orders import COMMANDS_PER_TURN, carry_out_waiting
from egressvpn.dataplane.receive import receive
from egressvpn.dataplane.tables import CLIENT
from egressvpn.nat.pool_view import owned
from egressvpn.prefixes import lookup4, lookup6
from egressvpn.wireguard.constants import DUE_KEEPALIVE, DUE_ZERO, ZERO_KEYS_TIMEOUT
from egressvpn.wireguard.indexes import slot_of
from egressvpn.wireguard.tables import ENABLED
from tests.dataplane.gateway import ONE, REMOTE, Gateway, udp
from tests.dataplane.rig import LIMITS, SECOND, START, Rig, rig, seal

KEYS = {"receive_key": b"\1" * 32, "send_key": b"\2" * 32}
GONE = bytes.fromhex("20000000000000000000000008000000" + "00000000c000026300000000") + bytes(4)  # PKTINFO from 192.0.2.99


def bench(limits: Limits = LIMITS) -> Rig:
    """Three enabled devices without sessions; the first is heard from the rig's peer."""
    made = rig(CLIENT, limits)
    for number in (1, 2, 3):
        made.command(Command.SET_DEVICE, owner=number, state=ENABLED, internal4=-1)
    made.command(Command.SET_PATH, owner=1, path=here(made))
    return made


def here(made: Rig) -> Path:
    return Path(pack_sockaddr(*made.peer.getsockname()))


# prefixes

networks = st.one_of(
    st.tuples(st.integers(0, (1 << 32) - 1), st.integers(0, 32)).map(lambda pair: IPv4Network(pair, strict=False)),
    st.tuples(st.sampled_from([0x20010DB8 << 96, 0xFD64 << 112]), st.integers(0, 3), st.integers(0, 128)).map(
        lambda three: IPv6Network((three[0] | three[1] << 62, three[2]), strict=False)
    ),
)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3), st.lists(networks, max_size=25)), max_size=8))
def test_prefixes_belong_to_who_got_them_last_until_he_gives_them_up(steps: list[tuple[bool, int, list[Any]]]) -> None:
    made = bench(Limits(max_devices=16, max_prefixes=256, max_flows=16, pool_addresses=1))
    owners: dict[Any, int] = {}
    for adding, number, some in steps:
        for octets in pack_prefixes(some):
            made.command(Command.ADD_PREFIXES if adding else Command.REMOVE_PREFIXES, owner=number, octets=octets)
        for network in some:
            if adding:
                owners[network] = number
            elif owners.get(network) == number:
                del owners[network]
    for network in [network for _, _, some in steps for network in some]:
        address = network.network_address
        holding = [known for known in owners if known.version == network.version and address in known]
        expected = owners[max(holding, key=lambda known: known.prefixlen)] if holding else 0
        high, low = words(address)
        assert (lookup4(made.b.prefixes, low) if network.version == 4 else lookup6(made.b.prefixes, high, low)) == expected
    made.close()


def test_prefixes_that_do_not_fit_are_refused_once_and_the_others_stay() -> None:
    made = bench(Limits(max_devices=16, max_prefixes=4, max_flows=16, pool_addresses=1))
    made.add_prefixes(1, *(f"10.{number}.0.0/16" for number in range(9)))
    (event,) = made.events()
    assert (event.kind, event.owner, event.first) == (Event.REFUSED, 1, Command.ADD_PREFIXES)
    assert lookup4(made.b.prefixes, int(ip_address("10.0.0.1"))) == 1
    made.close()


# handshakes


def install(made: Rig, *, initiator: bool, slot: int = 1, now: int = START) -> int:
    index = made.index(slot)
    response = b"" if initiator else b"\2" * 92
    fields = {"initiator": initiator, "wall": 1_700_000_000 * SECOND, "octets": response, "path": here(made)}
    made.command(Command.INSTALL, now, owner=1, index=index, remote_index=9, **KEYS, **fields)
    return index


def counted(made: Rig) -> tuple[int, int]:
    device = made.b.wg.devices[1]
    return int(device.received_bytes), int(device.sent_bytes)


def test_handshakes_count_as_received_and_sent_by_the_octet() -> None:
    made = bench()
    made.command(Command.TRANSMIT, owner=1, path=here(made), octets=b"\1" * 148)
    assert counted(made) == (0, 148)
    install(made, initiator=True)
    assert counted(made) == (92, 148)
    install(made, initiator=False, slot=2)
    assert counted(made) == (92 + 148, 148 + 92)
    assert made.sent() == [b"\1" * 148, b"\2" * 92]
    made.close()


def test_a_session_installed_again_counts_once_and_keeps_its_counter() -> None:
    made = bench()
    index = install(made, initiator=True)
    made.command(Command.KEEPALIVE, owner=1)
    install(made, initiator=True)
    assert counted(made) == (92, 32)
    assert int(made.b.wg.sessions[slot_of(index, made.b.wg.sessions.size)].send_counter) == 1
    made.close()


def test_a_responders_handshake_is_the_latest_when_it_is_confirmed() -> None:
    made = bench()
    index = install(made, initiator=False)
    device = made.b.wg.devices[1]
    assert int(device.last_handshake_wall) == 0
    made.send(seal(index, 0, b"", key=KEYS["receive_key"]))
    receive(made.b, 0, 64, START + SECOND)
    assert int(device.last_handshake_wall) == 1_700_000_000 * SECOND
    assert int(device.last_handshake) == START + SECOND
    made.close()


def test_an_initiation_moves_no_endpoint_and_makes_a_keepalive_needless() -> None:
    made = bench()
    install(made, initiator=True)
    device = made.b.wg.devices[1]
    device.keepalive_due = START + SECOND
    before = bytes(device.remote)
    made.command(Command.TRANSMIT, owner=1, path=Path(pack_sockaddr("127.0.0.1", 9)), octets=b"\1" * 148)
    assert (bytes(device.remote), int(device.keepalive_due)) == (before, 0)
    made.close()


def test_a_handshake_leaves_from_another_address_when_its_own_is_gone() -> None:
    made = bench()
    made.command(Command.TRANSMIT, owner=1, path=Path(here(made).remote, GONE), octets=b"\1" * 148)
    install(made, initiator=True)
    made.command(Command.INSTALL, owner=1, index=made.index(2), **KEYS, path=Path(here(made).remote, GONE), octets=b"\2" * 92)
    assert made.sent() == [b"\1" * 148, b"\2" * 92]
    assert int(made.b.wg.devices[1].local_length) == 0
    made.close()


def test_a_handshake_that_cannot_be_sent_is_counted() -> None:
    made = bench()
    made.command(Command.TRANSMIT, owner=1, path=Path(pack_sockaddr("127.0.0.1", 0)), octets=b"\1" * 148)
    assert made.drops() == {"send_failed": 1}
    assert counted(made) == (0, 0)
    made.close()


def test_who_gives_up_asks_for_nothing_by_a_keepalive() -> None:
    made = bench()
    install(made, initiator=True)
    made.b.wg.devices[1].keepalive_due = START + SECOND
    made.events()
    made.command(Command.DROP_STAGED, owner=1)
    sweep(made.b, START + 2 * SECOND)
    assert made.events() == []
    made.close()


# zeroing


def test_keys_are_wiped_by_the_sweep_itself_540_s_after_the_last_session() -> None:
    made = bench()
    index = install(made, initiator=True)
    made.events()
    session = made.b.wg.sessions[slot_of(index, made.b.wg.sessions.size)]
    sweep(made.b, START + ZERO_KEYS_TIMEOUT - 1)
    assert (bytes(session.receive_key), made.events()) == (KEYS["receive_key"], [])
    sweep(made.b, START + ZERO_KEYS_TIMEOUT)
    assert bytes(session.receive_key) == bytes(session.send_key) == bytes(32)
    freed, due = made.events()
    assert (freed.kind, freed.index, due.kind, due.first) == (Event.FREED, index, Event.DUE, DUE_ZERO)
    assert [int(made.b.wg.devices[1][name]) for name in ("current", "previous", "next", "zero_due")] == [0, 0, 0, 0]
    sweep(made.b, START + 2 * ZERO_KEYS_TIMEOUT)
    assert made.events() == []
    made.close()


def test_a_report_that_nobody_could_take_is_made_again_after_the_keys_are_wiped() -> None:
    made = bench()
    install(made, initiator=True)
    made.b.wg.devices[1].keepalive_due = START
    _fill_channel(made)
    sweep(made.b, START + ZERO_KEYS_TIMEOUT)
    assert int(made.b.wg.devices[1].current) == 0
    made.events()
    sweep(made.b, START + ZERO_KEYS_TIMEOUT + SECOND)
    (event,) = made.events()
    assert (event.kind, event.first) == (Event.DUE, DUE_ZERO | DUE_KEEPALIVE)
    made.close()


def _fill_channel(made: Rig) -> None:
    end = made.kept[2]
    while True:
        try:
            end.send(bytes(EVENT.itemsize))
        except BlockingIOError:
            return


# many at a time


def test_packets_have_their_turn_between_many_commands() -> None:
    made = bench()
    made.channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    for number in range(3 * COMMANDS_PER_TURN):
        made.channel.send(pack_command(Command.SYNC, index=number))
    turns, done = 0, 0
    while done < 3 * COMMANDS_PER_TURN:
        assert carry_out_waiting(made.b) == 1
        fresh = [int(event.first) for event in made.events()]
        assert fresh == list(range(done, done + COMMANDS_PER_TURN))
        turns, done = turns + 1, done + len(fresh)
    assert turns == 3
    made.close()


def test_what_the_packet_loop_does_not_know_waits_for_python_in_its_place() -> None:
    made = bench()
    for record in (pack_command(Command.SYNC, index=1), pack_command(Command.OPEN, internal4=7), pack_command(Command.SYNC, index=2)):
        made.channel.send(record)
    link = made.kept[2]
    assert carry_out_waiting(made.b) == 0
    assert [int(event.first) for event in made.events()] == [1]
    assert carry_out_waiting(made.b) == 0
    assert apply_waiting(made.b, link)
    assert int(made.b.work.worker[0].inner4) == 7
    assert carry_out_waiting(made.b) == 1
    assert [int(event.first) for event in made.events()] == [2]
    made.channel.close()
    assert carry_out_waiting(made.b) == 0
    assert not apply_waiting(made.b, link)
    made.close()


def obey(made: Rig) -> None:
    """Everything that control has sent."""
    link = made.kept[2]
    while True:
        try:
            link.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        if carry_out_waiting(made.b) == 0:
            assert apply_waiting(made.b, link)


# sockets


def test_a_socket_is_replaced_under_its_number_and_the_next_command_is_read() -> None:
    made = bench()
    descriptor = int(made.b.local.fds[UDP_FDS])
    replacement = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    replacement.bind(("127.0.0.1", 0))
    before = _descriptors()
    socket.send_fds(made.channel, [pack_command(Command.SET_SOCKET, socket=0)], [replacement.fileno()])
    made.channel.send(pack_command(Command.TRANSMIT, 1, path=here(made), octets=b"x"))
    obey(made)
    assert int(made.b.local.fds[UDP_FDS]) == descriptor
    assert _descriptors() == before
    _, address = made.peer.recvfrom(100)
    assert address == replacement.getsockname()
    replacement.close()
    made.close()


def _descriptors() -> int:
    return sum(1 for _ in File("/proc/self/fd").iterdir())


@pytest.mark.parametrize("number", [1, 7, -1, 99])
def test_a_socket_with_a_number_that_is_none_is_refused(number: int) -> None:
    made = bench()
    socket.send_fds(made.channel, [pack_command(Command.SET_SOCKET, socket=number)], [made.peer.fileno()])
    made.channel.send(pack_command(Command.SYNC, index=5))
    obey(made)
    assert [(event.kind, event.first) for event in made.events()] == [(Event.REFUSED, Command.SET_SOCKET), (Event.SYNCED, 5)]
    made.close()


def test_every_command_can_be_applied() -> None:
    made = bench()
    for kind in Command:
        made.channel.send(pack_command(kind, 3 if kind is not Command.SET_SOCKET else 0))
    obey(made)
    refused = {int(event.first) for event in made.events() if event.kind == Event.REFUSED}
    assert refused <= {int(Command.ADD_POOL), int(Command.SET_SOCKET)}
    made.close()


@pytest.mark.parametrize("number", [0, -1, 17, 1 << 40])
def test_a_device_that_there_is_no_room_for_is_refused(number: int) -> None:
    made = bench()
    kinds = [
        Command.INSTALL,
        Command.TRANSMIT,
        Command.KEEPALIVE,
        Command.CLEAR,
        Command.SET_DEVICE,
        Command.SET_PATH,
        Command.ADD_PREFIXES,
    ]
    for kind in kinds:
        made.channel.send(pack_command(kind, number))
    obey(made)
    assert [(event.kind, event.first) for event in made.events()] == [(Event.REFUSED, kind) for kind in kinds]
    made.close()


def test_a_device_with_another_predefined_block_loses_what_it_had_first() -> None:
    gateway = Gateway()
    for slot, address in ((2, "203.0.113.2"), (3, "203.0.113.3")):
        gateway.rig.add_pool(slot, address, port_high=1024 + 63, block_size=8, fixed_blocks=4, fixed_size=8)
    device = {"state": ENABLED, "internal4": int(ip_address(ONE)), "identity": 1}
    gateway.rig.command(Command.SET_DEVICE, owner=1, external4=2, fixed=1, **device)
    first = gateway.external(1, udp(ONE, REMOTE))
    assert 1024 <= first < 1032
    gateway.rig.command(Command.SET_DEVICE, owner=1, external4=2, fixed=1, **device)
    assert gateway.external(1, udp(ONE, REMOTE)) == first
    gateway.rig.command(Command.SET_DEVICE, owner=1, external4=3, fixed=3, **device)
    (moved,) = gateway.send(1, udp(ONE, REMOTE))
    assert moved.src == "203.0.113.3"
    assert 1040 <= moved.sport < 1048
    assert [(slot, low) for slot, _, low, *_ in owned(gateway.b.nat)] == [(3, 1040)]
    gateway.close()
