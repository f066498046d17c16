"""S5, S6, S14: somebody outside, who sees nothing and forges everything, learns nothing of a device's flows and changes none of them.

CVE-2019-14899 and "Blind In/On-Path Attacks" (USENIX Security 2021): finding a connection by what forged packets trigger. ReDAN (NDSS
2025): ending it by a forged reset, or starving it by a forged path MTU. RFC 5927, CVE-2019-5597, 5598: ICMP errors that lie.
"""

import random
from collections import Counter
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Raw

from egressvpn.nat import errors, tracking
from egressvpn.nat.tables import ADDRESS_AND_PORT_DEPENDENT, ADDRESS_DEPENDENT, ENDPOINT_INDEPENDENT
from egressvpn.nat.tracking import plausible_sequence
from egressvpn.verdict import Verdict
from tests.nat.exchange import OTHER, REMOTE, ROUTER, SERVICE, about, back, connect, out, passes
from tests.nat.support import POOL4, Gateway
from tests.security.mutants import always, interpreted_only, mutate

GUESSES = 200
PORTS = (2000, 2511)
TRANSITORY = 241  # s: a connection that a reset has ended is forgotten by then


def swept(gateway: Gateway, remote: str) -> Counter[Verdict]:
    """What becomes of a packet of every kind from `remote` to every port of the address, none of which ends anything."""
    connect(gateway)
    before = gateway.octets()
    seen: Counter[Verdict] = Counter()
    for port in range(PORTS[0], PORTS[1] + 1):
        for flags in ("A", "SA", "R", "S"):
            seen[gateway.receive(back("tcp", (POOL4[0], port), remote=remote, flags=flags, seq=77, ack=77))[0]] += 1
    assert seen[Verdict.PASS] or gateway.octets() == before
    return seen


@pytest.mark.parametrize("filtering", [ADDRESS_DEPENDENT, ADDRESS_AND_PORT_DEPENDENT])
def test_s5_a_sweep_from_anywhere_else_lets_nothing_through(filtering: int) -> None:
    gateway = Gateway(ports=PORTS, pool=POOL4[:1], filtering=filtering)
    seen = swept(gateway, OTHER)
    assert set(seen) == {Verdict.FILTERED, Verdict.NO_MAPPING}
    assert seen[Verdict.FILTERED] == 4  # the right port, and the attacker is not told


def test_s5_a_sweep_finds_the_port_when_filtering_is_endpoint_independent() -> None:
    """Who configures it chooses this."""
    assert swept(Gateway(ports=PORTS, pool=POOL4[:1], filtering=ENDPOINT_INDEPENDENT), OTHER)[Verdict.PASS] > 0


def survives_resets(gateway: Gateway) -> bool:
    """Whether the connection outlives a flood of resets with guessed numbers, in the server's name."""
    external = connect(gateway)
    guess = random.Random(6)
    for _ in range(GUESSES):
        gateway.receive(back("tcp", external, flags="R", seq=guess.choice([guess.randrange(1 << 32), 5001 + guess.randrange(2, 60_000)])))
    return passes(gateway, back("tcp", external, flags="A", seq=5001, ack=1001), TRANSITORY)


def test_s6_guessed_resets_end_nothing() -> None:
    assert survives_resets(Gateway())


@interpreted_only
def test_s6_guessed_resets_end_it_when_every_reset_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, tracking._judge_reset, always(1))
    assert not survives_resets(Gateway())


def test_s6_the_exact_reset_does_end_it() -> None:
    """The server's own (and 240 s later; RFC 7857 2.2)."""
    gateway = Gateway()
    external = connect(gateway)
    assert passes(gateway, back("tcp", external, flags="R", seq=5001))
    assert not passes(gateway, back("tcp", external, flags="A", seq=5001, ack=1001), TRANSITORY)


def quoted(external: tuple[str, int], sequence: int) -> bytes:
    """The beginning of a segment that left from `external`."""
    return bytes(IP(src=external[0], dst=REMOTE) / TCP(sport=external[1], dport=SERVICE, flags="A", seq=sequence, ack=5001))


def path_mtu(gateway: Gateway, mtu: int, sequence: int) -> Verdict:
    """A router's forged word that no more than `mtu` fits."""
    external = connect(gateway)
    before = gateway.octets()
    verdict = gateway.receive(about(quoted(external, sequence), code=4, nexthopmtu=mtu))[0]
    assert gateway.octets() == before
    return verdict


@pytest.mark.parametrize("sequence", [0, 999, 1002, 0x7FFFFFFF, 0xFFFFFFFF])
def test_s6_a_path_mtu_about_what_was_never_sent_is_not_believed(sequence: int) -> None:
    assert path_mtu(Gateway(), 1300, sequence) == Verdict.UNMATCHED_ICMP_ERROR


@pytest.mark.parametrize("mtu", [0, 1, 68, 575])
def test_s6_a_path_mtu_that_no_path_has_is_not_believed(mtu: int) -> None:
    assert path_mtu(Gateway(), mtu, 1001) == Verdict.UNMATCHED_ICMP_ERROR


@pytest.mark.parametrize("mtu", [576, 1300])
def test_s6_an_honest_router_is_believed(mtu: int) -> None:
    assert path_mtu(Gateway(), mtu, 1001) == Verdict.PASS


@interpreted_only
def test_s6_lies_about_the_path_pass_when_sequence_and_mtu_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, plausible_sequence, always(True))
    assert path_mtu(Gateway(), 1300, 0x7FFFFFFF) == Verdict.PASS
    mutate(monkeypatch, errors._believable_mtu, always(True))
    assert path_mtu(Gateway(), 68, 1001) == Verdict.PASS


def forged(external: tuple[str, int]) -> dict[str, Any]:
    """Errors whose quote is not a packet that left, or not one at all. The mapping is UDP's."""
    address, port = external
    right = IP(src=address, dst=REMOTE) / UDP(sport=port, dport=SERVICE) / Raw(b"hello")
    wrong_length = bytearray(bytes(right))
    wrong_length[0] = 0x4F  # a header of 60 octets, which are not there
    within = IP(src=address, dst=REMOTE, proto=17, frag=100) / Raw(bytes(28))
    of_error = IP(src=address, dst=REMOTE) / ICMP(type=3, code=3) / Raw(bytes(right))
    return {
        "another port": IP(src=address, dst=REMOTE) / UDP(sport=port ^ 1, dport=SERVICE) / Raw(b"hello"),
        "another remote": IP(src=address, dst=OTHER) / UDP(sport=port, dport=SERVICE) / Raw(b"hello"),
        "another remote port": IP(src=address, dst=REMOTE) / UDP(sport=port, dport=SERVICE + 1) / Raw(b"hello"),
        "another protocol": IP(src=address, dst=REMOTE) / TCP(sport=port, dport=SERVICE),
        "a protocol without ports": IP(src=address, dst=REMOTE, proto=47) / Raw(bytes(16)),
        "the other way round": IP(src=REMOTE, dst=address) / UDP(sport=SERVICE, dport=port),
        "another receiver": IP(src=POOL4[0], dst=REMOTE) / UDP(sport=port, dport=SERVICE),
        "less than eight octets of transport": Raw(bytes(right)[:27]),
        "a header that is longer than the quote": Raw(bytes(wrong_length)),
        "a later fragment": within,
        "an error": of_error,
        "nothing": Raw(b""),
    }


TYPES = [(3, code) for code in (0, 1, 2, 3, 4, 13)] + [(11, 0), (11, 1), (12, 0), (4, 0), (5, 1), (0, 0), (9, 0), (13, 0), (17, 0), (40, 0)]


@pytest.mark.parametrize("name", forged(("203.0.113.2", 1)))
def test_s14_an_error_about_what_was_not_sent_is_dropped_whatever_its_type(name: str) -> None:
    gateway = Gateway()
    external = gateway.external(1, out("udp"))
    before = gateway.octets()
    quote = bytes(forged(external)[name])
    for kind, code in TYPES:
        fields = {"nexthopmtu": 1300} if (kind, code) == (3, 4) else {}
        error = IP(src=ROUTER, dst=external[0]) / ICMP(type=kind, code=code, **fields) / Raw(quote)
        octets = bytes(error)
        assert gateway.receive(octets)[0] != Verdict.PASS
        assert gateway.octets() == before


@interpreted_only
def test_s14_errors_pass_when_the_quote_is_not_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway()
    external = gateway.external(1, out("udp"))
    mutate(monkeypatch, errors._quoted_flow, always(1))
    assert gateway.receive(about(bytes(forged(external)["another remote port"])))[0] == Verdict.PASS
