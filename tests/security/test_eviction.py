"""S3, eviction and reuse: whoever fills the tables takes nothing from others; what was freed is nobody's for a while (RFC 6888 REQ-8, 11).

"Attacking Connection Tracking Frameworks as used by Virtual Private Networks" (PoPETs 2024), eviction reroute: with the table full and
the victim's DNS query under way, the attacker makes the gateway forget it, gets its port, and with it the answer.
"""

from typing import Any

import pytest

from egressvpn.nat.expiry import remove_flow
from egressvpn.nat.tcp import FREE
from egressvpn.nat.translate import open_outbound
from egressvpn.verdict import Verdict
from tests.nat.exchange import REMOTE, back, out
from tests.nat.support import POOL4, Gateway
from tests.security.mutants import interpreted_only, mutate

DNS = 53
VICTIM, ATTACKER = 1, 2
PORTS = (2000, 2031)


def answered(gateway: Gateway) -> tuple[Verdict, int]:
    """The victim asks, the attacker opens all he can, the answer comes: what becomes of it, and whose it is."""
    external = gateway.external(VICTIM, out("udp", rport=DNS))
    for port in range(100):
        gateway.send(ATTACKER, out("udp", port=port, rport=DNS))
    verdict, row, _ = gateway.receive(back("udp", external, rport=DNS))
    return verdict, int(row.owner)


def crowded(**more: Any) -> Gateway:
    return Gateway(max_flows=24, ports=PORTS, block_size=16, pool=POOL4[:1], **more)


def test_s3_a_full_table_keeps_what_it_has() -> None:
    gateway = crowded()
    assert answered(gateway) == (Verdict.PASS, VICTIM)
    assert gateway.send(ATTACKER, out("udp", port=999))[0] in {Verdict.FLOW_TABLE_FULL, Verdict.PORTS_EXHAUSTED, Verdict.QUOTA_EXCEEDED}


@interpreted_only
def test_s3_succeeds_where_the_oldest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_outbound

    def evicting(nat: Any, device: int, packet: Any, now: int) -> int:
        verdict = opened(nat, device, packet, now)
        if verdict != Verdict.PASS:
            slots = [slot for slot in range(1, nat.flows.size) if nat.flows[slot]["state"] != FREE]
            remove_flow(nat, min(slots, key=lambda slot: int(nat.flows[slot].created)), now)
            verdict = opened(nat, device, packet, now)
        return int(verdict)

    mutate(monkeypatch, open_outbound, evicting)
    assert answered(crowded()) != (Verdict.PASS, VICTIM)


def inherited(gateway: Gateway) -> int:
    """The victim's mapping ends, the attacker asks the same server; what comes late for the victim: whose it is, 0 nobody's."""
    external = gateway.external(VICTIM, out("udp", rport=DNS))
    gateway.expire(400)
    for port in range(40):
        gateway.send(ATTACKER, out("udp", port=port, rport=DNS))
    verdict, row, _ = gateway.receive(back("udp", external, rport=DNS))
    return int(row.owner) if verdict == Verdict.PASS else 0


def test_s3_a_freed_port_is_quarantined() -> None:
    gateway = Gateway(max_flows=64, ports=(2000, 2015), block_size=16, pool=POOL4[:1])
    assert inherited(gateway) == 0
    assert gateway.send(ATTACKER, out("udp", remote=REMOTE))[0] == Verdict.PORTS_EXHAUSTED
    gateway.external(ATTACKER, out("udp"), 400 + 121)


def test_s3_without_hold_down_the_attacker_gets_the_late_answer() -> None:
    assert inherited(Gateway(max_flows=64, ports=(2000, 2015), block_size=16, pool=POOL4[:1], hold_down=0)) == ATTACKER
