"""The replay window: each counter is accepted once, and not when it is 8128 or more behind the newest (RFC 6479).

A ring of 64-bit words; the words between the old newest and the new one are cleared as the window moves. Counters are
unsigned 64-bit numbers read as signed words: 2^63 and above are negative here, so "newer" compares with the sign bit flipped.
A zero-filled session is the valid empty window. Call after the packet was authenticated, before it is let through.
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Row, Word, kernel
from egressvpn.wireguard.constants import REJECT_AFTER_MESSAGES
from egressvpn.wireguard.tables import WINDOW_WORDS

WINDOW_BITS: Final = 64 * (WINDOW_WORDS - 1)  # 8128: one word is always being cleared
SIGN: Final = -(1 << 63)
LIMIT: Final = (REJECT_AFTER_MESSAGES - (1 << 64)) ^ SIGN  # comparable after the flip
WORD_MASK: Final = (1 << 58) - 1  # makes `>> 6` a logical shift


@kernel
def counter_usable(counter: Word) -> Word:
    """1 below REJECT_AFTER_MESSAGES. Checked before the packet is decrypted."""
    return 1 if (counter ^ SIGN) < LIMIT else 0


@kernel
def accept(session: Row, counter: Word) -> Word:
    """1 when the counter is usable, inside the window and new, which it then is no more; else 0 and nothing changes."""
    if (counter ^ SIGN) >= LIMIT:
        return 0
    newest = session.newest
    word = (counter >> 6) & WORD_MASK
    bit = np.int64(1) << (counter & 63)
    if (counter ^ SIGN) > (newest ^ SIGN):
        top = (newest >> 6) & WORD_MASK
        session.newest = counter  # first: killed before the words are clear, too much is refused, never too little
        for step in range(1, min(word - top, WINDOW_WORDS) + 1):
            session.window[(top + step) & (WINDOW_WORDS - 1)] = 0
    elif newest - counter > WINDOW_BITS or newest - counter < 0:
        return 0
    if session.window[word & (WINDOW_WORDS - 1)] & bit:
        return 0
    session.window[word & (WINDOW_WORDS - 1)] |= bit
    return 1
