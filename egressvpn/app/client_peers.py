"""The reference client as an interface that `wg` drives: its peers, its key and its port, changed while packets flow.

What is here is the truth of the client, the worker's tables follow by command; nothing of it is kept on disk. A hundred thousand
allowed IPs in one change are worked through in pieces, so that handshakes and other connections have their turn in between.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from egressvpn.addresses import IPNetwork, Path, pack_sockaddr
from egressvpn.api.uapi import InterfaceState, PeerState
from egressvpn.api.uapi_lines import INVALID, PORT_IN_USE, RefusedError
from egressvpn.app import collector
from egressvpn.app.ports import open_on, set_mark
from egressvpn.control.peers import PeerChange
from egressvpn.control.tunnel import NANOSECOND, Tunnel
from egressvpn.dataplane.channel import Command, pack_command
from egressvpn.errors import OperatorError
from egressvpn.netio.udp import split_listen
from egressvpn.wireguard.tables import ENABLED

MAX_PEERS: Final = 1023
PIECE: Final = 1000  # networks worked through without a pause: 2 ms
HOSTS: Final = ("0.0.0.0", "::")  # noqa: S104  (a WireGuard interface listens on every address)


@dataclass(slots=True)
class _Peer:
    slot: int
    public_key: bytes
    preshared_key: bytes = field(default=bytes(32), repr=False)
    path: Path | None = None  # as it was set; where the peer is now, the worker knows
    persistent_keepalive: int = 0  # s
    allowed_ips: dict[IPNetwork, None] = field(default_factory=dict)


class ClientPeers:
    """Implements the UAPI's Backend for one tunnel."""

    def __init__(self, tunnel: Tunnel, mark: int) -> None:
        self._tunnel = tunnel
        self._mark = mark
        self._free = deque(range(1, MAX_PEERS + 1))  # the one free longest is taken first: what is still said of it has died away
        self._peers: dict[bytes, _Peer] = {}
        self._owner: dict[IPNetwork, _Peer] = {}

    def state(self) -> InterfaceState:
        identities = self._tunnel.interface.identities
        key = identities[0].private_key if identities else None
        peers = list(self._peers.values())
        return InterfaceState(key, self._tunnel.sockets[0].port, self._mark, (self._state(peer) for peer in peers))

    def _state(self, peer: _Peer) -> PeerState:
        row = self._tunnel.wg.devices[peer.slot]
        path = self._tunnel.path(peer.slot) or peer.path
        return PeerState(
            public_key=peer.public_key,
            preshared_key=peer.preshared_key,
            endpoint=str(path) if path else "",
            last_handshake_ns=int(row.last_handshake_wall),
            sent_bytes=int(row.sent_bytes),
            received_bytes=int(row.received_bytes),
            persistent_keepalive=peer.persistent_keepalive,
            allowed_ips=tuple(peer.allowed_ips),
        )

    async def set_private_key(self, key: bytes | None) -> None:
        """All sessions end; a peer that has the key itself is removed."""
        interface = self._tunnel.interface
        if key is None:
            interface.clear_private_key()
        else:
            removed = interface.change_private_key(key)
            for peer in [peer for peer in self._peers.values() if peer.slot in removed]:
                await self._remove(peer)
        self._tunnel.set_identities()
        self._tunnel.flush()
        await self._tunnel.settled()

    async def set_listen_port(self, port: int) -> None:
        before = self._tunnel.sockets
        if port and port == before[0].port:
            return
        try:
            sockets = open_on(HOSTS, port, self._mark)
        except OperatorError as error:
            raise RefusedError(PORT_IN_USE, str(error)) from None
        self._tunnel.replace_sockets(sockets)
        for udp in before:
            udp.close()
        await self._tunnel.settled()

    async def set_fwmark(self, mark: int) -> None:
        try:
            set_mark(self._tunnel.sockets, mark)
        except OSError as error:
            raise RefusedError(PORT_IN_USE, f"fwmark: {error.strerror}") from None
        self._mark = mark

    async def change_peers(self, changes: Sequence[PeerChange], *, replace: bool) -> None:
        if replace:
            for peer in list(self._peers.values()):
                await self._remove(peer)
        for change in changes:
            if change.public_key != self._tunnel.interface.public_key:  # wg(8): an interface is not a peer of itself
                await self._change(change)
        collector.on_changes(changes)
        self._tunnel.flush()
        await self._tunnel.settled()

    def close(self) -> None:
        """Close the sockets the client has now."""
        for udp in self._tunnel.sockets:
            udp.close()

    async def _change(self, change: PeerChange) -> None:
        peer = self._peers.get(change.public_key)
        if change.remove:
            if peer is not None:
                await self._remove(peer)
            return
        if peer is None and change.update_only:
            return
        path = _path(change.endpoint) if change.endpoint else None
        fresh = peer is None
        if peer is None:
            peer = self._add(change.public_key)
        self._configure(peer, change, path, fresh)
        await self._change_allowed_ips(peer, change)
        if path:
            self._tunnel.on_endpoint_set(peer.slot)

    def _add(self, public_key: bytes) -> _Peer:
        if not self._free:
            raise RefusedError(INVALID, f"{MAX_PEERS} peers are as many as there can be")
        peer = self._peers[public_key] = _Peer(self._free.popleft(), public_key)
        return peer

    def _configure(self, peer: _Peer, change: PeerChange, path: Path | None, fresh: bool) -> None:
        """All but the allowed IPs."""
        if change.preshared_key is not None:
            peer.preshared_key = change.preshared_key
        if change.persistent_keepalive is not None:
            peer.persistent_keepalive = change.persistent_keepalive
        peer.path = path or peer.path
        self._tunnel.interface.add_peer(peer.slot, peer.public_key, peer.preshared_key, path, peer.persistent_keepalive)
        if path is not None:  # first, or a keepalive that is due at once leads nowhere
            self._tunnel.command(pack_command(Command.SET_PATH, peer.slot, path=path))
        if fresh or change.persistent_keepalive is not None:
            interval = peer.persistent_keepalive * NANOSECOND
            self._tunnel.command(pack_command(Command.SET_DEVICE, peer.slot, state=ENABLED, internal4=-1, persistent_interval=interval))

    async def _remove(self, peer: _Peer) -> None:
        del self._peers[peer.public_key]
        self._tunnel.interface.remove_peer(peer.slot)
        self._tunnel.send(Command.REMOVE_DEVICE, peer.slot)
        for piece in _pieces(peer.allowed_ips):
            for network in piece:
                del self._owner[network]
            await trio.lowlevel.checkpoint()
        self._free.append(peer.slot)

    async def _change_allowed_ips(self, peer: _Peer, change: PeerChange) -> None:
        if change.replace_allowed_ips:  # what stays is never away
            stale = await trio.to_thread.run_sync(_stale, tuple(peer.allowed_ips), change)
            await self._give_and_take(peer, [(False, network) for network in stale])
        await self._give_and_take(peer, change.allowed_ips)

    async def _give_and_take(self, peer: _Peer, changes: Sequence[tuple[bool, IPNetwork]]) -> None:
        for adding, run in itertools.groupby(changes, key=lambda change: change[0]):
            for piece in _pieces(network for _, network in run):
                self._give(peer, piece) if adding else self._take(peer, piece)
                await trio.lowlevel.checkpoint()

    def _give(self, peer: _Peer, networks: Sequence[IPNetwork]) -> None:
        for network in networks:
            before = self._owner.get(network)
            if before is not peer:
                if before is not None:
                    del before.allowed_ips[network]
                self._owner[network] = peer
                peer.allowed_ips[network] = None
        self._tunnel.add_prefixes(peer.slot, networks)

    def _take(self, peer: _Peer, networks: Sequence[IPNetwork]) -> None:
        held = [network for network in dict.fromkeys(networks) if self._owner.get(network) is peer]
        for network in held:
            del self._owner[network], peer.allowed_ips[network]
        self._tunnel.remove_prefixes(peer.slot, held)


def _pieces(networks: Iterable[IPNetwork]) -> Iterator[tuple[IPNetwork, ...]]:
    remaining = iter(networks)
    while piece := tuple(itertools.islice(remaining, PIECE)):
        yield piece


def _stale(held: Sequence[IPNetwork], change: PeerChange) -> list[IPNetwork]:
    """Those of a peer's networks that the change does not name."""
    wanted = {network for adding, network in change.allowed_ips if adding}
    return [network for network in held if network not in wanted]


def _path(endpoint: str) -> Path:
    """The way to an endpoint, from whatever address routing chooses. Raises RefusedError."""
    host, port = split_listen(endpoint)
    try:
        return Path(pack_sockaddr(host, port), b"", int(":" in host))  # the second socket is the one of IPv6
    except ValueError as error:
        raise RefusedError(INVALID, str(error)) from None
