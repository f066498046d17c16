"""The schema of gateway.toml: one frozen record per table, every key with its default. `examples/gateway.toml` shows them all.

An annotation says how a key is read: `Parsed(f)` by the function f of `values`, anything else by msgspec (types and ranges).
A key without a default must be there. Paths stay as written; the properties resolve them (relative to the file or to state_dir).
"""

import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from msgspec import Meta

from egressvpn.addresses import IPAddress, IPNetwork
from egressvpn.control import values
from egressvpn.control.values import Endpoint, PortRange, SocketAddress, UnixSocket

T = TypeVar("T")

MAX_DEVICES: Final = 262_143  # four session slots for each and for slot 0, which is none: 20 bits of a session index
MAX_WORKERS: Final = 64  # 6 bits of a session index


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
def record(kind: type[T]) -> type[T]:
    """One table of the file: frozen, every field by name."""
    return dataclasses.dataclass(frozen=True, slots=True, kw_only=True)(kind)


@dataclasses.dataclass(frozen=True, slots=True)
class Parsed:
    """In an annotation: read the key's value with this function, which raises `values.UnacceptableError`."""

    parse: Callable[[object], Any]


Name = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="1 to 63 of A-Z a-z 0-9 . _ -, a letter or digit first")
]
Duration = Annotated[int, Parsed(values.duration)]
Networks = Annotated[tuple[IPNetwork, ...], Parsed(values.list_of(values.network))]


def _networks(*written: str) -> tuple[IPNetwork, ...]:
    return tuple(values.network(network) for network in written)


@record
class Gateway:
    name: Name = "gateway"
    state_dir: str = "/var/lib/egressvpn"
    set_sysctls: bool = False  # may the gateway switch on forwarding in the kernel


@record
class WireGuard:
    listen: Annotated[tuple[SocketAddress, ...], Parsed(values.list_of(values.socket_address))] = (
        values.socket_address("0.0.0.0:51820"),
        values.socket_address("[::]:51820"),
    )
    endpoint: Annotated[Endpoint | None, Parsed(values.endpoint)] = None
    private_key_file: str = "gateway.key"
    mtu: Annotated[int, Meta(ge=1280, le=65535, description="1280 (the IPv6 minimum, RFC 8200 section 5) to 65535")] = 1420
    max_devices: Annotated[int, Meta(ge=1, le=MAX_DEVICES, description=f"1 to {MAX_DEVICES}")] = 16_384


@record
class Tunnel:
    interface: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$", description="1 to 15 of A-Z a-z 0-9 _ . -")] = "egress0"
    networks: Networks = _networks("100.64.0.0/16", "fd64::/64")
    dns: Annotated[tuple[IPAddress, ...], Parsed(values.list_of(values.address))] = (
        values.address("1.1.1.1"),
        values.address("2606:4700:4700::1111"),
    )


@record
class Pool:
    name: Name
    addresses: Networks
    ports: Annotated[PortRange, Parsed(values.ports)] = values.ports("1024-65535")
    block_size: Annotated[int, Meta(ge=8, le=64_512, description="8 to 64512 ports")] = 256
    max_blocks: Annotated[int, Meta(ge=1, le=256, description="1 to 256 blocks")] = 8  # of a device
    allocation: Literal["dynamic", "deterministic"] = "dynamic"
    inside: Annotated[IPNetwork | None, Parsed(values.optional_network)] = None  # deterministic: RFC 7422's I
    dynamic_factor: Annotated[int, Meta(ge=0, le=1024, description="0 to 1024")] = 2  # deterministic: RFC 7422's D
    country: Annotated[str, Meta(pattern=r"^([A-Z]{2})?$", description="two capital letters (ISO 3166-1), or empty")] = ""
    city: Annotated[str, Meta(max_length=100, description="at most 100 characters")] = ""


@record
class Timeouts:
    """Idle times after which a flow is forgotten, in seconds. `checks` knows the least that the RFCs allow."""

    udp: Duration = 300
    tcp_established: Duration = 7440
    tcp_transitory: Duration = 240
    tcp_opening: Annotated[int | None, Parsed(values.optional_duration)] = None  # RFC 7857 2.1 wants the two apart
    tcp_closing: Annotated[int | None, Parsed(values.optional_duration)] = None
    icmp: Duration = 60

    @property
    def opening(self) -> int:
        return self.tcp_transitory if self.tcp_opening is None else self.tcp_opening

    @property
    def closing(self) -> int:
        return self.tcp_transitory if self.tcp_closing is None else self.tcp_closing


@record
class Nat:
    filtering: Literal["endpoint-independent", "address-dependent", "address-and-port-dependent"] = "address-dependent"
    max_flows: Annotated[int, Meta(ge=1024, le=16_777_216, description="1024 to 16777216")] = 1_048_576
    max_flows_per_device: Annotated[int, Meta(ge=1, le=16_777_216, description="1 to 16777216")] = 16_384
    mapping_rate: Annotated[int, Meta(ge=0, le=1_000_000, description="0 (no limit) to 1000000 a second")] = 1000  # of a device
    mapping_burst: Annotated[int, Meta(ge=1, le=1_000_000, description="1 to 1000000")] = 4000
    hold_down: Duration = 120
    exempt: Networks = ()
    timeouts: Timeouts = Timeouts()


@record
class Policy:
    deny: Networks = _networks("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "fc00::/7")


@record
class Dataplane:
    workers: Annotated[int, Meta(ge=0, le=MAX_WORKERS, description=f"0 (one per core) to {MAX_WORKERS}")] = 1
    jit: bool = True


@record
class Store:
    url: str = "sqlite:///egressvpn.db"


@record
class Api:
    listen: Annotated[tuple[SocketAddress | UnixSocket, ...], Parsed(values.list_of(values.listener))] = (
        values.listener("unix:/run/egressvpn/api.sock"),
    )
    tls_cert_file: str = ""
    tls_key_file: str = ""


@record
class Metrics:
    listen: Annotated[SocketAddress | None, Parsed(values.optional_socket_address)] = values.socket_address("127.0.0.1:9586")
    max_peers: Annotated[int, Meta(ge=0, le=100_000, description="0 (none) to 100000 devices")] = 100


@record
class Log:
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"
    nat_log: Annotated[
        str, Meta(pattern=r"^[^/\x00]*$", max_length=200, description="a file name (strftime fields allowed) without a slash")
    ] = "nat-%Y%m%d.jsonl"


@record
class Config:
    """A whole gateway.toml that passed every check."""

    path: Path  # of the file itself, absolute
    gateway: Gateway = Gateway()
    wireguard: WireGuard = WireGuard()
    tunnel: Tunnel = Tunnel()
    pools: tuple[Pool, ...]
    nat: Nat = Nat()
    policy: Policy = Policy()
    dataplane: Dataplane = Dataplane()
    store: Store = Store()
    api: Api = Api()
    metrics: Metrics = Metrics()
    log: Log = Log()

    @property
    def state_dir(self) -> Path:
        """Relative paths start at the configuration file's directory."""
        return self.path.parent / self.gateway.state_dir

    @property
    def private_key_path(self) -> Path:
        return self.path.parent / self.wireguard.private_key_file

    @property
    def tls_files(self) -> tuple[Path, Path] | None:
        """Certificate and key, when TLS is configured."""
        if not (self.api.tls_cert_file and self.api.tls_key_file):
            return None
        return self.path.parent / self.api.tls_cert_file, self.path.parent / self.api.tls_key_file

    @property
    def api_sockets(self) -> tuple[Path, ...]:
        """The unix sockets of the API; relative paths start at the configuration file's directory."""
        return tuple(self.path.parent / at.path for at in self.api.listen if isinstance(at, UnixSocket))

    def pool(self, name: str) -> Pool | None:
        return next((pool for pool in self.pools if pool.name == name), None)
