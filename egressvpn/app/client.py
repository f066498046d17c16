"""The reference client: the same WireGuard core as initiator and the same data path, without translation.

DIR holds one wg-quick file. Addresses, routes and policy rules are set up as wg-quick does and taken back on exit.
"""

import ipaddress
import json
import os
import secrets
import signal
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path as File
from typing import Any, Final

import numpy as np
import structlog
import trio

from egressvpn.addresses import Path, pack_sockaddr, words
from egressvpn.app.entry import run_trio
from egressvpn.control.supervisor import Supervisor
from egressvpn.control.tunnel import NANOSECOND, Tunnel, put_path
from egressvpn.control.wgquick import PeerSection, WgQuick, read
from egressvpn.dataplane import arena
from egressvpn.dataplane.channel import COMMAND, Command
from egressvpn.dataplane.layout import Limits, layout
from egressvpn.dataplane.tables import CLIENT
from egressvpn.errors import OperatorError
from egressvpn.netio.client_routes import MARK, ClientRoutes, bring_up
from egressvpn.netio.netlink import Netlink
from egressvpn.netio.tun import Tun, open_tun
from egressvpn.netio.udp import UdpSocket, open_udp
from egressvpn.wireguard.indexes import SessionIndexes
from egressvpn.wireguard.interface import Interface
from egressvpn.wireguard.tables import ENABLED

log = structlog.get_logger(__name__)

DEFAULT_MTU: Final = 1420
MAX_PEERS: Final = 63
MAX_NAME: Final = 15  # IFNAMSIZ - 1


def run(directory: File, gso: bool = True) -> None:
    """Run the client in the foreground until SIGTERM or SIGINT. Raises OperatorError when it cannot start.

    `gso` False sends every datagram alone, as a client without segmentation offload does.
    """
    began = time.monotonic()
    path = _only_file(directory)
    quick = read(path)
    for remark in quick.remarks:
        log.warning("not done", what=remark)
    endpoints = [_resolve(peer) for peer in quick.peers]
    mark = quick.interface.fwmark or MARK
    mtu = quick.interface.mtu or DEFAULT_MTU
    port = quick.interface.listen_port
    limits = Limits(max_devices=MAX_PEERS, max_prefixes=4096, max_flows=1, pool_addresses=1, mtu=mtu)
    with ExitStack() as undo:
        sockets = open_udp([f"0.0.0.0:{port}", f"[::]:{port}"], mark)
        for udp in sockets:
            undo.callback(udp.close)
        tun = open_tun(path.stem[:MAX_NAME], mtu)
        undo.callback(tun.close)
        memory = arena.create(layout(limits))
        undo.callback(os.close, memory.fd)
        worker = memory.tables["worker"][0]
        worker.mode, worker.mtu, worker.gso, worker.uso = CLIENT, mtu, int(gso), int(tun.udp_segmentation)
        netlink = undo.enter_context(Netlink())
        allowed = tuple(prefix for peer in quick.peers for prefix in peer.allowed_ips)
        known = tuple((ipaddress.ip_address(at[0]), at[1]) for at in endpoints if at)
        bring_up(netlink, tun.ifindex, ClientRoutes(quick.interface.addresses, allowed, known, mtu, mark, quick.interface.table))
        run_trio(_main, quick, endpoints, sockets, tun, memory, limits, began)


async def _main(
    quick: WgQuick,
    endpoints: list[tuple[str, int] | None],
    sockets: list[UdpSocket],
    tun: Tun,
    memory: arena.Arena,
    limits: Limits,
    began: float,
) -> None:
    supervisor = Supervisor(memory, limits, tun.fd, [udp.fd for udp in sockets])
    indexes = SessionIndexes(memory.tables["sessions"].size, 0, secrets.token_bytes)
    tunnel = Tunnel(supervisor, Interface(quick.interface.private_key, indexes, secrets.token_bytes), sockets)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_await_signal, nursery.cancel_scope)
        await nursery.start(supervisor.run, tunnel.handle)
        for slot, (peer, endpoint) in enumerate(zip(quick.peers, endpoints, strict=True), 1):
            _add_peer(tunnel, slot, peer, endpoint)
        _send(tunnel, Command.OPEN)
        nursery.start_soon(tunnel.run)
        nursery.start_soon(tunnel.keep_in_step)
        seconds = round(time.monotonic() - began, 3)
        announcement = {"event": "ready", "interface": tun.name, "aead": supervisor.aead, "jit": supervisor.jit, "seconds": seconds}
        sys.stdout.write(json.dumps(announcement) + "\n")
        sys.stdout.flush()


async def _await_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("stopping", signal=signal.Signals(number).name)
            scope.cancel()
            return


def _add_peer(tunnel: Tunnel, slot: int, peer: PeerSection, endpoint: tuple[str, int] | None) -> None:
    path = None
    if endpoint is not None:
        path = Path(pack_sockaddr(*endpoint), b"", 0 if ":" not in endpoint[0] else 1)
    tunnel.interface.add_peer(slot, peer.public_key, peer.preshared_key, path, peer.persistent_keepalive)
    _send(tunnel, Command.SET_DEVICE, slot, path, state=ENABLED, internal4=-1, persistent_interval=peer.persistent_keepalive * NANOSECOND)
    _send(tunnel, Command.SET_PATH, slot, path)
    for prefix in peer.allowed_ips:
        high, low = words(prefix.network_address)
        _send(tunnel, Command.ADD_PREFIX, slot, version=prefix.version, high=high, low=low, prefix_length=prefix.prefixlen)


def _send(tunnel: Tunnel, kind: Command, slot: int = 0, path: Path | None = None, **fields: int) -> None:
    record: Any = np.zeros(1, COMMAND)
    record["kind"], record["owner"] = kind, slot
    put_path(record, path)
    for name, value in fields.items():
        record[name] = value
    tunnel.command(record)


def _only_file(directory: File) -> File:
    files = sorted(directory.glob("*.conf"))
    if len(files) != 1:
        found = "no wg-quick file" if not files else f"{len(files)} wg-quick files"
        raise OperatorError(
            f"{directory} holds {found}", "put exactly one NAME.conf there, as `egressvpn peer add NAME --conf FILE` writes it"
        )
    return files[0]


def _resolve(peer: PeerSection) -> tuple[str, int] | None:
    """The peer's endpoint as a literal address, IPv4 first as wg does by default; None for a peer that calls us."""
    if peer.endpoint is None:
        return None
    try:
        found = socket.getaddrinfo(peer.endpoint.host, peer.endpoint.port, type=socket.SOCK_DGRAM)
    except socket.gaierror as error:
        raise OperatorError(
            f"cannot resolve the endpoint {peer.endpoint}: {error.strerror}", "check the name, or write an address"
        ) from None
    return str(found[0][4][0]), int(found[0][4][1])
