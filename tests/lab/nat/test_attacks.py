"""Attacks on VPN gateways that translate, each against ours, where it must fail, and against nftables masquerade, where it succeeds.

The attacks are those of "Attacking Connection Tracking Frameworks as used by Virtual Private Networks" (PoPETs 2024), S1, S2 and S4,
and of CVE-2019-14899, S5; S10 is what a gateway might do to a device that is gone. The attacker is a subscriber (client 2 or 3) or
somebody outside; the victim of S1 and S2 is a subscriber at home in evl-inet, whose address the attacker knows. Our gateway listens on
all its addresses here, so that the attacker may choose. Attacks on the rules themselves, with mutants, are in tests/security.
"""

import base64
import re
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from clients import DEVICE
from gateways import Egress
from handshakes import initiation
from topology import INTERNET4, POOL4, WIREGUARD_PORT, Lab, run
from triangle import socket_in

from egressvpn.addresses import Path, pack_sockaddr
from tests.lab.nat.places import SILENCE, Place, connected, heard, in_network, seen

WAN4 = "198.51.100.1"  # the gateway, as evl-inet knows it
VICTIM = INTERNET4[1]
VICTIM_PORT = 47_000
RESPONSE = 92
ETH_P_ALL = 0x0003  # what leaves, too
DNS = 53


@pytest.fixture(scope="module")
def ours(judged: Lab) -> Iterator[Place]:
    gateway = Egress(judged, "gateway-attacked")
    gateway.init()
    gateway.edit(r"(?m)^listen = .*51820.*$", f'listen = ["0.0.0.0:{WIREGUARD_PORT}", "[::]:{WIREGUARD_PORT}"]')
    place = connected(judged, gateway, 3)
    yield place
    place.stop()


def shadow(place: Place, port: int, said: bytes) -> tuple[bytes, bytes, str]:
    """The attacker sends from `port` to where the victim will talk to that port of the gateway from; then the victim says `said`.

    What the attacker overheard, what the victim was answered, and where the attacker's packet came from.
    """
    attacker_at, victim_at = (place.clients[1].namespace, place.inner(2), port), (place.lab.internet, VICTIM, VICTIM_PORT)
    with place.sockets(attacker_at, victim_at) as (attacker, victim):
        external = seen(attacker, victim, b"shadow")
        victim.sendto(said, (WAN4, port))
        overheard, answered = heard(attacker, SILENCE), heard(victim, SILENCE)
        return overheard[0] if overheard else b"", answered[0] if answered else b"", external[0]


def handshake(place: Place) -> bytes:
    """A first message of client 3's device."""
    text = place.clients[2].quick.text
    private, public = (base64.b64decode(re.search(rf"(?m)^{key}\s*=\s*(\S+)", text)[1]) for key in ("PrivateKey", "PublicKey"))  # type: ignore[index]
    return initiation(private, public, Path(pack_sockaddr(WAN4, WIREGUARD_PORT)))[1]


def test_s1_nobody_takes_the_gateways_port_and_with_it_the_victims_handshake(ours: Place) -> None:
    said = handshake(ours)
    overheard, answered, external = shadow(ours, WIREGUARD_PORT, said)
    assert overheard == b""
    assert len(answered) == RESPONSE
    assert in_network(external, POOL4)


def test_s1_succeeds_on_masquerade(masquerade: Place) -> None:
    said = handshake(masquerade)
    overheard, answered, external = shadow(masquerade, WIREGUARD_PORT, said)
    assert overheard == said
    assert answered == b""
    assert external == WAN4


def test_s1_a_pool_that_holds_a_listen_address_is_refused(ours: Place) -> None:
    """The one configuration in which it could be: an egress address that is a listen address."""
    assert isinstance(ours.gateway, Egress)
    egress = Egress(ours.lab, "gateway-refused")
    egress.init()
    egress.edit(r'addresses = \["203', f'addresses = ["{WAN4}/32", "203')
    egress.edit(r"(?m)^listen = .*51820.*$", f'listen = ["{WAN4}:{WIREGUARD_PORT}"]')
    done = egress.command("check", check=False)
    assert done.returncode == 1
    assert WAN4 in done.stderr


def test_s2_cleartext_to_the_gateway_is_not_taken_for_an_answer_to_a_subscriber(ours: Place) -> None:
    assert shadow(ours, DNS, b"a query in clear")[0] == b""


def test_s2_succeeds_on_masquerade(masquerade: Place) -> None:
    assert shadow(masquerade, DNS, b"a query in clear")[0] == b"a query in clear"


def heir(place: Place, port: int) -> list[bytes]:
    """Client 3 opens a mapping and is removed; client 1 inherits its inner address, and the remote goes on sending. What client 1 heard."""
    lab, first, last = place.lab, place.clients[0], place.clients[2]
    inherited = place.inner(3)
    with place.sockets((last.namespace, inherited, port), (lab.internet, INTERNET4[0], port)) as (gone, remote):
        external = seen(gone, remote)
        keys = [lab.run(client.namespace, "wg", "show", DEVICE, "public-key").stdout.strip() for client in (first, last)]
        lab.run(lab.gateway, "wg", "set", place.gateway.interface, "peer", keys[1], "remove")
        allowed = ",".join((*first.quick.addresses, f"{inherited}/32"))
        lab.run(lab.gateway, "wg", "set", place.gateway.interface, "peer", keys[0], "allowed-ips", allowed)
        lab.ip(first.namespace, f"address replace {inherited}/32 dev {DEVICE}")
        time.sleep(0.3)
        with place.sockets((first.namespace, inherited, port)) as (heritage,):
            for number in range(3):
                remote.sendto(b"%d" % number, external)
            received = []
            while arrived := heard(heritage, SILENCE):
                received.append(arrived[0])
            return received


def test_s4_the_mappings_of_a_removed_device_are_gone_with_it(ours: Place) -> None:
    assert isinstance(ours.gateway, Egress)
    before = ours.gateway.drops()["no_mapping"]
    assert heir(ours, 47_004) == []
    assert ours.gateway.drops()["no_mapping"] >= before + 3


def test_s4_succeeds_on_masquerade(masquerade: Place) -> None:
    assert heir(masquerade, 47_004) == [b"0", b"1", b"2"]


def injected(place: Place) -> tuple[bytes, tuple[str, int]] | None:
    """What client 1 hears when somebody outside sends to its inner address through the gateway, in clear."""
    lab, inner = place.lab, place.inner(1)
    lab.ip(lab.internet, f"route replace {inner}/32 via {WAN4}")
    try:
        with place.sockets((place.clients[0].namespace, inner, 47_005), (lab.internet, INTERNET4[0], 47_005)) as (client, outside):
            outside.sendto(b"injected", (inner, 47_005))
            return heard(client, SILENCE)
    finally:
        lab.ip(lab.internet, f"route delete {inner}/32")


def test_s5_nothing_from_outside_reaches_an_inner_address(ours: Place) -> None:
    assert injected(ours) is None


def test_s5_succeeds_on_a_gateway_without_a_filter(masquerade: Place) -> None:
    arrived = injected(masquerade)
    assert arrived
    assert arrived[0] == b"injected"


def leaked(place: Place, number: int, remove: Iterator[None]) -> int:
    """How many packets for an inner address were on the access network in clear after the device's end, while a remote goes on sending."""
    lab, inner = place.lab, place.inner(number)
    wire = socket_in(lab.gateway, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
    with (
        wire,
        place.sockets((place.clients[number - 1].namespace, inner, 47_010), (lab.internet, INTERNET4[0], 47_010)) as (client, remote),
    ):
        external = seen(client, remote)
        wire.bind(("access0", ETH_P_ALL))
        wire.setblocking(False)
        next(remove)
        for _ in range(10):
            remote.sendto(b"too late", external)
        time.sleep(0.2)
        found = 0
        try:
            while packet := wire.recv(65_535):
                found += packet[16:20] == ip_address(inner).packed
        except BlockingIOError:
            return found
    return found


def test_s10_a_device_that_is_gone_gets_nothing_in_clear(ours: Place) -> None:
    assert isinstance(ours.gateway, Egress)
    egress = ours.gateway

    def disable() -> Iterator[None]:
        egress.command("peer", "disable", "client2")
        time.sleep(0.5)
        yield

    before = egress.drops()
    assert leaked(ours, 2, disable()) == 0
    counted = egress.drops()
    assert sum(counted.values()) - sum(before.values()) >= 10


def test_s10_happens_where_the_route_to_the_device_outlives_its_tunnel(masquerade: Place) -> None:
    place = masquerade

    def reroute() -> Iterator[None]:
        run(["ip", "-n", place.lab.gateway, "route", "replace", f"{place.inner(2)}/32", "via", place.outer(2), "dev", "access0"])
        yield

    assert leaked(place, 2, reroute()) == 10
    run(["ip", "-n", place.lab.gateway, "route", "delete", f"{place.inner(2)}/32"])
