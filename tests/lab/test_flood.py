"""Handshakes under fire: a flood of initiations with a valid MAC1 neither starves who is connected nor locks out who is new.

The flows here are paced, so that it is the gateway that is tried and not the two cores of a small machine;
`.venv/bin/python netns-lab/siege.py` measures the rest. Interpreted kernels are no match for a flood: these tests need compiled ones.
"""

import time
from collections.abc import Iterator

import pytest
from clients import WireGuardGo
from gateways import Egress
from siege import RATE, REKEY_TIMEOUT, Flood, besiege
from topology import Lab

PACE = 50_000  # packets/s
MEGABYTE = 1 << 20
PER_SOURCE, BURST = 20, 5  # initiations/s: the limiter of the whitepaper 5.3, with the kernel's numbers


@pytest.fixture(scope="module")
def clients(lab: Lab, gateway: Egress) -> Iterator[list[WireGuardGo]]:
    """Two that are known to the gateway; the first runs."""
    both = [WireGuardGo(lab, number, gateway.add_peer(f"besieged{number}")) for number in (1, 2)]
    both[0].start()
    yield both
    for client in both:
        client.stop()


def test_a_flood_of_spoofed_initiations_hurts_nobody(lab: Lab, gateway: Egress, clients: list[WireGuardGo]) -> None:
    worker = gateway.worker()
    established, newcomer = clients
    outcome = besiege(lab, gateway, established, newcomer, 3, PACE, RATE)
    assert outcome.packets_per_second >= 0.98 * PACE
    assert outcome.lost <= 0.10, outcome
    assert outcome.newcomer <= REKEY_TIMEOUT + 2, outcome  # the cookie waits for the second initiation
    assert outcome.with_cookie <= 2, outcome
    assert outcome.memory_growth <= 16 * MEGABYTE, outcome
    assert outcome.drops["cookie_required"] > 0
    assert gateway.worker() == worker


def test_a_source_that_obeys_cookies_still_gets_no_more_than_twenty_a_second(lab: Lab, gateway: Egress, clients: list[WireGuardGo]) -> None:
    """What has passed the cookie and the limiter costs a Diffie-Hellman, and is counted as invalid by it."""
    key = clients[0].quick.public_key
    load, greedy = Flood(lab, 3, "load"), Flood(lab, 2, "greedy")
    load.start("spoofed", key, 30, PACE // 2)
    try:
        while not gateway.drops().get("cookie_required"):
            time.sleep(0.05)
        before, began = gateway.drops(), time.monotonic()
        greedy.start("honest", key, 20, 2000)
        time.sleep(3)
        sent = greedy.finish()["sent"]
        after, seconds = gateway.drops(), time.monotonic() - began
    finally:
        load.finish()
    computed = after.get("invalid_handshake", 0) - before.get("invalid_handshake", 0)
    assert 0 < computed <= PER_SOURCE * seconds + BURST
    assert after["rate_limited"] - before.get("rate_limited", 0) >= 0.9 * (sent - computed)
