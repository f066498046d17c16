"""Targets that read text: wg-quick files, and the configuration protocol that wg(8) speaks."""

import contextlib
import re
from typing import Any

from egressvpn.api.uapi import MAX_LINE, Get, HangUp, Requests
from egressvpn.api.uapi_lines import Fwmark, ListenPort, PrivateKey, Set
from egressvpn.control.wgquick import parse, render
from egressvpn.errors import OperatorError
from tests.fuzz.harness import Reader, target

SECRET = re.compile(rb"(?i)(?:PrivateKey|PresharedKey)[ \t]*=[ \t]*([A-Za-z0-9+/=]{24,})")
HEX_KEY = re.compile(r"[0-9a-fA-F]{16,}")


@target
def wg_quick(octets: bytes) -> None:
    """A file is refused in one sentence that quotes no secret, or understood so that it can be written and read again."""
    text = octets.decode("utf-8", "replace")
    understood, said = None, ""
    try:
        understood = parse(text, "fuzz.conf")
    except OperatorError as error:
        said = f"{error} {error!r}"
    assert "\n" not in said
    if understood is not None:
        assert parse(render(understood)) == understood
        said = repr(understood) + "".join(understood.remarks)
    for secret in SECRET.findall(octets):
        if octets.count(secret) == 1:  # not also what stands in another line, which may be shown
            assert secret.decode() not in said


@target
def uapi(octets: bytes) -> None:
    """Operations come out the same however the octets arrive, are in range, and show no secret when they are looked at."""
    reader = Reader(octets)
    size = 1 + reader.number()
    text = reader.rest()
    whole = _requests([text])
    assert whole == _requests([text[at : at + size] for at in range(0, len(text), size)])
    for request in whole:
        _check(request)


def _requests(pieces: list[bytes]) -> list[Any]:
    requests = Requests()
    found: list[Any] = []
    for piece in pieces:
        for request in requests.feed(piece):
            found.append(request)
            if isinstance(request, HangUp):
                return found
        assert len(requests._rest) <= MAX_LINE
    if (last := requests.end()) is not None:
        found.append(last)
    return found


def _check(request: Any) -> None:
    assert isinstance(request, Get | Set | HangUp)
    if not isinstance(request, Set):
        return
    assert not HEX_KEY.search(request.why)
    shown = repr(request)
    for setting in request.settings:
        match setting:
            case PrivateKey():
                assert setting.key is None or (len(setting.key) == 32 and any(setting.key))
                assert setting.key is None or _unseen(setting.key, shown)
            case ListenPort():
                assert 0 <= setting.port <= 0xFFFF
            case Fwmark():
                assert 0 <= setting.mark <= 0xFFFFFFFF
    for peer in request.peers:
        assert len(peer.public_key) == 32
        assert peer.preshared_key is None or (len(peer.preshared_key) == 32 and _unseen(peer.preshared_key, shown))
        assert peer.persistent_keepalive is None or 0 <= peer.persistent_keepalive <= 0xFFFF


def _unseen(key: bytes, shown: str) -> bool:
    """All octets alike say nothing."""
    with contextlib.suppress(ValueError):
        return len(set(key)) < 3 or not (key.hex() in shown or repr(key)[2:-1] in shown)
    return False
