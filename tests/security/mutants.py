"""Mutants: the gateway with one rule changed, so that an attack that fails on the gateway is seen to succeed without the rule.

A rule is a function; it is exchanged wherever a module knows it by name. Compiled kernels cannot be changed this way, so tests
of mutants run interpreted only (`make test` runs these suites both ways).
"""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from egressvpn.kernel import JIT

interpreted_only = pytest.mark.skipif(JIT, reason="compiled kernels cannot be changed")


def mutate(patch: pytest.MonkeyPatch, rule: Callable[..., Any], instead: Callable[..., Any]) -> None:
    """Exchange a rule. Raises AssertionError when nobody uses it."""
    found = 0
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in {"egressvpn", "tests"}:
            continue
        for attribute, value in list(vars(module).items()):
            if value is rule:
                patch.setattr(module, attribute, instead)
                found += 1
    assert found


def always(answer: Any) -> Callable[..., Any]:
    """A rule that says the same of everything."""
    return lambda *arguments: answer
