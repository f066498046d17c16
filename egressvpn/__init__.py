"""egressvpn: the egress gateway behind a WARP-like VPN."""

from typing import Final

__version__: Final = "0.1.0"
