"""One TCP connection through the tracker alone: a flow record, and segments with sequence numbers relative to where each side began."""

import struct
from typing import Any, Final

import numpy as np

from egressvpn.nat.tables import CONFIRMED, FLOW, HOME
from egressvpn.nat.tcp import CLIENT, INIT, SERVER
from egressvpn.nat.tracking import ACKED, OFFERED, SENT, offered, track
from egressvpn.packet.headers import PACKET, parse
from egressvpn.verdict import Verdict

FLAGS: Final = {"F": 1, "S": 2, "R": 4, "P": 8, ".": 16, "A": 16}
WRAP: Final = 1 << 32
NS: Final = 1_000_000_000


class Connection:
    """`client` and `server` send segments; positions count from the initial sequence numbers."""

    def __init__(self, state: int = INIT, client_isn: int = 1000, server_isn: int = 5000, *, confirmed: bool = True) -> None:
        self.flow = np.zeros(1, FLOW).view(np.recarray)[0]
        self.flow.state = state
        self.flow.role = HOME | (CONFIRMED if confirmed else 0)
        self.isn = (client_isn, server_isn)

    def client(self, flags: str, at: int, ack: int | None = None, **more: Any) -> Verdict:
        return self.segment(CLIENT, flags, at, ack, **more)

    def server(self, flags: str, at: int, ack: int | None = None, **more: Any) -> Verdict:
        return self.segment(SERVER, flags, at, ack, **more)

    def segment(
        self,
        side: int,
        flags: str,
        at: int,
        ack: int | None = None,
        *,
        size: int = 0,
        win: int = 65535,
        scale: int | None = None,
        now: float = 0,
    ) -> Verdict:
        """`at` and `ack` are relative to the initial sequence number of the sender and of the receiver."""
        bits = sum(FLAGS[letter] for letter in flags) | (FLAGS["."] if ack is not None else 0)
        octets = tcp(bits, (self.isn[side] + at) % WRAP, (self.isn[1 - side] + (ack or 0)) % WRAP, win, size, scale)
        return self.take(side, octets, now)

    def take(self, side: int, octets: bytes, now: float = 0) -> Verdict:
        buffer = np.frombuffer(octets, np.uint8).copy()
        packet = np.zeros(1, PACKET).view(np.recarray)[0]
        assert parse(buffer, 0, len(octets), packet) == Verdict.PASS
        before = self.flow.tobytes()
        verdict = Verdict(track(self.flow, side, packet, buffer, round(now * NS)))
        assert verdict == Verdict.PASS or self.flow.tobytes() == before
        return verdict

    @property
    def state(self) -> int:
        return int(self.flow.state)

    @property
    def seen(self) -> float:
        """When the flow was last prolonged."""
        return int(self.flow.seen) / 1000

    def next(self, side: int) -> int | None:
        """Relative to the initial sequence number, from -2^31 to 2^31 - 1; None: not known."""
        return self._relative(side, int(self.flow.next_sequence[side])) if self.flow.scale[side] & SENT else None

    def acknowledged(self, side: int) -> int | None:
        """By this side, relative to the initial sequence number of the other."""
        return self._relative(1 - side, int(self.flow.acknowledged[side])) if self.flow.scale[side] & ACKED else None

    def window(self, side: int) -> int:
        return int(offered(self.flow, side))

    def scales(self, side: int) -> bool:
        return bool(self.flow.scale[side] & OFFERED)

    def _relative(self, side: int, sequence: int) -> int:
        return (sequence - self.isn[side] + WRAP // 2) % WRAP - WRAP // 2


def established(client_isn: int = 1000, server_isn: int = 5000, *, scale: int | None = None, win: int = 65535) -> Connection:
    """A connection after its handshake: both sides are at 1."""
    connection = Connection(client_isn=client_isn, server_isn=server_isn)
    connection.client("S", 0, scale=scale, win=win)
    connection.server("S", 0, 1, scale=scale, win=win)
    connection.client(".", 1, 1, win=win)
    return connection


def tcp(flags: int, sequence: int, acknowledgment: int, window: int, size: int = 0, scale: int | None = None) -> bytes:
    """An IPv4 packet with a TCP segment of `size` octets; nobody here looks at checksums."""
    options = b"" if scale is None else bytes((2, 4, 5, 180, 1, 3, 3, scale))
    header = struct.pack("!HHIIBBHHH", 443, 4000, sequence, acknowledgment, (20 + len(options)) << 2, flags, window, 0, 0)
    body = header + options + bytes(size)
    return struct.pack("!BBHHHBBHII", 0x45, 0, 20 + len(body), 0, 0, 64, 6, 0, 0x0A000001, 0xC6336407) + body
