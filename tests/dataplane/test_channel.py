"""The messages on the channel: what control packs is the record the worker reads, and the other way round."""

from ipaddress import ip_network
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressvpn.addresses import Path
from egressvpn.dataplane.channel import (
    COMMAND,
    EVENT,
    PREFIXES_PER_COMMAND,
    Command,
    Event,
    Happened,
    pack_command,
    pack_prefixes,
    unpack_event,
)

WORDS = [
    name for name in COMMAND.names or () if COMMAND[name].shape == () and name not in {"kind", "remote_length", "local_length", "length"}
]
word = st.integers(-(1 << 63), (1 << 63) - 1)


@given(st.sampled_from(Command), st.dictionaries(st.sampled_from(WORDS), word), st.binary(max_size=192), st.binary(max_size=32))
def test_a_packed_command_is_the_record_with_these_fields(kind: Command, fields: dict[str, int], octets: bytes, key: bytes) -> None:
    record = np.frombuffer(pack_command(kind, octets=octets, receive_key=key, send_key=key[::-1], **fields), COMMAND)[0]
    assert record["kind"] == kind
    assert {name: int(record[name]) for name in WORDS} == {name: fields.get(name, 0) for name in WORDS}
    assert record["octets"].tobytes() == octets.ljust(192, b"\0")
    assert record["length"] == len(octets)
    assert (record["receive_key"].tobytes(), record["send_key"].tobytes()) == (key.ljust(32, b"\0"), key[::-1].ljust(32, b"\0"))
    assert record["remote_length"] == record["local_length"] == 0


@pytest.mark.parametrize("path", [Path(bytes(range(16)), b"\1" * 32, 1), Path(bytes(range(28)), b"\1" * 40), Path(bytes(16))])
def test_a_path_travels_in_both_directions(path: Path) -> None:
    sent = np.frombuffer(pack_command(Command.SET_PATH, path=path), COMMAND)
    event = np.zeros(1, EVENT)
    event["kind"] = Event.HANDSHAKE
    for name in ("socket", "remote_length", "remote", "local_length", "local"):
        event[name] = sent[name]
    assert unpack_event(event.tobytes()).path == path


@given(st.sampled_from(Event), word, word, word, word, st.binary(max_size=192))
def test_an_event_is_read_as_it_was_written(kind: Event, owner: int, index: int, first: int, second: int, octets: bytes) -> None:
    event: Any = np.zeros(1, EVENT)
    event["kind"], event["owner"], event["index"], event["first"], event["second"] = kind, owner, index, first, second
    event["length"] = len(octets)
    event["octets"][0, : len(octets)] = np.frombuffer(octets, np.uint8)
    told = octets if kind in (Event.HANDSHAKE, Event.PROGRESS, Event.FAILED) else b""  # the others leave there what was
    assert unpack_event(event.tobytes()) == Happened(kind, owner, index, first, second, None, told)


def test_prefixes_fill_as_few_commands_as_they_can() -> None:
    networks = [ip_network((number << 8, 24)) for number in range(2 * PREFIXES_PER_COMMAND + 1)]
    packed = list(pack_prefixes(networks))
    assert [len(octets) // 18 for octets in packed] == [PREFIXES_PER_COMMAND, PREFIXES_PER_COMMAND, 1]
    assert list(pack_prefixes([])) == []
