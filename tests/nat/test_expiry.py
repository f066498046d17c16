"""How flows end: by the wheel, with their device, with their pool address."""

import pytest
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6

from egressvpn.nat.expiry import drop_flows, drop_flows6, end_address, expire, remove_device
from egressvpn.nat.tables import ENDPOINT_INDEPENDENT, SECOND, subscribe
from egressvpn.nat.translate import may_open
from egressvpn.verdict import Verdict
from tests.nat.packets import INSIDE6, OTHER, REMOTE6, into, out, tcp
from tests.nat.support import Gateway, assert_consistent, loaded, ns
from tests.packet.support import as_words


@pytest.mark.parametrize(("kind", "timeout"), [("udp", 300), ("icmp", 60)])
def test_a_flow_lives_its_timeout_and_both_directions_prolong_it(kind: str, timeout: int) -> None:
    gateway = Gateway()
    external = gateway.external(1, out(kind))
    assert gateway.receive(into(kind, external), timeout - 0.1)[0] == Verdict.PASS
    assert gateway.external(1, out(kind), 2 * timeout - 0.3) == external
    assert gateway.receive(into(kind, external), 3 * timeout - 0.4)[0] == Verdict.PASS
    assert gateway.receive(into(kind, external), 4 * timeout - 0.4)[0] == Verdict.NO_MAPPING


def test_a_new_flow_takes_the_place_in_the_home_that_an_old_one_left() -> None:
    gateway = Gateway(max_flows=2)
    external = gateway.external(1, out("udp"))
    gateway.external(1, out("udp", remote=OTHER), 200)
    assert gateway.external(1, out("udp", rport=81), 400) == external
    assert gateway.nat.settings[0].records == gateway.nat.settings[0].flows == 2
    assert gateway.receive(into("udp", external, remote=OTHER, rport=90))[0] == Verdict.FLOW_TABLE_FULL
    assert_consistent(gateway.nat)


def test_the_port_of_an_expired_mapping_is_free_again_for_its_device() -> None:
    gateway = Gateway(ports=(2000, 2000), block_size=1)
    assert gateway.external(1, out("udp")) == (Gateway.external4(1), 2000)
    assert gateway.send(1, out("udp", port=5))[0] == Verdict.PORTS_EXHAUSTED
    assert gateway.expire(299.9) == 0
    assert gateway.expire(300.2) == 1
    assert gateway.external(1, out("udp", port=5)) == (Gateway.external4(1), 2000)
    assert_consistent(gateway.nat)


def test_expiry_handles_no_more_than_its_budget_and_goes_on_where_it_stopped() -> None:
    gateway = Gateway()
    for port in range(10):
        gateway.external(1, out("udp", port=port))
    assert [expire(gateway.nat, 4, ns(400)) for _ in range(4)] == [4, 4, 2, 0]
    assert gateway.nat.settings[0].flows_expired == 10
    assert_consistent(gateway.nat)


def test_a_flow_that_was_seen_again_is_looked_at_again_when_it_is_due() -> None:
    gateway = Gateway(udp=300 * SECOND)
    gateway.external(1, out("udp"))
    for moment in (299, 598, 897, 1196):
        gateway.external(1, out("udp"), moment)
        assert_consistent(gateway.nat)
    assert gateway.expire(1495.9) == 0
    assert gateway.expire(1496.2) == 1


def test_a_flow_due_more_than_a_round_of_the_wheel_away_lives_its_time() -> None:
    gateway = Gateway(udp=7 * 86_400 * SECOND)
    external = gateway.external(1, out("udp"))
    assert gateway.expire(7 * 86_400 - 0.1) == 0
    assert gateway.receive(into("udp", external))[0] == Verdict.PASS
    assert gateway.expire(14 * 86_400 - 0.2) == 0
    assert gateway.expire(14 * 86_400 + 0.2) == 1


def test_a_connection_that_closed_is_looked_at_by_the_shorter_timer() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("tcp"))
    gateway.receive(into("tcp", external, flags="SA"))
    gateway.send(1, tcp("A", seq=1, ack=1))
    gateway.send(1, tcp("A", seq=1, ack=1), 300)  # from here on it is looked at once a round of the wheel
    gateway.send(1, tcp("FA", seq=1, ack=1), 500)
    gateway.receive(into("tcp", external, flags="FA", seq=1, ack=2), 500)
    assert gateway.expire(739.9) == 0
    assert gateway.expire(740.2) == 1
    assert_consistent(gateway.nat)


def test_an_unanswered_flow_of_a_mapping_that_ended_goes_with_the_next_round() -> None:
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT, udp=7200 * SECOND)
    external = gateway.external(1, out("udp"))
    gateway.receive(into("udp", external, remote=OTHER), 7100)
    assert gateway.expire(7200.2) == 1
    assert gateway.receive(into("udp", external, remote=OTHER))[0] == Verdict.NO_MAPPING
    assert gateway.expire(8300) == 1
    assert_consistent(gateway.nat)


def test_what_has_expired_is_found_by_no_packet_though_the_sweep_is_late() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("udp"))
    gateway.now = 300.0
    gateway.late = True
    assert gateway.receive(into("udp", external))[0] == Verdict.NO_MAPPING
    gateway.external(1, out("udp"))
    gateway.external(1, out("udp", remote=OTHER))
    gateway.now = 600.0
    assert gateway.external(1, out("udp")) is not None
    assert gateway.nat.settings[0].flows_created == 4
    assert_consistent(gateway.nat)


def test_removing_a_device_ends_its_flows_and_no_others() -> None:
    gateway = Gateway()
    mine, others = gateway.external(1, out("udp")), gateway.external(3, out("udp"))
    gateway.external(1, out("tcp"))
    assert remove_device(gateway.nat, 1, ns(0)) == 2
    assert gateway.receive(into("udp", mine))[0] == Verdict.NO_MAPPING
    assert gateway.receive(into("udp", others))[0] == Verdict.PASS
    assert gateway.send(1, out("udp"))[0] == Verdict.NO_EXTERNAL_ADDRESS
    assert [remove_device(gateway.nat, device, ns(0)) for device in (1, 0, 99)] == [0, 0, 0]
    assert_consistent(gateway.nat)


def test_dropping_the_flows_of_a_device_leaves_it_its_addresses() -> None:
    gateway = Gateway()
    before = gateway.external(1, out("udp"))
    assert drop_flows(gateway.nat, 1, ns(0)) == 1
    assert [drop_flows(gateway.nat, device, ns(0)) for device in (0, -1, 99)] == [0, 0, 0]
    assert gateway.external(1, out("udp"))[0] == before[0]
    assert_consistent(gateway.nat)


def test_another_ipv6_address_ends_ipv6_flows_alone() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("udp"))
    gateway.external(1, IPv6(src=INSIDE6, dst=REMOTE6) / UDP(sport=7))
    assert [drop_flows6(gateway.nat, device, ns(0)) for device in (1, 0, 99)] == [1, 0, 0]
    subscribe(gateway.nat, 1, 101, 2, *as_words("2001:db8:113::77"), 0)
    assert gateway.external(1, IPv6(src=INSIDE6, dst=REMOTE6) / UDP(sport=7)) == ("2001:db8:113::77", 7)
    assert gateway.receive(into("udp", external))[0] == Verdict.PASS
    assert_consistent(gateway.nat)


def test_an_address_that_is_taken_away_ends_its_flows_in_steps_and_no_others() -> None:
    gateway = Gateway(max_flows=64, devices=40)
    for device in range(1, 21):
        gateway.external(device, out("udp"))
        gateway.external(device, IPv6(src=INSIDE6, dst=REMOTE6) / UDP(sport=7))
    steps = 1
    while end_address(gateway.nat, 1, 1, ns(1)) == 0:
        steps += 1
        assert gateway.send(2, out("udp", port=steps))[0] == Verdict.NO_EXTERNAL_ADDRESS
        assert_consistent(gateway.nat)
    assert steps > 10
    assert end_address(gateway.nat, 1, 1, ns(1)) == 1
    assert gateway.nat.pool[1].address == 0
    assert {int(key) >> 41 for key in gateway.nat.flows.key[gateway.nat.flows.pool != 0] if key} >= set(range(1, 21, 2))
    assert gateway.nat.settings[0].flows == 30
    for device in range(1, 21):
        expected = Verdict.PASS if device % 2 else Verdict.NO_EXTERNAL_ADDRESS
        assert gateway.send(device, out("udp"), 1)[0] == expected
        assert gateway.send(device, IPv6(src=INSIDE6, dst=REMOTE6) / UDP(sport=7))[0] == Verdict.PASS
    assert_consistent(gateway.nat)


def test_the_flows_of_one_device_end_in_steps_too_when_its_address_is_taken_away() -> None:
    gateway = Gateway()
    for port in range(10):
        gateway.external(2, out("udp", port=port))
    left = []
    while end_address(gateway.nat, 1, 4, ns(1)) == 0:
        left.append(int(gateway.nat.subscribers[2].flows))
        assert_consistent(gateway.nat)
    assert left == [6, 2]
    assert gateway.nat.pool[1].address == 0


def test_a_mapping_on_an_address_that_ends_gets_no_more_flows_from_either_side() -> None:
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT)
    external = gateway.external(2, out("udp", port=1))
    for port in range(2, 8):
        gateway.external(2, out("udp", port=port))
    assert end_address(gateway.nat, 1, 1, ns(1)) == 0
    before = int(gateway.nat.subscribers[2].flows)
    for known in range(1, 8):
        assert gateway.send(2, out("udp", port=known, remote=OTHER), 1)[0] != Verdict.PASS
        assert may_open(gateway.nat, 2, loaded(out("udp", port=known, remote=OTHER))[1], ns(1)) == Verdict.NO_EXTERNAL_ADDRESS
    assert gateway.receive(into("udp", external, remote=OTHER), 1)[0] != Verdict.PASS
    assert int(gateway.nat.subscribers[2].flows) == before > 0
    assert_consistent(gateway.nat)


def test_flows_that_are_only_looked_at_count_against_a_step_too() -> None:
    gateway = Gateway(max_flows=512, devices=8)
    for device in range(2, 9, 2):
        for port in range(40):
            gateway.external(device, IPv6(src=INSIDE6, dst=REMOTE6) / UDP(sport=port))
    steps = 1
    while end_address(gateway.nat, 1, 1, ns(1)) == 0:
        steps += 1
    assert steps >= 4
    assert gateway.nat.settings[0].flows == 160
