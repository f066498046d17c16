"""What `whois` asks and answers, on the command line as over the API: who had this external address and port at that time?"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from egressvpn.errors import OperatorError
from egressvpn.observe.nat_history import Holding, Whois
from egressvpn.observe.nat_records import PROTOCOLS, written

SECOND: Final = 1_000_000_000  # ns
MILLISECOND: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Question:
    """Times as the log writes them; the span is a second, or a millisecond when that was asked for."""

    address: str
    port: int | None  # None: of an IPv6 address, where ports do not matter
    protocol: str  # "": any
    begin: str
    end: str


def question(endpoint: str, protocol: str, at: str, now: int) -> Question:
    """Read what was asked; `at` empty means `now` (ns since the epoch). Raises OperatorError."""
    host, port = _endpoint(endpoint)
    if protocol not in ("", *PROTOCOLS):
        raise OperatorError(f"{protocol!r} is not a protocol", f"use one of {', '.join(PROTOCOLS)}")
    begin, length = _moment(at) if at else (now, SECOND)
    return Question(host, port, protocol, written(begin), written(begin + length))


def answer(asked: Question, find: Callable[[str, int | None, str, str], Whois]) -> dict[str, Any]:
    """As /v1/whois and `whois -o json` give it. `find` reads the log."""
    found = find(asked.address, asked.port, asked.begin, asked.end)
    items = [_item(held) for held in found.holdings if asked.protocol in ("", *held.record.protocols)]
    return {
        "address": asked.address,
        "port": asked.port,
        "begin": asked.begin,
        "end": asked.end,
        "sure": found.sure,
        "notes": [gap.why for gap in found.gaps],
        "items": items,
    }


def _item(held: Holding) -> dict[str, Any]:
    record = held.record
    return {
        "device": record.device,
        "device_id": record.device_id,
        "internal": list(record.internal),
        "external": record.external,
        "ports": None if record.ports is None else list(record.ports),
        "protocols": list(record.protocols),
        "pool": record.pool,
        "since": held.since,
        "until": held.end or None,
        "clean": held.clean,
    }


def _endpoint(written_endpoint: str) -> tuple[str, int | None]:
    mend = 'write it like "203.0.113.5:40000", "[2001:db8::5]:443" or "2001:db8::5"'
    match = re.fullmatch(r"\[([^\]]+)\](?::(\d{1,5}))?", written_endpoint) or re.fullmatch(r"([^:]+):(\d{1,5})", written_endpoint)
    host, port = (match[1], match[2]) if match else (written_endpoint, None)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise OperatorError(f"{written_endpoint!r} is not an address and a port", mend) from None
    if (address.version == 4 and port is None) or int(port or 0) > 65_535:
        raise OperatorError(f"{written_endpoint!r} has no port", mend)
    return str(address), int(port) if port else None


def _moment(at: str) -> tuple[int, int]:
    """ns since the epoch, and how long is meant. A time without a zone is UTC, as in the log."""
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        raise OperatorError(f"{at!r} is not a time", 'write it like "2026-01-31T12:00:00Z" or "2026-01-31T13:00:00+01:00"') from None
    moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    whole = int(moment.replace(microsecond=0).timestamp()) * SECOND
    return whole + moment.microsecond * 1000 // MILLISECOND * MILLISECOND, MILLISECOND if "." in at else SECOND
