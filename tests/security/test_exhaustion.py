"""S11, S12: a device that takes all it can get, and one that chooses what it sends so that the tables are slow.

RFC 6888 REQ-4, 5, 11; FreeBSD's pf nat.sh (exhaust, endpoint_independent_exhaust), which once hung a kernel; CVE-2018-5391's class:
chains that whoever knows the hash can make as long as he likes.
"""

import itertools
from collections import Counter
from typing import Any

from egressvpn.nat.keys import bucket, hash_end
from egressvpn.nat.tables import FLOWS, seed
from egressvpn.verdict import Verdict
from tests.nat.exchange import out
from tests.nat.support import POOL4, Gateway
from tests.packet.support import address

KINDS = ("udp", "tcp", "icmp")
GREED = 600  # flows of each kind that the greedy device asks for
VICTIM, GREEDY = 1, 2
NEEDS = 100  # new flows of the other


def newcomers(gateway: Gateway) -> tuple[int, Counter[Verdict]]:
    """How many of the other device's new flows succeed, of NEEDS, while the greedy one asks for all; and what that one hears."""
    heard: Counter[Verdict] = Counter()
    succeeded = 0
    for number in range(GREED):
        for kind in KINDS:
            heard[gateway.send(GREEDY, out(kind, port=number, remote=address(4, 0, 0xC6336400 + number % 200)))[0]] += 1
        if number % (GREED // NEEDS) == 0:
            succeeded += gateway.send(VICTIM, out(KINDS[number // (GREED // NEEDS) % 3], port=number))[0] == Verdict.PASS
    return succeeded, heard


def shared(**limits: Any) -> Gateway:
    return Gateway(max_flows=1024, devices=2, pool=POOL4[:1], ports=(1024, 1151), **limits)


def test_s11_the_new_flows_of_others_succeed_while_one_asks_for_all() -> None:
    gateway = shared(block_size=16, max_blocks=4, max_flows_per_device=512)
    octets = sum(table.nbytes for table in gateway.nat)
    succeeded, heard = newcomers(gateway)
    assert succeeded == NEEDS
    assert heard[Verdict.QUOTA_EXCEEDED] >= 3 * GREED - 512
    assert set(heard) == {Verdict.PASS, Verdict.QUOTA_EXCEEDED}
    assert gateway.nat.settings[0].slice_violations == 0
    assert sum(table.nbytes for table in gateway.nat) == octets  # no memory was had for it


def test_s11_without_a_limit_of_blocks_the_ports_run_out() -> None:
    succeeded, heard = newcomers(shared(block_size=16, max_blocks=8, max_flows_per_device=512))
    assert succeeded < NEEDS
    assert heard[Verdict.PORTS_EXHAUSTED] > 0


def test_s11_without_a_limit_of_flows_the_table_is_full() -> None:
    gateway = shared(block_size=16, max_blocks=4)
    for number in range(2 * GREED):
        gateway.send(GREEDY, out("udp", rport=1 + number))
    assert gateway.send(VICTIM, out("udp"))[0] == Verdict.FLOW_TABLE_FULL


def test_s11_a_pool_of_two_ports_is_used_up_and_says_so() -> None:
    """pf's nat.sh: two ports; the third connection is refused, nothing hangs, and what is there goes on."""
    gateway = Gateway(ports=(30_000, 30_001), block_size=2, pool=POOL4[:1])
    ends = {gateway.external(1, out("tcp", port=port)) for port in (4000, 4001)}
    assert {port for _, port in ends} == {30_000, 30_001}
    for port in range(5000, 5050):
        assert gateway.send(1, out("tcp", port=port))[0] in {Verdict.PORTS_EXHAUSTED, Verdict.QUOTA_EXCEEDED}
    assert {gateway.external(1, out("tcp", port=port, rport=80)) for port in (4000, 4001)} == ends  # other remotes, the same mappings


# S12

COLLIDING = 48
KNOWN = (0x0123456789ABCDEF, 0x0F1E2D3C4B5A6978)
SECRET = (0x5A5AA5A51234FEDC, -0x1F2E3D4C5B6A7988)


def keyed(secret: tuple[int, int]) -> Gateway:
    gateway = Gateway(max_flows=256)
    seed(gateway.nat, *secret)
    return gateway


def chain(gateway: Gateway, remote: int, port: int) -> int:
    """The head of the chain that a further flow of record 1 with this remote endpoint is in."""
    return int(bucket(gateway.nat.heads, FLOWS, hash_end(gateway.nat.settings[0], 0, 1 << 16 | port, 0, remote)))


def colliding() -> list[tuple[int, int]]:
    """Remote endpoints that share one chain, for whoever knows the secret."""
    gateway = keyed(KNOWN)
    ends = ((0x01000000 + number, 1 + number % 60_000) for number in itertools.count())
    wanted = chain(gateway, 0x01000000, 1)
    return list(itertools.islice((end for end in ends if chain(gateway, *end) == wanted), COLLIDING))


def longest_chain(secret: tuple[int, int]) -> int:
    """Of a gateway with this secret, to which somebody sends what collides under KNOWN."""
    gateway = keyed(secret)
    gateway.external(1, out("udp", remote="9.9.9.9"))  # inline, in no chain
    heads, longest = set(), 0
    for remote, port in colliding():
        gateway.external(1, out("udp", remote=address(4, 0, remote), rport=port))
        heads.add(chain(gateway, remote, port))
    for head in heads:
        slot, length = int(gateway.nat.heads[head]), 0
        while slot:
            slot, length = int(gateway.nat.flows[slot].next_flow), length + 1
        longest = max(longest, length)
    return longest


def test_s12_nobody_can_choose_endpoints_that_collide() -> None:
    assert longest_chain(SECRET) <= 5


def test_s12_who_knows_the_secret_can() -> None:
    assert longest_chain(KNOWN) == COLLIDING
