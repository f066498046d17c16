"""The arena tables of the translator. One worker writes them; slot 0 of each (but `settings`, which has one row) is never used.

A *mapping* ties an internal endpoint of a device to an external one, whatever the remote is (RFC 4787 4.1). A *flow* is a
mapping and one remote endpoint; it carries time, state and counts. Most mappings have one flow, so both share a record:
the record that a mapping was made with is its *home*, and holds the mapping and, inline, one of its flows. Further flows of
the mapping have records of their own that name their home. A *permit* says that the inside has contacted a remote address:
address-dependent filtering asks for it. The home's inline flow is its own permit; the first further flow to an address is
the *anchor* of that address's permit, and the others name it.

A packet finds the home first (from inside by hash, from outside by its port), and the flow there, or by a second hash.
A flow is *confirmed* once the inside has sent on it. A mapping lives as long as it has a confirmed flow: what comes from
outside alone prolongs nothing (RFC 7857 7, 7.1). A record is in use while it holds a flow or others refer to it.

An address is two words (hi, lo); IPv4 has hi 0. The high words stand in `wide`, which IPv4 alone never touches. Records,
blocks' owners and what control configured are the truth; DERIVED tables are rebuilt from them by `recover`.

Times are CLOCK_MONOTONIC nanoseconds, in flows milliseconds modulo 2^32.
"""

from typing import Any, Final, NamedTuple

import numpy as np

from egressvpn.packet.record import PACKET

ENDPOINT_INDEPENDENT: Final = 0  # filtering behaviour, RFC 4787 5
ADDRESS_DEPENDENT: Final = 1
ADDRESS_AND_PORT_DEPENDENT: Final = 2

SECOND: Final = 1_000_000_000
MILLISECOND: Final = 1_000_000
UDP_TIMEOUT: Final = 300 * SECOND  # RFC 4787 REQ-5 c
TCP_EST: Final = 7440 * SECOND  # RFC 5382 REQ-5
TCP_TRANS: Final = 240 * SECOND  # RFC 5382 REQ-5
ICMP_TIMEOUT: Final = 60 * SECOND  # RFC 5508 REQ-2
HOLD_DOWN: Final = 120 * SECOND  # RFC 6888 REQ-8
MAX_TIMEOUT: Final = 7 * 86_400 * SECOND  # half of what 32 bits of milliseconds can tell apart, and some

# Regions of `heads`, and how many shares of it there are: a power of two, so that the size of one is a shift. The last are not used.
HOMES_OUT: Final = 0  # homes by internal endpoint; two shares, because every packet from inside looks there
HOMES_IN: Final = 2  # homes by external endpoint, IPv6 only
FLOWS: Final = 3  # flows that are not inline, by home and remote endpoint
PERMITS: Final = 4  # anchors, by home and remote address
SHARES: Final = 8

# Bits of a record's `role`.
HOME: Final = 1  # it holds a living mapping
CONFIRMED: Final = 2  # its flow has been sent on from inside
ANCHOR: Final = 4  # it is in the chain of permits

# Kinds of ports.
TCP_PORTS: Final = 0
UDP_PORTS: Final = 1
ICMP_PORTS: Final = 2
PORT_KINDS: Final = 3
PORT_CLASSES: Final = 2 * PORT_KINDS  # kind * 2 + parity
PORTS: Final = 65_536

# State of a block.
BLOCK_FREE: Final = 0
BLOCK_OWNED: Final = 1
BLOCK_HELD: Final = 2  # its last port was freed; nobody but its last owner may have it before `hold_until`

MAX_DEVICES: Final = 1 << 21  # the device is the top bits of a key
MAX_BLOCKS: Final = 256  # per device

TICK_SHIFT: Final = 27  # a tick of the wheel is 2^27 ns, 134 ms
WHEEL: Final = 8192  # slots: 18 minutes; what is due later comes round again

JOURNAL_SLOTS: Final = 16_384  # block events that control has not read yet; older ones are overwritten, and control counts them
BLOCK_GIVEN: Final = 1
BLOCK_TAKEN_BACK: Final = 2

WAITING_SYNS: Final = 1024  # unsolicited SYNs that wait for their 6 s (RFC 5382 REQ-4)
SYN_OCTETS: Final = 64  # of each that an error will quote

SETTINGS = np.dtype(
    [
        ("key0", "i8"),  # secret of the hash tables and of the port generator
        ("key1", "i8"),
        ("generator", "i8"),  # how many random words were drawn
        ("filtering", "i8"),
        ("udp", "i8"),  # timeouts, ms
        ("tcp_established", "i8"),
        ("tcp_opening", "i8"),
        ("tcp_closing", "i8"),
        ("icmp", "i8"),
        ("hold_down", "i8"),  # ns
        ("max_flows_per_device", "i8"),
        ("mapping_rate", "i8"),  # new mappings per second and device, 0: no limit
        ("mapping_burst", "i8"),
        ("free", "i8"),  # first of the free records below the high-water mark
        ("high", "i8"),  # highest record ever used
        ("tick", "i8"),  # next tick of the wheel to be looked at
        ("flows", "i8"),  # in use now
        ("mappings", "i8"),
        ("records", "i8"),
        ("flows_created", "i8"),
        ("flows_expired", "i8"),
        ("mappings_created", "i8"),
        ("slice_violations", "i8"),  # must stay 0: packets stopped because their external port was not ours
        ("quota_exceeded", "i8"),  # flows refused because of a limit of their device
        ("blocks_given", "i8"),
        ("blocks_taken_back", "i8"),
        ("journal", "i8"),  # how many entries were ever written
        ("syn_head", "i8"),  # waiting SYNs: sequence numbers of the oldest and of the next
        ("syn_tail", "i8"),
        ("unconfirmed", "i8"),  # flows that were opened from outside and that the inside has not sent on
    ],
    align=True,
)

# 128 octets. The first cache line is what every packet compares and changes; the second holds counts and links.
FLOW = np.dtype(
    [
        ("key", "i8"),  # device, version, protocol, internal port, external port (nat/keys.py)
        ("internal_lo", "i8"),
        ("remote_lo", "i8"),
        ("seen", "u4"),  # ms, last packet that prolonged it
        ("state", "u1"),  # of the flow: FREE, ACTIVE or a state of nat/tcp.py; written last at creation, first at removal
        ("role", "u1"),  # HOME, CONFIRMED, ANCHOR
        ("remote_port", "u2"),
        ("mapping", "i4"),  # its home; a home names itself
        ("next_anchor", "i4"),  # chain: of a home HOMES_OUT, of an anchor PERMITS
        ("pool", "u2"),  # slot of the external address, 0 for IPv6
        ("scale", "u1", (2,)),  # window scale of each side (tracking.py)
        ("live", "i4"),  # of a home: its confirmed flows; of an anchor: the confirmed flows that name it
        ("next_sequence", "u4", (2,)),  # one above the highest sequence number that CLIENT and SERVER sent
        ("acknowledged", "u4", (2,)),  # highest acknowledgment that CLIENT and SERVER sent
        ("window", "u2", (2,)),  # highest right edge that CLIENT and SERVER offered, above `acknowledged`, in units of tracking.py
        ("refs", "i4"),  # flows that name this record as home or anchor, its own included
        ("next_flow", "i4"),  # chain FLOWS
        ("permit", "i4"),  # of a flow that is confirmed and not inline: its anchor
        ("wheel_next", "i4"),
        ("wheel_prev", "i4"),  # minus (slot of the wheel + 1) for the first
        ("list_next", "i4"),  # flows of the device
        ("list_prev", "i4"),
        ("packets", "u4", (2,)),  # from CLIENT (the inside), from SERVER
        ("octets", "i8", (2,)),
        ("created", "u4"),  # ms
        ("next_in", "i4"),  # chain HOMES_IN
    ],
    align=True,
)

# The high words of a flow's addresses, in the same slot; IPv6 only.
WIDE = np.dtype([("internal_hi", "i8"), ("remote_hi", "i8")], align=True)

# Indexed by the device slot of the WireGuard tables.
SUBSCRIBER = np.dtype(
    [
        ("identity", "i8"),  # the device's id in the store: blocks are accounted to it
        ("external4", "i8"),  # pool slot of its paired external address (RFC 4787 REQ-2), 0: none
        ("external6_hi", "i8"),  # its external IPv6 address, 0: none
        ("external6_lo", "i8"),
        ("fixed", "i8"),  # deterministic pools: number of its predefined block + 1; 0: none
        ("first", "i8"),  # its flows
        ("flows", "i8"),
        ("unconfirmed", "i8"),
        ("mappings", "i8"),
        ("blocks", "i8"),  # owned and held
        ("first_block", "i8"),  # its blocks, owned and held
        ("open", "i8", (PORT_CLASSES,)),  # its blocks with a free port of the class
        ("mapping_tokens", "i8"),  # token bucket of new mappings
        ("mapping_refilled", "i8"),
        ("error_tokens", "i8"),  # token bucket of ICMP errors to it
        ("error_refilled", "i8"),
        ("refused", "i8"),  # flows it was refused
    ],
    align=True,
)

POOL = np.dtype(
    [
        ("address", "i8"),  # IPv4; 0: the slot is free
        ("group", "i8"),  # which [[pool]] it belongs to, counted from 1: a device may be paired with any address of its group
        ("port_low", "i8"),  # our slice of its ports, ends included
        ("port_high", "i8"),
        ("block_size", "i8"),
        ("max_blocks", "i8"),  # per device
        ("fixed_blocks", "i8"),  # deterministic: this many predefined blocks of `fixed_size` ports come first
        ("fixed_size", "i8"),
        ("blocks", "i8"),  # all of them, predefined ones included
        ("free", "i8"),  # dynamic blocks that are free: the first so many of its part of `free_blocks`
        ("held", "i8"),
        ("held_first", "i8"),  # queue of held blocks, oldest first
        ("held_last", "i8"),
        ("used", "i8", (PORT_KINDS,)),  # ports
        ("exhausted", "i8"),  # times that a device was refused because it had no free block
        ("ending", "i8"),  # while its flows are being ended: 1 + the device slot looked at last; 0: in use
    ],
    align=True,
)

# Block number n of pool slot s is row s * stride + n; stride is blocks.size / pool.size.
BLOCK = np.dtype(
    [
        ("state", "i4"),
        ("owner", "i4"),  # device slot; 0 when the device is gone
        ("identity", "i8"),  # of the owner
        ("hold_until", "i8"),
        ("given", "i8"),  # when
        ("used", "i4"),  # ports in use, all kinds
        ("free", "u2", (PORT_CLASSES,)),  # free ports by class
        ("open_next", "i4", (PORT_CLASSES,)),
        ("open_prev", "i4", (PORT_CLASSES,)),
        ("list_next", "i4"),  # blocks of the device
        ("list_prev", "i4"),  # of the first: the last
        ("queue_next", "i4"),  # held blocks of the address
        ("queue_prev", "i4"),
    ],
    align=True,
)

JOURNAL = np.dtype(
    [
        ("sequence", "i8"),  # 1, 2, ...; written last
        ("kind", "i8"),
        ("identity", "i8"),
        ("pool", "i8"),
        ("address", "i8"),
        ("port_low", "i8"),
        ("port_high", "i8"),
        ("when", "i8"),
    ],
    align=True,
)

WAITING_SYN = np.dtype(
    [
        ("due", "i8"),
        ("external_lo", "i8"),
        ("remote_lo", "i8"),
        ("external_hi", "i8"),
        ("remote_hi", "i8"),
        ("ports", "i8"),  # external << 16 | remote; 0: answered or overtaken
        ("length", "i8"),
        ("octets", "u1", (SYN_OCTETS,)),
    ],
    align=True,
)


class NatTables(NamedTuple):
    """All tables of the translator."""

    settings: Any
    flows: Any
    wide: Any
    heads: Any
    wheel: Any  # first record of every slot
    subscribers: Any
    pool: Any
    pool_index: Any  # pool slots by address: open addressing, a power of two of places
    ports: Any  # home by pool slot, kind and port
    free_ports: Any  # free ports of a block, its even ones first, then its odd ones; an entry holds its value XOR its position
    blocks: Any
    free_blocks: Any  # free dynamic blocks of a pool slot
    orphans: Any  # held blocks without a device, in chains by the hash of their last owner's identity
    journal: Any
    syns: Any
    quote: Any  # two PACKET rows of scratch for what ICMP errors quote


DERIVED: Final = ("heads", "wheel", "pool_index", "ports", "free_ports", "free_blocks", "orphans")


def tables(max_flows: int, max_devices: int, pool_addresses: int, blocks_per_address: int = 252) -> dict[str, tuple[np.dtype[Any], int]]:
    """Name, type and count of every table."""
    if max_devices >= MAX_DEVICES:
        raise ValueError(f"at most {MAX_DEVICES - 1} devices")
    buckets = 1 << max(max_flows - 1, 1).bit_length()
    slots = pool_addresses + 1
    return {
        "settings": (SETTINGS, 1),
        "flows": (FLOW, max_flows + 1),
        "wide": (WIDE, max_flows + 1),
        "heads": (np.dtype("i4"), buckets * SHARES),
        "wheel": (np.dtype("i4"), WHEEL),
        "subscribers": (SUBSCRIBER, max_devices + 1),
        "pool": (POOL, slots),
        "pool_index": (np.dtype("i4"), 1 << (4 * slots - 1).bit_length()),
        "ports": (np.dtype("i4"), slots * PORT_KINDS * PORTS),
        "free_ports": (np.dtype("u2"), slots * PORT_KINDS * PORTS),
        "blocks": (BLOCK, slots * blocks_per_address),
        "free_blocks": (np.dtype("i4"), slots * blocks_per_address),
        "orphans": (np.dtype("i4"), 1 << (slots * blocks_per_address - 1).bit_length()),
        "journal": (JOURNAL, JOURNAL_SLOTS),
        "syns": (WAITING_SYN, WAITING_SYNS),
        "quote": (PACKET, 2),
    }


def configure(
    nat: NatTables,
    *,
    filtering: int = ADDRESS_DEPENDENT,
    udp: int = UDP_TIMEOUT,
    tcp_established: int = TCP_EST,
    tcp_opening: int = TCP_TRANS,
    tcp_closing: int = TCP_TRANS,
    icmp: int = ICMP_TIMEOUT,
    hold_down: int = HOLD_DOWN,
    max_flows_per_device: int = 0,
    mapping_rate: int = 0,
    mapping_burst: int = 0,
) -> None:
    """Behaviour, timeouts (ns) and limits per device (0: none)."""
    row = nat.settings[0]
    row.filtering = filtering
    row.udp = udp // MILLISECOND
    row.tcp_established = tcp_established // MILLISECOND
    row.tcp_opening = tcp_opening // MILLISECOND
    row.tcp_closing = tcp_closing // MILLISECOND
    row.icmp = icmp // MILLISECOND
    row.hold_down = hold_down
    row.max_flows_per_device = max_flows_per_device or nat.flows.size
    row.mapping_rate = mapping_rate
    row.mapping_burst = mapping_burst


def seed(nat: NatTables, key0: int, key1: int) -> None:
    """Give new tables their secret: two random signed 64-bit words, once, before any flow."""
    row = nat.settings[0]
    row.key0 = key0
    row.key1 = key1


def subscribe(nat: NatTables, device: int, identity: int, external4: int, external6_hi: int, external6_lo: int, fixed: int) -> None:
    """Say which external addresses a device has: a pool slot (0: none), an IPv6 address (0: none), a predefined block (0: none)."""
    row = nat.subscribers[device]
    row.identity = identity
    row.external6_hi = external6_hi
    row.external6_lo = external6_lo
    row.fixed = fixed
    if row.first_block == 0:
        row.external4 = external4
