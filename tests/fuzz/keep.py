"""Add to the corpus what fuzzing found and nothing in it shows yet: `python -m tests.fuzz.keep NAME DIRECTORY`.

An input is kept when it takes a way from one line to another, somewhere in the package, that no input before it took. The
shortest come first. (libFuzzer's own merge starts its program anew, which a Python module is not.)
"""

import os
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

os.environ["EGRESSVPN_JIT"] = "0"

import egressvpn
from tests.fuzz import CORPUS, targets
from tests.fuzz.harness import Target

PACKAGE = str(Path(egressvpn.__file__).parent)
Way = tuple[CodeType, int, int]  # from line to line of a function


def main() -> None:
    name, directory = sys.argv[1:]
    target = targets()[name]
    known = set[Way]()
    for path in (CORPUS / name).iterdir():
        known |= ways(target, path.read_bytes())
    for path in sorted((Path(directory) / "corpus").iterdir(), key=lambda path: path.stat().st_size):
        octets = path.read_bytes()
        if found := ways(target, octets) - known:
            known |= found
            (CORPUS / name / path.name).write_bytes(octets)
            sys.stdout.write(f"{name}/{path.name}: {len(found)} new\n")


def ways(target: Target, octets: bytes) -> set[Way]:
    """What the target does with an input."""
    taken = set[Way]()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        last = frame.f_lineno

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            taken.add((frame.f_code, last, frame.f_lineno))
            last = frame.f_lineno
            return line

        return line

    sys.settrace(trace)
    try:
        target(octets)
    finally:
        sys.settrace(None)
    return taken


if __name__ == "__main__":
    main()
