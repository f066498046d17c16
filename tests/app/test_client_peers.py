"""The client's peers follow what `wg` says, in its own memory and in the worker's tables, as a table of lines would."""

import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from egressvpn.addresses import IPNetwork, words
from egressvpn.api.uapi_lines import INVALID, PORT_IN_USE, RefusedError
from egressvpn.app import client_peers
from egressvpn.app.client_peers import MAX_PEERS, ClientPeers
from egressvpn.app.ports import open_on
from egressvpn.control.peers import PeerChange
from egressvpn.control.supervisor import Supervisor
from egressvpn.control.tunnel import Tunnel
from egressvpn.dataplane import aead, arena, local
from egressvpn.dataplane.bundle import Bundle, bundle
from egressvpn.dataplane.commands import apply_waiting
from egressvpn.dataplane.layout import Limits, layout
from egressvpn.prefixes import find
from egressvpn.wireguard.indexes import SessionIndexes
from egressvpn.wireguard.interface import Interface
from egressvpn.wireguard.noise import public_of
from egressvpn.wireguard.tables import ENABLED, FREE

LIMITS = Limits(max_devices=MAX_PEERS, max_prefixes=8192, max_flows=1, pool_addresses=1)
PRIVATE = bytes([8] * 31 + [0x48])
OWN = public_of(PRIVATE)
KEYS = [OWN, *(bytes([number]) * 32 for number in range(1, 5))]
NETWORKS = [ip_network(n) for n in ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0", "fd64::/64", "::/0")]
ENDPOINTS = ["192.0.2.1:1", "[2001:db8::1]:2"]
SECOND = 1_000_000_000


@dataclass
class Bench:
    """A client without packets: its worker's tables are in this process."""

    peers: ClientPeers
    tunnel: Tunnel
    b: Bundle
    supervisor: Supervisor

    async def work(self) -> None:
        """What a worker does with its commands."""
        while True:
            await trio.lowlevel.wait_readable(self.supervisor._theirs)
            assert apply_waiting(self.b, self.supervisor._theirs)

    async def change(self, *changes: PeerChange, replace: bool = False) -> None:
        await self.peers.change_peers(changes, replace=replace)

    def told(self) -> dict[bytes, tuple[bytes | None, str, int, list[IPNetwork]]]:
        """What `get` says of every peer."""
        return {p.public_key: (p.preshared_key, p.endpoint, p.persistent_keepalive, list(p.allowed_ips)) for p in self.peers.state().peers}

    def owner(self, network: IPNetwork) -> bytes | None:
        """Whose it is in the worker's table."""
        slot = int(find(self.b.prefixes, network.version, *words(network.network_address), network.prefixlen))
        found = self.tunnel.interface.peer(slot)
        return None if found is None else found.public_key

    def rows(self) -> list[Any]:
        """Of the worker's devices, those in use."""
        return [row for row in self.b.wg.devices if row.state != FREE]


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    with ExitStack() as undo:
        memory = arena.create(layout(LIMITS))
        undo.callback(os.close, memory.fd)
        sockets = open_on(("127.0.0.1", "::1"), 0)
        for udp in sockets:
            undo.callback(udp.close)
        supervisor = Supervisor(memory, LIMITS, -1, [udp.fd for udp in sockets])
        undo.callback(supervisor.close)
        own = local.create(memory.tables["sessions"].size, supervisor._theirs.fileno(), -1, [os.dup(udp.fd) for udp in sockets])
        for number in range(len(sockets)):
            undo.callback(os.close, int(own.fds[local.UDP_FDS + number]))
        aead.prepare(own)
        indexes = SessionIndexes(memory.tables["sessions"].size, 0, secrets.token_bytes)
        tunnel = Tunnel(supervisor, Interface(PRIVATE, indexes, secrets.token_bytes), sockets)
        undo.callback(lambda: [udp.close() for udp in tunnel.sockets])
        made = Bench(ClientPeers(tunnel, 0), tunnel, bundle(own, memory), supervisor)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.work)
            nursery.start_soon(supervisor._pump_commands)
            nursery.start_soon(supervisor._pump_events, tunnel.handle)
            yield made
            nursery.cancel_scope.cancel()


@dataclass
class TwinPeer:
    preshared_key: bytes = bytes(32)
    endpoint: str = ""
    persistent_keepalive: int = 0
    allowed_ips: dict[IPNetwork, None] = field(default_factory=dict)


class Twin:
    """The same, line by line."""

    def __init__(self) -> None:
        self.peers: dict[bytes, TwinPeer] = {}

    def apply(self, changes: Sequence[PeerChange], replace: bool) -> None:
        if replace:
            self.peers.clear()
        for change in changes:
            if change.public_key == OWN:
                continue
            if change.remove:
                self.peers.pop(change.public_key, None)
            elif not change.update_only or change.public_key in self.peers:
                self.update(self.peers.setdefault(change.public_key, TwinPeer()), change)

    def update(self, peer: TwinPeer, change: PeerChange) -> None:
        if change.preshared_key is not None:
            peer.preshared_key = change.preshared_key
        peer.endpoint = change.endpoint or peer.endpoint
        if change.persistent_keepalive is not None:
            peer.persistent_keepalive = change.persistent_keepalive
        if change.replace_allowed_ips:
            peer.allowed_ips.clear()
        for adding, network in change.allowed_ips:
            if not adding:
                peer.allowed_ips.pop(network, None)
            elif network not in peer.allowed_ips:
                for other in self.peers.values():
                    other.allowed_ips.pop(network, None)
                peer.allowed_ips[network] = None


changes = st.builds(
    PeerChange,
    st.sampled_from(KEYS),
    st.sampled_from([False, False, False, True]),
    st.booleans(),
    st.sampled_from([None, bytes(32), b"s" * 32]),
    st.sampled_from([None, *ENDPOINTS]),
    st.sampled_from([None, 0, 25]),
    st.booleans(),
    st.lists(st.tuples(st.booleans(), st.sampled_from(NETWORKS)), max_size=5).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(changes, max_size=4), st.sampled_from([False, False, True])), max_size=6))
def test_peers_are_as_a_table_of_lines_would_have_them(operations: list[tuple[list[PeerChange], bool]]) -> None:
    async def main() -> None:
        twin = Twin()
        async with bench() as made:
            for batch, replace in operations:
                twin.apply(batch, replace)
                await made.change(*batch, replace=replace)
                told = made.told()
                assert {key: (*line[:3], set(line[3])) for key, line in told.items()} == {
                    key: (p.preshared_key, p.endpoint, p.persistent_keepalive, set(p.allowed_ips)) for key, p in twin.peers.items()
                }
                for network in NETWORKS:
                    owner = next((key for key, p in twin.peers.items() if network in p.allowed_ips), None)
                    assert made.owner(network) == owner
                intervals = sorted(int(row.persistent_interval) // SECOND for row in made.rows())
                assert intervals == sorted(p.persistent_keepalive for p in twin.peers.values())

    trio.run(main)


async def test_a_network_that_stays_is_never_away_while_others_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_peers, "PIECE", 1)
    stays, goes, comes = NETWORKS[:3]
    looks: list[bytes | None] = []
    async with bench() as made, trio.open_nursery() as nursery:
        await made.change(PeerChange(KEYS[1], allowed_ips=((True, goes), (True, stays))))

        async def look() -> None:
            while True:
                looks.append(made.owner(stays))
                await trio.lowlevel.checkpoint()

        nursery.start_soon(look)
        await made.change(PeerChange(KEYS[1], replace_allowed_ips=True, allowed_ips=((True, comes), (True, stays))))
        nursery.cancel_scope.cancel()
    assert len(looks) > 3
    assert set(looks) == {KEYS[1]}


async def test_what_is_set_is_in_the_workers_tables_when_it_is_answered() -> None:
    async with bench() as made:
        networks = [ip_network(number << 8) for number in range(3000)]
        await made.change(PeerChange(KEYS[1], allowed_ips=tuple((True, network) for network in networks)))
        assert made.owner(networks[-1]) == KEYS[1]
        assert made.rows()[0].state == ENABLED


async def test_the_slot_of_a_removed_peer_rests_before_it_is_used_again() -> None:
    async with bench() as made:
        await made.change(PeerChange(KEYS[1]))
        await made.change(PeerChange(KEYS[1], remove=True), PeerChange(KEYS[2]))
        assert made.tunnel.interface.peer(1) is None
        assert made.tunnel.interface.peer(2) is not None


async def test_more_peers_than_there_is_room_for_are_refused_and_those_before_are_there() -> None:
    async with bench() as made:
        many = [PeerChange(number.to_bytes(32, "big")) for number in range(1, MAX_PEERS + 2)]
        with pytest.raises(RefusedError) as refused:
            await made.change(*many)
        assert refused.value.code == INVALID
        assert len(made.told()) == MAX_PEERS
        await made.change(PeerChange(many[0].public_key, remove=True), PeerChange(KEYS[2]))
        assert len(made.told()) == MAX_PEERS


async def test_a_new_private_key_removes_the_peer_that_has_it() -> None:
    async with bench() as made:
        other = bytes([16] * 31 + [0x50])
        await made.change(PeerChange(public_of(other), allowed_ips=((True, NETWORKS[0]),)), PeerChange(KEYS[1]))
        await made.peers.set_private_key(other)
        assert list(made.told()) == [KEYS[1]]
        assert made.owner(NETWORKS[0]) is None
        assert made.peers.state().private_key == other
        await made.peers.set_private_key(None)
        assert made.peers.state().private_key is None
        await made.change(PeerChange(OWN))
        assert OWN in made.told()  # nobody's own key any more


async def test_sockets_move_together_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_peers, "HOSTS", ("127.0.0.1", "::1"))
    async with bench() as made:
        before, port = made.tunnel.sockets, made.tunnel.sockets[0].port
        (blocker,) = open_on(("::1",), 0)
        with blocker.socket:
            with pytest.raises(RefusedError) as refused:
                await made.peers.set_listen_port(blocker.port)
            assert refused.value.code == PORT_IN_USE
            assert made.tunnel.sockets is before
            await made.peers.set_listen_port(0)
        after = made.tunnel.sockets
        assert after[0].port == after[1].port == made.peers.state().listen_port
        assert after[0].port != port
        assert [udp.fd for udp in before] == [-1, -1]
        worker = [int(made.b.local.fds[local.UDP_FDS + number]) for number in (0, 1)]
        assert [os.fstat(fd).st_ino for fd in worker] == [os.fstat(udp.fd).st_ino for udp in after]
        await made.peers.set_listen_port(after[0].port)
        assert made.tunnel.sockets is after


async def test_an_endpoint_on_an_interface_that_is_not_there_is_refused() -> None:
    async with bench() as made:
        with pytest.raises(RefusedError):
            await made.change(PeerChange(KEYS[1], endpoint="[fe80::1%nowhere0]:1"))
        await made.change(PeerChange(KEYS[1], endpoint="[fe80::1%lo]:1"))
        assert made.told()[KEYS[1]][1] == "[fe80::1%lo]:1"


async def test_packets_that_waited_for_an_endpoint_are_sent_when_it_is_set() -> None:
    async with bench() as made:
        await made.change(PeerChange(KEYS[1]))
        made.rows()[0].staged = 1
        await made.change(PeerChange(KEYS[1], endpoint=ENDPOINTS[0]))
        assert made.tunnel.interface.next_deadline() is not None  # an initiation went out, and will be repeated
