"""TCP as the NAT sees it: one literal table (RFC 7857 section 2, RFC 6146 section 3.5.2.2). What counts is for `tracking.py` to say.

The client is the inside, the server the outside, whoever opened. CLOSED is the absence of a flow. Where the RFCs leave room:

- A RST leads to TRANS from the half-closed states too (RFC 7857 2.2). It does not end an attempt to connect: the mapping
  may be needed again at once, and the opening timer is short anyway.
- A FIN in TRANS stays there.
- After both FINs a new connection begins only when both sides have sent a SYN; one SYN and whatever data leave it
  short-lived. In TRANS the client's SYN begins anew; the server's is not believed (RFC 5961 4), the client's answer to it is.
- A SYN of the client while one side is closed is remembered, and begins a connection if the server accepts it.
- A flow whose first segment is no SYN (the gateway lost its tables) starts in TRANS and becomes ESTABLISHED with the next
  data segment.

Each state has one of three idle timers (RFC 7857 2.1). TCP_EST here is RFC 5382's 2 h 4 min, which is the 2 h of RFC 6146
and the 4 min in TRANS that follow it in the figure.
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
SYN_ACK: Final = 1
FIN: Final = 2
RST: Final = 3
DATA: Final = 4  # anything else
SEGMENTS: Final = 5

NO_TIMER: Final = 0  # timer of a state
OPENING: Final = 1
OPEN: Final = 2
CLOSING: Final = 3

# fmt: off
TABLE: Final[dict[tuple[int, int], tuple[int, int, int, int, int]]] = {
    # (state, direction):      SYN          SYN_ACK      FIN          RST          DATA
    (INIT,        CLIENT): (INIT,        INIT,        INIT,        INIT,        INIT),
    (INIT,        SERVER): (ESTABLISHED, ESTABLISHED, INIT,        INIT,        INIT),
    (REMOTE_INIT, CLIENT): (ESTABLISHED, ESTABLISHED, REMOTE_INIT, REMOTE_INIT, REMOTE_INIT),
    (REMOTE_INIT, SERVER): (REMOTE_INIT, REMOTE_INIT, REMOTE_INIT, REMOTE_INIT, REMOTE_INIT),
    (ESTABLISHED, CLIENT): (ESTABLISHED, ESTABLISHED, CLIENT_FIN,  TRANS,       ESTABLISHED),
    (ESTABLISHED, SERVER): (ESTABLISHED, ESTABLISHED, SERVER_FIN,  TRANS,       ESTABLISHED),
    (CLIENT_FIN,  CLIENT): (CLIENT_FIN,  CLIENT_FIN,  CLIENT_FIN,  TRANS,       CLIENT_FIN),
    (CLIENT_FIN,  SERVER): (CLIENT_FIN,  ESTABLISHED, BOTH_FIN,    TRANS,       CLIENT_FIN),
    (SERVER_FIN,  CLIENT): (SERVER_FIN,  SERVER_FIN,  BOTH_FIN,    TRANS,       SERVER_FIN),
    (SERVER_FIN,  SERVER): (SERVER_FIN,  ESTABLISHED, SERVER_FIN,  TRANS,       SERVER_FIN),
    (BOTH_FIN,    CLIENT): (INIT,        BOTH_FIN,    BOTH_FIN,    BOTH_FIN,    BOTH_FIN),
    (BOTH_FIN,    SERVER): (REMOTE_INIT, BOTH_FIN,    BOTH_FIN,    BOTH_FIN,    BOTH_FIN),
    (TRANS,       CLIENT): (INIT,        ESTABLISHED, TRANS,       TRANS,       ESTABLISHED),
    (TRANS,       SERVER): (TRANS,       TRANS,       TRANS,       TRANS,       ESTABLISHED),
}

TIMERS: Final[dict[int, int]] = {
    FREE:        NO_TIMER,
    ACTIVE:      NO_TIMER,
    INIT:        OPENING,
    REMOTE_INIT: OPENING,
    ESTABLISHED: OPEN,
    CLIENT_FIN:  OPEN,
    SERVER_FIN:  OPEN,
    BOTH_FIN:    CLOSING,
    TRANS:       CLOSING,
}
# fmt: on


def _flatten() -> np.ndarray[Any, np.dtype[np.int64]]:
    """TABLE at index (state * 2 + direction) * SEGMENTS + segment; a state that is not TCP's stays what it is."""
    flat = np.repeat(np.arange(STATES), 2 * SEGMENTS)
    for (state, direction), row in TABLE.items():
        at = (state * 2 + direction) * SEGMENTS
        flat[at : at + SEGMENTS] = row
    flat.setflags(write=False)
    return flat


NEXT: Final = _flatten()
TIMER: Final = np.array([TIMERS[state] for state in range(STATES)])
TIMER.setflags(write=False)
