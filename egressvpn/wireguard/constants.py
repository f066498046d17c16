"""The constants of WireGuard, by the names of the whitepaper (section 6.1), all times in integer nanoseconds.

Where the paper and the kernel differ the kernel is followed, as noted.
"""

from typing import Final

MILLISECOND: Final = 1_000_000
SECOND: Final = 1_000_000_000

REKEY_AFTER_MESSAGES: Final = 1 << 60
REJECT_AFTER_MESSAGES: Final = (1 << 64) - 8130  # kernel: 2^64 - 1 - window - 1
REKEY_AFTER_TIME: Final = 120 * SECOND
REJECT_AFTER_TIME: Final = 180 * SECOND
REKEY_ATTEMPT_TIME: Final = 90 * SECOND
REKEY_TIMEOUT: Final = 5 * SECOND
KEEPALIVE_TIMEOUT: Final = 10 * SECOND
COOKIE_REFRESH_TIME: Final = 120 * SECOND  # age at which the secret behind the cookies we give out is replaced
COOKIE_USABLE_TIME: Final = COOKIE_REFRESH_TIME - REKEY_TIMEOUT  # for the one who got it; kernel: minus COOKIE_SECRET_LATENCY

# names of the kernel's messages.h
REKEY_TIMEOUT_JITTER_MAX: Final = 333 * MILLISECOND
MAX_TIMER_HANDSHAKES: Final = REKEY_ATTEMPT_TIME // REKEY_TIMEOUT  # retries above this number give up: 20 initiations in all
INITIATIONS_PER_SECOND: Final = 50  # per peer
NEW_HANDSHAKE_TIMEOUT: Final = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT  # data sent, nothing heard (whitepaper 6.5)
ZERO_KEYS_TIMEOUT: Final = 3 * REJECT_AFTER_TIME  # no new session for so long: wipe all keys (whitepaper 6.3)
REKEY_ON_RECEIVE_TIME: Final = REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT  # 165 s (whitepaper 6.2)

# what is due for a device: the bits that timers.due returns and Interface.on_timer takes
DUE_KEEPALIVE: Final = 1  # data came, nothing went back
DUE_HANDSHAKE: Final = 2  # data went, nothing came back
DUE_PERSISTENT: Final = 4  # the configured interval passed in silence
DUE_ZERO: Final = 8  # no new session for a long time
