"""The arena table of a longest-prefix match; its kernels are in `prefixes`."""

from typing import Any

import numpy as np

NODE = np.dtype(
    [
        ("hi", "i8"),  # the prefix, host bits zero
        ("lo", "i8"),
        ("length", "i8"),
        ("value", "i8"),
        ("child", "i8", (2,)),  # by the first bit after the prefix; 0: none
        ("side", "i8"),  # which root it hangs on: 0 IPv4, 1 IPv6
        ("next", "i8"),  # in the free list
    ],
    align=True,
)


def tables(max_prefixes: int, name: str = "prefixes") -> dict[str, tuple[np.dtype[Any], int]]:
    """The layout of a table with room for at least `max_prefixes` prefixes; at worst each needs a fork of its own."""
    return {name: (NODE, 2 * max_prefixes + 1)}
