"""Of all tests: where compiled kernels are kept, and hypothesis without deadlines (a first example may compile)."""

import os

from hypothesis import settings

from egressvpn.dataplane import cache

if "NUMBA_CACHE_DIR" not in os.environ:
    cache.prepare(cache.CALLABLE)  # before anything imports numba

settings.register_profile("egressvpn", deadline=None, print_blob=True)
settings.load_profile("egressvpn")
