"""Why a packet or a handshake was not let through. The lower-case names are the metric labels and the words in `explain`."""

from enum import IntEnum


class Verdict(IntEnum):
    """PASS, or the one reason a packet was dropped. Kernels return the value, which indexes the drop counters."""

    PASS = 0
    # the outer datagram
    MALFORMED_MESSAGE = 1
    UNKNOWN_INDEX = 2
    EXPIRED_SESSION = 3
    COUNTER_EXHAUSTED = 4
    AUTHENTICATION_FAILED = 5
    REPLAYED = 6
    # handshakes
    BAD_MAC1 = 7
    UNKNOWN_PEER = 8
    REPLAYED_HANDSHAKE = 9
    HANDSHAKE_FLOOD = 10
    UNEXPECTED_RESPONSE = 11
    INVALID_HANDSHAKE = 12
    CHANNEL_FULL = 13
    TRUNCATED_DATAGRAM = 14
    COOKIE_REQUIRED = 15  # under load and without a valid MAC2: a cookie reply was sent
    RATE_LIMITED = 16  # under load and with a valid MAC2, but too many from this source
    HANDSHAKE_OVERLOAD = 17  # more than the data path answers or hands up in this moment
    UNEXPECTED_COOKIE_REPLY = 18  # for no message of ours, or already answered
    INVALID_COOKIE_REPLY = 19
    # the inner packet
    MALFORMED_PACKET = 20
    BAD_CHECKSUM = 21
    SOURCE_MISMATCH = 22
    POLICY_DENIED = 23
    UNSUPPORTED_PROTOCOL = 24
    FRAGMENT = 25
    TTL_EXCEEDED = 26
    PACKET_TOO_BIG = 27
    DEVICE_DISABLED = 28
    MARTIAN = 29  # a source or destination that no packet from there may have
    # translation
    NO_MAPPING = 30
    FILTERED = 31
    FLOW_TABLE_FULL = 32
    PORTS_EXHAUSTED = 34
    NO_EXTERNAL_ADDRESS = 35
    SLICE_VIOLATION = 36
    UNMATCHED_ICMP_ERROR = 37
    QUOTA_EXCEEDED = 38  # the device has as many flows or port blocks as it may
    TCP_OUT_OF_WINDOW = 39  # a reset that its receiver would not believe (RFC 5961)
    # on the way out
    NO_ROUTE = 40
    NO_SESSION = 41
    NO_ENDPOINT = 42
    STAGED_OVERFLOW = 43
    SEND_FAILED = 44
    TUN_WRITE_FAILED = 45
    NOT_CONFIGURED = 46
    # new mappings and fragments
    RATE_EXCEEDED = 47  # the device makes new mappings faster than it may
    FRAGMENT_OVERLAP = 48
    FRAGMENT_LIMIT = 49  # too many datagrams in pieces at once
    FRAGMENT_TIMEOUT = 50

    @property
    def label(self) -> str:
        return self.name.lower()


VERDICTS = 64  # size of a drop-counter array; a power of two above the largest value
