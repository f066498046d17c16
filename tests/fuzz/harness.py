"""What a fuzz target is: a function of octets from anybody that must not fail, whatever they are.

Targets register by name here. `python -m tests.fuzz NAME` hunts for inputs that make one fail; `test_corpus.py` runs every
target over its corpus. A target checks more than that nothing crashes: nothing outside the packet is read or written,
checksums stay right, what is unauthenticated changes nothing and is answered with no more octets than it had.
"""

from collections.abc import Callable

Target = Callable[[bytes], None]

TARGETS: dict[str, Target] = {}


def target(function: Target) -> Target:
    """Make a function a target, by its name."""
    TARGETS[function.__name__] = function
    return function


class Reader:
    """Takes an input apart, from its front. What is missing reads as zero."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._at = 0

    def __bool__(self) -> bool:
        """Something is left."""
        return self._at < len(self._octets)

    def take(self, count: int) -> bytes:
        """At most `count` octets."""
        taken = self._octets[self._at : self._at + count]
        self._at += len(taken)
        return taken

    def number(self, octets: int = 1) -> int:
        """An unsigned integer, big-endian."""
        return int.from_bytes(self.take(octets).ljust(octets, b"\0"), "big")

    def signed(self) -> int:
        """A 64-bit word."""
        return int.from_bytes(self.take(8).ljust(8, b"\0"), "big", signed=True)

    def block(self, limit: int = 2048) -> bytes:
        """Octets that their own 16-bit length precedes."""
        return self.take(min(self.number(2), limit))

    def rest(self, limit: int = 1 << 16) -> bytes:
        return self.take(limit)
