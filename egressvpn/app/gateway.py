"""The gateway: build the pieces, wire them, run them, take them down again.

Order at start: store, kernel settings, sockets, TUN, routes, worker, devices, API. Whatever fails on the way, what was set
up before it is taken down again. Fail closed: the worker drops everything until OPEN, which follows the devices, the policy
and the pools into its tables.
"""

import fcntl
import itertools
import json
import os
import resource
import secrets
import signal
import struct
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
import trio

from egressvpn import __version__
from egressvpn.api.http import serve
from egressvpn.api.uapi_server import DIRECTORY, may_serve, serve_control
from egressvpn.app import collector
from egressvpn.app.accounting import EPOCH, Accounts, next_epoch
from egressvpn.app.alarms import Alarms
from egressvpn.app.entry import run_trio
from egressvpn.app.files import kept_timestamp, timestamp_keeper
from egressvpn.app.fleet import Fleet
from egressvpn.app.pools import wanted_slices
from egressvpn.app.ports import open_listeners
from egressvpn.app.reload import reload
from egressvpn.app.uapi import GatewayControl, Overrides, overrides, own_private_key
from egressvpn.app.view import View
from egressvpn.control.schema import Config
from egressvpn.control.store import Store, open_store
from egressvpn.control.supervisor import Supervisor
from egressvpn.control.tunnel import NANOSECOND, Tunnel
from egressvpn.dataplane import arena
from egressvpn.dataplane.layout import MAX_PREFIXES, Limits, layout
from egressvpn.dataplane.tables import GATEWAY
from egressvpn.errors import OperatorError
from egressvpn.nat import tables as nat_tables
from egressvpn.nat.tables import NatTables
from egressvpn.netio.netlink import Netlink, interface_exists, link_is_up
from egressvpn.netio.sysctl import ensure_forwarding, restore
from egressvpn.netio.tun import Tun, open_tun
from egressvpn.netio.udp import UdpSocket
from egressvpn.observe import systemd
from egressvpn.observe.nat_log import NatLog
from egressvpn.wireguard.indexes import SessionIndexes
from egressvpn.wireguard.interface import Interface

log = structlog.get_logger(__name__)

LINK_INTERVAL: Final = 2.0  # s between two looks at the TUN
LOOKS_PER_ROUTE_LOOK: Final = 5
SPARE_ADDRESSES: Final = 64  # room for pools that a reload puts in
SPARE_BLOCKS: Final = 1024
JOURNAL: Final = "sysctl.json"  # in state_dir: what to restore
TIMESTAMP: Final = "timestamp"  # in state_dir: what no initiation of ours has gone beyond
FILTERING: Final = {
    "endpoint-independent": nat_tables.ENDPOINT_INDEPENDENT,
    "address-dependent": nat_tables.ADDRESS_DEPENDENT,
    "address-and-port-dependent": nat_tables.ADDRESS_AND_PORT_DEPENDENT,
}


@dataclass(frozen=True, slots=True)
class _Parts:
    """What was made before the gateway runs."""

    config: Config
    private_key: bytes | None = field(repr=False)
    over: Overrides
    store: Store
    sockets: list[UdpSocket]
    tun: Tun
    memory: arena.Arena
    accounts: Accounts
    began: float


def run(config: Config) -> None:
    """Run the gateway in the foreground until SIGTERM or SIGINT. Raises OperatorError when it cannot start."""
    began = time.monotonic()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no keys in core dumps
    signal.signal(signal.SIGTERM, _leave)  # until trio listens: what was set up is taken down on this way too
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with ExitStack() as undo:
        store = undo.enter_context(open_store(config.store.url, config.state_dir))
        undo.callback(os.close, _lock(config.state_dir))
        private_key = own_private_key(config, store)
        over = overrides(config, store)
        sockets = open_listeners(config.wireguard.listen, over.listen_port, over.fwmark)
        for udp in sockets:
            undo.callback(udp.close)
        tun = _tun(config, undo)
        memory = _arena(config, tun)
        undo.callback(os.close, memory.fd)
        accounts = _accounts(config, store, memory)
        run_trio(_main, _Parts(config, private_key, over, store, sockets, tun, memory, accounts, began))


def _leave(number: int, frame: object) -> None:
    raise SystemExit(0)


def _lock(state_dir: Path) -> int:
    """One gateway per state directory: two would take back each other's kernel settings. Released with the descriptor."""
    descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        mend = "stop it, or give this one a [gateway] state_dir of its own"
        raise OperatorError(f"another gateway runs with {state_dir}", mend) from None
    return descriptor


def _tun(config: Config, undo: ExitStack) -> Tun:
    """The TUN with the pool's routes on it, and forwarding switched on; all of it is taken back by `undo`."""
    journal = config.state_dir / JOURNAL
    tun = open_tun(config.tunnel.interface, config.wireguard.mtu)
    undo.callback(tun.close)
    undo.callback(restore, journal)
    for remark in ensure_forwarding(config.gateway.set_sysctls, config.tunnel.interface, journal):
        log.info("kernel setting", what=remark)
    _connect(config, tun, undo.enter_context(Netlink()))
    return tun


def _connect(config: Config, tun: Tun, netlink: Netlink) -> None:
    """The link up and the pool's routes on it; what is there already stays."""
    netlink.link_up(tun.ifindex, config.wireguard.mtu)
    for pool in config.pools:
        for prefix in pool.addresses:
            netlink.add_pool_route(prefix, tun.ifindex)
    for network in config.tunnel.networks if config.nat.exempt else ():
        netlink.add_route(network, tun.ifindex)  # answers of exempt destinations come to devices' own addresses


def limits(config: Config) -> Limits:
    """What the worker's arena is dimensioned for. Other pools can be put in while it runs; rows that are not used cost no memory."""
    slices = wanted_slices(config)
    return Limits(
        max_devices=config.wireguard.max_devices,
        max_prefixes=max(MAX_PREFIXES, 4 * config.wireguard.max_devices),
        max_flows=config.nat.max_flows,
        pool_addresses=2 * len(slices) + SPARE_ADDRESSES,
        blocks_per_address=max([one.blocks for one in slices.values()], default=0) + SPARE_BLOCKS,
        mtu=config.wireguard.mtu,
    )


def _arena(config: Config, tun: Tun) -> arena.Arena:
    """A new arena with the settings that do not change while the gateway runs."""
    memory = arena.create(layout(limits(config)))
    worker = memory.tables["worker"][0]
    worker.mode, worker.mtu, worker.gso, worker.uso = GATEWAY, config.wireguard.mtu, 1, int(tun.udp_segmentation)
    timeouts = config.nat.timeouts
    nat = memory.bundle(NatTables)
    nat_tables.seed(nat, *struct.unpack("=qq", secrets.token_bytes(16)))
    nat_tables.configure(
        nat,
        filtering=FILTERING[config.nat.filtering],
        udp=timeouts.udp * NANOSECOND,
        tcp_established=timeouts.tcp_established * NANOSECOND,
        tcp_opening=timeouts.opening * NANOSECOND,
        tcp_closing=timeouts.closing * NANOSECOND,
        icmp=timeouts.icmp * NANOSECOND,
        hold_down=config.nat.hold_down * NANOSECOND,
        max_flows_per_device=config.nat.max_flows_per_device,
        mapping_rate=config.nat.mapping_rate,
        mapping_burst=config.nat.mapping_burst,
    )
    return memory


def _accounts(config: Config, store: Store, memory: arena.Arena) -> Accounts:
    """The NAT log, with a new epoch begun."""
    nat_log = NatLog(config.state_dir, config.log.nat_log) if config.log.nat_log else None
    epoch = next_epoch(nat_log, store.setting(EPOCH))
    store.set_setting(EPOCH, str(epoch))
    hold_down = config.nat.hold_down * NANOSECOND
    accounts = Accounts(memory.bundle(NatTables), nat_log, gateway=config.gateway.name, epoch=epoch, hold_down=hold_down)
    accounts.begin()
    return accounts


async def _main(parts: _Parts) -> None:
    """The accounts are closed last, when the data path has ended."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(parts.accounts.run)
        await _run(parts)
        nursery.cancel_scope.cancel()


async def _run(parts: _Parts) -> None:
    config, memory, tun, accounts = parts.config, parts.memory, parts.tun, parts.accounts
    supervisor = Supervisor(memory, limits(config), tun.fd, [udp.fd for udp in parts.sockets], config.dataplane.jit)
    indexes = SessionIndexes(memory.tables["sessions"].size, 0, secrets.token_bytes)
    timestamp = config.state_dir / TIMESTAMP
    interface = Interface(parts.private_key, indexes, secrets.token_bytes, kept_timestamp(timestamp))
    tunnel = Tunnel(supervisor, interface, parts.sockets, timestamp_keeper(timestamp))
    fleet = Fleet(config, parts.store, tunnel, accounts)
    view = View(config, supervisor, tunnel, fleet, accounts, parts.began)
    control = GatewayControl(config, parts.store, tunnel, fleet, parts.over.fwmark, view.on_key_changed)
    collector.begin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_await_signal, nursery.cancel_scope, view, tun)
        nursery.start_soon(collector.run)
        await nursery.start(supervisor.run, tunnel.handle)
        nursery.start_soon(tunnel.run)
        nursery.start_soon(tunnel.keep_in_step)
        nursery.start_soon(tunnel.rotate_cookies)
        nursery.start_soon(tunnel.follow_routes)
        await fleet.open()
        nursery.start_soon(fleet.run)
        nursery.start_soon(Alarms(memory.bundle(NatTables), fleet).run)
        nursery.start_soon(_watch_link, tun, view)
        await serve(nursery, config, view)
        await nursery.start(_serve_control, nursery.cancel_scope, control, tun, view)
        collector.keep()
        view.ready = True
        _announce(config, tunnel, tun, fleet, time.monotonic() - parts.began)


def _announce(config: Config, tunnel: Tunnel, tun: Tun, fleet: Fleet, seconds: float) -> None:
    """Packets flow: to whoever started us, to systemd, and to the log."""
    supervisor = tunnel.supervisor
    announcement = {
        "event": "ready",
        "version": __version__,
        "gateway": config.gateway.name,
        "interface": tun.name,
        "listen": [udp.listen for udp in tunnel.sockets],
        "devices": len(fleet),
        "aead": supervisor.aead,
        "jit": supervisor.jit,
        "seconds": round(seconds, 3),
    }
    sys.stdout.write(json.dumps(announcement) + "\n")
    sys.stdout.flush()
    systemd.notify("READY=1")
    log.info("ready", seconds=round(seconds, 3), devices=len(fleet))


async def _serve_control(
    scope: trio.CancelScope, control: GatewayControl, tun: Tun, view: View, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """The socket of `wg`; who removes it ends the gateway. One with capabilities instead of root does without."""
    if not may_serve():
        log.warning("wg cannot show or change this gateway: its directory cannot be written", directory=str(DIRECTORY))
        task_status.started()
        return
    await serve_control(control, tun.name, task_status)
    _stop(scope, view)


def _stop(scope: trio.CancelScope, view: View) -> None:
    systemd.notify("STOPPING=1")
    view.stopping = True
    scope.cancel()


async def _await_signal(scope: trio.CancelScope, view: View, tun: Tun) -> None:
    """SIGTERM and SIGINT end the gateway; SIGHUP looks at the configuration and at the store at once."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            if number == signal.SIGHUP:
                await reload(view.fleet, tun.ifindex)
                continue
            log.info("stopping", signal=signal.Signals(number).name)
            _stop(scope, view)
            return


async def _watch_link(tun: Tun, view: View) -> None:
    """Somebody set the TUN down (which drops its routes) or deleted it: mend the one, say the other.

    Down and up again between two looks loses the routes as well, so they are looked at too, less often.
    """
    for look in itertools.count(1):
        await trio.sleep(LINK_INTERVAL)
        if not interface_exists(tun.name):
            raise OperatorError(f"interface {tun.name} was deleted under the gateway", "start it again")
        up = link_is_up(tun.name)
        if up and look % LOOKS_PER_ROUTE_LOOK and not view.link_trouble:
            continue
        if not up:
            log.error("the TUN was set down; setting it up again with its routes", interface=tun.name)
        try:
            _connect(view.config, tun, Netlink())
            view.link_trouble = ""
        except OperatorError as error:
            view.link_trouble = f"interface {tun.name} or its routes cannot be set up: {error}"
