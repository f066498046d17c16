"""Every input that was ever worth keeping, through its target again: the seeds, what fuzzing found, and what once failed."""

from pathlib import Path

import pytest

from tests.fuzz import CORPUS, targets

pytestmark = pytest.mark.timeout(400)  # compiled, the first input of a target waits for the compiler

INPUTS = sorted(CORPUS.glob("*/*"))


@pytest.mark.parametrize("name", sorted(targets()))
def test_every_target_has_a_corpus_and_takes_nothing_at_all(name: str) -> None:
    assert any(CORPUS.joinpath(name).iterdir())

    targets()[name](b"")


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_input_of_the_corpus_makes_its_target_fail(path: Path) -> None:
    targets()[path.parent.name](path.read_bytes())
