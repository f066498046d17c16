"""From the log alone, `whois` names the right device for any address, port and second, whatever became of the gateway that wrote it."""

import gzip
import random
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from egressvpn.app import accounting
from egressvpn.nat.deterministic import Deterministic
from egressvpn.observe import nat_log
from egressvpn.observe.nat_history import log_files
from egressvpn.observe.nat_records import Record, decode
from tests.app.books import BLOCKS, HOLD_DOWN, LOW, MS, RING, SIZE, Books, named

DEVICES = {1: "phone", 2: "tv", 3: "laptop"}
QUERIES = 200  # for each history that hypothesis makes up

BLOCK = st.tuples(st.integers(1, 2), st.integers(0, BLOCKS - 1))
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("give"), BLOCK, st.sampled_from(sorted(DEVICES))),
        st.tuples(st.just("give"), BLOCK, st.sampled_from(sorted(DEVICES))),
        st.tuples(st.just("take_back"), BLOCK),
        st.tuples(st.just("address"), st.sampled_from(sorted(DEVICES))),
        st.tuples(st.just("pass"), st.sampled_from([0, 1, 7, 999, 1000, 5000, 61_000])),
        st.tuples(st.just("follow")),
        st.tuples(st.just("rename"), st.sampled_from(sorted(DEVICES)), st.sampled_from(["phone", "old phone", "x"])),
        st.tuples(st.just("remove"), st.sampled_from(sorted(DEVICES))),
        st.tuples(st.just("restart"), st.sampled_from([0, 3, 2000, 90_000])),
        st.tuples(st.just("kill"), st.sampled_from([0, 3, 2000, 90_000]), st.sampled_from([b"", b'{"schema":1,"ti', b"\0\0\0", b"{}\n"])),
        st.tuples(st.just("overrun")),
        st.tuples(st.just("clock"), st.sampled_from([-3_600_000, -5000, 700, 86_400_000])),
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(OPERATIONS, st.integers(0, 1 << 32), st.sampled_from([3, 50_000]))
def test_whois_is_right_whatever_happened(operations: Sequence[tuple[Any, ...]], seed: int, records: int) -> None:
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounting, "CHECKPOINT_RECORDS", records)
        patch.setattr(accounting, "CHECKPOINT_SHARE", 0)
        books = Books(Path(directory), names=dict(DEVICES))
        trio.run(_live_through, books, operations)
        _check(books, random.Random(seed), QUERIES)


async def _live_through(books: Books, operations: Sequence[tuple[Any, ...]]) -> None:
    books.start()
    for kind, *rest in operations:
        await _carry_out(books, kind, *rest)
    await books.follow()
    books.log.close()


async def _carry_out(books: Books, kind: str, *rest: Any) -> None:
    if int(books.nat.settings[0].journal) - books.accounts._after >= RING - 4:
        await books.follow()
    if kind == "give":
        books.give(*rest[0], rest[1])
    elif kind == "take_back":
        books.take_back(*rest[0])
    elif kind == "pass":
        books.pass_time(rest[0])
    elif kind in ("follow", "overrun"):
        await getattr(books, kind)()
    elif kind == "restart":
        await books.stop()
        books.pass_time(rest[0])
        books.start()
    elif kind == "kill":
        await books.log.flush()
        await books.kill(rest[1])
        books.pass_time(rest[0])
        books.restart_after_kill()
    elif kind == "clock":
        await books.follow()
        books.set_clock(rest[0])
        await books.follow()
    elif kind == "remove" and rest[0] not in books.names:
        return
    else:
        getattr(books, kind)(*rest)


def test_ten_thousand_questions_about_one_long_history(tmp_path: Path) -> None:
    chance = random.Random(7422)
    blocks = [(slot, number) for slot in (1, 2) for number in range(BLOCKS)]
    operations: list[tuple[Any, ...]] = []
    for _ in range(700):
        operations.append(("give", chance.choice(blocks), chance.choice(sorted(DEVICES))))
        operations.append(("take_back", chance.choice(blocks)))
        operations.append(("pass", chance.randrange(1000)))
        operations.append(("address", chance.choice(sorted(DEVICES))))
        if chance.random() < 0.02:
            rare = (
                ("kill", 500, b'{"schema":1,"time":"20'),
                ("restart", 500),
                ("remove", 1),
                ("rename", 2, chance.choice("abc")),
                ("follow",),
            )
            operations.append(chance.choice(rare))
    books = Books(tmp_path, names=dict(DEVICES))
    trio.run(_live_through, books, operations)
    assert len(log_files(tmp_path, books.pattern)) > 5
    _check(books, chance, 10_000)


# what is lost


async def test_a_crash_names_nobody_wrongly_for_what_it_kept_from_the_log(tmp_path: Path) -> None:
    books = Books(tmp_path, names=dict(DEVICES))
    books.start()
    books.give(1, 0, 1)
    await books.follow()
    books.pass_time(1000)
    books.give(1, 1, 2)  # never read
    await books.kill()
    books.pass_time(5000)
    books.restart_after_kill()
    await books.follow()
    first, second = books.truth[books.key(1, 0)][0], books.truth[books.key(1, 1)][0]
    answer = books.ask(books.key(1, 0), LOW, first.begin, 1000)
    assert [(held.record.device, held.clean) for held in answer.holdings] == [("phone", False)]
    assert named(books.ask(books.key(1, 1), LOW + SIZE, second.begin, 1000)) == set()
    assert named(books.ask(books.key(1, 0), LOW, books.wall // MS, 1000)) == set()


async def test_an_overrun_is_said_counted_and_followed_by_a_checkpoint(tmp_path: Path) -> None:
    books = Books(tmp_path, names=dict(DEVICES))
    books.start()
    await books.follow()
    began = books.wall // MS
    with capture_logs() as logs:
        await books.overrun()
    lost = next(entry["lost"] for entry in logs if "lost" in entry)
    assert RING < books.accounts.dropped == lost
    events = [record.event for record in records(books)]
    assert events[-1 - BLOCKS * 2 :].count("block-live") <= 2 * BLOCKS
    assert events.index("lost") + 1 == events.index("checkpoint", 1)
    key = next(iter(books.truth))
    answer = books.ask(key, key[1], began + 2, 1)
    assert not answer.sure
    assert answer.gaps[0].why == f"{lost} events were lost"
    after = books.ask(key, key[1], books.wall // MS + 1000, 1)
    assert after.sure
    assert named(after) == books.expected(key, books.wall // MS + 1000, 1)


async def test_a_full_disk_is_said_and_counted_and_nothing_is_wrong_afterwards(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    books = Books(tmp_path, names=dict(DEVICES), pattern="nat.jsonl")
    books.start()
    await books.follow()
    (path,) = log_files(tmp_path, books.pattern)
    with no_room(path.stat().st_size + 100):
        with capture_logs() as logs:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(books.log.run)
                for turn in range(6):
                    books.give(1, turn % BLOCKS, 1)
                    books.pass_time(1000)
                    books.accounts.follow()
                    await trio.sleep(1)
                nursery.cancel_scope.cancel()
        assert "File too large" in books.accounts.trouble
        assert len(logs) == 1
        assert path.read_bytes().endswith(b"}\n")  # what was written in part was taken back
    await books.follow()
    assert books.accounts.trouble == ""
    _check(books, random.Random(1), QUERIES)


async def test_a_queue_without_room_loses_and_goes_on_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nat_log, "MAX_QUEUED", 4)
    books = Books(tmp_path, names=dict(DEVICES))
    books.start()
    await books.follow()
    for turn in range(8):
        books.give(1 + turn // BLOCKS, turn % BLOCKS, 1)
        books.pass_time(10)
        books.accounts.follow()
    assert books.accounts.dropped == 4
    assert "is losing events since" in books.accounts.trouble
    await books.log.flush()
    await books.follow()
    assert [record.count for record in records(books) if record.event == "lost"] == [4]
    now = books.wall // MS
    assert all(named(books.ask(books.key(*block), books.key(*block)[1], now, 1)) == {(1, "phone")} for block in books.blocks())


# files


async def test_a_file_that_was_moved_away_is_followed_by_another(tmp_path: Path) -> None:
    books = Books(tmp_path, names=dict(DEVICES), pattern="nat.jsonl")
    books.start()
    books.give(1, 0, 1)
    await books.follow()
    (tmp_path / "nat.jsonl").rename(tmp_path / "nat.jsonl.old")
    books.pass_time(1000)
    books.give(1, 1, 2)
    await books.follow()
    books.pass_time(1000)
    books.give(1, 2, 2)
    await books.follow()
    assert [path.name for path in log_files(tmp_path, "nat.jsonl")] == ["nat.jsonl.old", "nat.jsonl"]
    _check(books, random.Random(1), QUERIES)
    (tmp_path / "nat.jsonl.old").unlink()
    now = books.wall // MS
    assert named(books.ask(books.key(1, 0), LOW, now, 1)) == {(1, "phone")}  # each file stands alone
    assert [gap.why for gap in books.ask(books.key(1, 0), LOW, now - 1500, 1).gaps] == ["the log begins at 2025-12-31T23:59:51.000Z"]


async def test_no_file_takes_the_place_of_another(tmp_path: Path) -> None:
    books = Books(tmp_path, names=dict(DEVICES), pattern="nat-%M.jsonl")  # the names come round
    books.start()
    for _ in range(3):
        books.give(1, 0, 1)
        await books.follow()
        books.pass_time(3_600_000)
        await books.follow()
        books.pass_time(60_000)
        await books.follow()
        books.pass_time(3_600_000 - 60_000)
        books.take_back(1, 0)
        await books.follow()
    names = {path.name for path in log_files(tmp_path, books.pattern)}
    assert {"nat-59.jsonl", "nat-59.jsonl.2", "nat-00.jsonl", "nat-00.jsonl.2"} <= names
    assert all((tmp_path / name).stat().st_mode & 0o777 == 0o600 for name in names)
    _check(books, random.Random(1), QUERIES)


async def test_compressed_files_are_read(tmp_path: Path) -> None:
    books = Books(tmp_path, names=dict(DEVICES))
    books.start()
    books.give(1, 0, 1)
    await books.follow()
    books.pass_time(61_000)
    books.take_back(1, 0)
    await books.follow()
    old = log_files(tmp_path, books.pattern)[0]
    (tmp_path / f"{old.name}.gz").write_bytes(gzip.compress(old.read_bytes()))
    old.unlink()
    _check(books, random.Random(1), QUERIES)


async def test_a_damaged_line_makes_answers_about_its_time_unsure(tmp_path: Path) -> None:
    books = Books(tmp_path, names=dict(DEVICES), pattern="nat.jsonl")
    books.start()
    books.give(1, 0, 1)
    await books.follow()
    (path,) = log_files(tmp_path, books.pattern)
    books.pass_time(10_000)
    books.take_back(1, 0)
    await books.follow()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:-1], lines[-1][:40] + b"\x00\xff" + lines[-1][40:]]))
    answer = books.ask(books.key(1, 0), LOW, books.wall // MS + 1, 1)
    assert [gap.why for gap in answer.gaps] == [f"nat.jsonl:{len(lines)} is damaged and was left out"]


# what is held back


async def test_what_devices_had_a_moment_ago_is_held_back_for_them_after_a_restart(tmp_path: Path) -> None:
    books = Books(tmp_path, names=dict(DEVICES))
    books.start()
    books.give(1, 0, 1)  # in use until the end
    books.give(1, 1, 2)  # freed before
    books.address(3)
    await books.follow()
    books.pass_time(1000)
    books.take_back(1, 1)
    await books.follow()
    freed = books.wall
    books.pass_time(50_000)
    await books.kill(b'{"schema":1')
    books.pass_time(10_000)
    books.start()
    held = {(one.external, one.ports): (one.device_id, one.until - HOLD_DOWN) for one in books.accounts.ledger.held_back(books.wall)}
    assert held == {
        ("203.0.113.1", (LOW, LOW + SIZE - 1)): (1, books.wall),  # nobody knows when it ended
        ("203.0.113.1", (LOW + SIZE, LOW + 2 * SIZE - 1)): (2, freed),
        ("2001:db8:113::3", None): (3, books.wall),
    }
    books.pass_time(65_000)
    over = books.accounts.let_go()
    assert [one.device_id for one in over] == [2]
    books.set_clock(86_400_000)
    await books.follow()
    assert {one.device_id for one in books.accounts.ledger.held_back(books.wall)} == {1, 3}  # a clock that is set frees nothing


async def test_what_was_freed_before_the_last_checkpoint_is_held_back_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "CHECKPOINT_RECORDS", 3)
    monkeypatch.setattr(accounting, "CHECKPOINT_SHARE", 0)
    books = Books(tmp_path, names=dict(DEVICES), pattern="nat.jsonl")
    books.start()
    books.give(1, 0, 1)
    books.take_back(1, 0)
    for _ in range(20):
        books.pass_time(1000)
        books.give(2, 0, 2)
        books.take_back(2, 0)
        await books.follow()
    assert [record.event for record in records(books)].count("checkpoint") > 5
    await books.kill()
    books.start()
    assert {(one.external, one.device_id) for one in books.accounts.ledger.held_back(books.wall)} == {
        ("203.0.113.1", 1),
        ("203.0.113.2", 2),
    }


async def test_after_a_clean_stop_and_a_long_while_nothing_is_held_back(tmp_path: Path) -> None:
    books = Books(tmp_path, names=dict(DEVICES))
    books.start()
    books.give(1, 0, 1)
    books.pass_time(1000)
    await books.stop()
    assert [record.event for record in records(books)][-2:] == ["block-released", "stop"]
    books.pass_time(HOLD_DOWN // MS)
    books.start()
    assert list(books.accounts.ledger.held_back(books.wall)) == []


async def test_a_deterministic_pool_is_told_at_every_change_and_in_every_file(tmp_path: Path) -> None:
    books = Books(tmp_path, names=dict(DEVICES))
    books.start()
    plans = [Deterministic(IPv4Network("198.51.100.0/28"), [IPv4Network("192.0.2.1/32")], factor, max_ports=5040) for factor in (2, 2, 4)]
    for plan in plans:
        told = plan.record()
        books.accounts.set_deterministic([{**told, "pool": "default", "outside": tuple(told["outside"]), "ports": tuple(told["ports"])}])
    books.pass_time(61_000)
    await books.follow()
    told = [record for record in records(books) if record.event == "deterministic"]
    assert [record.dynamic_factor for record in told] == [2, 4, 4]
    again = [Deterministic.from_record(msgspec.to_builtins(record)) for record in told]
    assert again[0].reverse(IPv4Address("192.0.2.1"), 2001) == IPv4Address("198.51.100.1")
    assert again[1].forward(IPv4Address("198.51.100.1")) == plans[2].forward(IPv4Address("198.51.100.1"))


def records(books: Books) -> list[Record]:
    found = [decode(line) for path in log_files(books.directory, books.pattern) for line in path.read_bytes().splitlines(keepends=True)]
    return [record for record in found if record is not None]


@contextmanager
def no_room(octets: int) -> Iterator[None]:
    """No file of this process may become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _check(books: Books, chance: random.Random, queries: int) -> None:
    """Random questions, and those that lie where something changes."""
    moments = [moment for spans in books.truth.values() for span in spans for moment in (span.begin, span.end) if moment > 0]
    keys = list(books.truth)
    for _ in range(queries if keys else 0):
        key = chance.choice(keys)
        begin = chance.choice(moments) + chance.choice([0, 0, -1, 1, -1000, 1000, chance.randrange(-70_000, 70_000)])
        length = chance.choice([1, 1000])
        if not books.is_known(key, begin, length):
            continue
        port = 4711 if key[0] == "v6" else key[1] + chance.randrange(SIZE)
        answer = books.ask(key, port, begin, length)
        assert named(answer) == books.expected(key, begin, length), (key, begin, length, answer.gaps)
