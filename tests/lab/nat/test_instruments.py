"""The instruments of these tests and of `bench/flows.py` tell the truth: numpy makes the packets that scapy does, verdicts are read."""

import numpy as np
import pytest
from discovery import Discovered
from scapy.layers.inet import IP, UDP
from swarm import INNER, REMOTE_PORT, packets, plan
from topology import LabError

INNER_ADDRESSES = [0x64406402 + number for number in range(64)]

SAID = """
-= Filtering Behavior Discovery =-

RFC 5780 response 1
No ALG: Mapped == XOR-Mapped
0: : IPv4. UDP reflexive addr: 203.0.113.7:39210
STUN receive timeout..
RFC 5780 response 2
No ALG: Mapped == XOR-Mapped
3: : IPv4. UDP reflexive addr: 203.0.113.7:39210

NAT with Address and Port Dependent Filtering!
"""


@pytest.mark.parametrize("remotes", [1, 4])
def test_every_flow_is_another_and_its_packet_is_right(remotes: int) -> None:
    flows = plan(20_000, INNER_ADDRESSES, remotes)
    assert len({tuple(flow) for flow in flows.tolist()}) == 20_000
    assert len({tuple(flow)[:3] for flow in flows.tolist()}) == pytest.approx(20_000 / remotes, abs=len(INNER_ADDRESSES))
    rows = packets(flows["internal"], flows["port"], flows["remote"], np.full(20_000, REMOTE_PORT), first=7)
    for number in (0, 1, 4711, 19_999):
        packet = IP(rows[number].tobytes())
        assert (packet.len, packet[UDP].sport, packet[UDP].dport) == (INNER, flows["port"][number], REMOTE_PORT)
        assert int.from_bytes(packet[UDP].load[:4], "big") == number + 7
        fresh = packet.copy()
        fresh.chksum = fresh[UDP].chksum = None
        assert bytes(fresh) == bytes(packet)


def test_more_flows_than_the_devices_have_ports_for_are_refused() -> None:
    with pytest.raises(LabError):
        plan(200_000, INNER_ADDRESSES[:1])


def test_natdiscoverys_words_are_understood() -> None:
    found = Discovered(SAID)
    assert (found.filtering, found.mapping) == ("Address and Port Dependent", "")
    assert found.seen == [("203.0.113.7", 39_210)] * 2
    assert (found.timeouts, found.came_round, found.payload_untouched) == (1, False, True)
    assert not Discovered(SAID + "-= ALG detected! Mapped and XOR-Mapped differ! =-").payload_untouched
