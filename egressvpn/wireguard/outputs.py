"""What an interface wants done, in order. KeepTimestamp is for the disk, the others are commands to the worker."""

from dataclasses import dataclass, field

from egressvpn.addresses import Path


@dataclass(frozen=True, slots=True)
class KeepTimestamp:
    """Write `mark` down before going on, and start with it the next time: no initiation may carry a TAI64N above what is kept."""

    mark: bytes


@dataclass(frozen=True, slots=True)
class Transmit:
    """Send a handshake datagram of a device."""

    device: int
    datagram: bytes
    path: Path


@dataclass(frozen=True, slots=True)
class Install:
    """Put a session in place, then send `response` (empty for an initiator). Data can so never come before its session."""

    device: int
    index: int
    remote_index: int
    receive_key: bytes = field(repr=False)
    send_key: bytes = field(repr=False)
    initiator: bool
    path: Path
    response: bytes = b""


@dataclass(frozen=True, slots=True)
class SendKeepalive:
    """Send what is staged for the device, or else a keepalive."""

    device: int


@dataclass(frozen=True, slots=True)
class Clear:
    """Wipe every session of the device."""

    device: int


@dataclass(frozen=True, slots=True)
class DropStaged:
    """No session will come: drop what waits for one."""

    device: int


Output = KeepTimestamp | Transmit | Install | SendKeepalive | Clear | DropStaged
