"""Limits on what one device may cause: token buckets in its SUBSCRIBER row (RFC 6888 REQ-4, RFC 1812 4.3.2.8).

A bucket counts in billionths of a token, so that any time that has passed is worth something. It starts full.
"""

from typing import Final

from egressvpn.kernel import Word, kernel
from egressvpn.nat.tables import SECOND, NatTables

ERROR_RATE: Final = 10  # ICMP errors per second to one device
ERROR_BURST: Final = 20


@kernel
def take_mapping(nat: NatTables, device: Word, now: Word) -> Word:
    """1 when the device may make a new mapping now."""
    settings, subscriber = nat.settings[0], nat.subscribers[device]
    rate = settings.mapping_rate
    if rate <= 0:
        return 1
    tokens = filled(subscriber.mapping_tokens, subscriber.mapping_refilled, rate, max(settings.mapping_burst, 1), now)
    subscriber.mapping_refilled = max(subscriber.mapping_refilled, now)
    subscriber.mapping_tokens = tokens - SECOND if tokens >= SECOND else tokens
    return 1 if tokens >= SECOND else 0


@kernel
def may_take_mapping(nat: NatTables, device: Word, now: Word) -> Word:
    """What `take_mapping` would say, taking nothing."""
    settings, subscriber = nat.settings[0], nat.subscribers[device]
    rate = settings.mapping_rate
    if rate <= 0:
        return 1
    tokens = filled(subscriber.mapping_tokens, subscriber.mapping_refilled, rate, max(settings.mapping_burst, 1), now)
    return 1 if tokens >= SECOND else 0


@kernel
def take_error(nat: NatTables, device: Word, now: Word) -> Word:
    """1 when an ICMP error may be made for the device now."""
    subscriber = nat.subscribers[device]
    tokens = filled(subscriber.error_tokens, subscriber.error_refilled, ERROR_RATE, ERROR_BURST, now)
    subscriber.error_refilled = max(subscriber.error_refilled, now)
    subscriber.error_tokens = tokens - SECOND if tokens >= SECOND else tokens
    return 1 if tokens >= SECOND else 0


@kernel
def filled(tokens: Word, refilled: Word, rate: Word, burst: Word, now: Word) -> Word:
    """What a bucket holds now, in billionths of a token."""
    room = burst * SECOND - tokens
    passed = now - refilled
    if passed <= 0 or room <= 0:
        return min(tokens, burst * SECOND)
    if passed > room // rate:
        return burst * SECOND
    return tokens + passed * rate
