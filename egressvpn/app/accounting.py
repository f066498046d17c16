"""Accounting for external addresses: from the data path's journal and the fleet, by way of the ledger, to the NAT log.

Every INTERVAL the journal is read and what is new is handed to the log, which writes in a thread of its own. Nothing waits for
the disk: when the log has no room, or the journal was overwritten before it was read, the loss is counted and said in the log, and a
checkpoint follows it as soon as there is room. The ledger is right all the time.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

import structlog
import trio

from egressvpn import __version__
from egressvpn.control.records import Device
from egressvpn.nat.pool_view import owned, read
from egressvpn.nat.tables import BLOCK_GIVEN
from egressvpn.observe.nat_history import EVER, Replay, about, first_record, replay_end
from egressvpn.observe.nat_ledger import HeldBack, Holder, Ledger
from egressvpn.observe.nat_log import NatLog
from egressvpn.observe.nat_records import CHECKPOINT, CLOCK, DETERMINISTIC, LOST, SCHEMA, START, STOP, Record, wall_ns, written

log = structlog.get_logger(__name__)

INTERVAL: Final = 0.25  # s
AT_ONCE: Final = 2000  # entries of the journal in one turn
CLOCK_STEP: Final = 100_000_000  # ns; less is the clock being steered
CHECKPOINT_RECORDS: Final = 50_000  # between two checkpoints of a file at least, and
CHECKPOINT_SHARE: Final = 4  # as many times what is held
STOP_PATIENCE: Final = 3.0  # s for the last lines
EPOCH: Final = "nat_log_epoch"  # what the store notes


class Accounts:
    """Made before the fleet, which tells it of devices and IPv6 addresses. All in the thread of trio, but the log's writing."""

    def __init__(
        self,
        nat: Any,
        nat_log: NatLog | None,
        *,
        gateway: str,
        epoch: int,
        hold_down: int,
        wall: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._nat = nat
        self._log = nat_log
        self._gateway = gateway
        self._epoch = epoch
        self._wall, self._monotonic = wall, monotonic
        self._offset = wall() - monotonic()
        self._after = 0  # the last entry of the journal that was read
        self._losing = ""  # since when records are lost; "": they are not
        self._lost = 0  # since then
        self._written = 0  # records since the last checkpoint
        self._deterministic: list[Record] = []
        self._over: list[HeldBack] = []
        self._read = self._wall()  # when the journal was read last
        self.ledger = Ledger(epoch, hold_down)
        self.dropped = 0  # records that the log does not have

    @property
    def trouble(self) -> str:
        """What is wrong with the log, a sentence; or nothing."""
        if self._log is not None and self._log.trouble:
            return self._log.trouble
        return f"the NAT log is losing events since {self._losing}" if self._losing else ""

    def begin(self) -> None:
        """Say that the gateway starts. What devices held until a moment ago is held back."""
        now = self._wall()
        if self._log is None:
            return
        self.ledger.hold_back(left_behind(self._log, now, self.ledger.hold_down))
        try:
            resumed = self._log.resume(now)
        except OSError as error:
            log.error("the NAT log cannot be continued; another file is begun", error=str(error))
            resumed = False
        if not resumed:
            self._begin_file(now, self._log.last if self._log.last > written(now) else "")
        self._put([self._record(now, START, gateway=self._gateway, version=__version__)])

    def set_deterministic(self, pools: Iterable[dict[str, Any]]) -> None:
        """How deterministic pools are computed from now on (RFC 7422 section 2.3 wants it recorded, and again every day)."""
        records = [self._record(0, DETERMINISTIC, **pool) for pool in pools]
        if records != self._deterministic:
            self._deterministic = records
            self._put_deterministic(self._wall())

    # what the fleet tells

    def on_device(self, device: Device) -> None:
        holder = Holder(device.id, device.name, tuple(map(str, device.addresses)))
        if self.ledger.names_otherwise(holder):
            self._catch_up()  # what it got before, it got with the old name
        self._put(self.ledger.on_device(holder, self._wall()))

    def on_device_gone(self, device_id: int) -> None:
        now = self._wall()
        self.ledger.on_device_gone(device_id, now)
        self._put(self.ledger.release_addresses(device_id, now))

    def on_address(self, device_id: int, address: IPv6Address, pool: str) -> None:
        """The device has this external IPv6 address; the one before, if there was one, it has no longer."""
        self._put(self.ledger.allocate(device_id, str(address), None, pool, self._wall()))

    def on_address_gone(self, device_id: int) -> None:
        self._put(self.ledger.release_addresses(device_id, self._wall()))

    def let_go(self) -> list[HeldBack]:
        """What is not held back any more since this was asked last."""
        over, self._over = [*self._over, *self.ledger.expire(self._wall())], []
        return over

    def monotonic_at(self, wall: int) -> int:
        """The data path's time (ns) for a time since the epoch."""
        return wall - self._offset

    # the journal

    async def run(self) -> None:
        """Until cancelled. After that nothing is held any more: the data path must have ended."""
        try:
            async with trio.open_nursery() as nursery:
                if self._log is not None:
                    nursery.start_soon(self._log.run)
                while True:
                    await trio.sleep(INTERVAL)
                    while self.follow():
                        await trio.lowlevel.checkpoint()
        finally:
            with trio.move_on_after(STOP_PATIENCE, shield=True):
                await self._end()

    def follow(self) -> bool:
        """Read what is new in the journal, and see to the log. True when there may be more."""
        entries, lost = read(self._nat, self._after, AT_ONCE)
        self._after += lost + len(entries)
        now = self._wall()
        self._put([record for entry in entries for record in self._on_entry(entry)])
        if lost:
            self._begin_anew(lost, now)
        self._mind_clock(now)
        self._over += self.ledger.expire(now)
        self._see_to_log(now)
        if len(entries) == AT_ONCE:
            return True
        self._read = now
        return False

    def _catch_up(self) -> None:
        while self.follow():
            pass

    def _on_entry(self, entry: Any) -> Sequence[Record]:
        external = str(IPv4Address(int(entry["address"])))
        ports = int(entry["port_low"]), int(entry["port_high"])
        when = int(entry["when"]) + self._offset
        if entry["kind"] == BLOCK_GIVEN:
            return self.ledger.allocate(int(entry["identity"]), external, ports, self.ledger.pools.get(external, ""), when)
        return self.ledger.release(external, ports[0], when, int(entry["identity"]))

    def _begin_anew(self, lost: int, now: int) -> None:
        """The journal was overwritten before it was read: what the tables say is what is held."""
        self._after = int(self._nat.settings[0].journal)
        blocks = [
            (identity, str(IPv4Address(address)), (low, high), given + self._offset)
            for _, address, low, high, identity, given in owned(self._nat)
        ]
        self.ledger.replace_blocks(blocks, now)
        self._lose(lost, self._read)

    def _mind_clock(self, now: int) -> None:
        offset = now - self._monotonic()
        step = offset - self._offset
        if abs(step) < CLOCK_STEP:
            return
        self._offset = offset
        self.ledger.on_clock(step)
        self._put([self._record(now, CLOCK, was=written(now - step))])
        if step < 0:
            self._begin_file(now, written(now - step))  # inside a file times only rise

    # the log

    def _see_to_log(self, now: int) -> None:
        """A file for each name; and after a loss, a checkpoint."""
        if self._log is None:
            return
        name = self._log.name(now)
        if self._log.moved or (name != self._log.current and written(now) > self._log.began):
            if self._begin_file(now):
                self._put_deterministic(now)
        elif self._losing:
            self._mend(now)
        elif self._written > max(CHECKPOINT_RECORDS, CHECKPOINT_SHARE * len(self.ledger)):
            self._checkpoint(now)

    def _put(self, records: Sequence[Record]) -> None:
        if self._log is None or not records:
            return
        if self._losing or not self._log.append(records):
            self._lose(len(records), wall_ns(records[0].time))
        self._written += len(records)

    def _lose(self, count: int, since: int) -> None:
        if self._log is None:
            return
        if not self._losing:
            self._losing = written(since)
            log.error("the NAT log is losing events", since=self._losing)
        self.dropped += count
        self._lost += count

    def _mend(self, now: int) -> None:
        """Say what was lost and go on from a checkpoint, when there is room for it."""
        if self._checkpoint(now, self._record(now, LOST, count=self._lost, since=self._losing)):
            log.warning("the NAT log goes on", lost=self._lost, since=self._losing)
            self._losing, self._lost = "", 0

    def _checkpoint(self, now: int, *before: Record) -> bool:
        """So that the next start need not read all of a large file."""
        assert self._log is not None
        held = self.ledger.held()
        done = self._log.append([*before, self._record(now, CHECKPOINT, live=len(held), gateway=self._gateway)], held)
        if done:
            self._written = 0
        return done

    def _begin_file(self, now: int, was: str = "") -> bool:
        """`was`: what the clock showed before it was set back."""
        if self._log is None:
            return False
        held = self.ledger.held()
        head = self._record(now, CHECKPOINT, live=len(held), gateway=self._gateway, file=self._log.file + 1, was=was)
        begun = self._log.begin_file(head, held, self._log.name(now))
        if begun:
            self._written = 0
        if begun and self._losing:
            self._mend(now)
        return begun

    def _put_deterministic(self, now: int) -> None:
        self._put([self._record(now, like=record) for record in self._deterministic])

    def _record(self, now: int, event: str = "", like: Record | None = None, **members: Any) -> Record:
        import msgspec

        if like is not None:
            return msgspec.structs.replace(like, time=written(now))
        return Record(SCHEMA, written(now), event, self._epoch, **members)

    async def _end(self) -> None:
        """Nothing is held across a stop."""
        self._catch_up()
        now = self._wall()
        self._put([*self.ledger.release_all(now), self._record(now, STOP)])
        if self._log is not None:
            await self._log.flush()
            self._log.close()


def left_behind(nat_log: NatLog, now: int, hold_down: int) -> list[HeldBack]:
    """What earlier runs of the gateway gave to devices, as long as nobody else may have it."""
    begin, files = written(now - hold_down), nat_log.files()
    heads = [head for path in files if (head := first_record(path)) is not None]
    seen = Replay()
    for path in about(files, heads, begin, EVER):
        replay_end(path, seen, begin)
    ends = [(now if not held.end else wall_ns(held.end), held.record) for held in seen.holdings()]
    held = [HeldBack(record.external, record.ports, record.device_id, end + hold_down) for end, record in ends]
    return sorted((one for one in held if one.until > now), key=lambda one: one.until)


def next_epoch(nat_log: NatLog | None, noted: str | None) -> int:
    """A number that no earlier run of this gateway had."""
    files = nat_log.files() if nat_log is not None else []
    head = first_record(files[-1]) if files else None
    return 1 + max(int(noted or 0), 0 if head is None else head.epoch)
