"""Where compiled kernels are kept: by content, and known before numba asks."""

import subprocess
import sys
from pathlib import Path

import pytest

from egressvpn.dataplane import cache


def test_the_worker_names_its_cache_before_numba_is_imported() -> None:
    program = "import sys, egressvpn.dataplane.worker; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_cache_is_named_by_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EGRESSVPN_CACHE", str(tmp_path))
    before = cache.cache_dir()
    assert before == cache.cache_dir()
    copied = tmp_path / "package"
    (copied / "packet").mkdir(parents=True)
    (copied / "packet" / "rules.py").write_text("a = 1\n")
    monkeypatch.setattr(cache, "PACKAGE", copied)
    first = cache.cache_dir()
    (copied / "packet" / "rules.py").write_text("a = 2\n")
    assert len({before, first, cache.cache_dir()}) == 3


def test_a_cache_is_warm_once_it_was_said_so_and_old_ones_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EGRESSVPN_CACHE", str(tmp_path))
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    for number in range(6):
        (tmp_path / f"kernels-{number}").mkdir()
    assert cache.prepare() is False
    assert cache.mark_warm() is True
    assert cache.prepare() is True
    assert len(list(tmp_path.glob("kernels-*"))) == 1 + cache.KEPT


def test_a_cache_that_cannot_be_written_is_never_warm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EGRESSVPN_CACHE", str(tmp_path / "file"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    assert cache.prepare() is False
    assert cache.mark_warm() is False
