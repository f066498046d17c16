"""ECN between the packet and the datagram around it, against the tables of RFC 6040 as the kernel reads them; scapy makes the checksums."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP, IPOption
from scapy.layers.inet6 import IPv6

from egressvpn.packet.ecn import CE, ECT0, ECT1, decapsulate, ecn_of, encapsulate
from tests.packet.support import START, parsed, place, taken

NOT_ECT = 0
RECEIVED = {  # (inner, outer): figure 4, but for the drop of Not-ECT with CE
    (NOT_ECT, NOT_ECT): NOT_ECT,
    (NOT_ECT, ECT0): NOT_ECT,
    (NOT_ECT, ECT1): NOT_ECT,
    (NOT_ECT, CE): NOT_ECT,
    (ECT0, NOT_ECT): ECT0,
    (ECT0, ECT0): ECT0,
    (ECT0, ECT1): ECT1,
    (ECT0, CE): CE,
    (ECT1, NOT_ECT): ECT1,
    (ECT1, ECT0): ECT1,
    (ECT1, ECT1): ECT1,
    (ECT1, CE): CE,
    (CE, NOT_ECT): CE,
    (CE, ECT0): CE,
    (CE, ECT1): CE,
    (CE, CE): CE,
}


def packet(version: int, tos: int, **fields: Any) -> bytes:
    network = (
        IP(src="100.64.0.2", dst="198.51.100.2", tos=tos, **fields)
        if version == 4
        else IPv6(src="fd64::2", dst="2001:db8::2", tc=tos, fl=7)
    )
    return bytes(network / UDP(sport=1, dport=2) / b"question")


@given(
    version=st.sampled_from([4, 6]),
    dscp=st.integers(0, 63),
    inner=st.integers(0, 3),
    outer=st.integers(0, 3),
    fields=st.fixed_dictionaries(
        {"id": st.integers(0, 65535), "ttl": st.integers(1, 255), "options": st.sampled_from([[], [IPOption(b"\1" * 4)]])}
    ),
)
def test_what_the_network_said_is_what_the_packet_says(version: int, dscp: int, inner: int, outer: int, fields: dict[str, Any]) -> None:
    buffer, row = parsed(packet(version, dscp << 2 | inner, **fields))
    decapsulate(buffer, row, outer)
    assert taken(buffer, row) == packet(version, dscp << 2 | RECEIVED[inner, outer], **fields)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("inner", "outer"), [(NOT_ECT, NOT_ECT), (ECT1, ECT1), (ECT0, ECT0), (CE, ECT0)])
def test_the_datagram_says_what_its_packet_says_but_never_that_there_was_congestion(version: int, inner: int, outer: int) -> None:
    buffer = place(packet(version, 0xB8 | inner))
    assert ecn_of(buffer, START) == inner
    assert encapsulate(buffer, START) == outer
