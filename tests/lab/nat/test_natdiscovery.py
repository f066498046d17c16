"""What coturn's natdiscovery (RFC 5780) finds out about the gateway, in every filtering mode that can be configured.

The expectations are those of RFC 4787 for what was configured; the tool knows nothing of the gateway. Requests to one's own external
endpoint are filtered like any others: only endpoint-independent filtering lets in who was never contacted.
"""

from collections.abc import Iterator

import pytest
from clients import DEVICE
from discovery import Discovered, natdiscovery
from gateways import Egress
from topology import INTERNET4, POOL4, Lab

from tests.lab.nat.places import Place, connected, heard, in_network, seen

VERDICTS = {
    "endpoint-independent": "Endpoint Independent",
    "address-dependent": "Address Dependent",
    "address-and-port-dependent": "Address and Port Dependent",
}
PADDED = [(), ("-P",)]
SECOND_INNER = "100.64.77.7"  # another address of the first client's device
PORTS = iter(range(41_000, 42_000))


@pytest.fixture(scope="module", params=VERDICTS)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def place(judged: Lab, mode: str) -> Iterator[Place]:
    """Our gateway in one of the modes, with two clients."""
    gateway = Egress(judged, f"gateway-{mode}")
    gateway.init()
    gateway.edit(r"\[api\]", f'[nat]\nfiltering = "{mode}"\n\n[api]')
    standing = connected(judged, gateway, 2)
    yield standing
    standing.stop()


def ask(place: Place, *options: str) -> Discovered:
    return natdiscovery(place.lab, place.clients[0].namespace, place.inner(1), *options)


@pytest.mark.parametrize("padding", PADDED, ids=["whole", "in fragments"])
def test_mapping_is_endpoint_independent(place: Place, padding: tuple[str, ...]) -> None:
    """RFC 4787 REQ-1; with padding, requests and answers travel as fragments (REQ-14)."""
    found = ask(place, "-m", *padding)
    assert found.mapping == "Endpoint Independent", found.text
    assert found.payload_untouched
    assert len(set(found.seen)) == 1
    assert in_network(found.seen[0][0], POOL4)


@pytest.mark.parametrize("padding", PADDED, ids=["whole", "in fragments"])
def test_filtering_is_as_configured(place: Place, mode: str, padding: tuple[str, ...]) -> None:
    found = ask(place, "-f", *padding)
    assert found.filtering == VERDICTS[mode], found.text


def test_hairpinning_reaches_who_may_be_reached(place: Place, mode: str) -> None:
    """In fragments only where they may come round, for the tool waits long for what does not."""
    may = mode == "endpoint-independent"
    for padding in PADDED if may else PADDED[:1]:
        found = ask(place, "-H", *padding)
        assert len(found.seen) == 1
        assert found.came_round == may, found.text


def test_internal_endpoints_never_share_an_external_one(place: Place) -> None:
    """RFC 4787 REQ-3, with two addresses of one device on the same port."""
    lab, client = place.lab, place.clients[0]
    key = lab.run(client.namespace, "wg", "show", DEVICE, "public-key").stdout.strip()
    allowed = ",".join((*client.quick.addresses, f"{SECOND_INNER}/32"))
    lab.run(lab.gateway, "wg", "set", place.gateway.interface, "peer", key, "allowed-ips", allowed)
    lab.ip(client.namespace, f"address replace {SECOND_INNER}/32 dev {DEVICE}")
    found = ask(place, "-c", "-A", SECOND_INNER)
    assert len(found.seen) == 2, found.text
    (first, port), (second, other_port) = found.seen
    assert first == second  # paired, REQ-2
    assert port != other_port


def test_two_devices_meet_by_their_external_endpoints(place: Place) -> None:
    """RFC 4787 REQ-9, 9a: hairpinning, from the external endpoint of who sends. Each has contacted the other, so no mode is in the way."""
    port = next(PORTS)
    wanted = [(place.clients[n - 1].namespace, place.inner(n), port) for n in (1, 2)]
    with place.sockets(*wanted, (place.lab.internet, INTERNET4[0], port)) as (one, two, server):
        external_one, external_two = seen(one, server), seen(two, server)
        one.sendto(b"punched", external_two)
        first = heard(two, 0.3)
        two.sendto(b"from two", external_one)
        assert heard(one) == (b"from two", external_two)
        one.sendto(b"from one", external_two)
        assert heard(two) == (b"from one", external_one)
        assert first in {None, (b"punched", external_one)}


@pytest.mark.parametrize("parity", [0, 1], ids=["even", "odd"])
def test_parity_is_kept(place: Place, parity: int) -> None:
    """RFC 4787 REQ-4."""
    base = 43_000 + parity
    client = place.clients[0].namespace
    ports = [base + 2 * n for n in range(20)]
    with (
        place.sockets(*((client, place.inner(1), port) for port in ports)) as senders,
        place.sockets((place.lab.internet, INTERNET4[0], 42_999)) as (server,),
    ):
        external = [seen(sender, server)[1] for sender in senders]
    assert {port % 2 for port in external} == {parity}
    assert len(set(external)) == len(ports)
