"""Tell the service manager how it goes: sd_notify(3) is one datagram. Silent when nobody asked for it."""

import os
import socket


def notify(state: str) -> bool:
    """Send "READY=1", "STOPPING=1", … to systemd. False when the process does not run under it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        try:
            manager.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError:
            return False
    return True
