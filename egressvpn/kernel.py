"""What makes a plain function part of the data path: the `@kernel` decorator and foreign functions.

A kernel is ordinary Python over flat numpy arrays of records. With numba and `EGRESSVPN_JIT` not 0 it is compiled
(nogil, bounds checks on, no allocation possible); else the very same function runs interpreted. There is no second
copy of any per-packet rule.

House rules for kernels, so that both ways compute the same:
- every integer local is int64. Read narrow array elements through `np.int64(...)`; never mix in uint64.
- arithmetic wraps at 64 bits (compiled: by nature; interpreted: numpy scalars, whose warning is off here).
- a record field must not be named like an attribute of numpy scalars (`device`, `size`, `data`, ...): interpreted, those win.
- `>>` is arithmetic: mask after shifting a value that may be negative.
- no allocation, no exceptions, no strings: return a `Verdict` value.
"""

import ctypes
import importlib
import os
from collections.abc import Callable, Collection
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])

# Annotations of kernels. A type checker cannot follow numpy scalars through arithmetic, so these are names for the reader.
Word: TypeAlias = Any  # an int64
Row: TypeAlias = Any  # one record of a table
Table: TypeAlias = Any  # a numpy recarray
Octets: TypeAlias = Any  # a contiguous uint8 array


def _usable() -> bool:
    """Whether kernels are to be compiled: wanted, and numba is there and works with this machine's libraries."""
    if os.environ.get("EGRESSVPN_JIT", "1") == "0":
        return False
    try:
        importlib.import_module("numba")
    except ImportError:
        return False
    return True


JIT: Final[bool] = _usable()

_kernels: list[Any] = []


def kernels() -> int:
    """How many kernels the modules imported so far define."""
    return len(_kernels)


def compile_for(called: Collection[Any]) -> None:
    """From now on compile what only kernels call without the code that Python would call it by: a third of the work and more.

    `called` are those that Python calls. What is compiled so belongs into a cache of its own (dataplane/cache.py).
    """
    for function in _kernels:
        if JIT and not any(function is entry for entry in called):
            function.targetoptions["no_cpython_wrapper"] = True


if JIT:
    import numba
    from llvmlite import binding
    from numba import types

    _options = {"nogil": True, "cache": True, "boundscheck": True, "error_model": "numpy", "_nrt": False, "no_cfunc_wrapper": True}

    def kernel(function: F) -> F:
        """Compile `function` on first call (cached on disk by the caller's NUMBA_CACHE_DIR)."""
        _kernels.append(numba.njit(**_options)(function))
        return _kernels[-1]  # type: ignore[no-any-return]

    def inlined(function: F) -> F:
        """A kernel that becomes part of its callers: for what is called once, or too small to be worth passing a bundle of tables."""
        _kernels.append(numba.njit(forceinline=True, **_options)(function))
        return _kernels[-1]  # type: ignore[no-any-return]

    def spliced(function: F) -> F:
        """A large kernel with one caller: put into it before anything is compiled, so that it and all below are not optimised twice."""
        _kernels.append(numba.njit(inline="always", **_options)(function))
        return _kernels[-1]  # type: ignore[no-any-return]

    def foreign(library: ctypes.CDLL, name: str, result: str, *arguments: str) -> Any:
        """A C function callable from kernels. Types are 'p' (pointer or size, 64 bit), 'i' (32 bit) or 'v' (nothing)."""
        kinds = {"p": types.intp, "i": types.int32, "v": types.void}
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        binding.add_symbol(name, address)
        return types.ExternalFunction(name, kinds[result](*(kinds[a] for a in arguments)))

else:
    np.seterr(over="ignore")

    def kernel(function: F) -> F:
        """Interpreted: the function itself."""
        _kernels.append(function)
        return function

    inlined = kernel
    spliced = kernel

    def foreign(library: ctypes.CDLL, name: str, result: str, *arguments: str) -> Any:
        """A C function callable from kernels. Types are 'p' (pointer or size, 64 bit), 'i' (32 bit) or 'v' (nothing)."""
        kinds = {"p": ctypes.c_ssize_t, "i": ctypes.c_int, "v": None}
        function = getattr(ctypes.CDLL(library._name, use_errno=True), name)
        function.restype = kinds[result]
        function.argtypes = [kinds[a] for a in arguments]
        return function
