"""Between the WireGuard interface and the worker: what the worker's tables say is read with care."""

import os
import secrets

from egressvpn.addresses import pack_sockaddr
from egressvpn.control.supervisor import Supervisor
from egressvpn.control.tunnel import Tunnel
from egressvpn.dataplane import arena
from egressvpn.dataplane.layout import Limits, layout
from egressvpn.wireguard.indexes import SessionIndexes
from egressvpn.wireguard.interface import Interface

LIMITS = Limits(max_devices=8, max_prefixes=16, max_flows=64, pool_addresses=1)


async def test_an_endpoint_that_does_not_fit_together_is_none() -> None:
    memory = arena.create(layout(LIMITS))
    supervisor = Supervisor(memory, LIMITS, -1, [])
    indexes = SessionIndexes(memory.tables["sessions"].size, 0, secrets.token_bytes)
    tunnel = Tunnel(supervisor, Interface(secrets.token_bytes(32), indexes, secrets.token_bytes), [])
    row = memory.tables["devices"][1]
    for remote, length, whole in (
        (pack_sockaddr("192.0.2.7", 9), 16, True),
        (pack_sockaddr("2001:db8::7", 9), 28, True),
        (pack_sockaddr("2001:db8::7", 9), 16, False),  # torn: the address of one, the length of the other
        (pack_sockaddr("192.0.2.7", 9), 28, False),
        (bytes(28), 28, False),
        (bytes(28), 0, False),
    ):
        row.remote[: len(remote)] = list(remote)
        row.remote_length = length
        path = tunnel.path(1)
        assert (path is not None) == whole
        assert path is None or path.remote == remote
    supervisor.close()
    os.close(memory.fd)
