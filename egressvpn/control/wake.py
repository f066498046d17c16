"""The bell between those who write to the store and the gateway that runs on it: an empty datagram to a unix socket.

It carries nothing: who hears it looks at the store's revision, as it does now and then anyway. So a lost ring costs half a
second and a false one a small read; nobody ever waits for the other.
"""

import socket
from pathlib import Path
from typing import Final

BELL: Final = "wake"  # in state_dir


def ring(bell: Path) -> None:
    """Tell the listener, if there is one. Never blocks and never fails."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        try:
            sender.sendto(b"", str(bell))
        except OSError:  # nobody listens, or its queue is full: it is about to look anyway
            return


class Bell:
    """The listener's end: wait until `fileno` is readable, then `hear`. Whoever opens it takes the place of what is there."""

    def __init__(self, bell: Path) -> None:
        """Raises OSError when the socket cannot be made (its path is longer than 107 octets, say)."""
        self._path = bell
        bell.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            self._socket.bind(str(bell))
            bell.chmod(0o600)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def hear(self) -> bool:
        """Whether it rang; everything that rang so far counts as one."""
        rang = False
        while True:
            try:
                self._socket.recv(1)
            except BlockingIOError:
                return rang
            rang = True

    def close(self) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> "Bell":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
