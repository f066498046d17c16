"""RFC 6888, requirements for carrier-grade NATs: one test per requirement that the translator decides.

The log (section 4), its reader and the notifications are tested in tests/observe and tests/app, refusals seen by a device in
tests/dataplane.
"""

from collections import Counter

import pytest

from egressvpn.nat.tables import BLOCK_GIVEN
from egressvpn.verdict import Verdict
from tests.nat.exchange import OTHER, REMOTE, back, out, passes
from tests.nat.support import POOL4, Gateway

SECOND = 10**9


def test_rfc6888_req2_pooling_is_paired_by_subscriber_over_all_protocols() -> None:
    """Two devices with the same inner address are two subscribers."""
    gateway = Gateway(max_flows=256)
    for device in (1, 2):
        for kind in ("udp", "tcp", "icmp"):
            addresses = {gateway.external(device, out(kind, port=port))[0] for port in range(30)}
            assert addresses == {Gateway.external4(device)}
    assert Gateway.external4(1) != Gateway.external4(2)


def test_rfc6888_req3_the_pool_need_not_be_contiguous() -> None:
    pool = ("198.51.100.7", "203.0.113.0", "203.0.113.1", "192.0.2.200")
    gateway = Gateway(devices=4, pool=pool)
    assert {gateway.external(device, out("udp", remote=OTHER))[0] for device in range(1, 5)} == set(pool)


def test_rfc6888_req4_external_ports_of_a_device_are_limited_and_others_unharmed() -> None:
    gateway = Gateway(max_flows=512, ports=(2000, 2255), block_size=16, max_blocks=4, pool=(POOL4[0],))
    for port in range(64):
        gateway.external(1, out("udp", port=port))
    for port in range(64, 300):
        assert gateway.send(1, out("udp", port=port))[0] == Verdict.QUOTA_EXCEEDED
    for device in (2, 3, 4):
        for port in range(64):
            gateway.external(device, out("udp", port=port))


def test_rfc6888_req4b_the_limit_is_per_protocol() -> None:
    """A block holds as many ports of each protocol: one protocol used up leaves the others."""
    gateway = Gateway(ports=(2000, 2015), block_size=16, max_blocks=1, pool=(POOL4[0],))
    for port in range(16):
        gateway.external(1, out("udp", port=port))
    assert gateway.send(1, out("udp", port=99))[0] == Verdict.QUOTA_EXCEEDED
    gateway.external(1, out("tcp", port=99))
    gateway.external(1, out("icmp", port=99))


def test_rfc6888_req4c_the_rate_of_new_mappings_is_limited() -> None:
    gateway = Gateway(max_flows=256, mapping_rate=10, mapping_burst=20)
    verdicts = Counter(gateway.send(1, out("udp", port=port), 0)[0] for port in range(50))
    assert verdicts == {Verdict.PASS: 20, Verdict.RATE_EXCEEDED: 30}
    gateway.external(2, out("udp"), 0)
    gateway.external(1, out("udp", port=0, remote=OTHER), 0)  # of a mapping that exists
    verdicts = Counter(gateway.send(1, out("udp", port=100 + port), 1)[0] for port in range(50))
    assert verdicts[Verdict.PASS] == 10


def test_rfc6888_req5_flows_of_a_device_are_limited_also_on_one_mapping() -> None:
    gateway = Gateway(max_flows=256, max_flows_per_device=50)
    verdicts = Counter(gateway.send(1, out("udp", rport=1 + n))[0] for n in range(200))
    assert verdicts == {Verdict.PASS: 50, Verdict.QUOTA_EXCEEDED: 150}
    assert gateway.nat.settings[0].mappings == 1
    gateway.external(2, out("udp"))


def test_rfc6888_req5_flows_that_strangers_open_are_limited() -> None:
    gateway = Gateway(max_flows=256, max_flows_per_device=40, filtering=0)
    external = gateway.external(1, out("udp"))
    let_in = sum(passes(gateway, back("udp", external, rport=1 + n)) for n in range(200))
    assert 0 < let_in <= 12
    gateway.external(1, out("udp", remote=OTHER))


@pytest.mark.parametrize(("filtering", "verdict"), [(0, Verdict.PASS), (1, Verdict.FILTERED)])
def test_rfc6888_req7_endpoint_independent_filtering_can_be_had(filtering: int, verdict: Verdict) -> None:
    gateway = Gateway(filtering=filtering)
    assert gateway.receive(back("udp", gateway.external(1, out("udp")), remote=OTHER))[0] == verdict


def test_rfc6888_req8_a_freed_port_goes_to_no_other_device_for_120_seconds() -> None:
    gateway = Gateway(ports=(2000, 2015), block_size=16, pool=(POOL4[0],))
    gateway.external(1, out("udp"), 0)
    gateway.expire(301)
    assert gateway.nat.settings[0].mappings == 0
    assert gateway.send(2, out("udp"), 301 + 119)[0] == Verdict.PORTS_EXHAUSTED
    assert gateway.send(2, out("udp"), 301 + 121)[0] == Verdict.PASS


def test_rfc6888_req8_the_hold_is_configurable() -> None:
    gateway = Gateway(ports=(2000, 2015), block_size=16, pool=(POOL4[0],), hold_down=10 * SECOND)
    gateway.external(1, out("udp"), 0)
    gateway.expire(301)
    assert gateway.send(2, out("udp"), 301 + 9)[0] == Verdict.PORTS_EXHAUSTED
    assert gateway.send(2, out("udp"), 301 + 11)[0] == Verdict.PASS


def test_rfc6888_req8_ports_are_held_over_a_loss_of_the_process() -> None:
    gateway = Gateway(ports=(2000, 2015), block_size=16, pool=(POOL4[0],))
    external = gateway.external(1, out("udp"), 0)
    gateway.restart()
    assert passes(gateway, back("udp", external), 10)
    assert gateway.send(2, out("udp"), 20)[0] == Verdict.PORTS_EXHAUSTED


@pytest.mark.parametrize("kind", ["udp", "tcp", "icmp"])
def test_rfc6888_req11_exhaustion_refuses_the_new_and_keeps_the_old(kind: str) -> None:
    gateway = Gateway(max_flows=128, ports=(2000, 2031), block_size=16, pool=(POOL4[0],))
    kept = {(device, port): gateway.external(device, out(kind, port=port)) for device in (1, 2) for port in range(16)}
    flows = gateway.live()
    for device in (1, 2, 3, 4):
        for port in range(100, 140):
            assert gateway.send(device, out(kind, port=port))[0] == Verdict.PORTS_EXHAUSTED
    assert gateway.live() == flows
    assert {end: gateway.external(end[0], out(kind, port=end[1])) for end in kept} == kept


def test_rfc6888_req11_a_full_table_refuses_the_new_and_keeps_the_old() -> None:
    gateway = Gateway(max_flows=30)
    external = gateway.external(1, out("udp"))
    while gateway.send(2, out("udp", rport=gateway.nat.settings[0].flows + 1))[0] == Verdict.PASS:
        pass
    flows = gateway.live()
    assert gateway.send(3, out("udp"))[0] == Verdict.FLOW_TABLE_FULL
    assert gateway.live() == flows
    assert passes(gateway, back("udp", external))


def test_rfc6888_req12_what_is_written_down_names_no_destination() -> None:
    gateway = Gateway()
    gateway.external(1, out("udp", remote=REMOTE, rport=443))
    (entry,) = [row for row in gateway.nat.journal if row.kind == BLOCK_GIVEN]
    assert set(entry.dtype.names) == {"sequence", "kind", "identity", "pool", "address", "port_low", "port_high", "when"}


def test_rfc6888_req13_every_port_of_the_slice_is_used() -> None:
    gateway = Gateway(max_flows=300, ports=(2000, 2255), block_size=16, pool=(POOL4[0],))
    seen = {gateway.external(1 + n % 4, out("udp", port=n))[1] for n in range(256)}
    assert seen == set(range(2000, 2256))


def test_rfc6888_req14_one_entry_is_written_for_a_block_of_ports() -> None:
    gateway = Gateway(max_flows=300, ports=(2000, 3023), block_size=128, pool=(POOL4[0],))
    for port in range(128):
        for kind in ("udp", "tcp"):
            gateway.external(1, out(kind, port=port))
    assert gateway.nat.settings[0].journal == 1


def test_rfc6888_req15_ports_of_a_device_are_hard_to_guess() -> None:
    """Inside its block they are drawn with a secret: no step between two that follow each other is frequent."""
    gateway = Gateway(max_flows=600, ports=(2000, 3023), block_size=512, pool=(POOL4[0],))
    ports = [gateway.external(1, out("udp", port=n))[1] for n in range(400)]
    steps = Counter(after - before for before, after in zip(ports[::2], ports[2::2], strict=False))
    assert max(steps.values()) <= 6
    assert ports != sorted(ports)
