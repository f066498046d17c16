"""TCP as the NAT sees it: one literal table (RFC 7857 section 2, RFC 6146 section 3.5.2.2). No windows are tracked.

The client is the inside, the server the outside, whoever opened. CLOSED is the absence of a flow. Where the RFCs leave
room: a RST leads to TRANS from the half-closed states too (RFC 7857 2.2); a FIN in TRANS stays there; a SYN after the end
of a connection begins the next one, which lives long only once both sides sent theirs; a flow whose first segment is no
SYN (the gateway lost its tables) starts in TRANS and becomes ESTABLISHED with the next data segment.

A RST that changes nothing, and packets after both FINs, do not prolong a flow's life.
"""

from typing import Any, Final

import numpy as np

# The state of a flow record. FREE marks an empty slot; a flow that is not TCP is ACTIVE.
FREE: Final = 0
ACTIVE: Final = 1
INIT: Final = 2  # the client's SYN was seen
REMOTE_INIT: Final = 3  # the server's SYN was seen ("V4 INIT")
ESTABLISHED: Final = 4
CLIENT_FIN: Final = 5
SERVER_FIN: Final = 6
BOTH_FIN: Final = 7
TRANS: Final = 8
STATES: Final = 9

STATE_NAMES: Final = ("free", "active", "init", "remote_init", "established", "client_fin", "server_fin", "both_fin", "trans")

CLIENT: Final = 0  # direction of a segment
SERVER: Final = 1

SYN: Final = 0  # kind of a segment
FIN: Final = 1
RST: Final = 2
DATA: Final = 3  # anything else
SEGMENTS: Final = 4

TRANSITORY: Final = frozenset({INIT, REMOTE_INIT, BOTH_FIN, TRANS})  # states that live tcp_transitory, the others tcp_established

# fmt: off
TABLE: Final[dict[tuple[int, int], tuple[int, int, int, int]]] = {
    # (state, direction):      SYN          FIN          RST          DATA
    (INIT,        CLIENT): (INIT,        INIT,        INIT,        INIT),
    (INIT,        SERVER): (ESTABLISHED, INIT,        INIT,        INIT),
    (REMOTE_INIT, CLIENT): (ESTABLISHED, REMOTE_INIT, REMOTE_INIT, REMOTE_INIT),
    (REMOTE_INIT, SERVER): (REMOTE_INIT, REMOTE_INIT, REMOTE_INIT, REMOTE_INIT),
    (ESTABLISHED, CLIENT): (ESTABLISHED, CLIENT_FIN,  TRANS,       ESTABLISHED),
    (ESTABLISHED, SERVER): (ESTABLISHED, SERVER_FIN,  TRANS,       ESTABLISHED),
    (CLIENT_FIN,  CLIENT): (CLIENT_FIN,  CLIENT_FIN,  TRANS,       CLIENT_FIN),
    (CLIENT_FIN,  SERVER): (CLIENT_FIN,  BOTH_FIN,    TRANS,       CLIENT_FIN),
    (SERVER_FIN,  CLIENT): (SERVER_FIN,  BOTH_FIN,    TRANS,       SERVER_FIN),
    (SERVER_FIN,  SERVER): (SERVER_FIN,  SERVER_FIN,  TRANS,       SERVER_FIN),
    (BOTH_FIN,    CLIENT): (INIT,        BOTH_FIN,    BOTH_FIN,    BOTH_FIN),
    (BOTH_FIN,    SERVER): (REMOTE_INIT, BOTH_FIN,    BOTH_FIN,    BOTH_FIN),
    (TRANS,       CLIENT): (INIT,        TRANS,       TRANS,       ESTABLISHED),
    (TRANS,       SERVER): (REMOTE_INIT, TRANS,       TRANS,       ESTABLISHED),
}
# fmt: on


def _flatten() -> np.ndarray[Any, np.dtype[np.int64]]:
    """TABLE at index (state * 2 + direction) * 4 + segment; a state that is not TCP's stays what it is."""
    flat = np.repeat(np.arange(STATES), 2 * SEGMENTS)
    for (state, direction), row in TABLE.items():
        at = (state * 2 + direction) * SEGMENTS
        flat[at : at + SEGMENTS] = row
    flat.setflags(write=False)
    return flat


NEXT: Final = _flatten()
EXPIRES_SOON: Final = np.array([int(state in TRANSITORY) for state in range(STATES)])
EXPIRES_SOON.setflags(write=False)
