"""Finding, making and removing mappings: endpoint-independent (RFC 4787 REQ-1), paired by device (REQ-2), never overloaded (REQ-3).

IPv4 gets a port of our slice of the device's external address. IPv6 keeps its port under the device's external address.
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Octets, Row, Table, Word, kernel
from egressvpn.nat.keys import DEVICE_SHIFT, V6, bucket, hash_one
from egressvpn.nat.ports import free_port, port_kind, take_port
from egressvpn.nat.tables import MAPPINGS_IN, MAPPINGS_OUT, NatTables
from egressvpn.nat.tcp import ACTIVE, FREE
from egressvpn.verdict import Verdict

MAPPING_TABLE_FULL: Final = int(Verdict.MAPPING_TABLE_FULL)
NO_EXTERNAL_ADDRESS: Final = int(Verdict.NO_EXTERNAL_ADDRESS)
PORTS_EXHAUSTED: Final = int(Verdict.PORTS_EXHAUSTED)

SAME_PORT: Final = V6 | 0xFFFFFF0000  # of an inside word: what the outside word of an IPv6 mapping is


@kernel
def find_mapping_outbound(settings: Row, heads: Octets, mappings: Table, key: Word, hi: Word, lo: Word) -> Word:
    """The mapping of an internal endpoint. 0: none."""
    slot = np.int64(heads[bucket(heads, MAPPINGS_OUT, hash_one(settings, key, hi, lo))])
    while slot != 0:
        mapping = mappings[slot]
        if mapping.key == key and mapping.internal_lo == lo and mapping.internal_hi == hi:
            return slot
        slot = mapping.next_out
    return slot


@kernel
def find_mapping_inbound(settings: Row, heads: Octets, mappings: Table, key: Word, hi: Word, lo: Word) -> Word:
    """The mapping of an external endpoint. 0: none."""
    slot = np.int64(heads[bucket(heads, MAPPINGS_IN, hash_one(settings, key, hi, lo))])
    while slot != 0:
        mapping = mappings[slot]
        if mapping.external_key == key and mapping.external_lo == lo and mapping.external_hi == hi:
            return slot
        slot = mapping.next_in
    return slot


@kernel
def add_mapping(nat: NatTables, key: Word, hi: Word, lo: Word, now: Word) -> Word:
    """Give an internal endpoint an external one, in IPv6 one that is not taken. Returns the slot, or the negated verdict why not."""
    settings = nat.settings[0]
    if settings.mapping_free == 0 and settings.mapping_high + 1 >= nat.mappings.size:
        return -MAPPING_TABLE_FULL
    owner = nat.subscribers[key >> DEVICE_SHIFT]
    word = key & (V6 | 0xFF00000000)
    if key & V6:
        external_hi, external_lo, pool = owner.external6_hi, owner.external6_lo, 0
        word = key & SAME_PORT
        if external_hi == 0 and external_lo == 0:
            return -NO_EXTERNAL_ADDRESS
    else:
        external_hi, external_lo, pool = 0, nat.pool[owner.external4].address, owner.external4
        if pool == 0 or external_lo == 0:
            return -NO_EXTERNAL_ADDRESS
        port = take_port(settings, nat.pool, nat.port_bits, pool, port_kind((key >> 32) & 0xFF))
        if port < 0:
            return -PORTS_EXHAUSTED
        word = word | port << 16
    slot = _take_slot(nat)
    mapping = nat.mappings[slot]
    mapping.key = key
    mapping.internal_hi = hi
    mapping.internal_lo = lo
    mapping.external_key = word
    mapping.external_hi = external_hi
    mapping.external_lo = external_lo
    mapping.pool = pool
    mapping.created = now
    link_mapping(nat, slot)
    settings.mappings_created += 1
    mapping.state = ACTIVE
    return slot


@kernel
def _take_slot(nat: NatTables) -> Word:
    settings = nat.settings[0]
    slot = settings.mapping_free
    if slot != 0:
        settings.mapping_free = nat.mappings[slot].next_out
    else:
        slot = settings.mapping_high + 1
        settings.mapping_high = slot
    return slot


@kernel
def link_mapping(nat: NatTables, slot: Word) -> None:
    """Put a mapping into its chains; it has no flows yet."""
    mapping = nat.mappings[slot]
    mapping.first = 0
    out, into = _buckets(nat, mapping)
    mapping.next_out = np.int64(nat.heads[out])
    nat.heads[out] = slot
    mapping.next_in = np.int64(nat.heads[into])
    nat.heads[into] = slot
    nat.subscribers[mapping.key >> DEVICE_SHIFT].mappings += 1
    nat.settings[0].mappings += 1


@kernel
def remove_mapping(nat: NatTables, slot: Word) -> None:
    """Free a mapping that has no flows, and its port."""
    settings, heads, mapping = nat.settings[0], nat.heads, nat.mappings[slot]
    mapping.state = FREE
    out, into = _buckets(nat, mapping)
    at = np.int64(heads[out])
    if at == slot:
        heads[out] = mapping.next_out
    while at != slot and at != 0:
        before = nat.mappings[at]
        at = before.next_out
        if at == slot:
            before.next_out = mapping.next_out
    at = np.int64(heads[into])
    if at == slot:
        heads[into] = mapping.next_in
    while at != slot and at != 0:
        before = nat.mappings[at]
        at = before.next_in
        if at == slot:
            before.next_in = mapping.next_in
    if mapping.pool != 0:
        kind = port_kind((mapping.key >> 32) & 0xFF)
        free_port(nat.pool, nat.port_bits, mapping.pool, kind, (mapping.external_key >> 16) & 0xFFFF)
    nat.subscribers[mapping.key >> DEVICE_SHIFT].mappings -= 1
    mapping.next_out = settings.mapping_free
    settings.mapping_free = slot
    settings.mappings -= 1


@kernel
def _buckets(nat: NatTables, mapping: Row) -> tuple[Word, Word]:
    """Where a mapping's two chains begin."""
    settings = nat.settings[0]
    out = hash_one(settings, mapping.key, mapping.internal_hi, mapping.internal_lo)
    into = hash_one(settings, mapping.external_key, mapping.external_hi, mapping.external_lo)
    return bucket(nat.heads, MAPPINGS_OUT, out), bucket(nat.heads, MAPPINGS_IN, into)
