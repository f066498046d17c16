"""What would become of a packet, and why, in words: the worker's verdict with the rule, the pool, the address and the block behind it.

The verdict is the data path's own, found by the code that would judge the packet. Which of several rules denies it is looked up
here, in what the data path was told.
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import Final, TypedDict

from egressvpn.addresses import IPAddress, IPNetwork
from egressvpn.app.fleet import Fleet, Member
from egressvpn.control.schema import Config
from egressvpn.control.tunnel import Tunnel
from egressvpn.errors import OperatorError
from egressvpn.verdict import Verdict

NUMBERS: Final = {"tcp": 6, "udp": 17, "icmp": 1}
ICMPV6: Final = 58
EXEMPTED: Final = 1  # ways of the data path's explain.py
TURNED: Final = 2

WORDS: Final = {
    Verdict.PASS: "it may pass",
    Verdict.POLICY_DENIED: "the policy denies this destination",
    Verdict.PORTS_EXHAUSTED: "no ports are left: the device's external address has no free block",
    Verdict.QUOTA_EXCEEDED: "the device has as many flows or blocks of ports as it may",
    Verdict.RATE_EXCEEDED: "the device makes new mappings faster than it may",
    Verdict.FLOW_TABLE_FULL: "the table of flows is full",
    Verdict.NO_EXTERNAL_ADDRESS: "the device's pool has no address of this IP version",
    Verdict.DEVICE_DISABLED: "the device is disabled",
    Verdict.SOURCE_MISMATCH: "the device has no address of this IP version",
    Verdict.UNSUPPORTED_PROTOCOL: "this protocol is not translated",
    Verdict.NO_MAPPING: "the destination is one of our own external addresses, and nobody has this port",
    Verdict.FILTERED: "the destination is another device's external port, which it has not opened to this device",
    Verdict.NOT_CONFIGURED: "the gateway is starting",
}


class Block(TypedDict):
    ports: list[int]  # ends included


class Explanation(TypedDict):
    """As /v1/explain gives it."""

    peer: str
    destination: str
    protocol: str
    verdict: str  # "pass", or the label of the drop
    why: str
    rule: str | None  # that decided
    way: str  # "translated", "exempt", "hairpin"
    pool: str
    internal: str | None
    external: str | None
    block: Block | None  # where its port would come from; None: it has none yet, or needs none


async def explain(config: Config, fleet: Fleet, tunnel: Tunnel, name: str, written: str) -> Explanation:
    """Raises LookupError for a device, OperatorError for a destination that is none."""
    address, port, protocol = destination(written)
    member = fleet.members[name]
    number = ICMPV6 if (protocol, address.version) == ("icmp", 6) else NUMBERS[protocol]
    answer = await tunnel.explain(member.slot, address, port, number)
    if answer is None:
        raise OperatorError("the worker does not answer", "see `egressvpn status`")
    verdict, way = Verdict(answer.first & 0xFF), answer.first >> 8
    external = None if way == EXEMPTED else _external(fleet, member, address.version, answer.second >> 32)
    low, high = answer.second >> 16 & 0xFFFF, answer.second & 0xFFFF
    return Explanation(
        peer=name,
        destination=str(address) if protocol == "icmp" else f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}",
        protocol=protocol,
        verdict=verdict.label,
        why=WORDS.get(verdict, verdict.label.replace("_", " ")),
        rule=_rule(config, fleet, address, verdict, way),
        way={EXEMPTED: "exempt", TURNED: "hairpin"}.get(way, "translated"),
        pool=member.device.pool,
        internal=next((str(own) for own in member.device.addresses if own.version == address.version), None),
        external=external,
        block=Block(ports=[low, high]) if high else None,
    )


def destination(written: str) -> tuple[IPAddress, int, str]:
    """Address, port and protocol of ADDR[:PORT][/PROTOCOL]; TCP when a port is said and no protocol, else ICMP. Raises OperatorError."""
    mend = 'write it like "198.51.100.2:443/tcp", "[2001:db8::2]:53/udp" or "198.51.100.2/icmp"'
    refusal = OperatorError(f"{written!r} is not a destination", mend)
    bare, _, protocol = written.partition("/")
    host, port = _split(bare)
    protocol = protocol or ("tcp" if port else "icmp")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise refusal from None
    if protocol not in NUMBERS or port > 65_535 or (protocol != "icmp" and not port) or getattr(address, "scope_id", None):
        raise refusal
    return address, port, protocol


def _split(written: str) -> tuple[str, int]:
    """Host and port (0: none) of ADDR, ADDR:PORT, [ADDR] or [ADDR]:PORT."""
    match = re.fullmatch(r"\[([^\]]+)\](?::(\d{1,5}))?", written) or re.fullmatch(r"([^:]+)(?::(\d{1,5}))?", written)
    return (written, 0) if match is None else (match[1], int(match[2] or 0))


def _external(fleet: Fleet, member: Member, version: int, slot: int) -> str | None:
    """The data path may have paired the device with another address of its pool than the fleet suggested."""
    if version == 6:
        return None if member.external6 is None else str(member.external6)
    address = fleet.pools.address_of(slot) if slot else member.external4
    return None if address is None else str(address)


def _rule(config: Config, fleet: Fleet, address: IPAddress, verdict: Verdict, way: int) -> str | None:
    """The one among several of its kind that decided."""
    if way == EXEMPTED:
        return f"nat.exempt {_longest(config.nat.exempt, address)}"
    if verdict is not Verdict.POLICY_DENIED:
        return None
    for told, networks in (
        ("policy.deny", config.policy.deny),
        ("tunnel.networks", config.tunnel.networks),
        ("this machine", fleet.denied),
    ):
        found = _longest(networks, address)
        if found is not None:
            return f"{told} {found}"
    return "never a destination on the Internet, or an IPv4 address inside it is denied"


def _longest(networks: Iterable[IPNetwork], address: IPAddress) -> IPNetwork | None:
    found = [network for network in networks if address in network]
    return max(found, key=lambda network: network.prefixlen, default=None)
