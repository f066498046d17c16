"""Known answers as data: what others publish, for tests to read. Each file says where its rows are from and what a row is."""

import json
from pathlib import Path
from typing import Any


def load(name: str) -> Any:
    """The contents of the file NAME.json here."""
    return json.loads((Path(__file__).parent / f"{name}.json").read_text())
