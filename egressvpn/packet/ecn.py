"""ECN between a packet and the datagram around it (RFC 6040, as the kernel's INET_ECN_encapsulate and INET_ECN_decapsulate).

outer, sent                  the inner field; ECT(0) for CE
inner, received    outer     Not-ECT   ECT(1)    ECT(0)    CE
         Not-ECT             Not-ECT   Not-ECT   Not-ECT   Not-ECT     a drop by RFC 6040; the kernel lets it through
         ECT(1)              ECT(1)    ECT(1)    ECT(1)    CE
         ECT(0)              ECT(0)    ECT(1)    ECT(0)    CE
         CE                  CE        CE        CE        CE
"""

from typing import Final

import numpy as np

from egressvpn.kernel import Octets, Row, Word, kernel
from egressvpn.packet.checksum import adjust
from egressvpn.packet.octets import be16, put_be16

ECT1: Final = 1
ECT0: Final = 2
CE: Final = 3


@kernel
def ecn_of(buffer: Octets, start: Word) -> Word:
    """The ECN field of the IP packet at `start`."""
    shift = 4 if buffer[start] >> 4 == 6 else 0
    return np.int64(buffer[start + 1]) >> shift & 3


@kernel
def encapsulate(buffer: Octets, start: Word) -> Word:
    """The ECN field of the datagram that is to carry the IP packet at `start`."""
    ecn = ecn_of(buffer, start)
    return np.int64(ECT0) if ecn == CE else ecn


@kernel
def decapsulate(buffer: Octets, packet: Row, outer: Word) -> None:
    """Bring what the network said about the datagram, its ECN field, into the packet it carried. The checksum follows."""
    inner = ecn_of(buffer, packet.start)
    if outer == CE and inner != 0:
        wanted = np.int64(CE)
    elif outer == ECT1 and inner == ECT0:
        wanted = np.int64(ECT1)
    else:
        return
    shift = 4 if packet.version == 6 else 0
    old = be16(buffer, packet.start)
    new = old + ((wanted - inner) << shift)
    put_be16(buffer, packet.start, new)
    if packet.version == 4:
        adjust(buffer, packet.start + 10, (0xFFFF ^ old) + new)
