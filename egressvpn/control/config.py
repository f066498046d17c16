"""Reading gateway.toml: text to one frozen, checked `Config`, or a `ConfigError` that names every problem with file, line, key and mend.

tomllib keeps no positions, so the line of a key is looked up in the text afterwards, and only when there is something to report.
"""

import dataclasses
import difflib
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from egressvpn.control import checks, schema
from egressvpn.control.checks import Finding, Key
from egressvpn.control.keys import decode_key
from egressvpn.control.problems import ConfigError, Problem
from egressvpn.control.schema import Config, Parsed
from egressvpn.control.values import UnacceptableError

__all__ = ["Config", "ConfigError", "load", "load_private_key", "parse"]

MAX_FILE: Final = 1_048_576  # bytes; a configuration is written by hand

_TABLES: Final[dict[str, type]] = {
    "gateway": schema.Gateway,
    "wireguard": schema.WireGuard,
    "tunnel": schema.Tunnel,
    "nat": schema.Nat,
    "policy": schema.Policy,
    "dataplane": schema.Dataplane,
    "store": schema.Store,
    "api": schema.Api,
    "metrics": schema.Metrics,
    "log": schema.Log,
}


def load(path: Path) -> Config:
    """The configuration in the file at `path`. Raises ConfigError. Secrets are not read: see `load_private_key`."""
    path = path.absolute()
    try:
        raw = path.read_bytes()[: MAX_FILE + 1]
    except FileNotFoundError:
        raise ConfigError.single(
            path, "", "there is no such file", "make one with `egressvpn init`, or name another with --config"
        ) from None
    except OSError as error:
        raise ConfigError.single(path, "", f"cannot read it: {error.strerror}", "make it a file this user may read") from None
    if len(raw) > MAX_FILE:
        raise ConfigError.single(path, "", f"larger than {MAX_FILE} bytes", "this is not a gateway.toml")
    try:
        return parse(raw.decode(), path)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(path, line, "", "not UTF-8 text", "save the file as UTF-8")]) from None


def parse(text: str, path: Path) -> Config:
    """The configuration in `text`; `path` is where it came from and what relative paths start at. Raises ConfigError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"\(at line (\d+)", str(error))
        what = re.sub(r" \(at .*\)$", "", str(error))
        mend = "mend the TOML syntax there (strings need quotes)"
        raise ConfigError([Problem(path, int(at[1]) if at else text.count("\n") + 1, "", what, mend)]) from None
    reader = _Reader()
    config = reader.config(document, path)
    found = reader.found if config is None else [*reader.found, *checks.contradictions(config)]
    if found or config is None:
        lines = key_lines(text)
        problems = [Problem(path, _line_of(key, lines), _written(key), what, mend) for key, what, mend in found]
        raise ConfigError(sorted(problems, key=lambda problem: problem.line))
    return config


def load_private_key(config: Config) -> bytes:
    """The gateway's private key, 32 bytes. Raises ConfigError when the file is missing, open to others, or not a key."""
    path = config.private_key_path
    try:
        mode = path.stat().st_mode & 0o777
        written = path.read_text("ascii").strip()
    except FileNotFoundError:
        raise ConfigError.single(
            path, "wireguard.private_key_file", "there is no such file", f"make a key: umask 077; wg genkey > {path}"
        ) from None
    except OSError as error:
        raise ConfigError.single(
            path, "wireguard.private_key_file", f"cannot read it: {error.strerror}", "run as the user who owns it"
        ) from None
    except UnicodeDecodeError:
        written, mode = "", 0o600
    if mode & 0o077:
        raise ConfigError.single(path, "wireguard.private_key_file", f"mode {mode:04o} lets others read the key", f"chmod 600 {path}")
    key = decode_key(written)
    if key is None:
        raise ConfigError.single(
            path, "wireguard.private_key_file", "not a WireGuard key", "it holds 44 characters of base64, as `wg genkey` prints"
        )
    return key


class _Reader:
    """Turns tables into records and gathers (key, what, mend) for everything that is not as the schema says."""

    def __init__(self) -> None:
        self.found: list[Finding] = []

    def config(self, document: Mapping[str, Any], path: Path) -> Config | None:
        for name in document.keys() - _TABLES.keys() - {"pool"}:
            self._refuse_unknown((name,), [*_TABLES, "pool"])
        tables = {name: self._table((name,), kind, document.get(name, {})) for name, kind in _TABLES.items()}
        pools = list(self._pools(document.get("pool", [])))
        if self.found:
            return None
        return Config(path=path, pools=tuple(pools), **tables)

    def _pools(self, tables: object) -> Iterator[Any]:
        if not isinstance(tables, list) or not tables:
            self.found.append(
                (("pool",), "there is no egress pool", 'add a [[pool]] with name = "default" and addresses = ["203.0.113.0/28"]')
            )
            return
        for number, table in enumerate(tables):
            yield self._table(("pool", number), schema.Pool, table)

    def _table(self, key: Key, kind: Any, table: object) -> Any:
        """A record of `kind`, or None when a problem was found."""
        if not isinstance(table, dict):
            self.found.append((key, "is not a table", f"write it as [{key[0]}] with keys below"))
            return None
        hints = typing.get_type_hints(kind, include_extras=True)
        before = len(self.found)
        for name in table.keys() - hints.keys():
            self._refuse_unknown((*key, name), list(hints))
        for field in dataclasses.fields(kind):
            if field.default is dataclasses.MISSING and field.name not in table:
                self.found.append((key, f"{field.name} is missing", f"add {field.name} = … here"))
        read = {name: self._value((*key, name), hints[name], table[name]) for name in hints if name in table}
        return kind(**read) if len(self.found) == before else None

    def _value(self, key: Key, hint: Any, value: object) -> Any:
        if dataclasses.is_dataclass(hint):
            return self._table(key, hint, value)
        metadata = getattr(hint, "__metadata__", ())
        try:
            for extra in metadata:
                if isinstance(extra, Parsed):
                    return extra.parse(value)
            return msgspec.convert(value, hint, strict=True)
        except UnacceptableError as error:
            self.found.append((key, error.what, error.mend))
        except msgspec.ValidationError:
            self.found.append((key, f"{_shown(value)} is not accepted", f"use {_expected(hint)}"))
        return None

    def _refuse_unknown(self, key: Key, known: list[str]) -> None:
        near = difflib.get_close_matches(str(key[-1]), known, n=1)
        mend = f"did you mean {near[0]}?" if near else f"remove it; known here: {', '.join(sorted(known))}"
        self.found.append((key, "unknown key", mend))


def _shown(value: object) -> str:
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _expected(hint: Any) -> str:
    """What a type or range accepts, in words."""
    for extra in getattr(hint, "__metadata__", ()):
        if isinstance(extra, msgspec.Meta) and extra.description:
            return extra.description
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(f'"{choice}"' for choice in typing.get_args(hint))
    return {bool: "true or false", str: "a string in quotes", int: "a whole number"}[hint]


_STRINGS_AND_COMMENTS = re.compile(r'"(?:\\.|[^"\\])*"|\'[^\']*\'|#.*')
_HEADER = re.compile(r"\s*(\[{1,2})\s*([^\]]+?)\s*\]{1,2}")
_KEY = re.compile(r"\s*([A-Za-z0-9_.\"'-]+)\s*=(.*)")


def key_lines(text: str) -> dict[Key, int]:
    """Where each table and key of a TOML document begins, counted from 1. Made for documents that tomllib accepted."""
    lines: dict[Key, int] = {}
    counts: dict[str, int] = {}
    table: Key = ()
    depth = 0  # of brackets still open: the lines of an array are not keys
    for number, line in enumerate(text.splitlines(), 1):
        bare = _STRINGS_AND_COMMENTS.sub("", line)
        header, key = _HEADER.match(line), _KEY.match(line)
        if depth == 0 and header:
            table = tuple(header[2].split("."))
            if header[1] == "[[":
                counts[header[2]] = counts.get(header[2], -1) + 1
                table = (*table, counts[header[2]])
            lines.setdefault(table, number)
            lines.setdefault(table[:1], number)
            continue
        if depth == 0 and key:
            lines.setdefault((*table, *(part.strip(" \"'") for part in key[1].split("."))), number)
        depth = max(0, depth + sum(map(bare.count, "[{")) - sum(map(bare.count, "]}")))
    return lines


def _line_of(key: Key, lines: Mapping[Key, int]) -> int:
    """The line of the key, or else of the nearest table around it; 0 when nothing of it is written."""
    return next((lines[key[:length]] for length in range(len(key), 0, -1) if key[:length] in lines), 0)


def _written(key: Key) -> str:
    """wireguard.mtu, pool[0].ports."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")
