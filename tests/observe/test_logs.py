"""Logs go to stderr, one JSON object a line when nobody watches, and never carry a secret."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from egressvpn.observe import logs


@pytest.fixture(autouse=True)
def _undo() -> Iterator[None]:
    before = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.root.handlers[:], logging.root.level = before


def test_json_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "auto")
    structlog.get_logger().info("ready", devices=3)
    out, err = capsys.readouterr()
    line = json.loads(err)
    assert out == ""
    assert (line["event"], line["level"], line["devices"]) == ("ready", "info", 3)
    assert line["timestamp"].endswith("Z")


def test_the_level_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", "json")
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["loud"]


def test_secrets_and_raw_bytes_are_masked(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    structlog.get_logger().info("x", private_key="hunter2", psk="hunter2", raw=b"hunter2", public_key="fine", api_token="hunter2")
    err = capsys.readouterr().err
    assert "hunter2" not in err
    assert json.loads(err)["public_key"] == "fine"


def test_a_console_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "console")
    structlog.get_logger().info("ready", devices=3)
    err = capsys.readouterr().err
    assert "ready" in err
    assert "devices=3" in err
    assert "\x1b" not in err  # not a terminal


@pytest.mark.parametrize("output", ["json", "console"])
def test_the_standard_librarys_log_takes_the_same_way_with_its_traceback(capsys: pytest.CaptureFixture[str], output: str) -> None:
    logs.configure("info", output)
    try:
        int("broken")
    except ValueError:
        logging.getLogger("egressvpn.api").exception("Error in ASGI Framework")
    err = capsys.readouterr().err
    assert "invalid literal for int() with base 10: 'broken'" in err
    if output == "json":
        assert "ValueError" in json.loads(err)["exception"]


def test_chatter_of_libraries_stays_out(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("debug", "json")
    logging.getLogger("alembic").info("Running upgrade")
    assert capsys.readouterr().err == ""
