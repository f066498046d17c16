import errno
import os
import socket
import struct
from pathlib import Path as File

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressvpn.addresses import Path, pack_sockaddr
from egressvpn.errors import OperatorError
from egressvpn.netio import udp
from egressvpn.netio.udp import UdpSocket, local_control, open_udp, send, split_listen
from tests.netio.namespace import ip, isolated


@isolated
@pytest.mark.parametrize("written_to", ["127.0.0.1", "127.0.0.2", "127.9.9.9", "192.0.2.77", "::1", "2001:db8::77"])
def test_the_reply_leaves_from_the_address_the_client_wrote_to(written_to: str) -> None:
    ip("addr add 192.0.2.77/32 dev lo")
    ip("addr add 2001:db8::77/128 dev lo nodad")
    gateway = open_udp(["0.0.0.0:0", "[::]:0"])[":" in written_to]
    with _client(written_to, gateway.port) as client:
        client.send(b"ping")
        path = _receive(gateway, b"ping")
        assert len(path.local) == (40 if ":" in written_to else 32)
        assert send(gateway, b"pong", path) == 0
        assert client.recv(100) == b"pong"  # a connected socket hears only the address it wrote to
    gateway.close()


@isolated
def test_a_reply_to_a_link_local_address_goes_out_of_its_interface() -> None:
    ip("link add up0 type veth peer name up1")
    ip("addr add fe80::1/64 dev up0 nodad")
    ip("link set up0 up")
    (gateway,) = open_udp(["[::]:0"])
    index = socket.if_nametoindex("up0")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect(("fe80::1", gateway.port, 0, index))
        client.send(b"ping")
        path = _receive(gateway, b"ping")
        assert send(gateway, b"pong", path) == 0
        assert client.recv(100) == b"pong"
    gateway.close()


@isolated
def test_an_address_that_went_away_does_not_stop_the_reply() -> None:
    (gateway,) = open_udp(["0.0.0.0:0"])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        client.settimeout(5)
        gone = local_control(socket.IPPROTO_IP, udp.IP_PKTINFO, udp.IN_PKTINFO.pack(1, bytes([192, 0, 2, 99]), bytes(4)))
        assert send(gateway, b"pong", Path(pack_sockaddr(*client.getsockname()), gone)) == 0
        assert client.recv(100) == b"pong"
    gateway.close()


@isolated
def test_a_refused_datagram_is_an_errno_not_an_exception() -> None:
    (gateway,) = open_udp(["0.0.0.0:0"])
    assert send(gateway, b"x", Path(pack_sockaddr("198.51.100.1", 9))) == errno.ENETUNREACH
    assert send(gateway, bytes(65_508), Path(pack_sockaddr("127.0.0.1", 9))) == errno.EMSGSIZE
    gateway.close()


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
        data, control, flags, _ = gateway.socket.recvmsg(65_536, udp.CONTROL_BYTES)
    assert (len(data), flags) == (3000, 0)
    assert sorted(kind for _, kind, _ in control) == sorted([udp.UDP_GRO, socket.IPV6_PKTINFO])
    gateway.close()


@isolated
def test_a_datagram_wider_than_the_path_is_fragmented() -> None:
    ip("link set lo mtu 1280")
    for gateway, host in zip(open_udp(["0.0.0.0:0", "[::]:0"]), ("127.0.0.1", "::1"), strict=True):
        with _client(host, gateway.port) as client:
            assert send(gateway, bytes(1500), Path(pack_sockaddr(*client.getsockname()[:2]))) == 0
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


def test_pktinfo_turns_round_without_its_interface() -> None:
    received = struct.pack("=I4s4s", 7, bytes([192, 0, 2, 1]), bytes([192, 0, 2, 255]))
    assert local_control(0, 8, received) == struct.pack("=QiiI4s4s4x", 28, 0, 8, 0, bytes([192, 0, 2, 1]), bytes(4))


@pytest.mark.parametrize(("address", "interface"), [("2001:db8::1", 0), ("fd00::1", 0), ("::1", 0), ("fe80::1", 7)])
def test_only_a_link_local_address_keeps_its_interface(address: str, interface: int) -> None:
    packed = socket.inet_pton(socket.AF_INET6, address)
    assert local_control(41, 50, struct.pack("=16sI", packed, 7)) == struct.pack("=Qii16sI4x", 36, 41, 50, packed, interface)


@given(st.integers(0, 300), st.integers(0, 300), st.binary(max_size=64))
def test_any_control_message_gives_one_to_send_or_none(level: int, kind: int, data: bytes) -> None:
    assert len(local_control(level, kind, data)) in (0, 32, 40)


def _descriptors() -> set[str]:
    return {path.name for path in File("/proc/self/fd").iterdir()}


def _client(host: str, port: int) -> socket.socket:
    client = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(5)
    client.connect((host, port))
    return client


def _receive(gateway: UdpSocket, expected: bytes) -> Path:
    """The path of the datagram that waits, as the data path would note it."""
    data, control, flags, remote = gateway.socket.recvmsg(2048, udp.CONTROL_BYTES)
    assert (data, flags) == (expected, 0)
    replies = [local_control(*message) for message in control]
    raw = pack_sockaddr(remote[0].partition("%")[0], remote[1])
    if gateway.family == socket.AF_INET6:
        raw = raw[:24] + struct.pack("=I", remote[3])
    return Path(raw, b"".join(replies))
