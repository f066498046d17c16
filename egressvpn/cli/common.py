"""What every command shares: the global options, how results are shown, and how secrets are written to files."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from egressvpn.errors import OperatorError

if TYPE_CHECKING:
    from egressvpn.control.config import Config
    from egressvpn.control.store import Store

C = TypeVar("C", bound=Callable[..., Any])

DEFAULT_CONFIG: Final = "/etc/egressvpn/gateway.toml"
SCHEMA: Final = 1  # of every JSON output


@dataclass
class Invocation:
    """What the global options said."""

    config_path: str = DEFAULT_CONFIG
    output: str = "table"
    verbose: bool = False

    def config(self) -> "Config":
        """The checked configuration. Raises ConfigError."""
        from egressvpn.control.config import load

        return load(Path(self.config_path))

    def store(self, config: "Config") -> "Store":
        """The open store; close it."""
        from egressvpn.control.store import open_store

        return open_store(config.store.url, config.state_dir)

    @property
    def json(self) -> bool:
        return self.output == "json"


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)


def _remember_output(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.ensure_object(Invocation).output = value


def output_option(command: C) -> C:
    """-o/--output, the same before and after the subcommand."""
    kinds = click.Choice(["table", "json"])
    option = click.option(
        "-o", "--output", type=kinds, expose_value=False, callback=_remember_output, help="How to show results [default: table]."
    )
    return option(command)


def echo_json(members: dict[str, Any]) -> None:
    """One JSON document, its schema on top."""
    click.echo(json.dumps({"schema": SCHEMA, **members}, indent=2))


def echo_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str, right: Iterable[str] = ()) -> None:
    """A table on a terminal; aligned plain text elsewhere, where nothing is ever cut off."""
    texts = [["–" if cell is None else str(cell) for cell in row] for row in rows]
    if not texts:
        click.echo(empty, err=True)
        return
    if not sys.stdout.isatty():
        _echo_plain([list(columns), *texts], [column in right for column in columns])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in texts:
        table.add_row(*map(Text, row))
    Console().print(table)


def _echo_plain(rows: list[list[str]], right: list[bool]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) if end else cell.ljust(width) for cell, width, end in zip(row, widths, right, strict=True)]
        click.echo("  ".join(cells).rstrip())


def echo_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values, one a line."""
    shown = [(name, "–" if value in (None, "") else str(value)) for name, value in pairs]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        click.echo(f"{click.style(name.ljust(width), bold=True)}  {value}")


def write_private(path: Path, content: str, *, force: bool) -> None:
    """A file that only its owner may read, complete or not there at all. Raises OperatorError when it is there, unless forced."""
    if not force and path.exists():
        raise OperatorError(f"{path} is there already", "choose another file, or overwrite it with --force")
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise OperatorError(f"cannot write {path}: {error.strerror}", "choose a place this user may write to") from None


def amount(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def span(seconds: float) -> str:
    """A time span as people read it: its two largest units."""
    whole = int(seconds)
    days, hours, minutes = whole // 86_400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {whole % 60}s" if minutes else f"{whole}s"
