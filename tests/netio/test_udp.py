import os
import socket
import struct
from pathlib import Path as File

import pytest

from egressvpn.dataplane.local import CONTROL_STRIDE
from egressvpn.errors import OperatorError
from egressvpn.netio import udp
from egressvpn.netio.udp import open_udp, split_listen
from tests.netio.namespace import ip, isolated


@isolated
def test_sockets_are_nonblocking_large_and_join_datagrams() -> None:
    for gateway in open_udp(["127.0.0.1:0", "[::1]:0"]):
        assert not os.get_blocking(gateway.fd)
        assert not os.get_inheritable(gateway.fd)
        assert gateway.socket.getsockopt(udp.SOL_UDP, udp.UDP_GRO) == 1
        assert gateway.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * udp.BUFFER_BYTES
        assert gateway.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * udp.BUFFER_BYTES
        gateway.close()


@isolated
def test_a_joined_read_brings_control_messages_that_fit_what_is_set_aside() -> None:
    (gateway,) = open_udp(["[::]:0"])
    with _client("::1", gateway.port) as client:
        client.sendmsg([bytes(3000)], [(udp.SOL_UDP, udp.UDP_SEGMENT, struct.pack("=H", 1000))])
        data, control, flags, _ = gateway.socket.recvmsg(65_536, CONTROL_STRIDE)
    assert (len(data), flags) == (3000, 0)
    assert sorted(kind for _, kind, _ in control) == sorted([udp.UDP_GRO, socket.IPV6_PKTINFO, socket.IPV6_TCLASS])
    gateway.close()


@isolated
def test_a_datagram_wider_than_the_path_is_fragmented() -> None:
    ip("link set lo mtu 1280")
    for gateway, host in zip(open_udp(["0.0.0.0:0", "[::]:0"]), ("127.0.0.1", "::1"), strict=True):
        with _client(host, gateway.port) as client:
            gateway.socket.sendto(bytes(1500), client.getsockname())
            assert len(client.recv(2000)) == 1500
        gateway.close()


@isolated
def test_the_mark_is_on_every_datagram() -> None:
    (gateway,) = open_udp(["0.0.0.0:0"], mark=51820)
    assert gateway.socket.getsockopt(socket.SOL_SOCKET, udp.SO_MARK) == 51820
    gateway.close()


@isolated
@pytest.mark.parametrize("other", ["0.0.0.0", "127.0.0.1"])
def test_a_taken_port_names_who_holds_it_and_closes_what_was_opened(other: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind((other, 51820))
        open_before = _descriptors()
        with pytest.raises(OperatorError, match=rf"port taken: 127\.0\.0\.1:51820 is held by .* \(pid {os.getpid()}\); change"):
            open_udp(["[::]:51820", "127.0.0.1:51820"])
        assert _descriptors() == open_before


@isolated
def test_a_foreign_address_is_refused() -> None:
    with pytest.raises(OperatorError, match=r"192\.0\.2\.1:51820 is no address of this machine; .*\[wireguard\] listen"):
        open_udp(["192.0.2.1:51820"])


@isolated
def test_a_low_port_needs_a_capability() -> None:
    "localhost".encode("idna")  # loads the codec of host names while we may read the library
    os.setuid(65534)
    with pytest.raises(OperatorError, match=r"no permission to listen on 127\.0\.0\.1:53; .*CAP_NET_BIND_SERVICE"):
        open_udp(["127.0.0.1:53"])


@pytest.mark.parametrize(
    "listen", ["", ":51820", "51820", "::1:51820", "[127.0.0.1]:51820", "127.0.0.1", "127.0.0.1:65536", "host:51820", "[::]:٣"]
)
def test_a_malformed_listen_is_refused(listen: str) -> None:
    with pytest.raises(OperatorError, match="is no address and port; write"):
        split_listen(listen)


def _descriptors() -> set[str]:
    return {path.name for path in File("/proc/self/fd").iterdir()}


def _client(host: str, port: int) -> socket.socket:
    client = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(5)
    client.connect((host, port))
    return client
