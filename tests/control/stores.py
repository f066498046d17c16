"""New stores for tests that need hundreds: the third of a second that their migrations take is spent once."""

import tempfile
from functools import cache
from pathlib import Path

from egressvpn.control.store import open_store

FILE = "egressvpn.db"  # of URL
URL = f"sqlite:///{FILE}"


@cache
def _empty() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        open_store(URL, Path(directory)).close()
        return (Path(directory) / FILE).read_bytes()


def make_empty_store(directory: Path) -> None:
    """What `open_store(URL, directory)` then finds."""
    (directory / FILE).touch(mode=0o600)
    (directory / FILE).write_bytes(_empty())
