"""Nobody gets more octets out of the data path than he put in: every type and length of datagram from a stranger (W-2).

Real datagrams through real sockets, the receive path and the door; each is counted exactly once, and nothing else happens.
"""

from collections.abc import Iterator

import pytest

from egressvpn.dataplane.channel import Command, Event
from egressvpn.dataplane.door import refill
from egressvpn.dataplane.receive import receive
from egressvpn.dataplane.tables import Counter
from egressvpn.kernel import JIT
from egressvpn.wireguard.mac import add_macs, mac1_key
from tests.dataplane.rig import PUBLIC_KEY, START, Rig, rig

LENGTHS = range(2001) if JIT else [*range(160), *range(160, 2001, 92)]  # interpreted, each length costs some 30 ms
LARGEST = 65_507  # of a UDP datagram over IPv4
BATCH = 32  # small enough that the socket's buffer holds all of them
COOKIE_REPLY_BYTES = 64
HANDSHAKES = ((1, 148), (2, 92))
KEY = mac1_key(PUBLIC_KEY)
RESERVED = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0x80)]


@pytest.fixture(params=["idle", "loaded", "loaded without a cookie secret"])
def loaded(request: pytest.FixtureRequest) -> Iterator[tuple[Rig, bool]]:
    """A data path with a device that has a session, and whether it answers handshakes with cookies."""
    made = rig()
    made.add_device(1, 0x64400002)
    if request.param != "loaded without a cookie secret":
        made.command(Command.SET_COOKIE_SECRET, receive_key=bytes([9]) * 32)
    made.b.work.worker[0].under_load_until = START if request.param == "idle" else START + 1_000_000_000
    yield made, request.param == "loaded"
    made.close()


@pytest.mark.timeout(300)
def test_every_type_and_length_gets_at_most_a_cookie_for_a_handshake(loaded: tuple[Rig, bool]) -> None:
    made, cookies = loaded
    tables = before(made)
    for kind in range(256):
        whole = [_datagram(kind, length, (0, 0, 0), signed) for length in LENGTHS for signed in (False, True) if signed or length < 160]
        for at in range(0, len(whole), BATCH):
            batch = whole[at : at + BATCH]
            replies = exchange(made, batch)
            assert len(replies) == (handshakes(batch) if cookies else 0)
            assert all(len(reply) == COOKIE_REPLY_BYTES for reply in replies)
    assert before(made) == tables
    assert made.written() == []


@pytest.mark.parametrize("reserved", RESERVED)
def test_the_reserved_octets_must_be_zero_in_every_type(loaded: tuple[Rig, bool], reserved: tuple[int, int, int]) -> None:
    made, _ = loaded
    for kind in range(6):
        batch = [_datagram(kind, length, reserved, True) for length in (32, 64, 92, 148)]
        assert exchange(made, batch) == []
    assert made.drops() == {"malformed_message": 24}


def test_the_largest_datagram_of_every_type_gets_nothing(loaded: tuple[Rig, bool]) -> None:
    made, _ = loaded
    tables = before(made)
    for kind in range(256):
        assert exchange(made, [_datagram(kind, LARGEST, (0, 0, 0), False)]) == []
    assert made.drops() == {"malformed_message": 255, "unknown_index": 1}
    assert before(made) == tables


def test_a_flood_of_handshakes_gets_no_more_cookies_than_datagrams_and_then_none(loaded: tuple[Rig, bool]) -> None:
    made, cookies = loaded
    made.b.work.worker[0].cookie_replies = 40
    sent = [_datagram(1, 148, (0, 0, 0), True) for _ in range(BATCH)]
    replies = exchange(made, sent, refilled=False) + exchange(made, sent, refilled=False)
    assert len(replies) == (40 if cookies else 0)
    assert sum(map(len, replies)) <= 2 * sum(map(len, sent))
    assert made.drops() == ({"cookie_required": 40, "handshake_overload": 24} if cookies else overload(made))


def overload(made: Rig) -> dict[str, int]:
    """What a flood of 64 leaves when nothing is answered: all of it goes up while idle, nothing does under load without a secret."""
    return {} if made.b.work.worker[0].under_load_until == START else {"handshake_overload": 2 * BATCH}


def exchange(made: Rig, datagrams: list[bytes], refilled: bool = True) -> list[bytes]:
    """Send a batch and receive it; what came back. Every datagram went up to control or was counted as dropped."""
    if refilled:
        refill(made.b, START)
    made.b.work.worker[0].share_tokens = 0
    drops, up = sum(made.drops().values()), made.counter(Counter.HANDSHAKES_UP)
    made.send(*datagrams)
    came = 0
    while count := int(receive(made.b, 0, BATCH, START)):
        came += count
    assert came == len(datagrams)
    assert sum(made.drops().values()) - drops + made.counter(Counter.HANDSHAKES_UP) - up == len(datagrams)
    assert all(kind is Event.HANDSHAKE for kind in made.event_kinds())
    replies = made.sent()
    assert sum(map(len, replies)) <= sum(map(len, datagrams))
    return replies


def handshakes(datagrams: list[bytes]) -> int:
    """How many of them are handshake messages with a right MAC1."""
    return sum((octets[0], len(octets)) in HANDSHAKES and any(octets[-32:-16]) for octets in datagrams if octets)


def before(made: Rig) -> bytes:
    """Sessions and devices, which no stranger changes."""
    return bytes(made.b.wg.sessions.tobytes() + made.b.wg.devices.tobytes())


def _datagram(kind: int, length: int, reserved: tuple[int, int, int], signed: bool) -> bytes:
    octets = (bytes([kind, *reserved]) + bytes(max(0, length - 4)))[:length]
    return add_macs(KEY, octets[:-32]) if signed and length >= 36 else octets
