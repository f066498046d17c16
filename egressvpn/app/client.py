"""The reference client: the same WireGuard core as initiator and the same data path, without translation.

DIR holds one wg-quick file. Addresses, routes and policy rules are set up as wg-quick does and taken back on exit. From then on it
is an interface like any other of WireGuard: `wg` shows and changes it. What is changed so is gone with the process, but for the
clock of its handshakes, which is kept beside the file.
"""

import ipaddress
import json
import os
import resource
import secrets
import signal
import socket
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
import trio

from egressvpn.addresses import IPAddress, words
from egressvpn.api.uapi_server import serve_control
from egressvpn.app import collector
from egressvpn.app.client_peers import HOSTS, MAX_PEERS, ClientPeers
from egressvpn.app.entry import run_trio
from egressvpn.app.files import kept_timestamp, timestamp_keeper
from egressvpn.app.ports import open_on
from egressvpn.control.peers import PeerChange
from egressvpn.control.supervisor import Supervisor
from egressvpn.control.tunnel import Tunnel
from egressvpn.control.wgquick import Endpoint, PeerSection, WgQuick, read
from egressvpn.dataplane import arena
from egressvpn.dataplane.channel import Command, pack_command
from egressvpn.dataplane.layout import MAX_PREFIXES, Limits, layout
from egressvpn.dataplane.tables import CLIENT
from egressvpn.errors import OperatorError
from egressvpn.netio.client_routes import MARK, ClientRoutes, bring_up
from egressvpn.netio.link import Link
from egressvpn.netio.netlink import Netlink, local_addresses
from egressvpn.netio.tun import Tun, open_tun
from egressvpn.netio.udp import UdpSocket
from egressvpn.wireguard.indexes import SessionIndexes
from egressvpn.wireguard.interface import Interface

log = structlog.get_logger(__name__)

DEFAULT_MTU: Final = 1420
MAX_MTU: Final = 65_535  # what the interface may be set to while the client runs; room that is not used is not taken
MAX_NAME: Final = 15  # IFNAMSIZ - 1
LOOK_INTERVAL: Final = 1.0  # s between two looks at the TUN and its addresses


@dataclass(frozen=True, slots=True)
class _Client:
    """What was made before the client runs."""

    quick: WgQuick
    peers: tuple[PeerChange, ...]  # of the file
    mark: int  # of the sockets
    sockets: list[UdpSocket]
    tun: Tun
    memory: arena.Arena
    limits: Limits
    timestamp: Path
    began: float


def run(directory: Path, gso: bool = True) -> None:
    """Run the client in the foreground until SIGTERM or SIGINT. Raises OperatorError when it cannot start.

    `gso` False sends every datagram alone, as a client without segmentation offload does.
    """
    began = time.monotonic()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no keys in core dumps
    path = _only_file(directory)
    quick = read(path)
    for remark in quick.remarks:
        log.warning("not done", what=remark)
    endpoints = [_resolve(peer) for peer in quick.peers]
    mtu = quick.interface.mtu or DEFAULT_MTU
    limits = Limits(max_devices=MAX_PEERS, max_prefixes=MAX_PREFIXES, max_flows=1, pool_addresses=1, mtu=MAX_MTU)
    mark = _mark(quick)
    with ExitStack() as undo:
        sockets = open_on(HOSTS, quick.interface.listen_port, mark)
        for udp in sockets:
            undo.callback(udp.close)
        tun = open_tun(path.stem[:MAX_NAME], mtu)
        undo.callback(tun.close)
        memory = arena.create(layout(limits))
        undo.callback(os.close, memory.fd)
        worker = memory.tables["worker"][0]
        worker.mode, worker.mtu, worker.gso, worker.uso = CLIENT, mtu, int(gso), int(tun.udp_segmentation)
        _bring_up(undo.enter_context(Netlink()), quick, endpoints, tun, mtu)
        peers = tuple(_change(peer, endpoint) for peer, endpoint in zip(quick.peers, endpoints, strict=True))
        timestamp = path.with_suffix(".timestamp")
        run_trio(_main, _Client(quick, peers, mark, sockets, tun, memory, limits, timestamp, began))


async def _main(client: _Client) -> None:
    supervisor = Supervisor(client.memory, client.limits, client.tun.fd, [udp.fd for udp in client.sockets])
    indexes = SessionIndexes(client.memory.tables["sessions"].size, 0, secrets.token_bytes)
    newest = kept_timestamp(client.timestamp)
    interface = Interface(client.quick.interface.private_key, indexes, secrets.token_bytes, newest)
    tunnel = Tunnel(supervisor, interface, client.sockets, timestamp_keeper(client.timestamp))
    peers = ClientPeers(tunnel, client.mark)
    collector.begin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_await_signal, nursery.cancel_scope)
        nursery.start_soon(collector.run)
        await nursery.start(supervisor.run, tunnel.handle)
        tunnel.set_identities()
        nursery.start_soon(tunnel.run)
        nursery.start_soon(tunnel.keep_in_step)
        nursery.start_soon(tunnel.rotate_cookies)
        nursery.start_soon(tunnel.follow_routes)
        await peers.change_peers(client.peers, replace=False)
        await nursery.start(_follow_link, nursery.cancel_scope, tunnel, client.tun)
        await nursery.start(_serve, nursery.cancel_scope, peers, client.tun)
        seconds = round(time.monotonic() - client.began, 3)
        announcement = {"event": "ready", "interface": client.tun.name, "aead": supervisor.aead, "jit": supervisor.jit, "seconds": seconds}
        sys.stdout.write(json.dumps(announcement) + "\n")
        sys.stdout.flush()


async def _await_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("stopping", signal=signal.Signals(number).name)
            scope.cancel()
            return


async def _serve(
    scope: trio.CancelScope, peers: ClientPeers, tun: Tun, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """The control socket; who removes it ends the client."""
    await serve_control(peers, tun.name, task_status)
    scope.cancel()


async def _follow_link(
    scope: trio.CancelScope, tunnel: Tunnel, tun: Tun, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Packets flow from the first look on. The interface's addresses and MTU may change; somebody may delete it, which ends the client."""
    known: list[IPAddress] | None = None
    known_mtu = 0
    with closing(Link(tun)) as link:
        while not tun.deleted():
            link.settle()
            mtu = link.mtu()
            if mtu not in (0, known_mtu):
                tunnel.command(pack_command(Command.SET_MTU, index=mtu))
                known_mtu = mtu
            found = await trio.to_thread.run_sync(_addresses, tun.ifindex)
            if found != known:
                low4 = next((int(address) for address in found if address.version == 4), 0)
                high6, low6 = next((words(address) for address in found if address.version == 6), (0, 0))
                tunnel.command(pack_command(Command.OPEN, internal4=low4, internal6_hi=high6, internal6_lo=low6))
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                known = found
            with trio.move_on_after(LOOK_INTERVAL):
                await trio.lowlevel.wait_readable(link.changes)
    log.info("the interface was deleted, which ends the client", interface=tun.name)
    scope.cancel()


def _addresses(ifindex: int) -> list[IPAddress]:
    return [local.address.ip for local in local_addresses() if local.ifindex == ifindex and not local.address.is_link_local]


def _mark(quick: WgQuick) -> int:
    """Only where a default route leads into the tunnel the datagrams must be told from what goes through it."""
    by_policy = quick.interface.table is None and any(prefix.prefixlen == 0 for peer in quick.peers for prefix in peer.allowed_ips)
    return quick.interface.fwmark or (MARK if by_policy else 0)


def _bring_up(netlink: Netlink, quick: WgQuick, endpoints: list[Endpoint | None], tun: Tun, mtu: int) -> None:
    """Addresses, routes and rules; `netlink` takes them back."""
    allowed = tuple(prefix for peer in quick.peers for prefix in peer.allowed_ips)
    known = tuple((ipaddress.ip_address(at.host), at.port) for at in endpoints if at)
    mark = quick.interface.fwmark or MARK
    bring_up(netlink, tun.ifindex, ClientRoutes(quick.interface.addresses, allowed, known, mtu, mark, quick.interface.table))


def _change(peer: PeerSection, endpoint: Endpoint | None) -> PeerChange:
    return PeerChange(
        peer.public_key,
        preshared_key=peer.preshared_key,
        endpoint=str(endpoint) if endpoint else None,
        persistent_keepalive=peer.persistent_keepalive,
        allowed_ips=tuple((True, prefix) for prefix in peer.allowed_ips),
    )


def _only_file(directory: Path) -> Path:
    files = sorted(directory.glob("*.conf"))
    if len(files) != 1:
        found = "no wg-quick file" if not files else f"{len(files)} wg-quick files"
        raise OperatorError(
            f"{directory} holds {found}", "put exactly one NAME.conf there, as `egressvpn peer add NAME --conf FILE` writes it"
        )
    return files[0]


def _resolve(peer: PeerSection) -> Endpoint | None:
    """The peer's endpoint as a literal address, IPv4 first as wg does by default; None for a peer that calls us."""
    if peer.endpoint is None:
        return None
    try:
        found = socket.getaddrinfo(peer.endpoint.host, peer.endpoint.port, type=socket.SOCK_DGRAM)
    except socket.gaierror as error:
        raise OperatorError(
            f"cannot resolve the endpoint {peer.endpoint}: {error.strerror}", "check the name, or write an address"
        ) from None
    return Endpoint(str(found[0][4][0]), int(found[0][4][1]))
