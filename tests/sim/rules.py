"""What must be true of two nodes at any time, whatever the wire did."""

import itertools

from egressvpn.wireguard.constants import REKEY_TIMEOUT
from egressvpn.wireguard.interface import Install

from .world import World

INITIATION = 1


def assert_rules_hold(world: World, sent: dict[int, list[bytes]]) -> None:
    """`sent`: what the user of each node has sent."""
    for node in world.nodes:
        other = world.nodes[1 - node.number]
        assert all(count == 1 for count in node.nonces.values())  # W24
        assert len(set(other.delivered)) == len(other.delivered)
        assert set(other.delivered) <= set(sent[node.number])
        assert all(later - earlier >= REKEY_TIMEOUT for earlier, later in itertools.pairwise(world.sent(INITIATION, node.number)))
        peer = node.interface.peer(1)
        assert peer is not None
        assert len(node.indexes) == node.sessions() + (peer.outstanding is not None)
        indexes = [output.index for output in node.outputs if isinstance(output, Install)]
        assert len(set(indexes)) == len(indexes)
