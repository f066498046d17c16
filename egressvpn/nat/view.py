"""What the tables hold, for people: read by the control process while the worker writes, with numpy only.

Nothing is locked. A record may change while it is read, so it is copied first and its state looked at in the copy; a
copy torn in the middle is possible, rare, and only seen by eyes.
"""

import heapq
from typing import Any

import numpy as np

from egressvpn.addresses import from_words
from egressvpn.nat.tables import HOME, MILLISECOND, NatTables
from egressvpn.nat.tcp import ACTIVE, CLIENT, FREE, OPEN, OPENING, SERVER, STATE_NAMES, TIMER

DEVICE_SHIFT = 41  # as in nat/keys.py, which holds kernels
V6_SHIFT = 40
UDP = 17
PROTOCOL_NAMES = {6: "tcp", 17: "udp", 1: "icmp", 58: "icmpv6"}
CHUNK = 65536  # rows copied at a time
MILLISECONDS = 0xFFFFFFFF
COUNTS = (
    "flows",
    "mappings",
    "records",
    "unconfirmed",
    "flows_created",
    "flows_expired",
    "mappings_created",
    "slice_violations",
    "quota_exceeded",
    "blocks_given",
    "blocks_taken_back",
)


def flows(nat: NatTables, now: int, device: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
    """Live flows, those seen last first, at most `limit`; of one device, or of all when it is 0. `now` is monotonic ns."""
    found: list[tuple[int, int, Any]] = []
    high = int(nat.settings[0].high)
    for start in range(1, high + 1, CHUNK):
        rows = np.array(nat.flows[start : min(start + CHUNK, high + 1)])
        idle = _idle(rows["seen"], now)
        wanted = (rows["state"] != FREE) & (idle < _timeouts(nat, rows))
        wanted &= (nat.flows["role"][np.clip(rows["mapping"], 0, nat.flows.size - 1)] & HOME) != 0
        if device:
            wanted &= rows["key"] >> DEVICE_SHIFT == device
        slots = np.nonzero(wanted)[0]
        newest = slots[np.argsort(idle[slots], kind="stable")[:limit]]
        found.extend((int(idle[slot]), start + int(slot), rows[slot]) for slot in newest)
    return [_describe(nat, slot, row, now) for _, slot, row in heapq.nsmallest(limit, found, key=lambda entry: entry[:2])]


def counts(nat: NatTables) -> dict[str, int]:
    """Totals of the tables."""
    row = nat.settings[0]
    return {name: int(row[name]) for name in COUNTS} | {"max_flows": nat.flows.size - 1}


def device_counts(nat: NatTables, device: int) -> dict[str, int]:
    """How many flows, mappings and blocks a device has, and how many flows it was refused."""
    row = nat.subscribers[device]
    return {name: int(row[name]) for name in ("flows", "mappings", "blocks", "refused")}


def _idle(when: Any, now: int) -> Any:
    """How long ago, in ms, given ms modulo 2^32."""
    return (now // MILLISECOND - np.asarray(when).astype(np.int64)) & MILLISECONDS


def _timeouts(nat: NatTables, rows: Any) -> Any:
    """How long each flow may be idle, in ms (wheel.timeout_of)."""
    settings = nat.settings[0]
    state, protocol = np.minimum(rows["state"], TIMER.size - 1), rows["key"] >> 32 & 0xFF
    timer = TIMER[state]
    tcp = np.where(timer == OPEN, settings.tcp_established, np.where(timer == OPENING, settings.tcp_opening, settings.tcp_closing))
    return np.where(state == ACTIVE, np.where(protocol == UDP, settings.udp, settings.icmp), tcp)


def _describe(nat: NatTables, slot: int, row: Any, now: int) -> dict[str, Any]:
    key, wide = int(row["key"]), nat.wide[slot]
    device, version, protocol = key >> DEVICE_SHIFT, 6 if key >> V6_SHIFT & 1 else 4, key >> 32 & 0xFF
    owner, pool = nat.subscribers[device], nat.pool[int(row["pool"])]
    outside_hi, outside_lo = (owner.external6_hi, owner.external6_lo) if version == 6 else (0, pool.address)

    def endpoint(hi: Any, lo: Any, port: int) -> dict[str, Any]:
        return {"address": str(from_words(version, int(hi) if version == 6 else 0, int(lo))), "port": port}

    return {
        "device": device,
        "protocol": PROTOCOL_NAMES.get(protocol, str(protocol)),
        "internal": endpoint(wide.internal_hi, row["internal_lo"], key >> 16 & 0xFFFF),
        "external": endpoint(outside_hi, outside_lo, key & 0xFFFF),
        "remote": endpoint(wide.remote_hi, row["remote_lo"], int(row["remote_port"])),
        "state": STATE_NAMES[min(int(row["state"]), len(STATE_NAMES) - 1)],
        "idle_seconds": int(_idle(row["seen"], now)) / 1000,
        "age_seconds": int(_idle(row["created"], now)) / 1000,
        "packets_out": int(row["packets"][CLIENT]),
        "bytes_out": int(row["octets"][CLIENT]),
        "packets_in": int(row["packets"][SERVER]),
        "bytes_in": int(row["octets"][SERVER]),
    }
