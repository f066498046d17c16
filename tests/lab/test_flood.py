"""Handshakes under fire: a flood of initiations with a valid MAC1 neither starves who is connected nor locks out who is new.

The flows here are paced, so that it is the gateway that is tried and not the two cores of a small machine;
`.venv/bin/python netns-lab/siege.py` measures the rest. Interpreted kernels are no match for a flood: these tests need compiled ones.
"""

import time
from collections.abc import Iterator

import pytest
from clients import WireGuardGo
from flood import EVERYWHERE, SOURCES
from gateways import Egress
from siege import REKEY_TIMEOUT, Flood, Siege, besiege
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


@pytest.mark.parametrize(
    ("sources", "patience"),
    [(SOURCES, 2), (EVERYWHERE, REKEY_TIMEOUT + 2)],  # s; when everybody's share is used up, the cookie waits for the second initiation
    ids=["from one network", "from everywhere"],
)
def test_a_flood_of_spoofed_initiations_hurts_nobody(
    lab: Lab, gateway: Egress, clients: list[WireGuardGo], sources: str, patience: float
) -> None:
    worker = gateway.worker()
    established, newcomer = clients
    outcome = besiege(lab, gateway, established, newcomer, Siege(3, PACE, sources=sources))
    assert outcome.packets_per_second >= 0.98 * PACE
    assert outcome.lost <= 0.10, outcome
    assert outcome.newcomer <= patience, outcome
    assert outcome.with_cookie <= 2, outcome
    assert outcome.memory_growth <= 16 * MEGABYTE, outcome
    assert outcome.drops["cookie_required"] > 0
    assert gateway.worker() == worker


def test_no_source_gets_more_than_twenty_diffie_hellmans_a_second(lab: Lab, gateway: Egress, clients: list[WireGuardGo]) -> None:
    """One source is spoofed, and so never has a cookie; then another joins that obeys cookies. None of their messages is genuine:
    each that control looks into is counted as an invalid handshake."""
    key = clients[0].quick.public_key
    spoofed, honest = Flood(lab, 3, "spoofed"), Flood(lab, 2, "honest")
    spoofed.start("spoofed", key, 40, PACE // 2, "198.18.0.1/32")
    try:
        while gateway.drops().get("cookie_required", 0) < PACE // 2:
            time.sleep(0.05)
        first = looked_into(gateway, 3)
        honest.start("honest", key, 20, 2000)
        second = looked_into(gateway, 3)
        sent = honest.finish()["sent"]
    finally:
        spoofed.finish()
    assert sent > 10 * PER_SOURCE
    assert first <= PER_SOURCE
    assert PER_SOURCE / 2 <= second <= 2 * PER_SOURCE + BURST


def looked_into(gateway: Egress, seconds: float) -> float:
    """Invalid handshakes a second that control had to find out by Diffie-Hellman."""
    before, began = gateway.drops().get("invalid_handshake", 0), time.monotonic()
    time.sleep(seconds)
    return (gateway.drops().get("invalid_handshake", 0) - before) / (time.monotonic() - began)
