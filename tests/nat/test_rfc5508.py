"""RFC 5508, NAT behaviour for ICMP: one test per requirement that the translator decides. Octet-for-octet ones are in test_errors."""

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP, IPOption
from scapy.packet import Raw

from egressvpn.verdict import Verdict
from tests.nat.exchange import INSIDE, OTHER, PORT, REMOTE, ROUTER, about, back, out, passes
from tests.nat.support import Gateway
from tests.packet.support import raw


def test_rfc5508_req1_a_ping_from_inside_is_answered() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("icmp", port=77))
    verdict, row, octets = gateway.receive(back("icmp", external))
    assert (verdict, row.owner) == (Verdict.PASS, 1)
    assert (IP(octets).dst, IP(octets)[ICMP].id) == (INSIDE, 77)


def test_rfc5508_req1_a_ping_from_outside_reaches_nobody() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("icmp"))
    before = gateway.octets()
    assert gateway.receive(IP(src=REMOTE, dst=external[0]) / ICMP(type=8, id=external[1]))[0] == Verdict.FILTERED
    assert gateway.octets() == before


def test_rfc5508_req1a_the_identifier_is_mapped_whatever_the_host() -> None:
    gateway = Gateway()
    assert len({gateway.external(1, out("icmp", remote=f"198.51.100.{n}")) for n in range(1, 9)}) == 1


def test_rfc5508_req2_a_query_lives_60_seconds() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("icmp"), 0)
    assert passes(gateway, back("icmp", external), 59.9)
    gateway = Gateway()
    external = gateway.external(1, out("icmp"), 0)
    assert not passes(gateway, back("icmp", external), 60)


def test_rfc5508_req2a_the_query_timer_is_configurable() -> None:
    gateway = Gateway(icmp=90 * 10**9)
    external = gateway.external(1, out("icmp"), 0)
    assert passes(gateway, back("icmp", external), 89.9)


@pytest.mark.parametrize("at", [20, 24, 27])
def test_rfc5508_req3_an_error_with_a_wrong_checksum_is_dropped(at: int) -> None:
    gateway, sent, _ = one_flow()
    octets = bytearray(raw(about(sent, kind=11)))
    octets[at] ^= 0x01 if at != 20 else 0x08
    assert gateway.receive(bytes(octets))[0] == Verdict.BAD_CHECKSUM


def test_rfc5508_req3a_an_error_whose_quote_has_a_wrong_header_checksum_is_dropped() -> None:
    gateway, sent, _ = one_flow()
    quote = bytearray(sent)
    quote[8] ^= 1
    assert gateway.receive(about(bytes(quote)))[0] == Verdict.BAD_CHECKSUM


@pytest.mark.parametrize("words", range(11))
def test_rfc5508_req3b_options_in_the_quote_are_passed_over(words: int) -> None:
    """A header of 5 to 15 words."""
    gateway = Gateway()
    packet = IP(src=INSIDE, dst=REMOTE, options=[IPOption(b"\x01")] * (4 * words)) / UDP(sport=PORT, dport=9) / Raw(b"x")
    _, row, sent = gateway.send(1, packet)
    assert sent[0] & 15 == 5 + words
    verdict, row, octets = gateway.receive(about(sent))
    assert (verdict, row.owner) == (Verdict.PASS, 1)
    assert octets[28:] == raw(packet)


def test_rfc5508_req3c_the_checksum_of_the_quoted_transport_is_not_looked_at() -> None:
    gateway, sent, original = one_flow()
    assert passes(gateway, about(sent[:28]))  # it need not even be there
    wrong = bytearray(sent)
    wrong[27] ^= 0x55
    verdict, _, octets = gateway.receive(about(bytes(wrong)))
    assert verdict == Verdict.PASS
    assert octets[28:] != original
    assert IP(octets[28:]).src == INSIDE


def test_rfc5508_req3d_extensions_are_no_part_of_the_quote() -> None:
    """RFC 4884 5: zeros up to 128 octets, then an extension structure; both come through as they were."""
    gateway, sent, original = one_flow()
    extension = bytes.fromhex("2000dead00080101000103fc")
    message = IP(src=ROUTER, dst=IP(sent).src) / ICMP(type=11, length=32) / Raw(sent.ljust(128, b"\0") + extension)
    verdict, _, octets = gateway.receive(message)
    assert verdict == Verdict.PASS
    expected = IP(src=ROUTER, dst=INSIDE) / ICMP(type=11, length=32) / Raw(original.ljust(128, b"\0") + extension)
    assert octets == raw(expected)


@pytest.mark.parametrize("change", [{"src": "203.0.113.77"}, {"dst": OTHER}, {"sport": 9}, {"dport": 9}, {"proto": 6}], ids=str)
def test_rfc5508_req4_an_error_from_outside_about_nothing_of_ours_is_dropped(change: dict[str, Any]) -> None:
    gateway, sent, _ = one_flow()
    quoted = IP(sent)
    for name, value in change.items():
        setattr(quoted[UDP] if name in ("sport", "dport") else quoted, name, value)
    del quoted.chksum
    before = gateway.octets()
    assert gateway.receive(about(raw(quoted)))[0] == Verdict.UNMATCHED_ICMP_ERROR
    assert gateway.octets() == before


@pytest.mark.parametrize(("kind", "code"), [(3, code) for code in range(16)] + [(11, 0), (11, 1), (12, 0), (12, 1)])
@pytest.mark.parametrize("query", [False, True], ids=["udp", "echo"])
def test_rfc5508_req4abc_an_error_from_outside_is_restored(query: bool, kind: int, code: int) -> None:
    """Quoted packet as it was sent, type and code as they were, destination the source of the quoted packet; all checksums right."""
    gateway, sent, original = one_flow("icmp" if query else "udp")
    fields = {"nexthopmtu": 1400} if (kind, code) == (3, 4) else {}
    verdict, row, octets = gateway.receive(about(sent, kind=kind, code=code, **fields))
    assert (verdict, row.owner) == (Verdict.PASS, 1)
    expected = about(original, kind=kind, code=code, **fields)
    expected.dst = INSIDE
    assert octets == raw(expected)


def test_rfc5508_req5_an_error_from_inside_about_nothing_of_its_own_is_dropped() -> None:
    gateway, sent, _ = one_flow()
    _, _, received = gateway.receive(reply_to(sent))
    error = IP(src=INSIDE, dst=REMOTE) / ICMP(type=3, code=3) / Raw(received)
    before = gateway.octets()
    assert gateway.send(3, error)[0] == Verdict.UNMATCHED_ICMP_ERROR
    other = IP(src=INSIDE, dst=OTHER) / ICMP(type=3, code=3) / Raw(received)
    assert gateway.send(1, other)[0] == Verdict.UNMATCHED_ICMP_ERROR
    assert gateway.octets() == before


@pytest.mark.parametrize("source", [INSIDE, "100.64.0.99"], ids=["the host", "a router behind the device"])
def test_rfc5508_req5abc_an_error_from_inside_is_restored_and_leaves_from_the_external_address(source: str) -> None:
    gateway, sent, _ = one_flow()
    reply = reply_to(sent)
    _, _, received = gateway.receive(reply)
    verdict, _, octets = gateway.send(1, IP(src=source, dst=REMOTE) / ICMP(type=3, code=3) / Raw(received))
    assert verdict == Verdict.PASS
    assert octets == raw(IP(src=IP(sent).src, dst=REMOTE) / ICMP(type=3, code=3) / Raw(raw(reply)))


def test_rfc5508_req6_an_error_neither_refreshes_nor_ends_a_query_session() -> None:
    gateway, sent, _ = one_flow("icmp")
    external = (IP(sent).src, IP(sent)[ICMP].id)
    for now in range(10, 60, 10):
        assert passes(gateway, about(sent), now)
    assert passes(gateway, back("icmp", external), 59.9)
    gateway, sent, _ = one_flow("icmp")
    assert passes(gateway, about(sent), 59.9)
    assert not passes(gateway, back("icmp", (IP(sent).src, IP(sent)[ICMP].id)), 60)


@pytest.mark.parametrize(("kind", "verdict"), [(3, Verdict.PASS), (11, Verdict.PASS), (12, Verdict.PASS)])
def test_rfc5508_req10a_unreachable_and_time_exceeded_are_supported(kind: int, verdict: Verdict) -> None:
    gateway, sent, _ = one_flow()
    assert gateway.receive(about(sent, kind=kind))[0] == verdict


@pytest.mark.parametrize("kind", [4, 5, 9, 10, 13, 14, 15, 16, 17, 18])
def test_rfc5508_req10bc_what_is_not_supported_is_dropped_both_ways(kind: int) -> None:
    """Quench, redirect, router advertisement and solicitation, timestamp, information and address mask."""
    gateway, sent, _ = one_flow()
    before = gateway.octets()
    dropped = (Verdict.UNSUPPORTED_PROTOCOL, Verdict.FILTERED)
    assert gateway.receive(about(sent, kind=kind))[0] in dropped
    assert gateway.send(1, IP(src=INSIDE, dst=REMOTE) / ICMP(type=kind) / Raw(sent))[0] in dropped
    assert gateway.octets() == before


def reply_to(sent: bytes) -> Any:
    return IP(src=REMOTE, dst=IP(sent).src) / UDP(sport=IP(sent).dport, dport=IP(sent).sport) / Raw(b"answer")


def one_flow(kind: str = "udp") -> tuple[Gateway, bytes, bytes]:
    """A gateway with one flow made at second 0: the packet as it left, and as its device sent it."""
    gateway = Gateway()
    packet = out(kind)
    verdict, _, sent = gateway.send(1, packet, 0)
    assert verdict == Verdict.PASS
    return gateway, sent, raw(packet)
