"""WireGuard's cross-platform configuration protocol, without sockets (wireguard.com/xplatform, "Configuration Protocol").

The octets of a connection go into `Requests.feed`, requests come out; `answer` writes what `get` is answered with. An
operation is `get=1` or `set=1`, lines (`uapi_lines`), and an empty line.

What a mistake does, as in wireguard-go: the lines before it are carried out, its errno is the answer. What remains of the
operation is passed over: up to the empty line, or to a line that begins another operation, for clients that stop at the answer.
An operation that is cut off is not carried out. A `set` of more than MAX_PART entries comes in parts, each carried out by
itself, so a connection holds a bounded amount of memory whatever it sends. (One that replaces the peers replaces them with
its first part, and adds the others.)
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from egressvpn.addresses import IPNetwork
from egressvpn.api.uapi_lines import INVALID, IO, Part, RefusedError, Set

MAX_LINE: Final = 8192  # octets; the longest that means anything has less than 100
MAX_PART: Final = 49_152  # a peer and two networks for each of 16 384 devices; some 30 MB while it is carried out
BLOCK_LINES: Final = 512  # of an answer, made without a pause

NO_KEY: Final = bytes(32)


@dataclass(frozen=True, slots=True)
class Get:
    """Answer with the state of the interface."""


@dataclass(frozen=True, slots=True)
class HangUp:
    """What came is no operation: close, say nothing."""


Request = Get | Set | HangUp


@dataclass(frozen=True, slots=True)
class PeerState:
    """A peer as `get` tells it."""

    public_key: bytes
    preshared_key: bytes | None = field(repr=False)
    endpoint: str = ""  # "": none known
    last_handshake_ns: int = 0  # since the epoch; 0: never
    sent_bytes: int = 0
    received_bytes: int = 0
    persistent_keepalive: int = 0  # s
    allowed_ips: Iterable[IPNetwork] = ()


@dataclass(frozen=True, slots=True)
class InterfaceState:
    """The interface as `get` tells it."""

    private_key: bytes | None = field(repr=False)
    listen_port: int
    fwmark: int
    peers: Iterable[PeerState]


class Requests:
    """What one connection asks for."""

    def __init__(self) -> None:
        self._rest = b""  # the beginning of a line
        self._judged = False  # that line was answered before its end; the rest of it means nothing
        self._part = Part()
        self._read: Callable[[str], Request | None] = self._operation

    def feed(self, octets: bytes) -> Iterator[Request]:
        """The requests that these octets complete, one at a time."""
        *lines, self._rest = (self._rest + octets).split(b"\n")
        for line in lines:
            if self._judged:
                self._judged = False
                continue
            request = self._read(line.decode("ascii", "replace")) if len(line) <= MAX_LINE else self._on_long_line()
            if request is not None:
                yield request
        if self._judged:
            self._rest = b""
            return
        request = None
        if len(self._rest) > MAX_LINE:
            request = self._on_long_line()
            self._judged, self._rest = True, b""
        elif self._rest and self._read == self._after_get:
            request = self._after_get("something")  # wrong already, whatever follows
            self._judged, self._rest = True, b""
        if request is not None:
            yield request

    def pass_over(self) -> None:
        """The operation was answered with an error: what is left of it means nothing."""
        self._part = Part()
        self._read = self._remains

    def end(self) -> Request | None:
        """The client has closed its side. What it had not finished is not carried out."""
        cut_off = self._read == self._set
        self.pass_over()
        return Set(code=IO, why="the operation was cut off") if cut_off else None

    # what a line means depends on where it stands

    def _operation(self, line: str) -> Request | None:
        if line == "set=1":
            self._read = self._set
        elif line == "get=1":
            self._read = self._after_get
        else:
            self._read = self._nothing
            return HangUp()
        return None

    def _after_get(self, line: str) -> Request:
        if line:
            self.pass_over()
            return Set(code=-INVALID, why="a `get` has no lines")  # positive: wg(8) takes no sign in the answer to it
        self._read = self._operation
        return Get()

    def _set(self, line: str) -> Request | None:
        if not line:
            self._read = self._operation
            request, self._part = self._part.take(0), Part()
            return request
        try:
            self._part.add(line)
        except RefusedError as error:
            return self._refuse(error)
        return self._part.take(None) if self._part.size >= MAX_PART else None

    def _remains(self, line: str) -> Request | None:
        if line in ("set=1", "get=1"):
            return self._operation(line)
        if not line:
            self._read = self._operation
        return None

    def _nothing(self, line: str) -> Request | None:
        return None

    def _on_long_line(self) -> Request | None:
        if self._read == self._set:
            return self._refuse(RefusedError(IO, f"a line of more than {MAX_LINE} octets"))
        return self._read("something")

    def _refuse(self, error: RefusedError) -> Request:
        """What stood before the mistake is carried out; this is the answer then."""
        request = self._part.take(error.code, str(error))
        self.pass_over()
        return request


def answer(state: InterfaceState) -> Iterator[bytes]:
    """The answer to `get`, in blocks of bounded size."""
    block: list[str] = []
    for line in _lines(state):
        block.append(line)
        if len(block) >= BLOCK_LINES:
            yield _text(block)
            block.clear()
    yield _text([*block, "errno=0", ""])


def errno_answer(code: int) -> bytes:
    """The end of every answer."""
    return _text([f"errno={code}", ""])


def _text(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode("ascii")


def _lines(state: InterfaceState) -> Iterator[str]:
    if state.private_key is not None:
        yield f"private_key={state.private_key.hex()}"
    if state.listen_port:
        yield f"listen_port={state.listen_port}"
    if state.fwmark:
        yield f"fwmark={state.fwmark}"
    for peer in state.peers:
        yield f"public_key={peer.public_key.hex()}"
        yield f"preshared_key={(peer.preshared_key or NO_KEY).hex()}"
        yield "protocol_version=1"
        if peer.endpoint:
            yield f"endpoint={peer.endpoint}"
        yield f"last_handshake_time_sec={peer.last_handshake_ns // 1_000_000_000}"
        yield f"last_handshake_time_nsec={peer.last_handshake_ns % 1_000_000_000}"
        yield f"tx_bytes={peer.sent_bytes}"
        yield f"rx_bytes={peer.received_bytes}"
        yield f"persistent_keepalive_interval={peer.persistent_keepalive}"
        for prefix in peer.allowed_ips:
            yield f"allowed_ip={prefix}"
