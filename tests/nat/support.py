"""A translator with its tables, driven as the gateway drives it, and a check that every table agrees with every other."""

from typing import Any

import numpy as np

from egressvpn.nat.ports import bitmap
from egressvpn.nat.tables import (
    FLOWS_IN,
    FLOWS_OUT,
    LISTS,
    MAPPINGS_IN,
    MAPPINGS_OUT,
    OF_DEVICE,
    OF_MAPPING,
    OF_PERMIT,
    PERMITS,
    PORT_KINDS,
    PORT_WORDS,
    REGIONS,
    SECOND,
    NatTables,
    configure,
    seed,
    set_pool,
    subscribe,
    tables,
)
from egressvpn.nat.tcp import FREE
from egressvpn.nat.translate import inbound, open_outbound, outbound
from egressvpn.packet.headers import parse
from egressvpn.verdict import Verdict
from tests.packet.support import START, address, as_words, place, raw, record, taken

POOL4 = ("203.0.113.1", "203.0.113.2")
POOL6 = "2001:db8:113::"


class Gateway:
    """Devices 1.. share the pool; each has an IPv6 address of its own. Time is in seconds here."""

    def __init__(self, max_flows: int = 64, devices: int = 4, ports: tuple[int, int] = (1024, 65535), **behaviour: int) -> None:
        made = {
            name: (np.zeros(count, kind).view(np.recarray) if kind.names else np.zeros(count, kind))
            for name, (kind, count) in tables(max_flows, devices, len(POOL4)).items()
        }
        self.nat = NatTables(**made)
        seed(self.nat, 0x1122334455667788, -0x0102030405060708)
        configure(self.nat, **behaviour)
        for slot, host in enumerate(POOL4, 1):
            set_pool(self.nat, slot, as_words(host)[1], *ports)
        for device in range(1, devices + 1):
            subscribe(self.nat, device, 1 + device % len(POOL4), *as_words(self.external6(device)))

    @staticmethod
    def external6(device: int) -> str:
        return f"{POOL6}{device}"

    @staticmethod
    def external4(device: int) -> str:
        return POOL4[device % len(POOL4)]

    def send(self, device: int, packet: Any, now: float = 0.0) -> tuple[Verdict, Any, bytes]:
        """A packet from a device: verdict, its PACKET record, and how it leaves."""
        buffer, row = loaded(packet)
        before = buffer.copy()
        verdict = outbound(self.nat, device, row, buffer, ns(now))
        if verdict == Verdict.NO_MAPPING and row.icmp_error == 0:
            verdict = open_outbound(self.nat, device, row, ns(now))
            if verdict == Verdict.PASS:
                verdict = outbound(self.nat, device, row, buffer, ns(now))
        if verdict != Verdict.PASS:
            assert (buffer == before).all()
        return Verdict(verdict), row, taken(buffer, row)

    def receive(self, packet: Any, now: float = 0.0, partial: int = 0, segments: int = 1) -> tuple[Verdict, Any, bytes]:
        """A packet from outside: verdict, its PACKET record, and how it goes to its device."""
        buffer, row = loaded(packet)
        row.partial, row.segments = partial, segments
        before = buffer.copy()
        verdict = inbound(self.nat, row, buffer, ns(now))
        if verdict != Verdict.PASS:
            assert (buffer == before).all()
        return Verdict(verdict), row, taken(buffer, row)

    def external(self, device: int, packet: Any, now: float = 0.0) -> tuple[str, int]:
        """The external endpoint that a packet of the device leaves from."""
        verdict, row, _ = self.send(device, packet, now)
        assert verdict == Verdict.PASS
        return address(row.version, row.source_hi, row.source_lo), int(row.source_port)

    def octets(self) -> bytes:
        """Every table, to see whether anything changed. The scratch rows do not count."""
        return b"".join(np.ascontiguousarray(table).tobytes() for name, table in self.nat._asdict().items() if name != "quote")

    def live(self) -> set[tuple[int, ...]]:
        """The keys of the flows in use."""
        names = ("key", "internal_hi", "internal_lo", "remote_hi", "remote_lo", "external_key", "external_hi", "external_lo")
        return {tuple(int(row[name]) for name in names) for row in self.nat.flows if row["state"] != FREE}


def ns(seconds: float) -> int:
    return 1000 * SECOND + round(seconds * SECOND)


def loaded(packet: Any) -> tuple[Any, Any]:
    octets = packet if isinstance(packet, bytes) else raw(packet)
    buffer, row = place(octets), record()
    assert parse(buffer, START, len(octets) + 7, row) == Verdict.PASS
    return buffer, row


def assert_consistent(nat: NatTables) -> None:
    """Chains, lists, permits, bitmaps, free lists and counts all say the same."""
    settings = nat.settings[0]
    flows = {slot for slot in range(nat.flows.size) if nat.flows[slot]["state"] != FREE}
    mappings = {slot for slot in range(nat.mappings.size) if nat.mappings[slot]["state"] != FREE}
    permits = {int(nat.flows[slot]["permit"]) for slot in flows}
    assert 0 not in flows | mappings | permits
    assert (settings.flows, settings.mappings, settings.permits) == (len(flows), len(mappings), len(permits))
    assert chained(nat, FLOWS_OUT, nat.flows, "next_out") == sorted(flows)
    assert chained(nat, FLOWS_IN, nat.flows, "next_in") == sorted(flows)
    assert chained(nat, MAPPINGS_OUT, nat.mappings, "next_out") == sorted(mappings)
    assert chained(nat, MAPPINGS_IN, nat.mappings, "next_in") == sorted(mappings)
    assert chained(nat, PERMITS, nat.permits, "next") == sorted(permits)
    assert free_list(nat.flows, settings.flow_free, "next_out") == set(range(1, settings.flow_high + 1)) - flows
    assert free_list(nat.mappings, settings.mapping_free, "next_out") == set(range(1, settings.mapping_high + 1)) - mappings
    assert free_list(nat.permits, settings.permit_free, "next") == set(range(1, settings.permit_high + 1)) - permits
    owners = [(OF_MAPPING, nat.mappings, slot, "mapping") for slot in mappings] + [(OF_PERMIT, nat.permits, s, "permit") for s in permits]
    for kind, table, slot, name in owners:
        assert listed(nat, kind, table[slot]["first"]) == {f for f in flows if nat.flows[f][name] == slot} != set()
    for device in range(nat.subscribers.size):
        own = {f for f in flows if int(nat.flows[f]["key"]) >> 41 == device}
        assert listed(nat, OF_DEVICE, nat.subscribers[device].first) == own
        assert nat.subscribers[device].flows == len(own)
        assert nat.subscribers[device].mappings == sum(int(nat.mappings[m]["key"]) >> 41 == device for m in mappings)
    assert_ports(nat, mappings)
    assert settings.slice_violations == 0


def assert_ports(nat: NatTables, mappings: set[int]) -> None:
    """A port is taken exactly when one mapping has it; all lie in the slice."""
    held = []
    for slot in mappings:
        row = nat.mappings[slot]
        if row["pool"]:
            kind = {6: 0, 17: 1, 1: 2}[int(row["key"]) >> 32 & 0xFF]
            held.append((int(row["pool"]), kind, int(row["external_key"]) >> 16 & 0xFFFF))
    assert len(held) == len(set(held))
    taken_bits = []
    for pool in range(1, nat.pool.size):
        for kind in range(PORT_KINDS):
            words = nat.port_bits[bitmap(pool, kind) : bitmap(pool, kind) + PORT_WORDS]
            for word in np.nonzero(words)[0]:
                bits = int(words[word]) & (1 << 64) - 1
                taken_bits += [(pool, kind, int(word) * 64 + bit) for bit in range(64) if bits >> bit & 1]
            assert nat.pool[pool].used[kind] == sum(entry[:2] == (pool, kind) for entry in held)
    assert sorted(held) == taken_bits
    assert all(nat.pool[pool].port_low <= port <= nat.pool[pool].port_high for pool, _, port in held)


def chained(nat: NatTables, region: int, table: Any, link: str) -> list[int]:
    size = nat.heads.size // REGIONS
    found = []
    for head in nat.heads[region * size : (region + 1) * size]:
        slot = int(head)
        while slot:
            found.append(slot)
            assert len(found) < table.size
            slot = int(table[slot][link])
    return sorted(found)


def free_list(table: Any, first: int, link: str) -> set[int]:
    found: list[int] = []
    slot = int(first)
    while slot:
        found.append(slot)
        assert len(found) < table.size
        slot = int(table[slot][link])
    assert len(found) == len(set(found))
    return set(found)


def listed(nat: NatTables, kind: int, first: int) -> set[int]:
    assert 0 <= kind < LISTS
    found, before, slot = set(), 0, int(first)
    while slot:
        assert slot not in found
        assert nat.flows[slot]["prev"][kind] == before
        found.add(slot)
        before, slot = slot, int(nat.flows[slot]["next"][kind])
    return found
