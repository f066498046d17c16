"""Clients of three kinds reach the Internet through the gateway: over IPv4 and IPv6, inside and outside."""

import ipaddress
import json
import sys
from collections.abc import Callable, Iterator

import pytest
import traffic
from clients import QuickFile, ReferenceClient, WireGuardGo
from gateways import ENDPOINT6, Egress
from topology import INTERNET4, INTERNET6, POOL4, POOL6, ROOT, Lab

Client = WireGuardGo | ReferenceClient
SIZE = 50_000_000

KINDS: dict[str, tuple[int, Callable[[Lab, QuickFile], Client]]] = {
    "wireguard-go over IPv4": (1, lambda lab, quick: WireGuardGo(lab, 1, quick)),
    "wireguard-go over IPv6": (2, lambda lab, quick: WireGuardGo(lab, 2, quick.with_endpoint(ENDPOINT6))),
    "reference client": (3, lambda lab, quick: ReferenceClient(lab, 3, quick)),
}


@pytest.fixture(scope="module", params=KINDS)
def client(request: pytest.FixtureRequest, lab: Lab, gateway: Egress) -> Iterator[Client]:
    """A connected client of each kind in turn."""
    number, make = KINDS[request.param]
    connected = make(lab, gateway.add_peer(f"client{number}"))
    connected.start()
    traffic.first_answer(lab, connected.namespace, INTERNET4[0])
    yield connected
    connected.stop()


def test_the_handshake_is_done_and_known_to_both(lab: Lab, gateway: Egress, client: Client) -> None:
    if isinstance(client, WireGuardGo):
        age = client.handshake_age()
        assert age is not None
        assert age < 60
    shown = gateway.json("peer", "show", client.name)
    assert json.dumps(shown).count(client.name)


@pytest.mark.parametrize("version", [4, 6])
def test_pings_are_answered(lab: Lab, client: Client, version: int) -> None:
    assert len(traffic.ping(lab, client.namespace, traffic.INTERNET[version], count=10, interval=0.05)) == 10


@pytest.mark.parametrize(("version", "pool"), [(4, POOL4), (6, POOL6)])
def test_a_server_sees_an_address_of_the_pool_always_the_same(lab: Lab, client: Client, version: int, pool: str) -> None:
    seen = {traffic.seen_address(lab, client.namespace, version)[0] for _ in range(5)}
    assert len(seen) == 1
    assert ipaddress.ip_address(seen.pop()) in ipaddress.ip_network(pool)


@pytest.mark.parametrize("version", [4, 6])
def test_a_download_arrives_intact(lab: Lab, client: Client, version: int) -> None:
    transfer = traffic.download(lab, client.namespace, version, SIZE)
    assert transfer.intact


@pytest.mark.parametrize("version", [4, 6])
def test_an_upload_arrives_intact(lab: Lab, client: Client, version: int) -> None:
    transfer = traffic.upload(lab, client.namespace, version, SIZE)
    assert transfer.intact


@pytest.mark.parametrize(("server", "kind", "record"), [(INTERNET4[0], "A", INTERNET4[1]), (INTERNET6[0], "AAAA", INTERNET6[1])])
def test_dns_is_answered_over_udp(lab: Lab, client: Client, server: str, kind: str, record: str) -> None:
    assert traffic.dns(lab, client.namespace, server, "alt.example.net", kind) == record


@pytest.mark.parametrize("version", [4, 6])
def test_traceroute_shows_the_gateway_as_a_hop(lab: Lab, client: Client, version: int) -> None:
    hops = traffic.traceroute(lab, client.namespace, version)
    assert hops[-1] == traffic.INTERNET[version]
    assert hops[0] not in {"*", traffic.INTERNET[version]}


def test_the_mapping_of_a_udp_socket_does_not_depend_on_the_destination(lab: Lab, client: Client) -> None:
    done = lab.run(client.namespace, sys.executable, str(ROOT / "netns-lab/stun.py"), "3478", *INTERNET4)
    first, second = json.loads(done.stdout)
    assert first == second


@pytest.mark.parametrize("version", [4, 6])
def test_a_narrow_link_behind_the_gateway_is_found_out(lab: Lab, client: Client, version: int) -> None:
    """The kernel's fragmentation-needed and packet-too-big about the link reach the client, translated."""
    lab.ip(lab.gateway, "link set wan0 mtu 1300")
    lab.ip(lab.internet, "link set eth0 mtu 1300")
    try:
        assert traffic.upload(lab, client.namespace, version, 2_000_000).intact
        assert traffic.download(lab, client.namespace, version, 2_000_000).intact
    finally:
        lab.ip(lab.gateway, "link set wan0 mtu 1500")
        lab.ip(lab.internet, "link set eth0 mtu 1500")


def test_the_denied_destinations_are_not_reached(lab: Lab, gateway: Egress, client: Client) -> None:
    before = gateway.drops()["policy_denied"]
    for number, address in enumerate(("10.1.2.3", "198.51.100.1", "2001:db8:51::1"), 1):  # a private one; the gateway's own
        assert traffic.ping(lab, client.namespace, address, count=1, wait=1) == []
        assert gateway.drops()["policy_denied"] >= before + number
