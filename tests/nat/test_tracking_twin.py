"""The window tracker against a plain twin, and two honest ends whose resets must always be believed."""

from dataclasses import dataclass, field
from typing import Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st

from egressvpn.nat.tcp import (
    BOTH_FIN,
    CLIENT,
    CLIENT_FIN,
    DATA,
    ESTABLISHED,
    FIN,
    INIT,
    REMOTE_INIT,
    RST,
    SERVER,
    SERVER_FIN,
    STATE_NAMES,
    SYN,
    SYN_ACK,
    TABLE,
    TRANS,
)
from egressvpn.verdict import Verdict
from tests.nat.connection import WRAP, Connection, established, tcp

PASS, OUT = Verdict.PASS, Verdict.TCP_OUT_OF_WINDOW
HALF: Final = WRAP // 2


def ahead(sequence: int, other: int) -> int:
    distance = (sequence - other) % WRAP
    return distance if distance < HALF else distance - WRAP


@dataclass
class Side:
    next: int | None = None
    acknowledged: int | None = None
    window: int = 0  # octets
    shift: int | None = None  # None: it offered no scaling


@dataclass
class Twin:
    """The rules of tracking.py with numbers that may be absent instead of bits, and windows in octets."""

    state: int
    seen: float = 0
    sides: tuple[Side, Side] = field(default_factory=lambda: (Side(), Side()))

    def unit(self, side: int) -> int:
        one, two = self.sides
        return 0 if one.shift is None or two.shift is None else self.sides[side].shift or 0

    def take(self, side: int, kind: int, flags: int, seq: int, ack: int, win: int, size: int, scale: int | None, now: float) -> Verdict:
        fresh = self.sides[0].next is None and self.sides[1].next is None
        end = (seq + size + (flags & 1)) % WRAP
        acks = ack if flags & 16 else None
        if kind == RST:
            counts = self.reset(side, seq, acks)
        elif kind in (SYN, SYN_ACK):
            counts = (self.own_syn if side == CLIENT else self.foreign_syn)((end + 1) % WRAP, acks, win, scale, kind)
        else:
            counts = self.data(side, seq, end, acks, win)
        if counts is None:
            return OUT
        if counts:
            self.move(side, kind, fresh, now)
        return PASS

    def move(self, side: int, kind: int, fresh: bool, now: float) -> None:
        after = self.state if fresh and self.state == TRANS else TABLE[self.state, side][kind]
        unchanged = after == self.state
        passive = kind == RST or self.state == BOTH_FIN or (side == SERVER and self.state in (INIT, REMOTE_INIT))
        self.state = after
        if not (unchanged and passive):
            self.seen = now

    def reset(self, side: int, seq: int, ack: int | None) -> bool | None:
        me, peer = self.sides[side], self.sides[1 - side]
        if peer.acknowledged is None:
            return ack is not None and ack == peer.next
        if seq in (peer.acknowledged, me.next):
            return True
        guarded = side == SERVER and self.state in (ESTABLISHED, CLIENT_FIN, SERVER_FIN)
        return None if guarded and (seq - peer.acknowledged) % WRAP > peer.window else False

    def data(self, side: int, seq: int, end: int, ack: int | None, win: int) -> bool:
        me, (client, server) = self.sides[side], self.sides
        if side == CLIENT:
            if client.next is None and server.next is None:
                client.shift = server.shift = 14
        else:
            if client.acknowledged is not None:
                if ahead(seq, client.acknowledged) > client.window or ahead(end, client.acknowledged) < -max(client.window, 66_000):
                    return False
            if me.next is None:
                return True
        if me.next is None or ahead(end, me.next) > 0:
            me.next = end
        if ack is not None:
            self.acknowledge(side, ack, win << self.unit(side))
        return True

    def acknowledge(self, side: int, ack: int, offer: int) -> None:
        me, peer = self.sides[side], self.sides[1 - side]
        if side == SERVER and (peer.next is None or not 0 <= ahead(peer.next, ack) <= 1 << 30):
            return
        if me.acknowledged is not None:
            if ahead(ack, me.acknowledged) < 0:
                return
            offer = max(offer, me.window - ahead(ack, me.acknowledged))
        step = 1 << self.unit(side)
        me.acknowledged, me.window = ack, min(-(-offer // step), 65535) * step
        if side == CLIENT and (peer.next is None or ahead(ack, peer.next) > 0):
            peer.next = ack

    def own_syn(self, end: int, ack: int | None, win: int, scale: int | None, kind: int) -> bool:
        client, server = self.sides
        repeated = client.next is not None and 0 <= ahead(client.next, end) <= 66_000 and self.state not in (BOTH_FIN, TRANS)
        if not repeated:
            client.next, client.shift = end, None if scale is None else min(scale, 14)
            client.acknowledged = server.acknowledged = None
            if kind == SYN:
                server.next = None
        if ack is not None:
            if server.next is None or not 0 <= ahead(server.next, ack) <= 66_000:
                server.next, server.shift = None, 14
                client.acknowledged = server.acknowledged = None
            self.acknowledge(CLIENT, ack, win)
        return True

    def foreign_syn(self, end: int, ack: int | None, win: int, scale: int | None, kind: int) -> bool:
        client, server = self.sides
        if client.acknowledged is not None:
            if kind == SYN_ACK or self.state != BOTH_FIN:
                return False
            client.acknowledged = None
        elif ack is not None and (client.next is None or not 0 <= ahead(client.next, ack) <= 66_000):
            return False
        server.next, server.shift, server.acknowledged = end, None if scale is None else min(scale, 14), None
        if ack is not None:
            self.acknowledge(SERVER, ack, win)
        return True


@st.composite
def segments(draw: Any) -> dict[str, Any]:
    """One segment; numbers are drawn near where something happens."""
    return {
        "side": draw(st.sampled_from([CLIENT, SERVER])),
        "flags": draw(st.sampled_from(["S", "SA", "A", "A", "A", "PA", "P", "FA", "F", "R", "RA", "SF"])),
        "anchor": draw(st.sampled_from(["next", "next", "acknowledged", "edge", "isn"])),
        "offset": draw(st.sampled_from([0, 0, 0, 1, -1, 2, 1000, -1000, -66_000, -67_000, 1 << 20, HALF]) | st.integers(-70_000, 70_000)),
        "ack": draw(st.sampled_from([0, 0, 0, 1, -1, 100, -100, 66_000, 1 << 29, HALF])),
        "win": draw(st.sampled_from([0, 1, 100, 1000, 65535])),
        "size": draw(st.sampled_from([0, 0, 1, 100, 1460, 60_000])),
        "scale": draw(st.sampled_from([None, 0, 3, 7, 14, 15])),
    }


@given(st.sampled_from([INIT, REMOTE_INIT, TRANS]), st.sampled_from([1000, WRAP - 100, HALF - 100]), st.lists(segments(), max_size=25))
@settings(max_examples=600, deadline=None)
def test_the_tracker_does_as_its_twin(state: int, isn: int, script: list[dict[str, Any]]) -> None:
    connection, twin = Connection(state), Twin(state)
    opener = SERVER if state == REMOTE_INIT else CLIENT
    script = [{**one, "side": opener, "flags": "A" if state == TRANS else "S"} for one in script[:1]] + script[1:]
    for now, one in enumerate(script):
        side = one["side"]
        me, peer = twin.sides[side], twin.sides[1 - side]
        anchor = {"next": me.next, "acknowledged": peer.acknowledged, "edge": (peer.acknowledged or 0) + peer.window, "isn": isn}[
            one["anchor"]
        ]
        seq = ((isn if anchor is None else anchor) + one["offset"]) % WRAP
        ack = ((peer.next or isn) + one["ack"]) % WRAP
        flags = sum({"F": 1, "S": 2, "R": 4, "P": 8, "A": 16}[letter] for letter in one["flags"])
        kind = RST if flags & 4 else (SYN_ACK if flags & 16 else SYN) if flags & 2 else FIN if flags & 1 else DATA
        scale = one["scale"] if flags & 2 else None
        expected = twin.take(side, kind, flags, seq, ack, one["win"], one["size"], scale, now)
        verdict = connection.take(side, tcp(flags, seq, ack, one["win"], one["size"], scale), now)
        assert verdict == expected
        assert known(connection, STATE_NAMES[connection.state], connection.seen) == told(twin, STATE_NAMES[twin.state], twin.seen)


def known(connection: Connection, *more: Any) -> tuple[Any, ...]:
    sides = []
    for side in (CLIENT, SERVER):
        following, acknowledged = connection.next(side), connection.acknowledged(side)
        sides += [
            None if following is None else (following + connection.isn[side]) % WRAP,
            None if acknowledged is None else (acknowledged + connection.isn[1 - side]) % WRAP,
            connection.window(side) if acknowledged is not None else None,
        ]
    return (*more, *sides)


def told(twin: Twin, *more: Any) -> tuple[Any, ...]:
    sides: list[int | None] = []
    for side in twin.sides:
        sides += [side.next, side.acknowledged, side.window if side.acknowledged is not None else None]
    return (*more, *sides)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_an_honest_reset_is_always_believed(data: Any) -> None:
    """Two honest ends that lose, repeat and reorder behind the gateway: whoever aborts with its own next number ends the flow."""
    scale = data.draw(st.sampled_from([None, 0, 7, 14]))
    unit = 1 << (scale or 0)
    connection = established(WRAP - 3000, HALF - 3000, scale=scale, win=4000)
    sent, heard = [1, 1], [1, 1]  # of each side: next number it sends, what it received of the other
    for _ in range(data.draw(st.integers(0, 20))):
        side = data.draw(st.sampled_from([CLIENT, SERVER]))
        room = heard[1 - side] + 4000 - sent[side]
        size = data.draw(st.integers(0, max(0, min(room, 1460))))
        start = data.draw(st.integers(heard[1 - side], sent[side])) if data.draw(st.booleans()) else sent[side]
        size = min(size, sent[side] - start) if start < sent[side] else size
        assert connection.segment(side, "P", start, heard[side], size=size, win=-(-4000 // unit)) == PASS
        sent[side] = max(sent[side], start + size)
        if data.draw(st.booleans()) and start <= heard[1 - side]:
            heard[1 - side] = max(heard[1 - side], start + size)
    assert connection.state == ESTABLISHED
    side = data.draw(st.sampled_from([CLIENT, SERVER]))
    assert connection.segment(side, "R", sent[side], heard[side]) == PASS
    assert connection.state == TRANS
