"""The arena tables of the worker itself: its settings, its counters, and packets staged until a session exists."""

from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np

from egressvpn.verdict import VERDICTS

MAX_STAGED: Final = 128  # packets per device, oldest dropped and counted (kernel: MAX_STAGED_PACKETS)
STAGED_SLOTS: Final = 1024  # packets over all devices, oldest dropped and counted
IDENTIFICATIONS: Final = 2048  # a power of two (kernel: IP_IDENTS_SZ)
BATCH_BUCKETS: Final = 8  # batches of 1, 2-3, 4-7, ... 128 and more datagrams

GATEWAY: Final = 0  # translate
CLIENT: Final = 1  # route by allowed IPs, no translation

WORKER = np.dtype(
    [
        ("mode", "i8"),  # GATEWAY or CLIENT
        ("open", "i8"),  # 1 once configuration and policy are loaded; until then every packet is dropped
        ("mtu", "i8"),  # of the tunnel
        ("gso", "i8"),  # 1: UDP_SEGMENT may be used
        ("uso", "i8"),  # 1: the TUN takes UDP super-packets
        ("pid", "i8"),
        ("starts", "i8"),  # how many workers have run on this arena
        ("inner4", "i8"),  # the gateway's own tunnel addresses, the source of its ICMP errors; 0: none
        ("inner6_hi", "i8"),
        ("inner6_lo", "i8"),
        ("egress4", "i8"),  # a bit for each /24 that has pool addresses, and for each /32 with egress networks (egress.py)
        ("egress6", "i8"),
        ("endings", "i8"),  # pool slots that are being ended
        ("icmp_tokens", "i8"),  # token bucket of locally made ICMP errors, refilled by the sweep
        # what the door lets through before the next sweep (door.py)
        ("cookie_up_tokens", "i8"),  # cookie replies up to control
        ("cookie_replies", "i8"),  # cookie replies out
        ("share_tokens", "i8"),  # handshakes that go up under load without a cookie
        ("knocks", "i8"),  # handshakes with a MAC1 of ours since the last sweep
        ("under_load_until", "i8"),  # when the load is over, if it does not go on
        ("device_limit", "i8"),  # one above the highest device slot in use
        ("staged_tail", "i8"),  # next staged sequence number
    ],
    align=True,
)

ICMP_ERRORS_PER_SWEEP: Final = 10  # locally made ICMP errors per 100 ms, RFC 1812 4.3.2.8
ICMP_ERRORS_BURST: Final = 50


class Counter(IntEnum):
    """Positions in the counters array. rx and tx are the gateway's view of the tunnel."""

    RX_DATAGRAMS = 0  # from recvmmsg, GRO batches count once
    RX_PACKETS = 1  # inner packets opened
    RX_BYTES = 2  # of inner packets
    RX_KEEPALIVES = 3
    TX_SENDS = 4  # sendmsg calls
    TX_PACKETS = 5
    TX_BYTES = 6
    TX_KEEPALIVES = 7
    TUN_READS = 8
    TUN_WRITES = 9
    TUN_SUPERS = 10  # writes that carried more than one packet
    GSO_REFUSED = 11  # UDP_SEGMENT failed and plain sends took over
    EVENTS = 12
    POLLS = 13
    ICMP_ERRORS = 14  # made here
    HANDSHAKES_UP = 15  # handshake datagrams handed to control
    BATCHES = 16  # first of BATCH_BUCKETS
    ICMP_SUPPRESSED = 24  # errors not made because of the rate
    EVENTS_LOST = 25  # the channel was full
    DROPS = 32  # first of VERDICTS, indexed by Verdict


COUNTERS: Final = Counter.DROPS + VERDICTS

STAGED = np.dtype([("owner", "i8"), ("length", "i8")], align=True)


class WorkerTables(NamedTuple):
    worker: Any
    counters: Any
    staged: Any
    staged_octets: Any
    endings: Any  # by pool slot: 1 while it is being ended
    identifications: Any  # counters of IPv4 identifications, by hash of (source, destination, protocol)


def staged_stride(mtu: int) -> int:
    """Octets kept per staged packet."""
    return -(-mtu // 64) * 64


def tables(mtu: int, pool_addresses: int) -> dict[str, tuple[np.dtype[Any], int]]:
    """The layout of this module's tables."""
    return {
        "worker": (WORKER, 1),
        "counters": (np.dtype("i8"), COUNTERS),
        "staged": (STAGED, STAGED_SLOTS),
        "staged_octets": (np.dtype("u1"), STAGED_SLOTS * staged_stride(mtu)),
        "endings": (np.dtype("i8"), pool_addresses + 1),
        "identifications": (np.dtype("i8"), IDENTIFICATIONS),
    }
