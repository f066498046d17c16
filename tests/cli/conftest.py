"""Real configurations in a temporary directory, and the command line run against them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from egressvpn.cli import cli

Run = Callable[..., Result]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line without any configuration."""
    monkeypatch.delenv("EGRESSVPN_CONFIG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments: str, **options: Any) -> Result:
        result = CliRunner().invoke(cli, list(arguments), prog_name="egressvpn", **options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception  # a traceback an operator would have seen
        return result

    return invoke


@pytest.fixture
def home(bare: Run, tmp_path: Path) -> Path:
    """A self-contained gateway made by `init`."""
    directory = tmp_path / "gw"
    made = bare("init", "--pool", "203.0.113.0/28", "--pool", "2001:db8:113::/64", "--endpoint", "192.0.2.1:51820", "--dir", str(directory))
    assert made.exit_code == 0, made.output
    return directory


@pytest.fixture
def run(bare: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line on that gateway."""
    monkeypatch.setenv("EGRESSVPN_CONFIG", str(home / "gateway.toml"))
    return bare


def read_json(result: Result) -> Any:
    """The one JSON document a command printed, which carries its schema."""
    document = json.loads(result.stdout)
    assert document["schema"] == 1
    return document
