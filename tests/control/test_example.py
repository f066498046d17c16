"""examples/gateway.toml is the reference: every key of the schema, with exactly its default."""

import dataclasses
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from egressvpn.control import schema
from egressvpn.control.config import parse

EXAMPLE = Path(__file__).parents[2] / "examples" / "gateway.toml"
TABLES = [field.name for field in dataclasses.fields(schema.Config) if field.name not in ("path", "pools")]


def keys() -> Iterator[tuple[str, ...]]:
    hints = typing.get_type_hints(schema.Config)
    for table in TABLES:
        yield from below(hints[table], (table,))


def below(kind: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from below(hints[field.name], (*path, field.name))
        else:
            yield (*path, field.name)


@pytest.mark.parametrize("key", list(keys()), ids=".".join)
def test_the_example_shows_every_key_with_its_default(key: tuple[str, ...]) -> None:
    written: Any = tomllib.loads(EXAMPLE.read_text())
    read: Any = parse(EXAMPLE.read_text(), EXAMPLE)
    default: Any = schema.Config(path=EXAMPLE, pools=())
    for part in key:
        written = written[part]
        read, default = getattr(read, part), getattr(default, part)
    assert read == default


@pytest.mark.parametrize("field", dataclasses.fields(schema.Pool), ids=lambda field: field.name)
def test_the_example_shows_every_key_of_a_pool_with_its_default(field: Any) -> None:
    assert field.name in tomllib.loads(EXAMPLE.read_text())["pool"][0]
    if field.default is not dataclasses.MISSING:
        assert getattr(parse(EXAMPLE.read_text(), EXAMPLE).pools[0], field.name) == field.default
