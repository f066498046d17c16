"""Whether a secret shows in something that people or other programs can read, however it may have been written there."""

import base64
from collections.abc import Iterable, Iterator

WINDOW = 8  # octets of a secret in a row that count as disclosing it


def disclosed(secrets: Iterable[bytes], shown: str | bytes) -> set[str]:
    """How parts of the secrets stand in what is shown: raw, in hexadecimal, base64, as Python's bytes, or as lists of numbers.

    Secrets of fewer than three different octets (the zeros of what is not set) are none.
    """
    raw = shown if isinstance(shown, bytes) else shown.encode("utf-8", "surrogateescape")
    text = raw.decode("latin-1")
    lower, dense = text.lower(), "".join(text.split())
    found = set[str]()
    for secret in secrets:
        if len(set(secret)) < 3:
            continue
        for way, written in _writings(secret):
            if written in (lower if way == "hexadecimal" else dense if way == "numbers" else text):
                found.add(way)
    return found


def _writings(secret: bytes) -> Iterator[tuple[str, str]]:
    """Every way that every part of WINDOW octets may be written in."""
    for at in range(len(secret) - WINDOW + 1):
        part = secret[at : at + WINDOW]
        yield "raw", part.decode("latin-1")
        yield "hexadecimal", part.hex()
        yield "hexadecimal", part.hex(" ")
        yield "hexadecimal", part.hex(":")
        yield "bytes", repr(part)[2:-1]
        yield "bytes", "".join(f"\\x{octet:02x}" for octet in part)
        yield "numbers", ",".join(map(str, part))
    for shift in range(3):  # base64 goes by groups of three octets
        end = len(secret) - (len(secret) - shift) % 3
        written = base64.b64encode(secret[shift:end]).decode()
        for at in range(0, len(written) - 8, 4):
            yield "base64", written[at : at + 12]
            yield "base64", written[at : at + 12].translate(str.maketrans("+/", "-_"))
