"""Small private files, whole or as before; and the mark of our handshakes' timestamps."""

import stat
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from egressvpn.app.files import kept_timestamp, replace_private, timestamp_keeper
from egressvpn.wireguard.timestamps import NO_TIMESTAMP, TimestampClock

MARK = bytes.fromhex("400000006923c5a000000000")


def test_a_replaced_file_is_its_owners_alone_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "gateway.key"
    file.write_text("before")
    file.chmod(0o644)
    replace_private(file, b"after")
    assert file.read_bytes() == b"after"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [*tmp_path.iterdir()] == [file]


def test_what_a_crash_left_half_written_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".gateway.key.new").write_text("half")
    replace_private(tmp_path / "gateway.key", b"whole")
    assert (tmp_path / "gateway.key").read_bytes() == b"whole"


def test_a_file_that_cannot_be_replaced_is_as_before(tmp_path: Path) -> None:
    file = tmp_path / "gateway.key"
    file.mkdir()
    with pytest.raises(OSError, match="directory"):
        replace_private(file, b"after")
    assert [*tmp_path.iterdir()] == [file]


def test_a_mark_that_was_kept_is_found_at_the_next_start(tmp_path: Path) -> None:
    file = tmp_path / "timestamp"
    assert kept_timestamp(file) == NO_TIMESTAMP
    timestamp_keeper(file)(MARK)
    assert kept_timestamp(file) == MARK
    assert TimestampClock(kept_timestamp(file)).next(0, NO_TIMESTAMP) > MARK  # though the clock says 1970


@pytest.mark.parametrize("content", [b"", b"40", b"zz" * 12, b"\xff" * 24, b"ff" * 12, b"00" * 1000])
def test_a_mark_that_is_none_is_said_and_is_not_the_end(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "timestamp").write_bytes(content)
    with capture_logs() as logs:
        assert kept_timestamp(tmp_path / "timestamp") == NO_TIMESTAMP
    assert [entry["log_level"] for entry in logs] == ["warning"]


def test_a_mark_that_cannot_be_kept_is_the_callers_to_handle(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        timestamp_keeper(tmp_path / "nowhere" / "timestamp")(MARK)
