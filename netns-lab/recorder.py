"""`egressvpn ARGS…` by whoever may read its keys: recorder.py FILE ARGS….

Every 32 random octets that are drawn are appended to FILE in base64, one a line, before they are used: among them all ephemeral
private keys, which a dissector needs to open the traffic. The product has no such switch, so this is done to it from outside.
"""

import base64
import secrets
import sys
from pathlib import Path

KEY_BYTES = 32


def record(file: Path) -> None:
    """Put a writer before the source of randomness."""
    draw = secrets.token_bytes

    def token_bytes(size: int | None = None) -> bytes:
        drawn = draw(size)
        if size == KEY_BYTES:
            with file.open("a") as log:
                log.write(base64.b64encode(drawn).decode() + "\n")
        return drawn

    secrets.token_bytes = token_bytes


if __name__ == "__main__":
    record(Path(sys.argv[1]))
    from egressvpn.cli import main  # after it: whoever takes the function by its name gets ours

    sys.argv = ["egressvpn", *sys.argv[2:]]
    main()
