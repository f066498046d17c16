"""Coverage-guided fuzzing of one target: `python -m tests.fuzz NAME DIRECTORY [option of libFuzzer]...`.

Kernels run interpreted and instrumented, so a branch of a kernel is a branch that is looked for. What is new goes to
DIRECTORY/corpus, an input that makes the target fail to DIRECTORY; `tests.fuzz.keep` adds what is worth it to the corpus that
is kept. Needs the extra `fuzz`; see `make fuzz`.
"""

import os
import sys
import warnings
from pathlib import Path

os.environ["EGRESSVPN_JIT"] = "0"

import atheris

from tests.fuzz import CORPUS, targets

with atheris.instrument_imports(include=["egressvpn"]):
    FOUND = targets()

MAX_LENGTH = 4096  # octets of an input


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] not in FOUND:
        sys.exit(f"usage: python -m tests.fuzz NAME DIRECTORY [option]...\ntargets: {' '.join(sorted(FOUND))}")
    name, directory, *options = sys.argv[1:]
    grown = Path(directory) / "corpus"
    grown.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("error")
    given = [f"-max_len={MAX_LENGTH}", f"-artifact_prefix={directory}/", *options]
    atheris.Setup([sys.argv[0], *given, str(grown), str(CORPUS / name)], FOUND[name])
    atheris.Fuzz()


main()
