"""docs/nat-behaviour.md names a test for each requirement: those tests exist, and no requirement test is left out."""

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
DOCUMENT: Final = (ROOT / "docs" / "nat-behaviour.md").read_text()
NAMED: Final = set(re.findall(r"`(test_\w+)`", DOCUMENT))


def defined(pattern: str) -> set[str]:
    found: set[str] = set()
    for path in (ROOT / "tests").rglob(pattern):
        found.update(re.findall(r"^\s*(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE))
    return found


def test_every_test_that_the_document_names_exists() -> None:
    assert NAMED - defined("test_*.py") == set()


def test_every_requirement_test_of_the_translator_is_in_the_document() -> None:
    requirements = {name for name in defined("test_rfc*.py") if name.startswith("test_rfc")}
    assert len(requirements) > 80
    assert requirements - NAMED == set()


def test_every_requirement_has_a_verdict() -> None:
    verdicts = {"conforms", "by configuration", "not", "in part", "not applicable"}
    section = ""
    rows = 0
    for line in DOCUMENT.split("## Requirements", 1)[1].splitlines():
        if line.startswith("### "):
            section = line
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or cells[0] in ("REQ", "section", "RFC", "---"):
            continue
        rows += 1
        assert len(cells) == 6, line
        assert cells[3] in verdicts, (section, line)
        assert NAMED & set(re.findall(r"`(test_\w+)`", cells[5])) or cells[3] == "not", (section, line)
    assert rows > 100
