"""The C functions that the packet loop calls. Addresses and sizes are int64; all report failure by a negative result."""

import ctypes
from typing import Final

from egressvpn.dataplane.local import CLOCK
from egressvpn.kernel import JIT, Octets, Word, foreign, kernel
from egressvpn.packet.octets import le32

libc = ctypes.CDLL(None, use_errno=True)

read = foreign(libc, "read", "p", "i", "p", "p")
write = foreign(libc, "write", "p", "i", "p", "p")
writev = foreign(libc, "writev", "p", "i", "p", "i")
recv = foreign(libc, "recv", "p", "i", "p", "p", "i")
send = foreign(libc, "send", "p", "i", "p", "p", "i")
recvmmsg = foreign(libc, "recvmmsg", "i", "i", "p", "i", "i", "p")
sendmsg = foreign(libc, "sendmsg", "p", "i", "p", "i")
poll = foreign(libc, "poll", "i", "p", "p", "i")
nanosleep = foreign(libc, "nanosleep", "i", "p", "p")
clock_gettime = foreign(libc, "clock_gettime", "i", "i", "p")
ioctl = foreign(libc, "ioctl", "i", "i", "p", "p")
getrandom = foreign(libc, "getrandom", "p", "p", "p", "i")
memcpy = foreign(libc, "memcpy", "p", "p", "p", "p")
_errno_location = foreign(libc, "__errno_location", "p")


@kernel
def copy(target: Octets, at: Word, source: Octets, start: Word, size: Word) -> None:
    """Copy `size` octets between regions that do not overlap. Both ends are bounds-checked by touching them."""
    if size > 0:
        target[at] = source[start]
        target[at + size - 1] = source[start + size - 1]
        memcpy(target.ctypes.data + at, source.ctypes.data + start, size)


@kernel
def clock(words: Octets) -> Word:
    """CLOCK_MONOTONIC in ns."""
    clock_gettime(CLOCK_MONOTONIC, words.ctypes.data + 8 * CLOCK)
    return words[CLOCK] * 1_000_000_000 + words[CLOCK + 1]


MSG_PEEK: Final = 0x02
MSG_DONTWAIT: Final = 0x40
CLOCK_MONOTONIC: Final = 1
POLLIN: Final = 1
EIO: Final = 5
EINVAL: Final = 22
EMSGSIZE: Final = 90
EADDRNOTAVAIL: Final = 99
ENETUNREACH: Final = 101

if JIT:

    @kernel
    def errno(octets: Octets, scratch: Word) -> Word:
        """The last call's errno, by way of four scratch octets."""
        memcpy(octets.ctypes.data + scratch, _errno_location(), 4)
        return le32(octets, scratch)

else:

    def errno(octets: Octets, scratch: Word) -> Word:
        """The last call's errno."""
        return ctypes.get_errno()
