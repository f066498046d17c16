"""A NAT log whose files somebody compresses: a start goes on from them as from any others."""

import gzip
from pathlib import Path

from egressvpn.observe.nat_history import log_files
from tests.app.books import Books

DEVICES = {1: "phone", 2: "tv"}


async def test_what_compressed_files_tell_of_is_held_back_too(tmp_path: Path) -> None:
    books = Books(tmp_path, names=dict(DEVICES))
    books.start()
    books.give(1, 0, 1)
    books.give(1, 1, 2)
    await books.follow()
    books.take_back(1, 0)
    await books.follow()
    books.pass_time(61_000)  # another file
    await books.follow()
    await books.kill()
    number = books.log.file
    for path in log_files(tmp_path, books.pattern):
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    books.start()
    assert {one.device_id for one in books.accounts.ledger.held_back(books.wall)} == {1, 2}
    assert number > 1
    assert books.log.file == number + 1
    await books.follow()
