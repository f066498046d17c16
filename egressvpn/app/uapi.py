"""The gateway as an interface that `wg` drives: what is set is a change of the store, or of the gateway's key, and outlives it.

A peer is a device (design.md 1.9): it gets a name from its key and the first pool. The private key goes into its file. Port and
fwmark are noted in the store beside the configuration, which is the operator's own and stays as he wrote it; they win over it at
the next start, with a line in the log. What equals the configuration is not noted.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from egressvpn.api.uapi import InterfaceState, PeerState
from egressvpn.api.uapi_lines import IO, PORT_IN_USE, RefusedError
from egressvpn.app import collector
from egressvpn.app.files import replace_private
from egressvpn.app.fleet import Fleet, Member
from egressvpn.app.ports import open_elsewhere, set_mark
from egressvpn.control.config import load_private_key
from egressvpn.control.keys import encode_key
from egressvpn.control.peers import PeerChange
from egressvpn.control.schema import Config
from egressvpn.control.store import Store
from egressvpn.control.tunnel import Tunnel
from egressvpn.errors import OperatorError
from egressvpn.wireguard.identity import LocalIdentity

log = structlog.get_logger(__name__)

# what is noted in the store
LISTEN_PORT: Final = "listen_port"
FWMARK: Final = "fwmark"
PRIVATE_KEY: Final = "private_key"
REMOVED: Final = "removed"


@dataclass(frozen=True, slots=True)
class Overrides:
    """What `wg set` has left for the next start."""

    listen_port: int
    fwmark: int


def overrides(config: Config, store: Store) -> Overrides:
    """Port and fwmark to start with. Says so when they are not those of the configuration."""
    configured = config.wireguard.listen[0].port
    port, mark = int(store.setting(LISTEN_PORT) or configured), int(store.setting(FWMARK) or 0)
    if port != configured:
        log.warning("the port set by wg is used, not the configured one", listen_port=port, configured=configured)
    if mark:
        log.warning("the fwmark set by wg is used, the configuration has none", fwmark=mark, configured=0)
    return Overrides(port, mark)


def own_private_key(config: Config, store: Store) -> bytes | None:
    """The gateway's key; None when `wg set` removed it. Raises ConfigError."""
    if store.setting(PRIVATE_KEY) == REMOVED and not config.private_key_path.exists():
        log.warning("the gateway has no private key, as wg has set it: it answers nobody", file=str(config.private_key_path))
        return None
    return load_private_key(config)


class GatewayControl:
    """Implements the UAPI's Backend for the gateway."""

    def __init__(self, config: Config, store: Store, tunnel: Tunnel, fleet: Fleet, mark: int, on_key_changed: Callable[[], None]) -> None:
        self._config = config
        self._store = store
        self._tunnel = tunnel
        self._fleet = fleet
        self._mark = mark
        self._on_key_changed = on_key_changed

    def state(self) -> InterfaceState:
        identities = self._tunnel.interface.identities
        key = identities[0].private_key if identities else None
        members = list(self._fleet.by_slot.values())
        return InterfaceState(key, self._tunnel.sockets[0].port, self._mark, (self._state(member) for member in members))

    def _state(self, member: Member) -> PeerState:
        device = member.device
        row = self._tunnel.wg.devices[member.slot]
        path = self._tunnel.path(member.slot)
        return PeerState(
            public_key=device.public_key,
            preshared_key=device.preshared_key,
            endpoint=device.endpoint if path is None else str(path),
            last_handshake_ns=int(row.last_handshake_wall),
            sent_bytes=int(row.sent_bytes),
            received_bytes=int(row.received_bytes),
            persistent_keepalive=device.persistent_keepalive,
            allowed_ips=device.allowed_ips,
        )

    async def set_private_key(self, key: bytes | None) -> None:
        """All sessions end; a device that has the key itself is removed."""
        interface = self._tunnel.interface
        before = interface.identities[0].private_key if interface.identities else None
        if key is not None:
            key = LocalIdentity.from_private(key).private_key
        if key == before:
            return
        try:
            await trio.to_thread.run_sync(self._keep_private_key, key)
        except OSError as error:
            raise RefusedError(IO, f"the key cannot be kept in {self._config.private_key_path}: {error.strerror}") from None
        if key is None:
            interface.clear_private_key()
        else:
            interface.change_private_key(key)
        self._tunnel.set_identities()
        self._tunnel.flush()
        self._on_key_changed()
        log.info("the private key was changed", public_key=encode_key(interface.public_key) if key else "")
        await self.change_peers((), replace=False)  # a device with this very key goes

    def _keep_private_key(self, key: bytes | None) -> None:
        path = self._config.private_key_path
        if key is None:
            self._store.set_setting(PRIVATE_KEY, REMOVED)
            path.unlink(missing_ok=True)
        else:
            replace_private(path, f"{encode_key(key)}\n".encode())
            self._store.set_setting(PRIVATE_KEY, None)

    async def set_listen_port(self, port: int) -> None:
        before = self._tunnel.sockets
        if port != before[0].port:
            try:
                sockets = open_elsewhere(before, self._config.wireguard.listen, port, self._mark)
            except OperatorError as error:
                raise RefusedError(PORT_IN_USE, str(error)) from None
            self._tunnel.replace_sockets(sockets)
            for udp in before:
                if udp not in sockets:
                    udp.close()
            await self._tunnel.settled()
            log.info("the port was changed", listen=[udp.listen for udp in sockets])
        await self._note(LISTEN_PORT, port, self._config.wireguard.listen[0].port)

    async def set_fwmark(self, mark: int) -> None:
        try:
            set_mark(self._tunnel.sockets, mark)
        except OSError as error:
            raise RefusedError(PORT_IN_USE, f"fwmark: {error.strerror}") from None
        self._mark = mark
        await self._note(FWMARK, mark, 0)

    async def _note(self, key: str, value: int, configured: int) -> None:
        noted = None if value == configured else str(value)
        await trio.to_thread.run_sync(self._store.set_setting, key, noted)

    async def change_peers(self, changes: Sequence[PeerChange], *, replace: bool) -> None:
        """Returns when the worker has it."""
        await trio.to_thread.run_sync(self._apply, changes, replace)
        await self._fleet.follow()
        collector.on_changes(changes)
        for change in changes:
            member = self._fleet.by_key.get(change.public_key)
            if member is not None and change.endpoint:
                self._tunnel.on_endpoint_set(member.slot)
        await self._tunnel.settled()

    def _apply(self, changes: Sequence[PeerChange], replace: bool) -> None:
        self._store.apply(
            changes,
            replace=replace,
            own_key=self._tunnel.interface.public_key,
            pool=self._fleet.config.pools[0].name,
            limit=self._config.wireguard.max_devices,
            now=int(time.time()),
        )
