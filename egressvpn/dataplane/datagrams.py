"""One datagram, or one run of equal ones, to an endpoint: from the address it wrote to, with the DSCP and ECN it is to carry.

The kernel takes all of it as control messages of one sendmsg: PKTINFO (RFC 3542 section 6), UDP_SEGMENT, IP_TOS or IPV6_TCLASS.
What is the default is not written: most sends have the first alone.
"""

from typing import Final

import numpy as np

from egressvpn.dataplane.bundle import Bundle
from egressvpn.dataplane.local import ERRNO, SEND_CONTROL, SEND_MESSAGE, UDP_FDS
from egressvpn.dataplane.syscalls import EADDRNOTAVAIL, EINVAL, ENETUNREACH, MSG_DONTWAIT, copy, errno, sendmsg
from egressvpn.dataplane.tables import Counter
from egressvpn.kernel import Octets, Row, Word, kernel
from egressvpn.packet.octets import put_le16, put_le32, put_le64

HANDSHAKE_TOS: Final = np.int64(0x88)  # AF41, no ECN (kernel: HANDSHAKE_DSCP)
ZERO: Final = np.int64(0)  # no literal: numba compiles a kernel anew for each
SOL_UDP, UDP_SEGMENT = 17, 103
IPPROTO_IP, IP_TOS = 0, 1
IPPROTO_IPV6, IPV6_TCLASS = 41, 67
SOCKADDR_IN: Final = 16
TX_SENDS: Final = int(Counter.TX_SENDS)


@kernel
def send_to_device(b: Bundle, device: Row, start: Word, length: Word, segment: Word, tos: Word) -> Word:
    """One sendmsg to a device's endpoint; when the address it wrote to is no longer ours, from whichever routing chooses."""
    sent = send_along(
        b, device.socket, device.remote, ZERO, device.remote_length, device.local, ZERO, device.local_length, start, length, segment, tos
    )
    if sent < 0 and device.local_length > 0 and source_is_gone(b):
        device.local_length = 0
        sent = send_along(
            b, device.socket, device.remote, ZERO, device.remote_length, device.local, ZERO, ZERO, start, length, segment, tos
        )
    return sent


@kernel
def source_is_gone(b: Bundle) -> bool:
    """After a send that failed: whether the local address is what the kernel did not like."""
    failure = errno(b.local.octets, ERRNO)
    return failure == EINVAL or failure == ENETUNREACH or failure == EADDRNOTAVAIL


@kernel
def send_along(
    b: Bundle,
    socket: Word,
    remote: Octets,
    remote_at: Word,
    remote_length: Word,
    local: Octets,
    local_at: Word,
    local_length: Word,
    start: Word,
    length: Word,
    segment: Word,
    tos: Word,
) -> Word:
    """One sendmsg of what stands at `start` along a path; segment 0: a single datagram. The kernel's answer, negative for failure."""
    octets, words = b.local.octets, b.local.words
    copy(octets, SEND_CONTROL, local, local_at, local_length)
    size = np.int64(local_length)
    if segment > 0:
        _control(octets, SEND_CONTROL + size, SOL_UDP, UDP_SEGMENT, 2)
        put_le16(octets, SEND_CONTROL + size + 16, segment)
        size += 24
    if tos != 0:
        if remote_length == SOCKADDR_IN:
            _control(octets, SEND_CONTROL + size, IPPROTO_IP, IP_TOS, 4)
        else:
            _control(octets, SEND_CONTROL + size, IPPROTO_IPV6, IPV6_TCLASS, 4)
        put_le32(octets, SEND_CONTROL + size + 16, tos)
        size += 24
    base = octets.ctypes.data
    words[SEND_MESSAGE] = remote.ctypes.data + remote_at
    words[SEND_MESSAGE + 1] = remote_length
    words[SEND_MESSAGE + 2] = words.ctypes.data + 8 * (SEND_MESSAGE + 8)
    words[SEND_MESSAGE + 3] = 1
    words[SEND_MESSAGE + 4] = base + SEND_CONTROL if size > 0 else 0
    words[SEND_MESSAGE + 5] = size
    words[SEND_MESSAGE + 6] = 0
    words[SEND_MESSAGE + 8] = base + start
    words[SEND_MESSAGE + 9] = length
    b.work.counters[TX_SENDS] += 1
    return np.int64(sendmsg(b.local.fds[UDP_FDS + socket], words.ctypes.data + 8 * SEND_MESSAGE, MSG_DONTWAIT))


@kernel
def _control(octets: Octets, at: Word, level: Word, kind: Word, size: Word) -> None:
    """A struct cmsghdr for `size` octets of data, which follow at `at` + 16."""
    put_le64(octets, at, 16 + size)
    put_le32(octets, at + 8, level)
    put_le32(octets, at + 12, kind)
