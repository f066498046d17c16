"""The arena tables of the translator. One worker writes them; slot 0 of each (but `settings`, which has one row) is never used.

A *mapping* ties an internal endpoint of a device to an external one, whatever the remote is (RFC 4787 4.1). A *flow* is a
mapping and one remote endpoint; it carries time, state and counts, and is what packets look up. A mapping lives as long
as its last flow. A *permit* says that a mapping has contacted a remote address: address-dependent filtering asks for it.

Flows, mappings and permits are found by hash chains: `heads` holds REGIONS equal regions of chain heads (narrow: recovery makes
all of them resident). Addresses are two
words (hi, lo); an IPv4 address has hi 0. The packed words that begin a key are made by `nat/keys.py`. Flows, mappings and
what control configured are the truth; every chain, list, bitmap, permit and count is rebuilt from them by `recover`.

Times are CLOCK_MONOTONIC nanoseconds.
"""

from typing import Any, Final, NamedTuple

import numpy as np

from egressvpn.packet.record import PACKET

ENDPOINT_INDEPENDENT: Final = 0  # filtering behaviour, RFC 4787 5
ADDRESS_DEPENDENT: Final = 1
ADDRESS_AND_PORT_DEPENDENT: Final = 2

SECOND: Final = 1_000_000_000
UDP_TIMEOUT: Final = 300 * SECOND  # RFC 4787 REQ-5 c
TCP_EST: Final = 7440 * SECOND  # RFC 5382 REQ-5
TCP_TRANS: Final = 240 * SECOND  # RFC 5382 REQ-5
ICMP_TIMEOUT: Final = 60 * SECOND  # RFC 5508 REQ-2

# Regions of `heads`. A power of two, so that the size of one is a shift.
FLOWS_OUT: Final = 0
FLOWS_IN: Final = 1
MAPPINGS_OUT: Final = 2
MAPPINGS_IN: Final = 3
PERMITS: Final = 4
USED_REGIONS: Final = 5
REGIONS: Final = 8

# Lists a flow is in, as positions in its `next` and `prev`.
OF_DEVICE: Final = 0
OF_MAPPING: Final = 1
OF_PERMIT: Final = 2
LISTS: Final = 3

# Port bitmaps per pool address.
TCP_PORTS: Final = 0
UDP_PORTS: Final = 1
ICMP_PORTS: Final = 2
PORT_KINDS: Final = 3
PORT_WORDS: Final = 1024

MAX_DEVICES: Final = 1 << 21  # the device is the top bits of a key

SETTINGS = np.dtype(
    [
        ("key0", "i8"),  # secret of the hash tables and of the port generator
        ("key1", "i8"),
        ("generator", "i8"),  # how many random words were drawn
        ("filtering", "i8"),
        ("udp", "i8"),  # timeouts
        ("tcp_established", "i8"),
        ("tcp_transitory", "i8"),
        ("icmp", "i8"),
        ("flow_free", "i8"),  # first of the free slots below the high-water mark
        ("flow_high", "i8"),  # highest slot ever used
        ("mapping_free", "i8"),
        ("mapping_high", "i8"),
        ("permit_free", "i8"),
        ("permit_high", "i8"),
        ("hand", "i8"),  # last flow slot that the sweep visited
        ("flows", "i8"),  # in use now
        ("mappings", "i8"),
        ("permits", "i8"),
        ("flows_created", "i8"),
        ("flows_expired", "i8"),
        ("mappings_created", "i8"),
        ("slice_violations", "i8"),  # must stay 0: packets stopped because their external port was not ours
    ],
    align=True,
)

# 192 octets. The first cache line is what a look-up compares, the second what a hit updates, the third is for creation and removal.
FLOW = np.dtype(
    [
        ("key", "i8"),  # device, version, protocol, internal port, remote port
        ("internal_lo", "i8"),
        ("remote_lo", "i8"),
        ("external_key", "i8"),  # version, protocol, external port, remote port
        ("external_lo", "i8"),
        ("seen", "i8"),  # last packet that prolonged it
        ("timeout", "i8"),  # it expires at seen + timeout
        ("state", "i4"),  # FREE, ACTIVE or a state of nat/tcp.py; written last at creation, first at removal
        ("pool", "i4"),  # slot of the external address, 0 for IPv6
        ("packets_out", "i8"),
        ("bytes_out", "i8"),
        ("packets_in", "i8"),
        ("bytes_in", "i8"),
        ("internal_hi", "i8"),
        ("external_hi", "i8"),
        ("remote_hi", "i8"),
        ("next_out", "i4"),  # hash chains; narrow, as all links are, to keep the record in three lines
        ("next_in", "i4"),
        ("mapping", "i4"),
        ("permit", "i4"),
        ("next", "i4", (LISTS,)),
        ("prev", "i4", (LISTS,)),
        ("created", "i8"),
        ("reserved", "i8", (3,)),
    ],
    align=True,
)

MAPPING = np.dtype(
    [
        ("key", "i8"),  # device, version, protocol, internal port, 0
        ("internal_hi", "i8"),
        ("internal_lo", "i8"),
        ("external_key", "i8"),  # version, protocol, external port, 0
        ("external_hi", "i8"),
        ("external_lo", "i8"),
        ("pool", "i8"),  # slot of the external address, 0 for IPv6
        ("state", "i8"),  # FREE or ACTIVE; written last at creation, first at removal
        ("first", "i8"),  # flow
        ("next_out", "i8"),
        ("next_in", "i8"),
        ("created", "i8"),
    ],
    align=True,
)

PERMIT = np.dtype(
    [
        ("mapping", "i8"),
        ("remote_hi", "i8"),
        ("remote_lo", "i8"),
        ("first", "i8"),  # flow; a permit without flows is free
        ("next", "i8"),
    ],
    align=True,
)

# Indexed by the device slot of the WireGuard tables.
SUBSCRIBER = np.dtype(
    [
        ("external4", "i8"),  # pool slot of its paired external address (RFC 4787 REQ-2), 0: none
        ("external6_hi", "i8"),  # its external IPv6 address, 0: none
        ("external6_lo", "i8"),
        ("first", "i8"),  # flow
        ("flows", "i8"),
        ("mappings", "i8"),
    ],
    align=True,
)

POOL = np.dtype(
    [
        ("address", "i8"),  # IPv4; 0: the slot is free
        ("port_low", "i8"),  # our slice of its ports, ends included
        ("port_high", "i8"),
        ("used", "i8", (PORT_KINDS,)),
    ],
    align=True,
)


class NatTables(NamedTuple):
    """All tables of the translator."""

    settings: Any
    flows: Any
    mappings: Any
    permits: Any
    heads: Any
    subscribers: Any
    pool: Any
    port_bits: Any  # bit set: the port is taken; pool slot, kind and port / 64 make the index
    quote: Any  # two PACKET rows of scratch for what ICMP errors quote


def tables(max_flows: int, max_devices: int, pool_addresses: int) -> dict[str, tuple[np.dtype[Any], int]]:
    """Name, type and count of every table."""
    if max_devices >= MAX_DEVICES:
        raise ValueError(f"at most {MAX_DEVICES - 1} devices")
    buckets = 1 << max(max_flows - 1, 1).bit_length()
    return {
        "settings": (SETTINGS, 1),
        "flows": (FLOW, max_flows + 1),
        "mappings": (MAPPING, max_flows + 1),
        "permits": (PERMIT, max_flows + 1),
        "heads": (np.dtype("i4"), buckets * REGIONS),
        "subscribers": (SUBSCRIBER, max_devices + 1),
        "pool": (POOL, pool_addresses + 1),
        "port_bits": (np.dtype("i8"), (pool_addresses + 1) * PORT_KINDS * PORT_WORDS),
        "quote": (PACKET, 2),
    }


def configure(
    nat: NatTables,
    *,
    filtering: int = ADDRESS_DEPENDENT,
    udp: int = UDP_TIMEOUT,
    tcp_established: int = TCP_EST,
    tcp_transitory: int = TCP_TRANS,
    icmp: int = ICMP_TIMEOUT,
) -> None:
    """Behaviour and timeouts (ns). Flows get a new timeout when they next change state or are made."""
    row = nat.settings[0]
    row.filtering = filtering
    row.udp = udp
    row.tcp_established = tcp_established
    row.tcp_transitory = tcp_transitory
    row.icmp = icmp


def seed(nat: NatTables, key0: int, key1: int) -> None:
    """Give new tables their secret: two random signed 64-bit words, once, before any flow."""
    row = nat.settings[0]
    row.key0 = key0
    row.key1 = key1


def set_pool(nat: NatTables, slot: int, address: int, port_low: int, port_high: int) -> None:
    """Put an IPv4 address and our slice of its ports into a pool slot."""
    if not 1 <= slot < nat.pool.size or not 1 <= port_low <= port_high <= 65535:
        raise ValueError("no such pool slot or port range")
    row = nat.pool[slot]
    row.address = 0
    row.port_low = port_low
    row.port_high = port_high
    row.address = address


def subscribe(nat: NatTables, device: int, external4: int, external6_hi: int, external6_lo: int) -> None:
    """Say which external addresses a device has: a pool slot (0: none) and an IPv6 address (0: none)."""
    if not 1 <= device < nat.subscribers.size or not 0 <= external4 < nat.pool.size:
        raise ValueError("no such device or pool slot")
    row = nat.subscribers[device]
    row.external4 = external4
    row.external6_hi = external6_hi
    row.external6_lo = external6_lo
