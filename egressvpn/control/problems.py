"""What is wrong with a configuration: one `Problem` per finding, and the error that carries all of them to the operator."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from egressvpn.errors import OperatorError


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. `line` 0 and `key` "" mean the file as a whole."""

    file: Path
    line: int
    key: str
    what: str
    mend: str

    def __str__(self) -> str:
        at = f"{self.file}:{self.line}" if self.line else str(self.file)
        return f"{at}: {self.key}: {self.what}; {self.mend}" if self.key else f"{at}: {self.what}; {self.mend}"


class ConfigError(OperatorError):
    """Everything that is wrong with a configuration, one line each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)

    @classmethod
    def single(cls, file: Path, key: str, what: str, mend: str) -> "ConfigError":
        return cls([Problem(file, 0, key, what, mend)])
