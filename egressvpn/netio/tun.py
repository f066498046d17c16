"""The TUN: where decrypted packets enter the kernel's routing and replies to egress addresses leave it.

Linux Documentation/networking/tuntap.rst; virtio 1.2, 5.1.6 (the 10-byte struct virtio_net_hdr in front of every packet,
which lets one read or write carry a super-packet of up to 64 KiB). The interface exists as long as one of its file
descriptors is open, so it can never be left behind: it dies with the last process that holds one.
"""

import contextlib
import errno
import fcntl
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytun

from egressvpn.errors import OperatorError

DEVICE: Final = "/dev/net/tun"
VNET_BYTES: Final = 10  # struct virtio_net_hdr
MAX_QUEUES: Final = 256  # MAX_TAP_QUEUES of the kernel

# linux/if_tun.h
TUNSETOFFLOAD: Final = 0x400454D0
TUN_F_CSUM: Final = 0x01
TUN_F_TSO4: Final = 0x02
TUNGETIFF: Final = 0x800454D2
IFREQ_BYTES: Final = 40
IFNAMSIZ: Final = 16
TUN_F_TSO6: Final = 0x04
TUN_F_USO4: Final = 0x20  # since Linux 6.2
TUN_F_USO6: Final = 0x40

TCP_OFFLOADS: Final = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6
UDP_OFFLOADS: Final = TUN_F_USO4 | TUN_F_USO6

NAME: Final = re.compile(r"[^\s/:%]{1,15}")  # IFNAMSIZ - 1; the kernel takes %d for a template


@dataclass(frozen=True, slots=True)
class Tun:
    """An open TUN: non-blocking descriptors (one per queue) that are closed on exec, and what the kernel agreed to offload."""

    name: str
    ifindex: int
    fds: tuple[int, ...]
    offloads: int

    @property
    def fd(self) -> int:
        """The first queue, which is the only one unless more were asked for."""
        return self.fds[0]

    @property
    def udp_segmentation(self) -> bool:
        """Whether UDP super-packets may be written (USO, Linux 6.2)."""
        return self.offloads & UDP_OFFLOADS == UDP_OFFLOADS

    def deleted(self) -> bool:
        """Whether somebody deleted the interface. Renamed, or moved to another network namespace, it lives on."""
        return not self.current_name()

    def current_name(self) -> bytes:
        """Of the interface, wherever it is; empty when it is gone."""
        try:
            return fcntl.ioctl(self.fd, TUNGETIFF, bytes(IFREQ_BYTES))[:IFNAMSIZ].rstrip(b"\0")
        except OSError:
            return b""

    def close(self) -> None:
        """Close the descriptors; the interface and its routes vanish with the last one, whoever holds it."""
        for fd in self.fds:
            os.close(fd)


def open_tun(name: str, mtu: int, queues: int = 1) -> Tun:
    """Create the interface `name` (down, no addresses). Raises OperatorError when the machine will not have it."""
    if not NAME.fullmatch(name) or name in (".", ".."):
        raise OperatorError(f"{name!r} is no interface name", "use 1 to 15 characters without space, '/', ':' or '%' in [tunnel] interface")
    if not 1 <= queues <= MAX_QUEUES:
        raise ValueError(f"queues must be 1 to {MAX_QUEUES}, not {queues}")
    _refuse_taken(name)
    flags = pytun.IFF_TUN | pytun.IFF_NO_PI | pytun.IFF_VNET_HDR | (pytun.IFF_MULTI_QUEUE if queues > 1 else 0)
    with contextlib.ExitStack() as on_failure:
        fds = []
        for queue in range(queues):
            fd = _open_queue(name, flags | (0 if queue else pytun.IFF_TUN_EXCL), mtu)
            on_failure.callback(os.close, fd)
            fds.append(fd)
        tun = Tun(name, socket.if_nametoindex(name), tuple(fds), _offload(fds[0]))
        _silence(name)
        on_failure.pop_all()
    return tun


def _open_queue(name: str, flags: int, mtu: int) -> int:
    """A descriptor of our own: pytun's object closes the one it made when it is collected."""
    try:
        device = pytun.TunTapDevice(name=name, flags=flags, dev=DEVICE)
    except pytun.Error as error:
        raise _explained(name, error) from error
    try:
        device.mtu = mtu
        fd = fcntl.fcntl(device.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
    except (pytun.Error, OSError) as error:
        raise OperatorError(
            f"interface {name} refuses an MTU of {mtu}: {error.strerror}", "use 1280 to 65535 in [wireguard] mtu"
        ) from error
    finally:
        device.close()
    os.set_blocking(fd, False)
    return fd


def _offload(fd: int) -> int:
    """Ask for everything; a kernel that does not know USO refuses the whole mask."""
    for mask in (TCP_OFFLOADS | UDP_OFFLOADS, TCP_OFFLOADS, TUN_F_CSUM):
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, TUNSETOFFLOAD, mask)
            return mask
    return 0


def _silence(name: str) -> None:
    """Keep the kernel from giving the TUN a link-local address and soliciting routers through it: nobody there would answer."""
    for key, value in (("addr_gen_mode", "1"), ("accept_ra", "0"), ("router_solicitations", "0")):
        with contextlib.suppress(OSError):  # a kernel without IPv6, or a read-only /proc/sys: harmless noise
            Path(f"/proc/sys/net/ipv6/conf/{name}/{key}").write_text(value)


def _refuse_taken(name: str) -> None:
    with contextlib.suppress(OSError):
        socket.if_nametoindex(name)
        raise OperatorError(
            f"the interface {name} exists already", f"stop what made it (`ip -d link show {name}`), or change [tunnel] interface"
        )


def _explained(name: str, error: OSError) -> OperatorError:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return OperatorError(
            f"this machine has no {DEVICE}",
            f"`modprobe tun`, or `mkdir -p /dev/net && mknod {DEVICE} c 10 200`; in a container, pass the device in (`--device {DEVICE}`)",
        )
    if error.errno in (errno.EBUSY, errno.EEXIST):
        return OperatorError(
            f"the interface {name} is taken", f"stop what holds it (`ip -d link show {name}`), or change [tunnel] interface"
        )
    if error.errno not in (errno.EPERM, errno.EACCES):
        return OperatorError(f"cannot create the interface {name}: {error.strerror or error}", "check [tunnel] interface")
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError as refusal:
        if refusal.errno == errno.EPERM and os.geteuid() == 0:
            return OperatorError(
                f"the container's device policy forbids {DEVICE}",
                "allow the device c 10:200 (runc 1.2.0 to 1.2.3 dropped it from the default list: use 1.2.4), or run privileged",
            )
        return OperatorError(f"no permission to open {DEVICE}", "run as root, or with CAP_NET_ADMIN and read-write access to the device")
    except OSError:
        pass
    return OperatorError(f"no permission to create the interface {name}", "run as root, or with CAP_NET_ADMIN in this network namespace")
