"""The rules of docs/design.md that a program can check: layers, and what the control process never loads."""

import ast
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import egressvpn

ROOT = Path(egressvpn.__file__).parent.parent
CONTROL_SIDE = ("cli", "app", "api", "observe", "netio", "control")
COMPILERS = ("numba", "llvmlite")
RULES = ("wireguard", "nat", "policy", "packet")
WORLD = {"socket", "time", "random", "secrets", "select", "threading", "subprocess", "asyncio", "trio", "pyroute2", "pytun", "sqlalchemy"}


def test_imports_go_down_the_layers_only() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("layer", CONTROL_SIDE)
def test_the_control_process_never_loads_the_compiler(layer: str) -> None:
    package = ROOT / "egressvpn" / layer
    modules = [f"egressvpn.{layer}.{m.name}" for m in pkgutil.iter_modules([str(package)]) if m.name != "worker"]
    program = (
        f"import importlib, sys\nfor m in {modules!r}: importlib.import_module(m)\nprint([c for c in {COMPILERS!r} if c in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("layer", RULES)
def test_the_rules_read_no_clock_and_do_no_io(layer: str) -> None:
    found = [f"{file.relative_to(ROOT)} imports {name}" for file in _sources(layer) for name in _imports(file) if name in WORLD]
    assert found == []


@pytest.mark.parametrize("layer", RULES)
def test_the_rules_use_no_pythons_unkeyed_hash_for_packets(layer: str) -> None:
    found = [str(file.relative_to(ROOT)) for file in _sources(layer) if "hash(" in file.read_text() and _calls_builtin_hash(file)]
    assert found == []


def _sources(layer: str) -> list[Path]:
    return sorted((ROOT / "egressvpn" / layer).rglob("*.py"))


def _imports(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def _calls_builtin_hash(file: Path) -> bool:
    calls = (node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))
    return any(isinstance(function, ast.Name) and function.id == "hash" for function in calls)
