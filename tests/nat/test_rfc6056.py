"""RFC 6056 section 4, ports chosen by a NAPT. Their distribution at every fill is tested in test_ports."""

import itertools

import pytest

from tests.nat.exchange import out
from tests.nat.support import POOL4, Gateway


def test_rfc6056_3_1_ports_come_from_all_of_the_block() -> None:
    gateway = Gateway(max_flows=600, ports=(2048, 2559), block_size=512, pool=(POOL4[0],))
    assert {gateway.external(1, out("udp", port=n))[1] for n in range(512)} == set(range(2048, 2560))


def test_rfc6056_3_2_ports_of_local_services_are_never_chosen() -> None:
    """The gateway's own listening ports lie outside the slice, or on another address (`egressvpn check` sees to it)."""
    gateway = Gateway(max_flows=300, ports=(60_000, 60_255), block_size=64)
    ports = {gateway.external(device, out("udp", port=n))[1] for device in (1, 2) for n in range(128)}
    assert min(ports) >= 60_000
    assert max(ports) <= 60_255
    assert gateway.nat.settings[0].slice_violations == 0


def test_rfc6056_4_a_translated_port_tells_nothing_of_the_internal_one() -> None:
    """Only its parity is kept."""
    distances = set()
    for secret in range(30):
        gateway = Gateway()
        gateway.nat.settings[0].key0 = secret
        distances.add(gateway.external(1, out("udp", port=4000))[1])
    assert len(distances) >= 28
    assert all(port % 2 == 0 for port in distances)


@pytest.mark.parametrize("kind", ["udp", "tcp", "icmp"])
def test_rfc6056_4_every_protocol_is_obfuscated(kind: str) -> None:
    gateway = Gateway(max_flows=128)
    ports = [gateway.external(1, out(kind, port=5000 + n))[1] for n in range(100)]
    assert sum(after - before in (1, 2) for before, after in itertools.pairwise(ports)) <= 8
