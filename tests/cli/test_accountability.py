"""`whois` with and without a gateway, `explain`, `pool usage`."""

from pathlib import Path

import pytest

from egressvpn.observe.nat_log import NatLog
from egressvpn.observe.nat_records import SCHEMA, Record
from tests.cli.conftest import Run, read_json
from tests.cli.test_observation import answering, ask
from tests.observe.gateway import FixedGateway

NOON = "2021-01-31T12:00:00.000Z"
BLOCK = {"external": "203.0.113.5", "ports": (1024, 1279), "protocols": ("tcp", "udp", "icmp"), "pool": "default"}
PHONE = {"device": "phone", "device_id": 7, "internal": ("100.64.0.2", "fd64::2")}


@pytest.fixture
async def log(home: Path) -> list[Path]:
    """The log of a gateway that ran once, and gave two devices the same ports one after the other."""
    writer = NatLog(home / "state", "nat-%Y%m%d.jsonl")
    writer.begin_file(Record(SCHEMA, "2021-01-31T11:00:00.000Z", "checkpoint", 1, live=0, file=1), [], "nat-20210131.jsonl")
    tv = {"device": "tv", "device_id": 8, "internal": ("100.64.0.3",)}
    writer.append(
        [
            Record(SCHEMA, "2021-01-31T11:00:00.000Z", "start", 1),
            Record(SCHEMA, NOON, "block-allocated", 1, **PHONE, **BLOCK),
            Record(SCHEMA, "2021-01-31T12:10:00.500Z", "block-released", 1, **PHONE, **BLOCK),
            Record(SCHEMA, "2021-01-31T12:12:30.500Z", "block-allocated", 1, **tv, **BLOCK),
            Record(SCHEMA, NOON, "address-allocated", 1, **PHONE, external="2001:db8:113::7", protocols=("tcp", "udp", "icmp")),
        ]
    )
    await writer.flush()
    writer.close()
    return writer.files()


async def test_whois_names_the_device_of_that_second_without_a_gateway(run: Run, log: list[Path]) -> None:
    for at, device in (
        ("2021-01-31T12:00:00Z", "phone"),
        ("2021-01-31T13:05:00+01:00", "phone"),
        ("2021-01-31 12:10:00", "phone"),
        ("2021-01-31T12:13:00Z", "tv"),
    ):
        answer = read_json(await ask(run, "whois", "203.0.113.5:1100", "--at", at, "-o", "json"))
        assert [item["device"] for item in answer["items"]] == [device]
        assert answer["sure"] is True
    shown = await ask(run, "whois", "203.0.113.5:1100", "--at", "2021-01-31T12:05:00Z")
    assert shown.stdout.splitlines()[1].split() == [
        *("phone", "7", "100.64.0.2,", "fd64::2", "203.0.113.5", "1024-1279"),
        *(NOON, "2021-01-31T12:10:00.500Z"),
    ]


@pytest.mark.parametrize("at", ["2021-01-31T11:59:59Z", "2021-01-31T12:11:00Z", "2021-01-31T12:10:00.500Z"])
async def test_whois_says_when_it_was_nobody(run: Run, log: list[Path], at: str) -> None:
    nobody = await ask(run, "whois", "203.0.113.5:1100", "--at", at)
    assert (nobody.exit_code, nobody.stdout) == (1, "")
    assert nobody.stderr.startswith(f"nobody held it at 2021-01-31T{at[11:19]}")
    other = await ask(run, "whois", "203.0.113.5:1280", "--at", "2021-01-31T12:05:00Z", "-o", "json")
    assert (other.exit_code, read_json(other)["items"]) == (1, [])


async def test_whois_of_an_ipv6_address_needs_no_port(run: Run, log: list[Path]) -> None:
    for endpoint in ("2001:db8:113::7", "[2001:DB8:113::7]:443"):
        answer = read_json(await ask(run, "whois", endpoint, "-o", "json"))
        assert [(item["device"], item["until"]) for item in answer["items"]] == [("phone", None)]


async def test_whois_reads_files_that_were_archived_elsewhere(bare: Run, log: list[Path], tmp_path: Path) -> None:
    archived = log[0].rename(tmp_path / "archived")
    found = await ask(bare, "whois", "203.0.113.5:1100", "--at", "2021-01-31T12:05:00Z", "--proto", "udp", "--log", str(archived))
    assert "phone" in found.stdout


async def test_whois_says_why_it_is_not_sure(run: Run, log: list[Path]) -> None:
    unsure = await ask(run, "whois", "203.0.113.5:1100", "--at", "2021-01-30T12:05:00Z")
    assert "not sure: the log begins at 2021-01-31T11:00:00.000Z" in unsure.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("203.0.113.5",), "has no port; write it like"),
        (("203.0.113.5:70000",), "has no port; write it like"),
        (("somewhere:80",), "is not an address and a port"),
        (("203.0.113.5:80", "--at", "noon"), "'noon' is not a time; write it like"),
    ],
)
async def test_a_question_that_is_none_is_refused_in_one_line(run: Run, log: list[Path], arguments: tuple[str, ...], says: str) -> None:
    refused = await ask(run, "whois", *arguments)
    assert refused.exit_code == 1
    assert says in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_without_a_log_whois_says_where_it_would_be(run: Run, home: Path) -> None:
    refused = run("whois", "203.0.113.5:1100")
    assert refused.exit_code == 1
    assert f"there is no NAT log in {home / 'state'}" in refused.stderr


async def test_explain_shows_verdict_pool_address_and_block(run: Run, home: Path) -> None:
    async with answering(home, FixedGateway()):
        shown = await ask(run, "explain", "phone", "198.51.100.2:443/tcp")
        document = read_json(await ask(run, "explain", "phone", "198.51.100.2:443/tcp", "-o", "json"))
        refused = await ask(run, "explain", "nobody", "198.51.100.2")
    for part in ("phone 100.64.0.2 to 198.51.100.2:443/tcp, tcp", "pass: it may pass", "203.0.113.5", "1024-1279"):
        assert part in shown.stdout
    assert document["verdict"] == "pass"
    assert (refused.exit_code, refused.stderr) == (1, "egressvpn: there is no device named nobody\n")


async def test_pool_usage_shows_every_address(run: Run, home: Path) -> None:
    async with answering(home, FixedGateway()):
        shown = await ask(run, "pool", "usage")
        document = read_json(await ask(run, "pool", "usage", "-o", "json"))
    assert shown.stdout.splitlines()[1].split() == [
        "default",
        "203.0.113.5",
        "1024-65535",
        *("10", "6", "1", "252", "of", "256", "3", "248", "1", "2", "4"),
    ]
    assert [item["address"] for item in document["items"]] == ["203.0.113.5", "203.0.113.6"]
