"""A batch of peer changes on the database: by public key, many at once, in order, as WireGuard's tools make them.

It is worked out in memory on what it touches, and only the difference is written: the same configuration set twice changes
nothing, and no device loses its name, tags or sessions because its networks were listed again. A prefix given to one device
leaves the device that had it.
"""

import base64
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from egressvpn.control.keys import encode_key
from egressvpn.control.peers import PeerChange
from egressvpn.control.tables import allowed_ip, device, device_key
from egressvpn.errors import OperatorError

T = TypeVar("T")

CHUNK: Final = 5000  # values in one question; both databases take six times as many
NAME_DIGITS: Final = 16  # of the key, in the name of a device that has none


@dataclass(slots=True)
class _Peer:
    """A device in the making. `stored` is what the database has of it: secret, endpoint, keepalive."""

    number: int  # id; negative until it has one
    key: str
    secret: str | None = field(default=None, repr=False)
    endpoint: str = ""
    keepalive: int = 0
    stored: tuple[str | None, str, int] | None = field(default=None, repr=False)

    @property
    def settings(self) -> tuple[str | None, str, int]:
        return self.secret, self.endpoint, self.keepalive


class Batch:
    """Changes to be made within a transaction that holds the write lock."""

    def __init__(self, connection: sa.Connection, pool: str, now: int) -> None:
        self._connection = connection
        self._pool = pool  # of new devices
        self._now = now  # s since the epoch
        self._fresh = itertools.count(-1, -1)  # numbers of devices that have no id yet
        self._peers: dict[str, _Peer] = {}  # by key
        self._dormant: dict[str, _Peer] = {}  # replaced, unless they are named again
        self._removed: set[int] = set()  # ids
        self._stored: dict[str, int] = {}  # network -> owner's id, of the networks that were read
        self._owner: dict[str, int] = {}  # the same, after the changes
        self._held: dict[int, dict[str, None]] = {}  # owner -> networks in order

    def apply(self, changes: Sequence[PeerChange], *, replace: bool, own_key: bytes) -> None:
        """Work the changes out. With `replace`, devices that are not named go, and those named begin with nothing."""
        changes = [change for change in changes if change.public_key != own_key]
        self._read(changes, replace, own_key)
        if (ourselves := self._peers.get(encode_key(own_key))) is not None:
            self._remove(ourselves)
        if replace:
            for peer in self._peers.values():
                self._empty(peer)
            self._dormant, self._peers = self._peers, {}
        for change in changes:
            self._apply(change)
        self._removed.update(peer.number for peer in self._dormant.values())

    def write(self, revision: int, limit: int) -> tuple[bool, set[int]]:
        """Write the difference: (whether there is one, the ids removed). Raises OperatorError when `limit` devices are too few."""
        moved = {network for network in self._stored.keys() | self._owner.keys() if self._stored.get(network) != self._owner.get(network)}
        fresh = [peer for peer in self._peers.values() if peer.stored is None]
        altered = [peer for peer in self._peers.values() if peer.stored is not None and peer.stored != peer.settings]
        if not (moved or fresh or altered or self._removed):
            return False, set()
        self._delete(moved)
        self._insert(fresh, revision, limit)
        self._update(altered)
        self._grant(moved, {peer.number for peer in altered} - self._removed, revision)
        return True, self._removed

    # working it out

    def _apply(self, change: PeerChange) -> None:
        peer = self._peers.get(encode_key(change.public_key))
        if change.remove:
            if peer is not None:
                self._remove(peer)
            return
        if peer is None:
            if change.update_only:
                return
            key = encode_key(change.public_key)
            peer = self._peers[key] = self._dormant.pop(key) if key in self._dormant else _Peer(next(self._fresh), key)
        if change.preshared_key is not None:
            peer.secret = encode_key(change.preshared_key) if any(change.preshared_key) else None
        peer.endpoint = peer.endpoint if change.endpoint is None else change.endpoint
        peer.keepalive = peer.keepalive if change.persistent_keepalive is None else change.persistent_keepalive
        if change.replace_allowed_ips:
            self._release(peer.number)
        for adding, network in change.allowed_ips:
            self._give(str(network), peer.number) if adding else self._take(str(network), peer.number)

    def _remove(self, peer: _Peer) -> None:
        self._release(peer.number)
        del self._peers[peer.key]
        if peer.stored is not None:
            self._removed.add(peer.number)

    def _empty(self, peer: _Peer) -> None:
        peer.secret, peer.endpoint, peer.keepalive = None, "", 0
        self._release(peer.number)

    def _give(self, network: str, number: int) -> None:
        before = self._owner.get(network)
        if before != number:
            if before is not None:
                self._take(network, before)
            self._owner[network] = number
            self._held.setdefault(number, {})[network] = None

    def _take(self, network: str, number: int) -> None:
        if self._owner.get(network) == number:
            del self._owner[network], self._held[number][network]

    def _release(self, number: int) -> None:
        for network in self._held.pop(number, ()):
            del self._owner[network]

    # reading

    def _read(self, changes: Sequence[PeerChange], replace: bool, own_key: bytes) -> None:
        peers = sa.select(
            device.c.id, device.c.endpoint, device.c.persistent_keepalive, device_key.c.public_key, device_key.c.preshared_key
        )
        keys = {encode_key(change.public_key) for change in changes} | {encode_key(own_key)}
        for row in self._rows(peers.join(device_key).order_by(device.c.id), None if replace else device_key.c.public_key, keys):
            stored = row.preshared_key, row.endpoint, row.persistent_keepalive
            self._peers[row.public_key] = _Peer(row.id, row.public_key, *stored, stored)
        networks = sa.select(allowed_ip.c.network, allowed_ip.c.device_id).order_by(allowed_ip.c.position)
        if replace:
            self._hold(self._rows(networks, None, ()))
            return
        emptied = {encode_key(change.public_key) for change in changes if change.replace_allowed_ips or change.remove} | {
            encode_key(own_key)
        }
        self._hold(self._rows(networks, allowed_ip.c.device_id, {p.number for key, p in self._peers.items() if key in emptied}))
        self._hold(self._rows(networks, allowed_ip.c.network, {str(network) for change in changes for _, network in change.allowed_ips}))

    def _hold(self, rows: Iterable[Any]) -> None:
        for network, owner in rows:
            self._stored[network] = self._owner[network] = owner
            self._held.setdefault(owner, {})[network] = None

    def _rows(self, query: sa.Select[Any], column: sa.Column[Any] | None, values: Iterable[Any]) -> Iterator[Any]:
        """The rows whose column has one of the values; without a column, all."""
        if column is None:
            yield from self._connection.execute(query)
            return
        for chunk in _chunks(sorted(values)):
            yield from self._connection.execute(query.where(column.in_(chunk)))

    # writing

    def _delete(self, moved: set[str]) -> None:
        """Devices that go take their keys and networks with them; networks that move leave first."""
        for chunk in _chunks(sorted(self._removed)):
            self._connection.execute(device.delete().where(device.c.id.in_(chunk)))
        lost = sorted(network for network in moved if network in self._stored and self._stored[network] not in self._removed)
        for part in _chunks(lost):
            self._connection.execute(allowed_ip.delete().where(allowed_ip.c.network.in_(part)))

    def _insert(self, fresh: list[_Peer], revision: int, limit: int) -> None:
        if not fresh:
            return
        if self._connection.execute(sa.select(sa.func.count()).select_from(device)).scalar_one() + len(fresh) > limit:
            raise OperatorError(f"there are {limit} devices at most", "raise wireguard.max_devices, or remove devices")
        names = self._names(fresh)
        common = {"enabled": True, "tags": [], "pool": self._pool, "created_at": self._now, "changed": revision}
        rows = [
            {"name": name, "endpoint": p.endpoint, "persistent_keepalive": p.keepalive, **common}
            for p, name in zip(fresh, names, strict=True)
        ]
        numbers = self._connection.execute(device.insert().returning(device.c.id, sort_by_parameter_order=True), rows).scalars().all()
        keys = [
            {"device_id": number, "public_key": peer.key, "preshared_key": peer.secret, "state": "active"}
            for peer, number in zip(fresh, numbers, strict=True)
        ]
        self._connection.execute(device_key.insert(), keys)
        for peer, number in zip(fresh, numbers, strict=True):
            for network in self._held.get(peer.number, ()):
                self._owner[network] = number
            self._held[number] = self._held.pop(peer.number, {})
            peer.number = number

    def _names(self, fresh: list[_Peer]) -> list[str]:
        taken = set(self._connection.execute(sa.select(device.c.name).where(device.c.name.like("wg-%"))).scalars())
        names = []
        for peer in fresh:
            stem = f"wg-{base64.b64decode(peer.key).hex()[:NAME_DIGITS]}"
            name = next(name for number in range(len(taken) + 1) if (name := f"{stem}-{number + 1}" if number else stem) not in taken)
            taken.add(name)
            names.append(name)
        return names

    def _update(self, altered: list[_Peer]) -> None:
        if altered:
            rows = [{"of": p.number, "endpoint": p.endpoint, "persistent_keepalive": p.keepalive} for p in altered]
            self._connection.execute(device.update().where(device.c.id == sa.bindparam("of")), rows)
            secrets = [{"of": p.key, "preshared_key": p.secret} for p in altered]
            self._connection.execute(device_key.update().where(device_key.c.public_key == sa.bindparam("of")), secrets)

    def _grant(self, moved: set[str], altered: set[int], revision: int) -> None:
        """Networks to their new owners, behind those they have; and the mark of this revision on every device concerned."""
        gainers = {self._owner[network] for network in moved if network in self._owner}
        last = dict.fromkeys(gainers, 0)
        highest = sa.select(allowed_ip.c.device_id, sa.func.max(allowed_ip.c.position)).group_by(allowed_ip.c.device_id)
        last.update((row[0], row[1] + 1) for row in self._rows(highest, allowed_ip.c.device_id, gainers))
        rows = []
        for number in sorted(gainers):
            gained = [network for network in self._held[number] if network in moved]
            rows += [{"network": network, "device_id": number, "position": last[number] + n} for n, network in enumerate(gained)]
        if rows:
            self._connection.execute(allowed_ip.insert(), rows)
        losers = {self._stored[network] for network in moved if network in self._stored} - self._removed
        for chunk in _chunks(sorted(gainers | losers | altered)):
            self._connection.execute(device.update().where(device.c.id.in_(chunk)).values(changed=revision))


def _chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))
