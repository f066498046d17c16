"""Public suites for other NATs, their facts in our words: the segments that each sends and what must become of them.

Linux tools/testing/selftests/net/netfilter/packetdrill (the inside is whoever connects), OpenBSD regress/sys/net/pf_state, FreeBSD
tests/sys/netpfil/pf/nat.sh, VPP test/test_nat44_{ed,ei}.py. What each of them asks of its own configuration or counters is left out.
"""

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Raw

from egressvpn.nat.expiry import end_address, remove_device
from egressvpn.nat.tables import ENDPOINT_INDEPENDENT
from egressvpn.nat.tcp import BOTH_FIN, ESTABLISHED, INIT, TRANS
from egressvpn.nat.translate import inbound
from egressvpn.verdict import Verdict
from tests.nat.connection import Connection, established
from tests.nat.exchange import INSIDE, OTHER, REMOTE, back, connect, out, passes
from tests.nat.support import POOL4, Gateway, loaded, ns

PASS, OUT = Verdict.PASS, Verdict.TCP_OUT_OF_WINDOW
CLIENT_ISN = 1000

# Linux, packetdrill


def transferring() -> Connection:
    """The server has sent 3000 octets, all acknowledged; the client 1000, not yet."""
    connection = established()
    for at in (1, 1001, 2001):
        connection.server(".", at, 1, size=1000)
        connection.client(".", 1, at + 1000)
    connection.client("P", 1, 3001, size=1000)
    return connection


@pytest.mark.parametrize(("at", "verdict"), [(0, OUT), (1_000_000, OUT), (42, OUT)])
def test_conntrack_rst_invalid_a_reset_outside_the_window_is_dropped(at: int, verdict: Verdict) -> None:
    connection = transferring()
    assert connection.server("R", at) == verdict
    assert connection.state == ESTABLISHED


def test_conntrack_rst_invalid_only_the_exact_one_closes() -> None:
    connection = transferring()
    connection.server(".", 3001, 1001)
    assert connection.server("R", 3000, 1001) == OUT
    assert connection.state == ESTABLISHED
    assert connection.server("R", 3001, 1001) == PASS
    assert connection.state == TRANS


def test_conntrack_inexact_rst_passes_once_the_connection_is_closing() -> None:
    connection = transferring()
    connection.server("F", 3001, 1001)
    connection.client(".", 1001, 3002)
    assert connection.client("R", 1001, 3002) == PASS
    assert connection.state == TRANS
    assert connection.server("R", 2001) == PASS


def test_conntrack_ack_loss_stall_what_was_acknowledged_may_come_again() -> None:
    """The server's 46 segments were acknowledged, the acknowledgments lost: it begins anew."""
    connection = established(win=65_535)
    size = 1460
    for at in range(1, 67_161 - size + 1, size):
        assert connection.server("P", at, 1, size=size, win=257) == PASS
        assert connection.client(".", 1, at + size) == PASS
    assert connection.server("P", 1, 1, size=size, win=257) == PASS
    assert connection.client(".", 1, 67_161) == PASS
    assert connection.state == ESTABLISHED


def test_conntrack_syn_challenge_ack_an_old_incarnation_does_not_stop_the_new_one() -> None:
    connection = Connection()
    connection.client("S", 0, scale=8)
    assert connection.server(".", 145_824_453, 643_160_523, win=240) == PASS
    assert connection.client("R", 643_160_523 - CLIENT_ISN, win=0) == PASS
    assert connection.client("S", 0, scale=8) == PASS
    assert connection.server("S", 0, 1, scale=0, win=250) == PASS
    assert connection.client(".", 1, 1, win=256) == PASS
    assert connection.state == ESTABLISHED


def test_conntrack_synack_old_the_answer_to_an_old_syn_is_not_taken_for_the_new_one() -> None:
    connection = Connection()
    connection.client("S", 0, scale=8)
    connection.server("S", 145_824_453, 643_160_523, scale=0, win=240)
    assert connection.state == INIT
    connection.client("S", 0, scale=8, now=1)
    assert connection.server("S", 145_758_918, 1, scale=0, win=250, now=1) == PASS
    assert connection.state == ESTABLISHED
    assert connection.client("P", 1, 145_758_919, size=1, now=1) == PASS
    assert connection.server("R", 145_758_919 + 20_000_000, now=1) == OUT  # the window is the new connection's


def test_conntrack_synack_reuse_a_syn_on_a_connection_is_answered_by_a_challenge_and_a_reset() -> None:
    connection = established()
    connection.client("P", 1, 1, size=100, win=257)
    connection.server(".", 1, 101, win=256)
    assert connection.client("S", 2000, scale=7) == PASS
    assert connection.server(".", 1, 101, win=256) == PASS
    assert connection.client("R", 101, 1, win=257) == PASS
    assert connection.client("S", 2000, scale=0) == PASS
    assert connection.server("S", 9000, 2001, scale=0) == PASS
    assert connection.client(".", 2001, 9001) == PASS
    assert connection.state == ESTABLISHED


# OpenBSD, pf_state


def test_pf_state_challenge_ack_a_bogus_syn_passes_and_the_state_stays() -> None:
    """pf answers itself; here the client does, and nothing that is known of the connection changes."""
    connection = transferring()
    connection.server("S", 1_000_000)
    assert connection.state == ESTABLISHED
    assert connection.server("R", 1_000_001) == OUT
    assert connection.server("R", 3001) == PASS
    assert connection.state == TRANS


def test_pf_state_beforegap_rst_a_reset_before_a_gap_ends_it() -> None:
    connection = established()
    connection.server("P", 17, 1, size=8)  # after the gap
    connection.client(".", 1, 1)
    connection.server("P", 1, 1, size=8)  # before it
    connection.client(".", 1, 9)
    assert connection.server("R", 9, 1) == PASS
    assert connection.state == TRANS


def test_pf_state_fakeack_rst_an_acknowledgment_of_0_makes_no_reset_right() -> None:
    connection = established()
    assert connection.server("R", -30_000 % (1 << 32), -CLIENT_ISN % (1 << 32)) == OUT
    assert connection.state == ESTABLISHED


# VPP


def closed(sides: str, gateway: Gateway) -> tuple[str, int]:
    """A connection whose ends send FIN in this order: c the client, s the server. Returns the external endpoint."""
    external = connect(gateway)
    at = {"c": 1001, "s": 5001}
    for side in sides:
        if side == "c":
            assert gateway.send(1, out("tcp", flags="FA", seq=at["c"], ack=at["s"]))[0] == PASS
        else:
            assert passes(gateway, back("tcp", external, flags="FA", seq=at["s"], ack=at["c"]))
        at[side] += 1
    gateway.send(1, out("tcp", flags="A", seq=at["c"], ack=at["s"]))
    passes(gateway, back("tcp", external, flags="A", seq=at["s"], ack=at["c"]))
    return external


def state_of(gateway: Gateway) -> int:
    return int(next(row["state"] for row in gateway.nat.flows if row["state"]))


@pytest.mark.parametrize("sides", ["cs", "sc"], ids=["in", "out"])
def test_tcp_session_close_ends_the_flow_after_the_transitory_time(sides: str) -> None:
    gateway = Gateway()
    closed(sides, gateway)
    assert state_of(gateway) == BOTH_FIN
    gateway.expire(239)
    assert gateway.nat.settings[0].flows == 1
    gateway.expire(241)
    assert gateway.nat.settings[0].flows == 0


@pytest.mark.parametrize("sides", ["cs", "sc"])
def test_tcp_session_half_reopen_outside_a_syn_from_outside_alone_opens_nothing(sides: str) -> None:
    gateway = Gateway()
    external = closed(sides, gateway)
    passes(gateway, back("tcp", external, flags="S", seq=90_000), 10)
    assert state_of(gateway) != ESTABLISHED
    gateway.expire(1000)
    assert gateway.nat.settings[0].flows == 0


def test_tcp_session_reopen_keeps_the_external_endpoint() -> None:
    gateway = Gateway()
    external = closed("cs", gateway)
    assert gateway.external(1, out("tcp", flags="S", seq=70_000), 10) == external
    assert passes(gateway, back("tcp", external, flags="SA", seq=90_000, ack=70_001), 10)
    assert gateway.send(1, out("tcp", flags="A", seq=70_001, ack=90_001), 10)[0] == PASS
    assert state_of(gateway) == ESTABLISHED
    assert passes(gateway, back("tcp", external, flags="A", seq=90_001, ack=70_001), 7000)


def test_tcp_session_open_retransmit_a_repeated_syn_is_the_same_session() -> None:
    gateway = Gateway()
    ends = {gateway.external(1, out("tcp", seq=1000), now) for now in (0, 1, 3, 7)}
    assert len(ends) == 1
    assert gateway.nat.settings[0].flows == 1


def test_session_rst_established_timeout_a_reset_session_goes_in_240_seconds_unless_data_comes() -> None:
    gateway = Gateway()
    external = connect(gateway)
    assert passes(gateway, back("tcp", external, flags="R", seq=5001))
    assert passes(gateway, back("tcp", external, flags="A", seq=5001, ack=1001), 200)
    assert passes(gateway, back("tcp", external, flags="A", seq=5001, ack=1001), 1000)  # resurrected


def test_session_limit_and_ports_exhausted_refuse_and_keep() -> None:
    gateway = Gateway(max_flows=64, ports=(2000, 2007), block_size=8, pool=POOL4[:1])
    ends = [gateway.external(1, out("udp", port=port)) for port in range(8)]
    assert gateway.send(1, out("udp", port=100))[0] != PASS
    assert [gateway.external(1, out("udp", port=port)) for port in range(8)] == ends


def test_dynamic_edge_ports_the_first_and_last_ports_of_the_inside_are_translated() -> None:
    gateway = Gateway()
    for port in (0, 1, 1023, 1024, 65_534, 65_535):
        external = gateway.external(1, out("udp", port=port))
        verdict, _, octets = gateway.receive(back("udp", external))
        assert (verdict, IP(octets)[UDP].dport) == (PASS, port)


def test_icmp_echo_reply_trailer_octets_behind_the_packet_stay_out_of_it() -> None:
    gateway = Gateway()
    external = gateway.external(1, out("icmp"))
    reply = bytes(back("icmp", external))
    buffer, row = loaded(reply + b"trailer")
    assert inbound(gateway.nat, row, buffer, ns(0)) == PASS
    end = int(row.start + row.length)
    assert int(row.length) == len(reply)
    assert IP(buffer[row.start : end].tobytes())[ICMP].id == out("icmp")[ICMP].id
    assert buffer[end : end + 7].tobytes() == b"trailer"


@pytest.mark.parametrize("protocol", [47, 50, 132])
def test_unknown_proto_is_not_translated(protocol: int) -> None:
    gateway = Gateway()
    assert gateway.send(1, IP(src=INSIDE, dst=REMOTE, proto=protocol) / Raw(bytes(20)))[0] == Verdict.UNSUPPORTED_PROTOCOL
    assert gateway.receive(IP(src=REMOTE, dst=POOL4[0], proto=protocol) / Raw(bytes(20)))[0] != PASS


def test_ping_out_interface_and_internal_host_from_outside_nobody_answers() -> None:
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT)
    for address in (POOL4[0], INSIDE):
        assert gateway.receive(IP(src=REMOTE, dst=address) / ICMP(type=8, id=5))[0] != PASS


def test_inside_overlapping_interfaces_two_devices_with_one_inner_endpoint_are_apart() -> None:
    gateway = Gateway()
    ends = {device: gateway.external(device, out("udp")) for device in (1, 2, 3)}
    assert len(set(ends.values())) == 3
    for device, external in ends.items():
        assert gateway.receive(back("udp", external))[1].owner == device


def test_delete_interface_a_removed_device_takes_its_sessions_with_it() -> None:
    gateway = Gateway()
    gone, stays = gateway.external(1, out("udp")), gateway.external(2, out("udp"))
    remove_device(gateway.nat, 1, ns(gateway.now))
    assert not passes(gateway, back("udp", gone))
    assert passes(gateway, back("udp", stays))


def test_outside_address_deleted_its_sessions_end_and_all_others_stay() -> None:
    """Also vyatta's destructive pool change."""
    gateway = Gateway(max_flows=256)
    ends = {(device, port): gateway.external(device, out("udp", port=port)) for device in (1, 2, 3, 4) for port in range(10)}
    while not end_address(gateway.nat, 1, 8, ns(gateway.now)):
        pass
    for (device, port), external in ends.items():
        assert passes(gateway, back("udp", external)) == (external[0] == POOL4[1]), (device, port)


# FreeBSD, pf


def test_pf_endpoint_independent_two_servers_see_one_endpoint() -> None:
    gateway = Gateway()
    assert len({gateway.external(1, out("udp", remote=remote, rport=1234, port=4242)) for remote in (REMOTE, OTHER) * 10}) == 1


def test_pf_endpoint_independent_exhaust_two_ports_for_many_sockets() -> None:
    gateway = Gateway(ports=(3000, 3001), block_size=2, pool=POOL4[:1])
    seen: list[Any] = []
    for port in range(10):
        for remote in (REMOTE, OTHER):
            verdict, row, _ = gateway.send(1, out("udp", remote=remote, rport=1234, port=port))
            seen.append((verdict == PASS, int(row.source_port)))
    assert seen[:4] == [(True, seen[0][1])] * 2 + [(True, seen[2][1])] * 2
    assert not any(passed for passed, _ in seen[4:])


def test_pf_no_addrs_without_an_external_address_nothing_leaves() -> None:
    gateway = Gateway()
    for device in (1, 2, 3, 4):
        gateway.nat.subscribers[device].external4 = 0
        assert gateway.send(device, out("tcp"))[0] == Verdict.NO_EXTERNAL_ADDRESS


def test_a_simultaneous_open_connects() -> None:
    """Jool's simultaneous-open; RFC 5382 REQ-2."""
    gateway = Gateway(filtering=ENDPOINT_INDEPENDENT)
    external = gateway.external(1, out("tcp", seq=1000))
    assert passes(gateway, back("tcp", external, flags="S", seq=5000))
    assert gateway.send(1, out("tcp", flags="SA", seq=1000, ack=5001))[0] == PASS
    assert passes(gateway, back("tcp", external, flags="SA", seq=5000, ack=1001))
    assert gateway.send(1, out("tcp", flags="A", seq=1001, ack=5001))[0] == PASS
    assert state_of(gateway) == ESTABLISHED
    assert TCP in IP(gateway.receive(back("tcp", external, flags="A", seq=5001, ack=1001), 7000)[2])
