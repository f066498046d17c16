"""netns.sh, cases 1, 7 to 9, 13 and 19, with the gateway as the second node and wireguard-go as its client.

The gateway listens on all addresses, so that it is its sockets' control messages that must say which one was asked.
"""

import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from clients import DEVICE, WireGuardGo
from gateways import Egress
from topology import GATEWAY4, GATEWAY6, INTERNET4, WIREGUARD_PORT, Lab, run
from triangle import answered, socket_in

SECOND4, SECOND6 = "192.0.2.2", "2001:db8:2::2"  # further addresses of the gateway
PING = 128  # 84 octets, padded to 96, in a data message
INITIATION, RESPONSE, KEEPALIVE = 148, 92, 32
PORT = 7777
TIMEOUT = 2  # s


class Client(WireGuardGo):
    """wireguard-go, asked and told by `wg`."""

    def set(self, *argv: str) -> None:
        self.lab.run(self.namespace, "wg", "set", DEVICE, *argv)

    def show(self, what: str) -> list[str]:
        """What `wg show` says of its only peer, the gateway."""
        return self.lab.run(self.namespace, "wg", "show", DEVICE, what).stdout.split()[1:]

    def public_key(self) -> str:
        return self.lab.run(self.namespace, "wg", "show", DEVICE, "public-key").stdout.strip()

    def move(self, address: str) -> None:
        self.set("peer", self.quick.public_key, "endpoint", at(address, WIREGUARD_PORT))

    def ping(self, count: int = 1, *options: str) -> int:
        flood = ["-f"] if count > 1 else []
        done = self.lab.run(self.namespace, "ping", "-n", "-c", str(count), *flood, "-W", "1", *options, INTERNET4[0], check=False)
        return answered(done.stdout)


def at(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@pytest.fixture(scope="module")
def everywhere(lab: Lab) -> Iterator[Egress]:
    """A gateway that listens on every address; it has two of each version."""
    egress = Egress(lab, "gateway-interop")
    egress.init()
    egress.edit(r"(?m)^listen = .*$", f'listen = ["0.0.0.0:{WIREGUARD_PORT}", "[::]:{WIREGUARD_PORT}"]')
    lab.ip(lab.gateway, f"address add {SECOND4}/24 dev access0", f"address add {SECOND6}/64 dev access0 nodad")
    egress.start()
    yield egress
    egress.stop()
    lab.ip(lab.gateway, f"address delete {SECOND4}/24 dev access0", f"address delete {SECOND6}/64 dev access0")


@pytest.fixture
def client(lab: Lab, everywhere: Egress, request: pytest.FixtureRequest) -> Iterator[Client]:
    connected = Client(lab, 1, everywhere.add_peer(request.node.name.split("[")[0].removeprefix("test_").replace("_", "-")[:40]))
    connected.start()
    yield connected
    connected.stop()


def of_gateway(lab: Lab, client: Client, what: str) -> list[str]:
    """What `wg show` on the gateway says of the client."""
    lines = lab.run(lab.gateway, "wg", "show", "egress0", what).stdout.splitlines()
    return next(line.split()[1:] for line in lines if line.startswith(client.public_key()))


def test_case_1_the_gateway_counts_octets_as_the_kernel_does(lab: Lab, everywhere: Egress) -> None:
    quick = everywhere.add_peer("counted")
    only4 = replace(quick, addresses=quick.addresses[:1], allowed=("0.0.0.0/0",))  # IPv6 speaks of itself
    client = Client(lab, 2, only4)
    lab.sysctl(client.namespace, net__ipv6__conf__default__disable_ipv6=1)
    client.start()
    try:
        assert client.ping(10) == 10
        received, sent = map(int, client.show("transfer"))
        assert received == RESPONSE + 10 * PING
        assert sent in {INITIATION + 10 * PING, INITIATION + 10 * PING + KEEPALIVE}
        assert list(map(int, of_gateway(lab, client, "transfer"))) == [sent, received]
    finally:
        lab.sysctl(client.namespace, net__ipv6__conf__default__disable_ipv6=0)
        client.stop()


def test_cases_7_and_8_a_client_roams_to_another_port_and_another_protocol(lab: Lab, client: Client) -> None:
    assert client.ping() == 1
    for port, address, ours in ((9999, GATEWAY4, "192.0.2.11"), (9998, GATEWAY6, "2001:db8:2::11")):
        client.set("listen-port", str(port))
        client.move(address)
        assert client.ping() == 1
        assert of_gateway(lab, client, "endpoints") == [at(ours, port)]


def test_case_9_a_packet_from_anothers_address_is_dropped_and_yet_moves_the_endpoint(lab: Lab, everywhere: Egress, client: Client) -> None:
    assert client.ping() == 1
    other = everywhere.add_peer("another").addresses[0]
    lab.ip(client.namespace, f"address add {other} dev {DEVICE}")
    client.set("listen-port", "9997")
    before = everywhere.drops()["source_mismatch"]
    assert client.ping(1, "-I", other.partition("/")[0]) == 0
    assert everywhere.drops()["source_mismatch"] == before + 1
    assert of_gateway(lab, client, "endpoints") == ["192.0.2.11:9997"]


def test_case_13_a_keepalive_holds_the_way_back_through_a_nat(lab: Lab, client: Client) -> None:
    """The client's host lets in only what its short-lived table of connections knows. A server answers after the table forgot."""
    assert client.ping() == 1
    rules = "table inet f { chain in { type filter hook input priority 0; iifname eth0 ct state new drop; }; }"
    run(["ip", "netns", "exec", client.namespace, "nft", "-f", "-"], stdin=rules)
    lab.sysctl(client.namespace, net__netfilter__nf_conntrack_udp_timeout=TIMEOUT, net__netfilter__nf_conntrack_udp_timeout_stream=TIMEOUT)
    client.set("peer", client.quick.public_key, "persistent-keepalive", "1")
    try:
        with (
            socket_in(client.namespace, socket.AF_INET, socket.SOCK_DGRAM) as asking,
            socket_in(lab.internet, socket.AF_INET, socket.SOCK_DGRAM) as server,
        ):
            server.bind((INTERNET4[0], PORT))
            for waiting in (asking, server):
                waiting.settimeout(5)
            asking.sendto(b"later", (INTERNET4[0], PORT))
            question, seen = server.recvfrom(99)
            time.sleep(TIMEOUT + 1)
            server.sendto(question, seen)
            assert asking.recv(99) == b"later"
    finally:
        run(["ip", "netns", "exec", client.namespace, "nft", "delete", "table", "inet", "f"])


def test_case_19_the_answer_comes_from_the_address_that_was_asked(client: Client) -> None:
    for address in (GATEWAY4, GATEWAY6, SECOND4, SECOND6):
        client.move(address)
        assert client.ping() == 1
        assert client.show("endpoints") == [at(address, WIREGUARD_PORT)]
