"""A translator with its tables, driven as the gateway drives it, and a check that every table agrees with every other."""

from typing import Any

import numpy as np

from egressvpn.nat.expiry import STEP, expire
from egressvpn.nat.pools import set_pool
from egressvpn.nat.recovery import recover
from egressvpn.nat.tables import DERIVED, SECOND, TICK_SHIFT, NatTables, configure, seed, subscribe, tables
from egressvpn.nat.tcp import FREE
from egressvpn.nat.translate import inbound, open_outbound, outbound
from egressvpn.packet.headers import parse
from egressvpn.verdict import Verdict
from tests.nat.consistency import assert_consistent
from tests.packet.support import START, address, as_words, place, raw, record, taken

POOL4 = ("203.0.113.1", "203.0.113.2")
POOL6 = "2001:db8:113::"
GROUP = 1

__all__ = ["GROUP", "POOL4", "POOL6", "Gateway", "assert_consistent", "loaded", "ns"]


class Gateway:
    """Devices 1.. share the pool; each has an IPv6 address of its own. Time is in seconds here, and `now` is the last that was told."""

    def __init__(
        self,
        max_flows: int = 64,
        devices: int = 4,
        ports: tuple[int, int] = (1024, 65535),
        block_size: int = 0,
        max_blocks: int = 256,
        pool: tuple[str, ...] = POOL4,
        fixed: tuple[int, int] = (0, 0),
        **behaviour: int,
    ) -> None:
        """`block_size` 0: 32 blocks of an address. `fixed`: number and size of predefined blocks."""
        made = {
            name: (np.zeros(count, kind).view(np.recarray) if kind.names else np.zeros(count, kind))
            for name, (kind, count) in tables(max_flows, devices, len(pool)).items()
        }
        self.nat = NatTables(**made)
        self.addresses = pool
        self.now = 0.0
        self.late = False  # True: `expire` is not called before packets
        seed(self.nat, 0x1122334455667788, -0x0102030405060708)
        configure(self.nat, **behaviour)
        self.nat.settings[0].tick = ns(0) >> TICK_SHIFT
        size = block_size or max(1, (ports[1] - ports[0] + 1) // 32)
        for slot, host in enumerate(pool, 1):
            assert set_pool(self.nat, slot, as_words(host)[1], GROUP, *ports, size, max_blocks, *fixed) == 1
        for device in range(1, devices + 1):
            subscribe(self.nat, device, 100 + device, 1 + device % len(pool), *as_words(self.external6(device)), 0)

    @staticmethod
    def external6(device: int) -> str:
        return f"{POOL6}{device}"

    @staticmethod
    def external4(device: int) -> str:
        return POOL4[device % len(POOL4)]

    def send(self, device: int, packet: Any, now: float | None = None) -> tuple[Verdict, Any, bytes]:
        """A packet from a device: verdict, its PACKET record, and how it leaves. What is due by then expires first."""
        self.pass_time(now)
        buffer, row = loaded(packet)
        before = buffer.copy()
        verdict = outbound(self.nat, device, row, buffer, ns(self.now))
        if verdict == Verdict.NO_MAPPING and row.icmp_error == 0:
            verdict = open_outbound(self.nat, device, row, ns(self.now))
            if verdict == Verdict.PASS:
                verdict = outbound(self.nat, device, row, buffer, ns(self.now))
        if verdict != Verdict.PASS:
            assert (buffer == before).all()
        return Verdict(verdict), row, taken(buffer, row)

    def receive(self, packet: Any, now: float | None = None, partial: int = 0, segments: int = 1) -> tuple[Verdict, Any, bytes]:
        """A packet from outside: verdict, its PACKET record, and how it goes to its device."""
        self.pass_time(now)
        buffer, row = loaded(packet)
        row.partial, row.segments = partial, segments
        before = buffer.copy()
        verdict = inbound(self.nat, row, buffer, ns(self.now))
        if verdict != Verdict.PASS:
            assert (buffer == before).all()
        return Verdict(verdict), row, taken(buffer, row)

    def pass_time(self, now: float | None) -> None:
        if self.late:
            self.now = self.now if now is None else now
        else:
            self.expire(now)

    def expire(self, now: float | None = None) -> int:
        """Let time pass, up to `now`, and end what is due. Returns how many flows that were."""
        self.now = self.now if now is None else now
        before = int(self.nat.settings[0].flows_expired)
        while expire(self.nat, STEP, ns(self.now)) == STEP:
            pass
        return int(self.nat.settings[0].flows_expired) - before

    def restart(self) -> int:
        """The worker dies and its successor recovers. Returns how many flows there are."""
        for name in DERIVED:
            getattr(self.nat, name)[:] = 0
        return int(recover(self.nat, ns(self.now)))

    def external(self, device: int, packet: Any, now: float | None = None) -> tuple[str, int]:
        """The external endpoint that a packet of the device leaves from."""
        verdict, row, _ = self.send(device, packet, now)
        assert verdict == Verdict.PASS
        return address(row.version, row.source_hi, row.source_lo), int(row.source_port)

    def octets(self) -> bytes:
        """Every table, to see whether anything changed. The scratch rows, the waiting SYNs and the hand of the wheel do not count."""
        settings = self.nat.settings.copy()
        settings.tick = settings.syn_tail = 0
        kept = [table for name, table in self.nat._asdict().items() if name not in ("quote", "settings", "syns")]
        return b"".join(np.ascontiguousarray(table).tobytes() for table in [settings, *kept])

    def live(self) -> set[tuple[int, ...]]:
        """The flows in use: key, internal address, remote endpoint."""
        return {self.key_of(slot) for slot in range(self.nat.flows.size) if self.nat.flows[slot]["state"] != FREE}

    def key_of(self, slot: int) -> tuple[int, ...]:
        row, wide = self.nat.flows[slot], self.nat.wide[slot]
        key = int(row.key)
        high = (int(wide.internal_hi), int(wide.remote_hi)) if key >> 40 & 1 else (0, 0)
        return key, high[0], int(row.internal_lo), high[1], int(row.remote_lo), int(row.remote_port)


def ns(seconds: float) -> int:
    return 1000 * SECOND + round(seconds * SECOND)


def loaded(packet: Any) -> tuple[Any, Any]:
    octets = packet if isinstance(packet, bytes) else raw(packet)
    buffer, row = place(octets), record()
    assert parse(buffer, START, len(octets) + 7, row) == Verdict.PASS
    return buffer, row
