"""A real worker process behind a real tunnel, kernels interpreted: a handshake, other sockets, and a successor that goes on with them."""

import os
import secrets
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from egressvpn.addresses import Path, pack_sockaddr
from egressvpn.control.supervisor import Supervisor
from egressvpn.control.tunnel import Tunnel
from egressvpn.dataplane import arena
from egressvpn.dataplane.channel import Command, pack_command
from egressvpn.dataplane.layout import Limits, layout
from egressvpn.dataplane.tables import CLIENT
from egressvpn.netio.udp import UdpSocket, open_udp
from egressvpn.wireguard.indexes import SessionIndexes
from egressvpn.wireguard.interface import Install, Interface, Transmit
from egressvpn.wireguard.noise import seal
from egressvpn.wireguard.tables import ENABLED

LIMITS = Limits(max_devices=8, max_prefixes=16, max_flows=64, pool_addresses=1)
PATIENCE = 30  # s; a start takes about one


@dataclass
class Peer:
    """The other side, on a socket of its own."""

    interface: Interface
    wire: trio.socket.SocketType
    counter: int = 0

    async def shake_hands(self, gateway: UdpSocket) -> Install:
        """The session that a handshake from here brings, confirmed."""
        path = Path(pack_sockaddr("127.0.0.1", gateway.port))
        self.interface.set_path(1, path)
        self.interface.on_session_wanted(1, time.monotonic_ns(), time.time_ns())
        for output in self.interface.poll():
            if isinstance(output, Transmit):
                await self.wire.sendto(output.datagram, ("127.0.0.1", gateway.port))
        response = await self.wire.recv(2048)
        self.interface.receive(response, path, time.monotonic_ns(), time.time_ns())
        session = next(output for output in self.interface.poll() if isinstance(output, Install))
        await self.say(session, gateway)
        return session

    async def say(self, session: Install, gateway: UdpSocket) -> None:
        message = struct.pack("<IIQ", 4, session.remote_index, self.counter) + seal(session.send_key, self.counter, b"")
        self.counter += 1
        await self.wire.sendto(message, ("127.0.0.1", gateway.port))


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Tunnel, Peer]]:
    memory = arena.create(layout(LIMITS))
    memory.tables["worker"][0].mode = CLIENT
    tun, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    tun.setblocking(False)
    sockets = open_udp(["127.0.0.1:0"])
    supervisor = Supervisor(memory, LIMITS, tun.fileno(), [udp.fd for udp in sockets], jit=False)
    indexes = SessionIndexes(memory.tables["sessions"].size, 0, secrets.token_bytes)
    tunnel = Tunnel(supervisor, Interface(secrets.token_bytes(32), indexes, secrets.token_bytes), sockets)
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as wire:
        await wire.bind(("127.0.0.1", 0))
        peer = Peer(Interface(secrets.token_bytes(32), SessionIndexes(64, 0, secrets.token_bytes), secrets.token_bytes), wire)
        peer.interface.add_peer(1, tunnel.interface.public_key)
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                await nursery.start(supervisor.run, tunnel.handle)
                tunnel.set_identities()
                tunnel.interface.add_peer(5, peer.interface.public_key)
                tunnel.command(pack_command(Command.SET_DEVICE, 5, state=ENABLED, internal4=-1))
                while not tunnel.wg.devices[5].state:  # noqa: ASYNC110  (a word in the arena: there is no event to wait for)
                    await trio.sleep(0.01)
                yield tunnel, peer
                nursery.cancel_scope.cancel()
    for end in (tun, far, *tunnel.sockets):
        end.close()
    os.close(memory.fd)


@pytest.mark.timeout(2 * PATIENCE)
async def test_a_handshake_is_answered_and_survives_other_sockets_and_another_worker() -> None:
    async with running() as (tunnel, peer):
        session = await peer.shake_hands(tunnel.sockets[0])
        assert await answered(tunnel, peer) == tunnel.sockets[0].port
        assert (int(tunnel.wg.devices[5].received_bytes), int(tunnel.wg.devices[5].sent_bytes)) == (148 + 32, 92 + 32)

        old, fresh = tunnel.sockets, open_udp(["127.0.0.1:0"])
        tunnel.replace_sockets(fresh)
        assert await answered(tunnel, peer) == fresh[0].port != old[0].port
        old[0].close()
        await peer.say(session, fresh[0])

        os.kill(tunnel.supervisor.pid, signal.SIGKILL)
        assert await answered(tunnel, peer) == fresh[0].port
        assert tunnel.supervisor.restarts == 1
        assert tunnel.handshakes == {"completed": 1}
        assert tunnel.failures == 0


async def answered(tunnel: Tunnel, peer: Peer) -> int:
    """From which port a keepalive comes."""
    while not tunnel.wg.devices[5].current:  # noqa: ASYNC110
        await trio.sleep(0.01)
    tunnel.send(Command.KEEPALIVE, 5)
    message, (_, port) = await peer.wire.recvfrom(2048)
    assert (message[0], len(message)) == (4, 32)
    return int(port)
