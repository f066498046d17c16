"""SIGHUP: devices and the machine's own addresses follow at once, and so do the pools of the configuration; other keys wait for a start.

A configuration with a mistake changes nothing. New addresses are routed to the TUN before devices get them, and routes of old ones
are taken away after their flows have ended.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Final

import structlog
import trio
from pyroute2.netlink.exceptions import NetlinkError

from egressvpn.addresses import IPNetwork
from egressvpn.app.fleet import Fleet
from egressvpn.control.config import load
from egressvpn.control.schema import Config
from egressvpn.errors import OperatorError
from egressvpn.netio.netlink import Netlink, remove_route

log = structlog.get_logger(__name__)

FAILURES: Final = (OperatorError, NetlinkError, OSError)


async def reload(fleet: Fleet, ifindex: int) -> None:
    """Look at the store, at the machine and at the configuration file."""
    await fleet.follow()
    try:
        fleet.deny_machine()
        config = load(fleet.config.path)
        await _change_pools(fleet, config, ifindex)
    except FAILURES as error:
        log.error("nothing of the configuration is changed; the gateway goes on with what it has", error=str(error))
        return
    waiting = list(_changed(fleet.config, config))
    if waiting:
        log.warning("changes take effect with the next start", keys=waiting)


async def _change_pools(fleet: Fleet, config: Config, ifindex: int) -> None:
    """Raises one of FAILURES, and then nothing is changed."""
    if config.pools == fleet.config.pools:
        return
    fresh = dataclasses.replace(fleet.config, pools=config.pools)
    fleet.pools.check(fresh)
    before, after = _networks(fleet.config), _networks(fresh)
    netlink = Netlink()
    try:
        for network in after - before:
            await trio.to_thread.run_sync(netlink.add_pool_route, network, ifindex)
    except FAILURES:
        netlink.undo()
        raise
    await fleet.change_pools(fresh)
    await _remove_routes(before - after, ifindex)
    log.info("pools changed", added=sorted(map(str, after - before)), removed=sorted(map(str, before - after)))


async def _remove_routes(networks: Iterable[IPNetwork], ifindex: int) -> None:
    """A route that stays does no harm but to what the network is used for next."""
    for network in networks:
        try:
            await trio.to_thread.run_sync(remove_route, network, ifindex)
        except FAILURES as error:
            mend = f"remove it: `ip route del {network}`"
            log.error(
                "the pools are changed, but an old route to the TUN is still there", network=str(network), mend=mend, error=str(error)
            )


def _networks(config: Config) -> set[IPNetwork]:
    return {network for pool in config.pools for network in pool.addresses}


def _changed(running: Config, read: Config) -> Iterator[str]:
    """Keys whose values differ."""
    for table in dataclasses.fields(Config):
        was, now = getattr(running, table.name), getattr(read, table.name)
        if was == now or not dataclasses.is_dataclass(was):
            continue
        for field in dataclasses.fields(was):
            if getattr(was, field.name) != getattr(now, field.name):
                yield f"{table.name}.{field.name}"
