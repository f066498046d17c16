"""What a running gateway shows of itself: plain data that the API, the metrics and the command line are made of.

`GatewayView` is the one seam: the gateway implements it, everything that observes takes it. Nothing here is pushed: counters are read
from the data path's arrays in the moment somebody asks, so an unobserved gateway spends nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypedDict

import numpy as np
import numpy.typing as npt

from egressvpn.observe.nat_history import Whois


class TrafficStatus(TypedDict):
    packets: int
    bytes: int


class WorkerStatus(TypedDict):
    number: int
    pid: int
    restarts: int  # how often it was started again
    aead: str  # "libcrypto", "libsodium", …
    jit: bool
    cpu_seconds: float
    resident_bytes: int


class PoolStatus(TypedDict):
    name: str
    addresses: list[str]  # networks in CIDR form
    ports: str  # this gateway's slice, "1024-65535"
    ports_used: int
    country: str
    city: str


class DeviceStatus(TypedDict):
    enabled: int
    disabled: int
    connected: int  # with a session that may still be used


class Status(TypedDict):
    """What /v1/status and `egressvpn status` say. Healthy: `state` is ready and `health` is empty."""

    name: str
    version: str
    state: Literal["starting", "ready", "degraded", "stopping"]
    reasons: list[str]  # why the state is not ready, a sentence each
    uptime_seconds: float
    interface: str
    public_key: str
    listen: list[str]
    workers: list[WorkerStatus]
    pools: list[PoolStatus]
    devices: DeviceStatus
    sessions: int
    flows: int
    traffic: dict[str, TrafficStatus]  # "upload": from devices to the Internet; "download": to devices
    drops: dict[str, int]  # verdict label -> packets; only those that happened
    health: list[str]  # what needs attention, a sentence each


class Flow(TypedDict):
    """One entry of live connection tracking, as /v1/flows gives it."""

    peer: str
    protocol: str  # "tcp", "udp", "icmp"
    internal: str  # ADDR:PORT, or [ADDR]:PORT, before translation
    external: str  # after it
    remote: str
    state: str
    idle_seconds: float
    sent_packets: int  # from the device
    sent_bytes: int
    received_packets: int  # to the device
    received_bytes: int


class AddressUsage(TypedDict):
    """How much of an IPv4 pool address is in use, as /v1/pools gives it."""

    pool: str
    address: str
    ports: list[int]  # this gateway's slice, ends included
    used: dict[str, int]  # ports, by protocol
    block_size: int
    blocks: dict[str, int]  # all, used, free, held (back for their last device)
    devices: int  # that egress from here
    exhausted: int  # times that a device was refused for want of a free block


class Count(NamedTuple):
    """Packets and bytes since the gateway started."""

    packets: int
    octets: int


@dataclass(frozen=True, slots=True)
class Histogram:
    """Observations by size. `counts` has one entry more than `bounds`, the last for what is above them all; not cumulative."""

    bounds: Sequence[float]  # upper ends, included, rising
    counts: Sequence[int] | npt.NDArray[np.int64]
    total: float  # sum of all observations


@dataclass(frozen=True, slots=True)
class PeerCounters:
    """A device as the WireGuard exporters show it. received and sent are the gateway's view."""

    public_key: str  # base64
    name: str
    addresses: Sequence[str]  # its allowed IPs, in CIDR form
    endpoint: str  # ADDR:PORT, empty when unknown
    received_bytes: int
    sent_bytes: int
    last_handshake_seconds: float  # since the epoch; 0: never


@dataclass(frozen=True, slots=True)
class Counters:
    """Everything /metrics shows apart from the series per device, read at one moment."""

    interface: str
    public_key: str  # base64
    devices: int
    traffic: Mapping[str, Count]  # by direction: "upload", "download"
    drops: npt.NDArray[np.int64]  # indexed by Verdict
    flows: int
    max_flows: int
    flows_created: int
    flows_expired: int
    mappings: int
    mappings_created: int
    blocks_allocated: int
    blocks_released: int
    quota_exceeded: int  # flows refused because of a limit of their device
    nat_log_dropped: int  # events that the NAT log does not have
    slice_violations: int
    pools: Sequence[AddressUsage]
    handshakes: Mapping[str, int]  # by result: "completed", or the label of the verdict that refused it
    handshake_seconds: Histogram  # work in control per handshake
    batch_packets: Histogram  # datagrams taken by one receive call
    key_age_seconds: Mapping[str, float] = field(default_factory=dict)  # by key: "current", "next"


class GatewayView(Protocol):
    """Implemented by the gateway; every method but `whois` and `explain` answers at once, from memory."""

    def status(self) -> Status: ...

    def flows(self, peer: str | None, limit: int) -> list[dict[str, Any]]:
        """At most `limit` flows (see `Flow`), of one device when `peer` names it. Raises LookupError when there is no such device."""
        ...

    def pools(self) -> list[AddressUsage]: ...

    def whois(self, address: str, port: int | None, begin: str, end: str) -> Whois:
        """Who held a port (None: a whole address) from `begin` until before `end`, times as the log writes them. Reads files."""
        ...

    async def explain(self, peer: str, destination: str) -> dict[str, Any]:
        """What would become of a packet of the device. Raises LookupError for a device, OperatorError for a destination that is none."""
        ...

    def readiness(self) -> list[str]:
        """Why packets cannot flow, a sentence each; empty when they can."""
        ...

    def counters(self) -> Counters: ...

    def peers(self, limit: int) -> Sequence[PeerCounters]:
        """At most `limit` devices: always the same ones, so that series do not come and go."""
        ...
