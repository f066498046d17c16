"""What the tables hold, for people: read by the control process while the worker writes, with numpy only.

Nothing is locked. A record may change while it is read, so it is copied first and its state looked at in the copy; a
copy torn in the middle is possible, rare, and only seen by eyes.
"""

import heapq
from typing import Any

import numpy as np

from egressvpn.addresses import from_words
from egressvpn.nat.tables import ICMP_PORTS, SECOND, TCP_PORTS, UDP_PORTS, NatTables
from egressvpn.nat.tcp import FREE, STATE_NAMES

DEVICE_SHIFT = 41  # as in nat/keys.py, which holds kernels
V6_SHIFT = 40
PROTOCOL_NAMES = {6: "tcp", 17: "udp", 1: "icmp", 58: "icmpv6"}
CHUNK = 65536  # rows copied at a time


def flows(nat: NatTables, now: int, device: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
    """Live flows, those seen last first, at most `limit`; of one device, or of all when it is 0. `now` is monotonic ns."""
    found: list[tuple[int, int, Any]] = []
    high = int(nat.settings[0].flow_high)
    for start in range(1, high + 1, CHUNK):
        rows = np.array(nat.flows[start : min(start + CHUNK, high + 1)])
        wanted = (rows["state"] != FREE) & (now - rows["seen"] < rows["timeout"])
        if device:
            wanted &= rows["key"] >> DEVICE_SHIFT == device
        slots = np.nonzero(wanted)[0]
        newest = slots[np.argsort(rows["seen"][slots], kind="stable")[::-1][:limit]]
        found.extend((int(rows[slot]["seen"]), -(start + int(slot)), rows[slot]) for slot in newest)
    return [_describe(row, now) for _, _, row in heapq.nlargest(limit, found, key=lambda entry: entry[:2])]


def counts(nat: NatTables) -> dict[str, int]:
    """Totals of the tables."""
    row = nat.settings[0]
    names = ("flows", "mappings", "permits", "flows_created", "flows_expired", "mappings_created", "slice_violations")
    return {name: int(row[name]) for name in names} | {"max_flows": nat.flows.size - 1}


def pool_usage(nat: NatTables) -> list[dict[str, Any]]:
    """Every pool address with its slice and how many of its ports are taken, by protocol."""
    usage = []
    for slot in np.nonzero(nat.pool["address"])[0]:
        row = nat.pool[slot]
        usage.append(
            {
                "slot": int(slot),
                "address": str(from_words(4, 0, int(row.address))),
                "port_low": int(row.port_low),
                "port_high": int(row.port_high),
                "size": int(row.port_high - row.port_low + 1),
                "tcp": int(row.used[TCP_PORTS]),
                "udp": int(row.used[UDP_PORTS]),
                "icmp": int(row.used[ICMP_PORTS]),
                "devices": int(np.count_nonzero(nat.subscribers["external4"] == slot)),
            }
        )
    return usage


def device_counts(nat: NatTables, device: int) -> dict[str, int]:
    """How many flows and mappings a device has."""
    row = nat.subscribers[device]
    return {"flows": int(row.flows), "mappings": int(row.mappings)}


def _describe(row: Any, now: int) -> dict[str, Any]:
    key, external_key = int(row["key"]), int(row["external_key"])
    version = 6 if key >> V6_SHIFT & 1 else 4
    protocol = key >> 32 & 0xFF

    def endpoint(name: str, port: int) -> dict[str, Any]:
        return {"address": str(from_words(version, int(row[f"{name}_hi"]), int(row[f"{name}_lo"]))), "port": port}

    return {
        "device": key >> DEVICE_SHIFT,
        "protocol": PROTOCOL_NAMES.get(protocol, str(protocol)),
        "internal": endpoint("internal", key >> 16 & 0xFFFF),
        "external": endpoint("external", external_key >> 16 & 0xFFFF),
        "remote": endpoint("remote", key & 0xFFFF),
        "state": STATE_NAMES[int(row["state"])],
        "idle_seconds": max(0, now - int(row["seen"])) / SECOND,
        "age_seconds": max(0, now - int(row["created"])) / SECOND,
        "packets_out": int(row["packets_out"]),
        "bytes_out": int(row["bytes_out"]),
        "packets_in": int(row["packets_in"]),
        "bytes_in": int(row["bytes_in"]),
    }
