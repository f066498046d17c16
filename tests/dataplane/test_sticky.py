"""W26: an answer leaves from the address that was written to, as long as that is one of ours and the way there is the same."""

import socket
import struct
from contextlib import closing

import pytest

from egressvpn.addresses import Path, pack_sockaddr
from egressvpn.dataplane.channel import Command
from egressvpn.dataplane.receive import receive
from egressvpn.netio.udp import open_udp
from egressvpn.wireguard.tables import ENABLED
from tests.dataplane.rig import START, Rig, rig, seal
from tests.netio.namespace import ip, isolated

PKTINFO = 8  # linux/in.h: IP_PKTINFO


def listening(listen: str) -> Rig:
    """A data path behind a socket as the gateway opens it, with a session of device 1, which it has not heard yet."""
    (udp,) = open_udp([listen])
    made = rig(outer=6 if "[" in listen else 4, bound=udp.socket)
    made.command(Command.SET_DEVICE, owner=1, state=ENABLED, internal4=-1)
    made.session(1, made.index(1))
    made.b.wg.devices[1].remote_length = 0
    return made


def client(made: Rig, host: str, scope: int = 0) -> socket.socket:
    """A socket that hears only the address it writes to."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made_client = socket.socket(family, socket.SOCK_DGRAM)
    made_client.settimeout(5)
    port = made.kept[0].getsockname()[1]
    made_client.connect((host, port, 0, scope) if family == socket.AF_INET6 else (host, port))
    return made_client


def exchange(made: Rig, end: socket.socket, counter: int) -> bytes:
    """The client is heard, and hears an answer."""
    end.send(seal(made.index(1), counter, b""))
    assert receive(made.b, 0, 64, START) == 1
    made.command(Command.KEEPALIVE, owner=1)
    return end.recv(100)


@isolated
@pytest.mark.parametrize("written_to", ["127.0.0.1", "127.0.0.2", "127.9.9.9", "192.0.2.77", "::1", "2001:db8::77"])
def test_w26_the_answer_leaves_from_the_address_that_was_written_to(written_to: str) -> None:
    ip("addr add 192.0.2.77/32 dev lo")
    ip("addr add 2001:db8::77/128 dev lo nodad")
    made = listening("[::]:0" if ":" in written_to else "0.0.0.0:0")
    with client(made, written_to) as end:
        assert len(exchange(made, end, 0)) == 32
    made.close()


@isolated
def test_w26_the_answer_to_a_link_local_address_goes_out_of_its_interface() -> None:
    ip("link add up0 type veth peer name up1")
    ip("addr add fe80::1/64 dev up0 nodad")
    ip("link set up0 up")
    made = listening("[::]:0")
    with client(made, "fe80::1", socket.if_nametoindex("up0")) as end:
        assert len(exchange(made, end, 0)) == 32
    made.close()


@isolated
def test_w26_an_address_that_went_away_is_given_up_and_nothing_is_lost() -> None:
    ip("addr add 192.0.2.77/32 dev lo")
    made = listening("0.0.0.0:0")
    with client(made, "192.0.2.77") as end, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anybody:
        exchange(made, end, 0)
        anybody.bind(("127.0.0.1", 0))
        anybody.settimeout(5)
        device = made.b.wg.devices[1]
        device.remote[:16] = list(pack_sockaddr(*anybody.getsockname()))
        ip("addr del 192.0.2.77/32 dev lo")
        made.command(Command.KEEPALIVE, owner=1)
        assert len(anybody.recv(100)) == 32
        assert int(device.local_length) == 0
        assert made.drops() == {}
    made.close()


@isolated
def test_control_sees_by_which_interface_a_device_came_and_can_have_its_address_forgotten() -> None:
    made = listening("0.0.0.0:0")
    with closing(client(made, "127.0.0.2")) as end:
        exchange(made, end, 0)
        device = made.b.wg.devices[1]
        local = bytes(device.local[:32])
        loopback = socket.if_nametoindex("lo")
        assert local == struct.pack("=QiiI4s4sI", 28, 0, PKTINFO, 0, bytes([127, 0, 0, 2]), bytes(4), loopback)
        remote = bytes(device.remote[:16])
        made.command(Command.FORGET_SOURCE, owner=1, path=Path(remote, bytes([*local[:20], 127, 0, 0, 3, *local[24:]])))
        assert int(device.local_length) == 32
        made.command(Command.FORGET_SOURCE, owner=1, path=Path(remote, local))
        assert int(device.local_length) == 0
    made.close()
