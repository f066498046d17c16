"""What devices hold of the pools in this moment, and what they held until a moment ago: what the NAT log is written from.

Events come in from the data path's journal and from the fleet; out come the records to write. Sans-I/O: times are handed in, as the
log writes them and in nanoseconds. A block, and an IPv6 address, is *held back* for `hold_down` after its release: nobody but its
last owner may have it (RFC 6888 REQ-8). The data path does so for blocks by itself, but for the time that the gateway, or the pool,
was not there.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from egressvpn.observe.nat_records import (
    ADDRESS_ALLOCATED,
    ADDRESS_RELEASED,
    BLOCK_ALLOCATED,
    BLOCK_RELEASED,
    DEVICE_CHANGED,
    PROTOCOLS,
    SCHEMA,
    Record,
    written,
)

Key = tuple[str, int]  # external address, first port (-1: the whole address)

REMEMBERED: Final = 60_000_000_000  # ns that a removed device's name is kept for what is still to be told of it


@dataclasses.dataclass(frozen=True, slots=True)
class Holder:
    """A device as the log names it."""

    device_id: int
    name: str
    internal: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class HeldBack:
    """Ports (or an address) that are nobody's but `device_id`'s for now."""

    external: str
    ports: tuple[int, int] | None
    device_id: int
    until: int  # ns since the epoch


class Ledger:
    """Every method that changes something returns the records that say so."""

    def __init__(self, epoch: int, hold_down: int) -> None:
        self._epoch = epoch
        self.hold_down = hold_down  # ns
        self._held: dict[Key, Record] = {}  # as allocated
        self._of_device: dict[int, set[Key]] = {}
        self._released: dict[Key, HeldBack] = {}  # oldest first
        self._holders: dict[int, Holder] = {}
        self._gone: dict[int, int] = {}  # removed devices, oldest first: when
        self.pools: dict[str, str] = {}  # names, by external IPv4 address

    # devices

    def on_device(self, holder: Holder, wall_ns: int) -> list[Record]:
        """A device, as it is from now on."""
        known = self._holders.get(holder.device_id)
        self._holders[holder.device_id] = holder
        self._gone.pop(holder.device_id, None)
        keys = self._of_device.get(holder.device_id, ())
        if known == holder or not keys:
            return []
        for key in keys:
            self._held[key] = replace(self._held[key], device=holder.name, internal=holder.internal)
        told = Record(SCHEMA, written(wall_ns), DEVICE_CHANGED, self._epoch, holder.name, holder.device_id, holder.internal)
        return [told]

    def names_otherwise(self, holder: Holder) -> bool:
        """Whether the device is known, by another name or with other addresses."""
        return self._holders.get(holder.device_id, holder) != holder

    def on_device_gone(self, device_id: int, wall_ns: int) -> None:
        """A device was removed; what it held is released by events of its own."""
        self._gone[device_id] = wall_ns

    # holdings

    def allocate(self, device_id: int, external: str, ports: tuple[int, int] | None, pool: str, wall_ns: int) -> list[Record]:
        key = (external, -1 if ports is None else ports[0])
        if key in self._held and self._held[key].device_id == device_id:
            return []
        holder = self._holders.get(device_id) or Holder(device_id, f"#{device_id}", ())
        event = BLOCK_ALLOCATED if ports else ADDRESS_ALLOCATED
        record = Record(
            SCHEMA,
            written(wall_ns),
            event,
            self._epoch,
            device=holder.name,
            device_id=device_id,
            internal=holder.internal,
            external=external,
            ports=ports,
            protocols=PROTOCOLS,
            pool=pool,
        )
        self._take(key)
        self._released.pop(key, None)
        self._held[key] = record
        self._of_device.setdefault(device_id, set()).add(key)
        return [record]

    def release(self, external: str, first_port: int, wall_ns: int, device_id: int = 0) -> list[Record]:
        """Nothing, when it was not held; or not by `device_id`, if that is said."""
        key = (external, first_port)
        if key not in self._held or device_id not in (0, self._held[key].device_id):
            return []
        record = self._take(key)
        assert record is not None
        self._released.pop(key, None)
        self._released[key] = HeldBack(external, record.ports, record.device_id, wall_ns + self.hold_down)
        event = BLOCK_RELEASED if record.ports else ADDRESS_RELEASED
        return [replace(record, time=written(wall_ns), event=event, since=record.time)]

    def release_all(self, wall_ns: int) -> list[Record]:
        return [record for key in list(self._held) for record in self.release(*key, wall_ns)]

    def release_addresses(self, device_id: int, wall_ns: int) -> list[Record]:
        """The IPv6 addresses of a device."""
        keys = [key for key in self._of_device.get(device_id, ()) if key[1] < 0]
        return [record for key in keys for record in self.release(*key, wall_ns)]

    def replace_blocks(self, blocks: Iterable[tuple[int, str, tuple[int, int], int]], wall_ns: int) -> None:
        """After events were lost: these (device, external address, ports, since when, ns) are all the blocks that are held."""
        named = {(external, ports[0]): (device_id, external, ports, when) for device_id, external, ports, when in blocks}
        for key in [key for key in self._held if key[1] >= 0]:
            if key not in named or named[key][0] != self._held[key].device_id:
                self.release(*key, wall_ns)
        for device_id, external, ports, when in named.values():
            self.allocate(device_id, external, ports, self.pools.get(external, ""), when)

    def held(self) -> Sequence[Record]:
        """Everything, as allocated."""
        return list(self._held.values())

    def __len__(self) -> int:
        return len(self._held)

    # what is held back

    def hold_back(self, held: Iterable[HeldBack]) -> None:
        """What an earlier run of the gateway left; sorted by `until`."""
        for one in held:
            key = (one.external, -1 if one.ports is None else one.ports[0])
            self._released.pop(key, None)
            self._released[key] = one

    def on_clock(self, step: int) -> None:
        """The clock was set, `step` ns forward: nothing is held back longer or shorter for that."""
        self._released = {key: dataclasses.replace(one, until=one.until + step) for key, one in self._released.items()}

    def held_back(self, wall_ns: int) -> Iterator[HeldBack]:
        return (one for one in list(self._released.values()) if one.until > wall_ns)

    def is_held_for(self, device_id: int, external: str) -> bool:
        """Whether an IPv6 address is held back, and the device had it last."""
        held = self._released.get((external, -1))
        return held is not None and held.device_id == device_id

    def expire(self, wall_ns: int) -> list[HeldBack]:
        """Forget what is over, and say what was held back until now."""
        over = []
        for key, one in self._released.items():
            if one.until > wall_ns:
                break
            over.append((key, one))
        for key, _ in over:
            del self._released[key]
        for device_id, when in list(self._gone.items()):
            if when + REMEMBERED > wall_ns:
                break
            del self._gone[device_id]
            if device_id not in self._of_device:
                self._holders.pop(device_id, None)
        return [one for _, one in over]

    def _take(self, key: Key) -> Record | None:
        record = self._held.pop(key, None)
        if record is not None:
            keys = self._of_device[record.device_id]
            keys.discard(key)
            if not keys:
                del self._of_device[record.device_id]
        return record
