"""What `wg` sets on the gateway goes to the store, to the key's file and to the worker, and is found again at the next start."""

import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from egressvpn.api.uapi_lines import IO, RefusedError
from egressvpn.app.uapi import GatewayControl, Overrides, overrides, own_private_key
from egressvpn.control.config import ConfigError
from egressvpn.control.keys import decode_key, encode_key
from egressvpn.control.peers import PeerChange
from egressvpn.errors import OperatorError
from egressvpn.wireguard.noise import public_of
from tests.app.bench import Bench, bench

KEYS = [bytes([number]) * 32 for number in range(1, 6)]
PRIVATE = bytes([8] * 31 + [0x48])
NETWORKS = [ip_network(n) for n in ("100.64.0.2/32", "10.0.0.0/8", "fd64::2/128")]


@asynccontextmanager
async def controlled(directory: Path) -> AsyncIterator[tuple[Bench, GatewayControl]]:
    """A gateway, its worker's commands carried out as they come, and the control of it."""
    async with bench(directory) as made, trio.open_nursery() as nursery:

        async def work() -> None:
            while True:
                await trio.lowlevel.wait_readable(made.supervisor._theirs)
                made.work()

        nursery.start_soon(work)
        nursery.start_soon(made.supervisor._pump_commands)
        nursery.start_soon(made.supervisor._pump_events, made.tunnel.handle)
        made.config.private_key_path.write_text(f"{encode_key(made.tunnel.interface.identities[0].private_key)}\n")
        made.config.private_key_path.chmod(0o600)
        yield made, GatewayControl(made.config, made.store, made.tunnel, made.fleet, 0, lambda: None)
        nursery.cancel_scope.cancel()


def added(*networks: int) -> tuple[tuple[bool, object], ...]:
    return tuple((True, NETWORKS[number]) for number in networks)


async def test_a_peer_is_a_device_of_the_store_and_in_the_worker_when_it_is_answered(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (made, control):
        await control.change_peers(
            [PeerChange(KEYS[0], False, False, b"s" * 32, "192.0.2.7:7", 25, False, added(0, 1)), PeerChange(KEYS[1])], replace=False
        )
        first, second = made.store.devices()
        assert (first.public_key, first.preshared_key, first.endpoint, first.persistent_keepalive) == (
            KEYS[0],
            b"s" * 32,
            "192.0.2.7:7",
            25,
        )
        assert made.owner("10.0.0.0/8") == first.name == f"wg-{'01' * 8}"
        told = {peer.public_key: peer for peer in control.state().peers}
        assert told.keys() == {KEYS[0], KEYS[1]}
        assert (told[KEYS[0]].endpoint, told[KEYS[0]].persistent_keepalive) == ("192.0.2.7:7", 25)
        assert list(told[KEYS[0]].allowed_ips) == NETWORKS[:2]
        await control.change_peers([PeerChange(KEYS[1], allowed_ips=added(1))], replace=True)
        assert made.owner("10.0.0.0/8") == second.name
        assert made.used_slots() == {made.slot(second.name)}


async def test_more_devices_than_allowed_are_refused(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (made, control):
        with pytest.raises(OperatorError, match="8 devices"):
            await control.change_peers([PeerChange(bytes([number]) * 32) for number in range(20, 30)], replace=False)
        assert made.store.devices() == []


async def test_a_new_private_key_is_kept_in_its_file_and_takes_its_own_device_away(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (made, control):
        await control.change_peers([PeerChange(public_of(PRIVATE), allowed_ips=added(1)), PeerChange(KEYS[0])], replace=False)
        await control.set_private_key(PRIVATE)
        assert [device.public_key for device in made.store.devices()] == [KEYS[0]]
        assert made.owner("10.0.0.0/8") == ""
        assert made.tunnel.interface.public_key == public_of(PRIVATE)
        assert control.state().private_key == PRIVATE
        file = made.config.private_key_path
        assert decode_key(file.read_text()) == PRIVATE == own_private_key(made.config, made.store)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_the_key_that_is_there_already_changes_nothing(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (made, control):
        await control.set_private_key(PRIVATE)
        before = made.config.private_key_path.stat().st_ino
        await control.set_private_key(bytes([PRIVATE[0] | 7]) + PRIVATE[1:])  # the same, not clamped
        assert made.config.private_key_path.stat().st_ino == before


async def test_a_key_that_was_taken_away_is_gone_from_the_disk_and_at_the_next_start(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (made, control):
        await control.set_private_key(None)
        assert control.state().private_key is None
        assert not made.config.private_key_path.exists()
        with capture_logs() as logs:
            assert own_private_key(made.config, made.store) is None
        assert [entry["log_level"] for entry in logs] == ["warning"]
        await control.set_private_key(PRIVATE)
        assert own_private_key(made.config, made.store) == PRIVATE
        made.config.private_key_path.unlink()  # this time by somebody else: that is a mistake
        with pytest.raises(ConfigError):
            own_private_key(made.config, made.store)


async def test_a_key_that_cannot_be_kept_is_not_used(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (made, control):
        before = made.tunnel.interface.public_key
        (tmp_path / ".gateway.key.new").mkdir()  # in the way of the new file
        with pytest.raises(RefusedError) as refused:
            await control.set_private_key(PRIVATE)
        assert refused.value.code == IO
        assert made.tunnel.interface.public_key == before


async def test_what_equals_the_configuration_is_not_noted(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (made, control):
        assert overrides(made.config, made.store) == Overrides(51820, 0)
        await control._note("listen_port", 7777, 51820)
        await control._note("fwmark", 9, 0)
        with capture_logs() as logs:
            assert overrides(made.config, made.store) == Overrides(7777, 9)
        assert [(entry.get("listen_port"), entry.get("fwmark"), entry["configured"]) for entry in logs] == [
            (7777, None, 51820),
            (None, 9, 0),
        ]
        await control._note("listen_port", 51820, 51820)
        await control._note("fwmark", 0, 0)
        with capture_logs() as logs:
            assert overrides(made.config, made.store) == Overrides(51820, 0)
        assert logs == []


async def test_port_0_is_noted_too(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (made, control):
        await control._note("listen_port", 0, 51820)
        assert overrides(made.config, made.store).listen_port == 0
