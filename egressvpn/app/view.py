"""What the running gateway shows of itself (`observe.view.GatewayView`), read from the worker's tables in the moment somebody asks."""

import base64
import os
import time
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

import numpy as np

from egressvpn import __version__
from egressvpn.addresses import IPNetwork
from egressvpn.app.accounting import Accounts
from egressvpn.app.explain import explain
from egressvpn.app.fleet import Fleet
from egressvpn.control.schema import Config
from egressvpn.control.supervisor import Supervisor
from egressvpn.control.tunnel import HANDSHAKE_BUCKETS, Tunnel
from egressvpn.dataplane.tables import BATCH_BUCKETS, Counter
from egressvpn.nat.pool_view import pool_usage
from egressvpn.nat.tables import NatTables
from egressvpn.nat.view import flows
from egressvpn.observe.nat_history import Whois, log_files, whois
from egressvpn.observe.view import AddressUsage, Count, Counters, Flow, Histogram, PeerCounters, PoolStatus, Status, WorkerStatus
from egressvpn.verdict import VERDICTS, Verdict
from egressvpn.wireguard.constants import REJECT_AFTER_TIME

BATCH_BOUNDS: Final = [float(2 ** (bucket + 1) - 1) for bucket in range(BATCH_BUCKETS - 1)]
NETWORKS_SHOWN: Final = 64  # of a device, in the series of the exporters
TICKS: Final = os.sysconf("SC_CLK_TCK")
PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class View:
    """Implements GatewayView."""

    def __init__(self, config: Config, supervisor: Supervisor, tunnel: Tunnel, fleet: Fleet, accounts: Accounts, began: float) -> None:
        self.ready = False
        self.stopping = False
        self.link_trouble = ""  # what is wrong with the TUN
        self.fleet = fleet
        self._accounts = accounts
        self._supervisor = supervisor
        self._tunnel = tunnel
        self._began = began
        self._key_written = 0.0
        self.on_key_changed()
        tables = supervisor.arena.tables
        self._counters: Any = tables["counters"]
        self._nat: Any = supervisor.arena.bundle(NatTables)

    @property
    def config(self) -> Config:
        """Its pools may change while the gateway runs."""
        return self.fleet.config

    def on_key_changed(self) -> None:
        """The file of the private key was written, or removed."""
        path = self.config.private_key_path
        self._key_written = path.stat().st_mtime if path.exists() else 0.0

    def readiness(self) -> list[str]:
        """Why packets cannot flow."""
        if self.stopping:
            return ["the gateway is stopping"]
        if not self.ready:
            return ["the gateway is starting"]
        if self.link_trouble:
            return [self.link_trouble]
        return [] if self._supervisor.pid else ["the worker is being started again"]

    def status(self) -> Status:
        reasons = self.readiness()
        counters = self.counters()
        health = [*reasons, *self._attention(counters)]
        state = "stopping" if self.stopping else "starting" if not self.ready else "degraded" if health else "ready"
        return Status(
            name=self.config.gateway.name,
            version=__version__,
            state=state,  # type: ignore[typeddict-item]
            reasons=reasons,
            uptime_seconds=round(time.monotonic() - self._began, 3),
            interface=self.config.tunnel.interface,
            public_key=counters.public_key,
            listen=[udp.listen for udp in self._tunnel.sockets],
            workers=[self._worker()],
            pools=self._pools(counters),
            devices={
                "enabled": sum(member.device.enabled for member in self.fleet.members.values()),
                "disabled": sum(not member.device.enabled for member in self.fleet.members.values()),
                "connected": self._connected(),
            },
            sessions=len(self._tunnel.sessions()),
            flows=counters.flows,
            traffic={name: {"packets": count.packets, "bytes": count.octets} for name, count in counters.traffic.items()},
            drops={Verdict(number).label: int(count) for number, count in enumerate(counters.drops) if count},
            health=health,
        )

    def flows(self, peer: str | None, limit: int) -> list[dict[str, Any]]:
        """Live flows, newest activity first."""
        slot = 0
        if peer is not None:
            if peer not in self.fleet.members:
                raise LookupError(peer)
            slot = self.fleet.members[peer].slot
        names = {number: member.device.name for number, member in self.fleet.by_slot.items()}
        return [dict(_flow(row, names)) for row in flows(self._nat, time.monotonic_ns(), slot, limit)]

    def pools(self) -> list[AddressUsage]:
        """Every IPv4 pool address, in the order of the configuration's pools."""
        order = {pool.name: number for number, pool in enumerate(self.config.pools)}
        usage = [_usage(row, self.fleet.pools.pool_of(row["slot"])) for row in pool_usage(self._nat, time.monotonic_ns())]
        return sorted(usage, key=lambda one: (order.get(one["pool"], len(order)), IPv4Address(one["address"])))

    def whois(self, address: str, port: int | None, begin: str, end: str) -> Whois:
        """Who held an address and port, from the files of the log. Blocks: call it in a thread."""
        return whois(log_files(self.config.state_dir, self.config.log.nat_log), address, port, begin, end)

    async def explain(self, peer: str, destination: str) -> dict[str, Any]:
        """What would become of a packet. Raises LookupError for a device, OperatorError for a destination that is none."""
        return dict(await explain(self.config, self.fleet, self._tunnel, peer, destination))

    def counters(self) -> Counters:
        array = self._counters
        settings = self._nat.settings[0]
        return Counters(
            interface=self.config.tunnel.interface,
            public_key=base64.b64encode(self._tunnel.interface.public_key).decode(),
            devices=len(self.fleet),
            traffic={
                "upload": Count(int(array[Counter.RX_PACKETS]), int(array[Counter.RX_BYTES])),
                "download": Count(int(array[Counter.TX_PACKETS]), int(array[Counter.TX_BYTES])),
            },
            drops=self._drops(),
            flows=int(settings.flows),
            max_flows=self._nat.flows.size - 1,
            flows_created=int(settings.flows_created),
            flows_expired=int(settings.flows_expired),
            mappings=int(settings.mappings),
            mappings_created=int(settings.mappings_created),
            blocks_allocated=int(settings.blocks_given),
            blocks_released=int(settings.blocks_taken_back),
            quota_exceeded=int(settings.quota_exceeded),
            nat_log_dropped=self._accounts.dropped,
            slice_violations=int(settings.slice_violations),
            pools=self.pools(),
            handshakes=dict(self._tunnel.handshakes),
            handshake_seconds=Histogram(HANDSHAKE_BUCKETS, list(self._tunnel.handshake_counts), self._tunnel.handshake_seconds),
            batch_packets=Histogram(
                BATCH_BOUNDS,
                array[Counter.BATCHES : Counter.BATCHES + BATCH_BUCKETS].copy(),
                float(array[Counter.RX_DATAGRAMS]),
            ),
            key_age_seconds={"current": max(0.0, time.time() - self._key_written)} if self._key_written else {},
        )

    def peers(self, limit: int) -> Sequence[PeerCounters]:
        return [self._peer(member) for member in list(self.fleet.members.values())[:limit]]

    def _drops(self) -> Any:
        """By verdict; handshakes that control refused are drops like any other."""
        drops = self._counters[Counter.DROPS : Counter.DROPS + VERDICTS].copy()
        for verdict in Verdict:
            drops[verdict] += self._tunnel.handshakes.get(verdict.label, 0)
        return drops

    def _attention(self, counters: Counters) -> list[str]:
        """What an operator should look at, a sentence each."""
        found = []
        if self.fleet.store_error:
            found.append(f"the store is away, changes are not seen: {self.fleet.store_error}")
        if self._tunnel.refused:
            found.append(f"the data path has no room left for: {', '.join(sorted(self._tunnel.refused))}")
        if self._tunnel.failures:
            found.append(f"{self._tunnel.failures} events met a bug; see the log and report it")
        if counters.slice_violations:
            found.append(f"{counters.slice_violations} packets had a port outside our slice and were stopped: report this as a bug")
        if self._accounts.trouble:
            found.append(f"{self._accounts.trouble}; {self._accounts.dropped} events are missing so far")
        if not self._supervisor.jit:
            found.append("the data path runs interpreted and is slow: install numba, or set [dataplane] jit = true")
        if self.fleet.pools.late:
            found.append(f"pool addresses take long to end, nobody goes out from them: {', '.join(self.fleet.pools.late)}")
        return [*found, *self.fleet.left_out.values()]

    def _worker(self) -> WorkerStatus:
        pid = self._supervisor.pid
        cpu, resident = _process(pid)
        return WorkerStatus(
            number=0,
            pid=pid,
            restarts=self._supervisor.restarts,
            aead=self._supervisor.aead,
            jit=self._supervisor.jit,
            cpu_seconds=cpu,
            resident_bytes=resident,
        )

    def _pools(self, counters: Counters) -> list[PoolStatus]:
        return [
            PoolStatus(
                name=pool.name,
                addresses=[str(prefix) for prefix in pool.addresses],
                ports=str(pool.ports),
                ports_used=sum(sum(used["used"].values()) for used in counters.pools if used["pool"] == pool.name),
                country=pool.country,
                city=pool.city,
            )
            for pool in self.config.pools
        ]

    def _connected(self) -> int:
        newest = time.monotonic_ns() - REJECT_AFTER_TIME
        current = self._tunnel.wg.devices["current"][list(self.fleet.by_slot)]
        return int(np.count_nonzero(self._tunnel.wg.sessions["created"][current[current != 0]] > newest))

    def _peer(self, member: Any) -> PeerCounters:
        row = self._tunnel.wg.devices[member.slot]
        path = self._tunnel.path(member.slot)
        return PeerCounters(
            public_key=base64.b64encode(member.device.public_key).decode(),
            name=member.device.name,
            addresses=_listed(member.device.allowed_ips),
            endpoint="" if path is None else str(path),
            received_bytes=int(row.received_bytes),
            sent_bytes=int(row.sent_bytes),
            last_handshake_seconds=int(row.last_handshake_wall) / 1e9,
        )


def _usage(row: dict[str, Any], pool: str) -> AddressUsage:
    return AddressUsage(
        pool=pool,
        address=row["address"],
        ports=[row["port_low"], row["port_high"]],
        used={"tcp": row["tcp"], "udp": row["udp"], "icmp": row["icmp"]},
        block_size=row["block_size"],
        blocks={"all": row["blocks"], "used": row["blocks_used"], "free": row["blocks_free"], "held": row["blocks_held"]},
        devices=row["devices"],
        exhausted=row["exhausted"],
    )


def _listed(networks: Sequence[IPNetwork]) -> list[str]:
    """As many as a metric's label should carry."""
    more = len(networks) - NETWORKS_SHOWN
    return [*map(str, networks[:NETWORKS_SHOWN]), *([f"and {more} more"] if more > 0 else [])]


def _flow(row: dict[str, Any], names: dict[int, str]) -> Flow:
    def endpoint(name: str) -> str:
        address, port = row[name]["address"], row[name]["port"]
        return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

    return Flow(
        peer=names.get(row["device"], f"#{row['device']}"),
        protocol=row["protocol"],
        internal=endpoint("internal"),
        external=endpoint("external"),
        remote=endpoint("remote"),
        state=row["state"],
        idle_seconds=round(row["idle_seconds"], 3),
        sent_packets=row["packets_out"],
        sent_bytes=row["bytes_out"],
        received_packets=row["packets_in"],
        received_bytes=row["bytes_in"],
    )


def _process(pid: int) -> tuple[float, int]:
    """(CPU seconds, resident octets) of a process; zeros when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return 0.0, 0
    return (int(fields[11]) + int(fields[12])) / TICKS, int(fields[21]) * PAGE
