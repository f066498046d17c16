"""Errors meant for operators. Everything else that is raised is a bug."""


class OperatorError(Exception):
    """Something the operator can mend: one line that says what is wrong, and one that says how to mend it."""

    def __init__(self, what: str, mend: str = "") -> None:
        super().__init__(f"{what}; {mend}" if mend else what)
        self.what = what
        self.mend = mend
