"""Where compiled kernels are kept: one directory per content of the sources, so that a change anywhere is noticed.

numba's own cache looks only at the file a kernel stands in (its path, time and size), and links what that kernel calls; so the
directory's name is a hash of every source file and where it is, the libraries and the processor. What the worker compiles
cannot all be called from Python (numba does not notice, and crashes), so tests and benchmarks have a directory of their own.
"""

import hashlib
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

PACKAGE = Path(__file__).parent.parent
KERNEL_LAYERS = ("packet", "nat", "policy", "wireguard", "dataplane")
WORKER: Final = "kernels"  # compiled as the worker needs them: most cannot be called from Python (kernel.compile_for)
CALLABLE: Final = "callable"  # for tests and benchmarks
KEPT: Final = 5  # compiled versions of other sources that may stay, the newest


def source_hash() -> str:
    """Hex digest of everything compiled kernels depend on."""
    digest = hashlib.blake2s()
    files = [*PACKAGE.glob("*.py"), *(file for layer in KERNEL_LAYERS for file in (PACKAGE / layer).rglob("*.py"))]
    for file in sorted(files):
        digest.update(f"{file}\0{file.stat().st_mtime_ns}\0".encode() + file.read_bytes())
    for name in ("numba", "numpy", "llvmlite"):
        try:
            digest.update(f"{name}={version(name)}\0".encode())
        except PackageNotFoundError:
            digest.update(f"{name}=absent\0".encode())
    digest.update(f"{sys.version}{platform.machine()}{os.environ.get('EGRESSVPN_AEAD', '')}".encode())
    digest.update(_processor())
    return digest.hexdigest()[:24]


def _processor() -> bytes:
    try:
        lines = Path("/proc/cpuinfo").read_bytes().split(b"\n")
    except OSError:
        return b""
    return b"".join(line for line in lines[:40] if line.startswith((b"model name", b"flags")))


def cache_root() -> Path:
    """$EGRESSVPN_CACHE, else /var/cache/egressvpn for root, else the user's cache directory."""
    if root := os.environ.get("EGRESSVPN_CACHE"):
        return Path(root)
    if os.geteuid() == 0:
        return Path("/var/cache/egressvpn")
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "egressvpn"


def cache_dir(name: str = WORKER) -> Path:
    """The directory for NUMBA_CACHE_DIR. It need not exist yet."""
    return cache_root() / f"{name}-{source_hash()}"


def prepare(name: str = WORKER) -> bool:
    """Create the directory, point numba at it, drop old ones. True when kernels were compiled into it before."""
    directory = cache_dir(name)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return False  # numba then uses a directory of its own, or compiles anew each time
    os.utime(directory)
    os.environ["NUMBA_CACHE_DIR"] = str(directory)
    others = {*directory.parent.glob(f"{name}-*")} - {directory}
    for old in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return (directory / "warm").exists()


def is_prepared(name: str = WORKER) -> bool:
    """Whether numba was pointed at this cache."""
    return os.environ.get("NUMBA_CACHE_DIR") == str(cache_dir(name))


def mark_warm() -> bool:
    """Say that every kernel is in the cache. False when there is no cache to say it in."""
    if not is_prepared():
        return False
    try:
        (cache_dir() / "warm").touch()
    except OSError:
        return False
    return True
