"""Memory of one worker process: buffers, message headers for the system calls, cipher contexts. Nothing here outlives it.

All octets live in one array and all 64-bit words in another, at the constant positions below, so that kernels take few
arguments and every access stays bounds-checked. A system call gets the address of a region and never a length above it.
"""

from typing import Any, Final, NamedTuple

import numpy as np

from egressvpn.dataplane.channel import COMMAND, EVENT
from egressvpn.packet.fragments import DATAGRAM, HEAD, UNITS
from egressvpn.packet.record import PACKET
from egressvpn.wireguard.blake2s import Scratch, scratch

BATCH: Final = 64  # datagrams per recvmmsg
SUPERS: Final = 8  # super-packets open at a time, one flow each
MAX_SEGMENTS: Final = 64  # per super-packet or UDP_SEGMENT send (kernel: UDP_MAX_SEGMENTS)
MAX_SEND: Final = 65_507  # octets of one UDP_SEGMENT send
MAX_SOCKETS: Final = 8
OUTSIDE_DATAGRAMS: Final = 128  # in pieces at a time, from outside
DEVICE_DATAGRAMS: Final = 8  # of one device
INSIDE_DATAGRAMS: Final = 128  # of all devices
DATAGRAMS: Final = 1 + OUTSIDE_DATAGRAMS + INSIDE_DATAGRAMS  # slot 0 is never used
FREED: Final = 8  # session indexes given up in one step, at most four

# --- octets
NONCE: Final = 0  # 12: four zeros and the counter
ERRNO: Final = 16
TAG_NAME: Final = 24  # "tag\0", an OSSL_PARAM key
SEND_CONTROL: Final = 64  # PKTINFO, UDP_SEGMENT and TOS control messages, 88
ICMP: Final = 256  # a locally made ICMP error, behind room for its headers
ICMP_BYTES: Final = 2048
NAMES: Final = ICMP + ICMP_BYTES  # remote socket addresses of a batch
NAME_STRIDE: Final = 32
CONTROLS: Final = NAMES + BATCH * NAME_STRIDE  # control messages as received
CONTROL_STRIDE: Final = 128
LOCALS: Final = CONTROLS + BATCH * CONTROL_STRIDE  # PKTINFO to answer with
LOCAL_STRIDE: Final = 64
RING: Final = LOCALS + BATCH * LOCAL_STRIDE  # received datagrams
DATAGRAM_BYTES: Final = 65_536
RING_STRIDE: Final = DATAGRAM_BYTES + 64 * 37  # an odd number of cache lines, so that slots do not share cache sets
TUN_IN: Final = RING + BATCH * RING_STRIDE  # one packet from the TUN
VNET_BYTES: Final = 10  # struct virtio_net_hdr
TUN_BYTES: Final = VNET_BYTES + 65_536
OUT: Final = TUN_IN + TUN_BYTES + 2048  # sealed messages on their way out
OUT_BYTES: Final = 256 * 1024
REPLY: Final = OUT + OUT_BYTES + 2048  # a cookie reply
NONCES: Final = REPLY + 64  # random octets for cookie replies to come
NONCES_BYTES: Final = 4080  # 170 nonces
HEADER: Final = NONCES + NONCES_BYTES  # the header that pieces of a datagram get
HEADER_BYTES: Final = 256
PIECES: Final = HEADER + HEADER_BYTES + 64  # datagrams that came in pieces; what is not used takes no memory
PIECES_STRIDE: Final = HEAD + 65_536 + 64
OCTETS: Final = PIECES + DATAGRAMS * PIECES_STRIDE

# --- words
MESSAGES: Final = 0  # struct mmsghdr[BATCH], 8 words each
MESSAGE_WORDS: Final = 8
VECTORS: Final = MESSAGES + BATCH * MESSAGE_WORDS  # struct iovec[BATCH]
SEND_MESSAGE: Final = VECTORS + BATCH * 2  # struct msghdr and its iovec
POLL: Final = SEND_MESSAGE + 16  # struct pollfd[2 + MAX_SOCKETS], one word each
CLOCK: Final = POLL + 2 + MAX_SOCKETS  # struct timespec
PARAMS: Final = CLOCK + 2  # OSSL_PARAM[2]
CIPHER: Final = PARAMS + 10  # EVP_CIPHER*
LENGTHS: Final = CIPHER + 1  # output lengths nobody reads
NAP: Final = LENGTHS + 2  # struct timespec
NEXT_SWEEP: Final = NAP + 2  # when, in ns
SUPER_VECTORS: Final = NEXT_SWEEP + 1  # struct iovec[MAX_SEGMENTS] per super-packet
SUPER_VECTOR_WORDS: Final = 2 * MAX_SEGMENTS
NONCES_LEFT: Final = SUPER_VECTORS + SUPERS * SUPER_VECTOR_WORDS  # octets at the end of NONCES that were not used yet
BACKLOG: Final = NONCES_LEFT + 1  # where the channel's backlog is written
ERROR_LENGTH: Final = BACKLOG + 1  # octets at ICMP that are to be sent outside
WAITING: Final = ERROR_LENGTH + 1  # how many packets of the datagram in work wait for `forward`
WAITING_PACKETS: Final = WAITING + 1  # device, offset, length and verdict of each
WAITING_WORDS: Final = 4
MAX_WAITING: Final = DATAGRAM_BYTES // 32  # messages in a datagram
WORDS: Final = WAITING_PACKETS + MAX_WAITING * WAITING_WORDS

# --- fds
CHANNEL_FD: Final = 0
TUN_FD: Final = 1
SOCKETS: Final = 2  # how many UDP sockets
UDP_FDS: Final = 3
FDS: Final = UDP_FDS + MAX_SOCKETS

SUPER = np.dtype(
    [
        ("active", "i8"),
        ("closed", "i8"),  # nothing may be appended any more
        ("version", "i8"),
        ("protocol", "i8"),
        ("start", "i8"),  # offset of the first packet
        ("headers", "i8"),  # octets of network and transport header
        ("transport", "i8"),  # octets of the network header
        ("ports", "i8"),  # both, for a quick look
        ("segment", "i8"),  # payload octets of every segment but the last
        ("total", "i8"),  # octets of the IP packet so far
        ("segments", "i8"),
        ("next_sequence", "i8"),
    ],
    align=True,
)

RUN = np.dtype(
    [
        ("owner", "i8"),  # whose messages the run holds
        ("start", "i8"),  # offset in octets
        ("segment", "i8"),  # octets of every message but the last
        ("total", "i8"),
        ("count", "i8"),
        ("closed", "i8"),  # a shorter message ended it
        ("ecn", "i8"),  # of every message
    ],
    align=True,
)


class Local(NamedTuple):
    octets: Any
    words: Any
    contexts: Any  # per session: opening context, sealing context, the session index both are keyed for
    packet: Any  # the packet in work, and one that is made about it
    datagrams: Any  # those in pieces, by slot
    covered: Any  # of each, UNITS octets: 1 where data are there
    supers: Any
    run: Any
    events: Any
    commands: Any  # the command in work
    freed: Any  # session indexes a kernel gave up
    fds: Any
    scratch: Scratch  # for hashes


CONTEXT_WORDS: Final = 3


def create(sessions: int, channel: int, tun: int, sockets: list[int]) -> Local:
    """Buffers for a worker with that many session slots, and its descriptors."""
    local = Local(
        np.zeros(OCTETS, np.uint8),
        np.zeros(WORDS, np.int64),
        np.zeros(sessions * CONTEXT_WORDS, np.int64),
        np.zeros(2, PACKET).view(np.recarray),
        np.zeros(DATAGRAMS, DATAGRAM).view(np.recarray),
        np.zeros(DATAGRAMS * UNITS, np.uint8),
        np.zeros(SUPERS, SUPER).view(np.recarray),
        np.zeros(1, RUN).view(np.recarray),
        np.zeros(1, EVENT).view(np.recarray),
        np.zeros(1, COMMAND).view(np.recarray),
        np.zeros(FREED, np.int64),
        np.zeros(FDS, np.int64),
        scratch(),
    )
    local.fds[CHANNEL_FD], local.fds[TUN_FD], local.fds[SOCKETS] = channel, tun, len(sockets)
    local.fds[UDP_FDS : UDP_FDS + len(sockets)] = sockets
    local.octets[TAG_NAME : TAG_NAME + 4] = np.frombuffer(b"tag\0", np.uint8)
    base = local.octets.ctypes.data
    for slot in range(BATCH):
        message, vector = MESSAGES + slot * MESSAGE_WORDS, VECTORS + 2 * slot
        local.words[message] = base + NAMES + slot * NAME_STRIDE
        local.words[message + 2] = local.words.ctypes.data + 8 * vector
        local.words[message + 3] = 1
        local.words[message + 4] = base + CONTROLS + slot * CONTROL_STRIDE
        local.words[vector] = base + RING + slot * RING_STRIDE
        local.words[vector + 1] = DATAGRAM_BYTES
    return local
