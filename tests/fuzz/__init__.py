"""Fuzzing of everything that reads octets from the network or from a stranger's file."""

import importlib
from pathlib import Path

from tests.fuzz.harness import TARGETS, Target

CORPUS = Path(__file__).parent / "corpus"
MODULES = ("packets", "handshakes", "datapath", "door", "texts")


def targets() -> dict[str, Target]:
    """Every target, by name."""
    for module in MODULES:
        importlib.import_module(f"tests.fuzz.{module}")
    return TARGETS
