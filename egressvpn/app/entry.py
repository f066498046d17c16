"""Running a trio program whose failures operators can mend: one OperatorError out of whatever group of tasks it ended."""

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from egressvpn.errors import OperatorError


def run_trio(main: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
    """`trio.run`, raising the OperatorError that ended it, or else whatever did."""
    try:
        trio.run(main, *arguments)
    except BaseExceptionGroup as group:
        for error in _leaves(group):
            if isinstance(error, OperatorError):
                raise error from None
        raise


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
