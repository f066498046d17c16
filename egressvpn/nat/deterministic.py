"""Deterministic port blocks, RFC 7422: which external address and ports belong to an internal address, and the other way round.

The variables keep their letters: I inside prefix, O outside addresses, C compression ratio (inside addresses per outside one),
D dynamic factor, M most ports per user, A algorithm, R reserved ports, here all that lie outside the slice `ports`.
Each inside address has P = ports / (C + D) predefined ports, rounded down; what remains at the top of every outside address is
dynamic. Number i of the inside and its t-th port are tied to outside address a and offset p in the slice by

    A  name         a               p              ports of one user
    0  sequential   i / C           (i % C) P + t  one block; the blocks of an address, then those of the next one
    1  staggered    i / C           t C + i % C    every C-th port of one address
    2  round robin  (i P + t) % N   (i P + t) / N  the same ports on all N addresses, then the next ones
    3  interlaced   (i + t) % N     t C + i / N    every C-th port, on one address after the other

The RFC words 1 to 3 only as examples (its formula for 1 would give a port to two users); these are the readings that give every
port once. 4, random by cipher, is not offered. The data path takes blocks, that is 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

SEQUENTIAL: Final = 0
STAGGERED: Final = 1
ROUND_ROBIN: Final = 2
INTERLACED: Final = 3
ALGORITHMS: Final = (SEQUENTIAL, STAGGERED, ROUND_ROBIN, INTERLACED)
HIGHEST_PORT: Final = 65_535

Endpoint = tuple[IPv4Address, int]


@dataclass(frozen=True)
class Deterministic:
    """One configuration. Raises ValueError when it leaves an inside address without a port."""

    inside: IPv4Network
    outside: Sequence[IPv4Network]
    dynamic_factor: int = 0
    ports: tuple[int, int] = (1024, HIGHEST_PORT)
    max_ports: int = 0  # per user, dynamic ones included; 0: no limit
    algorithm: int = SEQUENTIAL

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm {self.algorithm} is not offered: use one of {', '.join(map(str, ALGORITHMS))}")
        if not 0 < self.ports[0] <= self.ports[1] <= HIGHEST_PORT:
            raise ValueError(f"{self.ports[0]}-{self.ports[1]} is not a range of ports")
        if not self.outside:
            raise ValueError("there is no outside address")
        if self.dynamic_factor < 0:
            raise ValueError("the dynamic factor is negative")
        if self.ports_per_user == 0:
            users = self.compression + self.dynamic_factor
            raise ValueError(f"{self._slice} ports are not enough for {users} shares of an outside address: add outside addresses")

    @cached_property
    def addresses(self) -> tuple[IPv4Address, ...]:
        """O, in the order of the configuration."""
        return tuple(address for network in self.outside for address in network)

    @cached_property
    def users(self) -> int:
        """How many inside addresses there are: the hosts of I."""
        return self.inside.num_addresses - (2 if self.inside.prefixlen < 31 else 0)

    @cached_property
    def compression(self) -> int:
        """C."""
        return -(-self.users // len(self.addresses))

    @cached_property
    def ports_per_user(self) -> int:
        """P."""
        return self._slice // (self.compression + self.dynamic_factor)

    @property
    def dynamic_ports(self) -> tuple[int, int] | None:
        """The ports of each outside address that belong to nobody beforehand."""
        low = self.ports[0] + self.compression * self.ports_per_user
        return (low, self.ports[1]) if low <= self.ports[1] else None

    def block(self, internal: IPv4Address) -> tuple[int, int] | None:
        """Algorithm 0: position of the outside address, and number of the block there. None for an address outside I."""
        number = self._number(internal)
        return None if number is None else divmod(number, self.compression)

    def forward(self, internal: IPv4Address) -> tuple[IPv4Address, int, int] | None:
        """Algorithm 0: outside address, first and last port. None for an address outside I."""
        block = self.block(internal)
        if block is None:
            return None
        low = self.ports[0] + block[1] * self.ports_per_user
        return self.addresses[block[0]], low, low + self.ports_per_user - 1

    def endpoints(self, internal: IPv4Address) -> list[Endpoint]:
        """Any algorithm: every outside address and port of an inside address."""
        number = self._number(internal)
        if number is None:
            return []
        places = (self._place(number, turn) for turn in range(self.ports_per_user))
        return [(self.addresses[at], self.ports[0] + offset) for at, offset in places]

    def reverse(self, external: IPv4Address, port: int) -> IPv4Address | None:
        """Any algorithm: whose the port is. None when it is dynamic (the log tells), reserved, or not ours."""
        at = self._positions.get(external)
        offset = port - self.ports[0]
        if at is None or not 0 <= offset < self.compression * self.ports_per_user:
            return None
        number = self._user(at, offset)
        return self._hosts_from + number if number < self.users else None

    def record(self) -> dict[str, Any]:
        """What RFC 7422 section 3 wants logged at every change and once a day, beside the time."""
        return {
            "inside": str(self.inside),
            "outside": [str(network) for network in self.outside],
            "dynamic_factor": self.dynamic_factor,
            "max_ports": self.max_ports,
            "algorithm": self.algorithm,
            "ports": list(self.ports),
        }

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> "Deterministic":
        """The configuration that a log line tells of."""
        low, high = record["ports"]
        return Deterministic(
            inside=IPv4Network(record["inside"]),
            outside=tuple(IPv4Network(network) for network in record["outside"]),
            dynamic_factor=record["dynamic_factor"],
            ports=(low, high),
            max_ports=record["max_ports"],
            algorithm=record["algorithm"],
        )

    @property
    def _slice(self) -> int:
        return self.ports[1] - self.ports[0] + 1

    @cached_property
    def _positions(self) -> dict[IPv4Address, int]:
        return {address: position for position, address in enumerate(self.addresses)}

    @property
    def _hosts_from(self) -> IPv4Address:
        return self.inside.network_address + (1 if self.inside.prefixlen < 31 else 0)

    def _number(self, internal: IPv4Address) -> int | None:
        number = int(internal) - int(self._hosts_from)
        return number if 0 <= number < self.users else None

    def _place(self, number: int, turn: int) -> tuple[int, int]:
        """(a, p) of (i, t)."""
        compression, addresses = self.compression, len(self.addresses)
        if self.algorithm == SEQUENTIAL:
            return number // compression, number % compression * self.ports_per_user + turn
        if self.algorithm == STAGGERED:
            return number // compression, turn * compression + number % compression
        if self.algorithm == ROUND_ROBIN:
            offset, at = divmod(number * self.ports_per_user + turn, addresses)
            return at, offset
        return (number + turn) % addresses, turn * compression + number // addresses

    def _user(self, at: int, offset: int) -> int:
        """i of (a, p)."""
        compression, addresses = self.compression, len(self.addresses)
        if self.algorithm == SEQUENTIAL:
            return at * compression + offset // self.ports_per_user
        if self.algorithm == STAGGERED:
            return at * compression + offset % compression
        if self.algorithm == ROUND_ROBIN:
            return (offset * addresses + at) // self.ports_per_user
        turn, row = divmod(offset, compression)
        return row * addresses + (at - turn) % addresses
