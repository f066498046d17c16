"""What README and docs/ name is there: files, headings, make targets and commands of the CLI."""

import re
from pathlib import Path

import click
import pytest

from egressvpn.cli import cli
from egressvpn.verdict import Verdict

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
EXPECTED = {"index", "quickstart", "design", "operations", "security", "nat-behaviour", "protocol", "performance", "api", "glossary"}


def test_every_page_of_the_manual_is_there() -> None:
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} >= EXPECTED


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    broken = [target for target in targets if not target.startswith("http") and not _exists(page, target)]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_named_exists(page: Path) -> None:
    top, lab = _targets(ROOT / "Makefile"), _targets(ROOT / "netns-lab/Makefile")
    named = re.findall(r"`make (-C netns-lab )?([a-z]+)", page.read_text())
    assert [target for in_lab, target in named if target not in (lab if in_lab else top)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_named_exists(page: Path) -> None:
    named = re.findall(r"(?m)(?:`|^\s*(?:sudo )?)egressvpn ((?:-[^ ]+ [^ ]+ )*)([a-z]+)(?: ([a-z]+))?", page.read_text())
    unknown = [f"{first} {second}".strip() for _, first, second in named if not _command(first, second)]
    assert unknown == []


def test_every_reason_of_a_drop_is_in_the_glossary() -> None:
    words = set(re.findall(r"[a-z0-9_]+", (ROOT / "docs/glossary.md").read_text()))
    assert {verdict.label for verdict in Verdict if verdict is not Verdict.PASS} - words == set()


def _exists(page: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    file = page.parent / name if name else page
    if not file.exists():
        return False
    return not anchor or anchor in {_slug(heading) for heading in re.findall(r"(?m)^#+ (.+)$", file.read_text())}


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def _targets(makefile: Path) -> set[str]:
    rules = re.findall(r"(?m)^([a-z][a-z ]*):(?!=)", makefile.read_text())
    return {target for rule in rules for target in rule.split()}


def _command(first: str, second: str) -> bool:
    found = cli.commands.get(first)
    if isinstance(found, click.Group):
        return second in found.commands
    return found is not None
