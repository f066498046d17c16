"""One peer as the control plane knows it: its keys, where it is, and the handshake under way with it, if any.

A handshake we began is repeated every REKEY_TIMEOUT plus jitter until it is answered or given up (whitepaper 6.4). `due` is
the one deadline: the next repetition, or a first initiation put off because one more within REKEY_TIMEOUT is not allowed.
Answering the peer's own initiation does not disturb ours: when both sides begin at once, both sessions come about,
and the rules of keypairs.py keep both usable.
"""

from dataclasses import dataclass, field, replace
from typing import Final

from egressvpn.addresses import Path
from egressvpn.verdict import Verdict
from egressvpn.wireguard.constants import INITIATIONS_PER_SECOND, MAX_TIMER_HANDSHAKES, REKEY_TIMEOUT, SECOND
from egressvpn.wireguard.identity import LocalIdentity
from egressvpn.wireguard.mac import Macs
from egressvpn.wireguard.noise import NO_PRESHARED_KEY, Initiator, diffie_hellman
from egressvpn.wireguard.timestamps import NO_TIMESTAMP

INITIATION_SPACING: Final = SECOND // INITIATIONS_PER_SECOND


@dataclass(frozen=True, slots=True)
class Outstanding:
    """An initiation we sent that has not been answered."""

    index: int
    noise: Initiator = field(repr=False)


@dataclass(slots=True)
class Peer:
    """State of one peer. Times are monotonic nanoseconds, None for never."""

    device: int
    public_key: bytes
    preshared_key: bytes = field(default=NO_PRESHARED_KEY, repr=False)
    path: Path | None = None
    persistent_keepalive: int = 0  # seconds, 0: off
    newest_timestamp: bytes = NO_TIMESTAMP  # of its initiations
    sent_timestamp: bytes = NO_TIMESTAMP  # of ours
    consumed_at: int | None = None  # when its last good initiation came
    sent_at: int | None = None  # when we last sent it a handshake message
    outstanding: Outstanding | None = None
    attempts: int = 0
    due: int | None = None
    macs: Macs = field(init=False, repr=False)
    _shared: dict[bytes, bytes] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.macs = Macs(self.public_key)

    def static_static(self, identity: LocalIdentity) -> bytes:
        """The Diffie-Hellman of both static keys, computed once. Raises InvalidHandshake for a low-order public key."""
        shared = self._shared.get(identity.public_key)
        if shared is None:
            shared = self._shared[identity.public_key] = diffie_hellman(identity.private_key, self.public_key)
        return shared

    def on_identity_changed(self) -> None:
        """Our static key changed: nothing derived from it is good, and a new handshake need not wait."""
        self._shared.clear()
        self.sent_at = None

    def judge_initiation(self, timestamp: bytes, now: int) -> Verdict:
        """PASS when an authenticated initiation is newer than any before and not too soon after the last."""
        if timestamp <= self.newest_timestamp:
            return Verdict.REPLAYED_HANDSHAKE
        if self.consumed_at is not None and now - self.consumed_at < INITIATION_SPACING:
            return Verdict.HANDSHAKE_FLOOD
        return Verdict.PASS

    def on_initiation_consumed(self, timestamp: bytes, path: Path, now: int) -> None:
        self.newest_timestamp = timestamp
        self.consumed_at = now
        self.path = path

    def on_response_sent(self, now: int) -> None:
        """The peer is opening a session itself: an initiation that was only put off is not needed."""
        self.sent_at = now
        if self.outstanding is None:
            self.due = None

    def on_initiation_sent(self, outstanding: Outstanding, jitter: int, now: int) -> None:
        self.outstanding = outstanding
        self.sent_at = now
        self.due = now + REKEY_TIMEOUT + jitter

    def on_handshake_over(self) -> None:
        """Answered, given up, or made needless."""
        self.outstanding = None
        self.due = None
        self.attempts = 0

    def earliest_initiation(self, now: int) -> int:
        """When the next handshake message may be sent: never two within REKEY_TIMEOUT."""
        return now if self.sent_at is None else max(now, self.sent_at + REKEY_TIMEOUT)

    @property
    def exhausted(self) -> bool:
        """Whether all repetitions of this handshake have been sent."""
        return self.attempts > MAX_TIMER_HANDSHAKES

    def let_kernel_choose_source(self) -> None:
        """No answer came: our local address may have become the wrong one."""
        if self.path is not None and self.path.local:
            self.path = replace(self.path, local=b"")
