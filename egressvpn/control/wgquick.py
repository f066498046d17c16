"""wg-quick files: what clients are configured with. Read strictly, written so that the stock tools take them.

wg(8) "CONFIGURATION FILE FORMAT" and wg-quick(8) "CONFIGURATION". Keys and sections in any case; `#` starts a comment
anywhere; Address, DNS, AllowedIPs and the hooks may be repeated and add up, anything else may not. Hooks are commands of
somebody else's: they are named in `remarks`, never run. `parse(render(x))` is `x`. Secrets are in no repr and no error.
"""

import base64
import binascii
import contextlib
import difflib
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from egressvpn.addresses import IPNetwork
from egressvpn.errors import OperatorError

T = TypeVar("T")
IPInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

KEY_BYTES: Final = 32
NO_KEY: Final = bytes(KEY_BYTES)  # an all-zero preshared key is none (whitepaper 5.4.2)
MAX_FILE_BYTES: Final = 1 << 20  # a file of some 5000 peers; more is a mistake
MIN_MTU: Final = 576  # RFC 791: what every IPv4 host accepts

HOOKS: Final = ("PreUp", "PostUp", "PreDown", "PostDown")
IGNORED: Final = (*HOOKS, "SaveConfig")
REPEATABLE: Final = ("Address", "DNS", "AllowedIPs", *HOOKS)
KEYS: Final = {
    "Interface": ("PrivateKey", "Address", "DNS", "MTU", "ListenPort", "Table", "FwMark", *IGNORED),
    "Peer": ("PublicKey", "PresharedKey", "Endpoint", "AllowedIPs", "PersistentKeepalive"),
}

LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
HOST_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){LABEL}(?:\.{LABEL})*\.?")


class Endpoint(NamedTuple):
    """Where a peer listens: a literal address or a name still to be resolved, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class InterfaceSection:
    """Our side. `private_key` may be empty to render what a client completes itself. `table`: None auto, 0 off. `fwmark`: 0 off."""

    private_key: bytes = field(repr=False)
    addresses: tuple[IPInterface, ...] = ()
    dns: tuple[str, ...] = ()  # addresses and search domains
    mtu: int | None = None
    listen_port: int = 0
    table: int | None = None
    fwmark: int = 0


@dataclass(frozen=True, slots=True)
class PeerSection:
    """The other side."""

    public_key: bytes
    preshared_key: bytes = field(default=NO_KEY, repr=False)
    endpoint: Endpoint | None = None
    allowed_ips: tuple[IPNetwork, ...] = ()
    persistent_keepalive: int = 0  # s; 0 off


@dataclass(frozen=True, slots=True)
class WgQuick:
    """A whole file. `remarks` are for the log: what is in it that we do not do."""

    interface: InterfaceSection
    peers: tuple[PeerSection, ...] = ()
    remarks: tuple[str, ...] = field(default=(), compare=False)


def read(path: Path) -> WgQuick:
    """Parse a file. Raises OperatorError that names file, line and key."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        exposed = path.stat().st_mode & 0o077
    except OSError as error:
        raise OperatorError(f"cannot read {path}: {error.strerror}", "name a wg-quick file that exists and is yours") from error
    if len(raw) > MAX_FILE_BYTES:
        raise OperatorError(f"{path} is larger than {MAX_FILE_BYTES} bytes", "name a wg-quick file")
    try:
        configuration = parse(raw.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise OperatorError(f"{path} is not UTF-8 text", "name a wg-quick file") from error
    if not exposed:
        return configuration
    remark = f"{path} holds a private key and is accessible to others: chmod 600 {path}"
    return WgQuick(configuration.interface, configuration.peers, (remark, *configuration.remarks))


def parse(text: str, name: str = "configuration") -> WgQuick:
    """Parse the text of a file called `name`. Raises OperatorError that names file, line and key."""
    sections = _sections(text, name)
    interfaces = [section for section in sections if section.title == "Interface"]
    if not interfaces:
        raise OperatorError(f"{name} has no [Interface]", "a wg-quick file begins with [Interface] and has a [Peer] for the gateway")
    if len(interfaces) > 1:
        raise OperatorError(f"{name}, line {interfaces[1].line}: a second [Interface]", "one file is one interface: join them")
    peers: dict[bytes, PeerSection] = {}
    taken: set[IPNetwork] = set()
    for section in sections:
        if section.title == "Peer":
            peer = _peer(section)
            _refuse_repeated(section, peer, peers, taken)
            peers[peer.public_key] = peer
            taken.update(peer.allowed_ips)
    remarks = [
        f"{name}, line {entry.line}: {entry.key} is not carried out"
        for key in IGNORED
        for entry in interfaces[0].entries.get(key, [])
        if entry.value.lower() != "false"
    ]
    return WgQuick(_interface(interfaces[0]), tuple(peers.values()), tuple(remarks))


def render(configuration: WgQuick) -> str:
    """The file as text: every value that is not its default."""
    interface = configuration.interface
    key = f"PrivateKey = {_base64(interface.private_key)}" if interface.private_key else "# PrivateKey = (the client's own; add it here)"
    lines = ["[Interface]", key]
    lines += [f"Address = {', '.join(map(str, interface.addresses))}"] if interface.addresses else []
    lines += [f"DNS = {', '.join(interface.dns)}"] if interface.dns else []
    lines += [f"MTU = {interface.mtu}"] if interface.mtu is not None else []
    lines += [f"ListenPort = {interface.listen_port}"] if interface.listen_port else []
    lines += [f"Table = {interface.table or 'off'}"] if interface.table is not None else []
    lines += [f"FwMark = {interface.fwmark:#x}"] if interface.fwmark else []
    for peer in configuration.peers:
        lines += ["", "[Peer]", f"PublicKey = {_base64(peer.public_key)}"]
        lines += [f"PresharedKey = {_base64(peer.preshared_key)}"] if peer.preshared_key != NO_KEY else []
        lines += [f"AllowedIPs = {', '.join(map(str, peer.allowed_ips))}"] if peer.allowed_ips else []
        lines += [f"Endpoint = {peer.endpoint}"] if peer.endpoint else []
        lines += [f"PersistentKeepalive = {peer.persistent_keepalive}"] if peer.persistent_keepalive else []
    return "\n".join(lines) + "\n"


# sections and entries


@dataclass(frozen=True, slots=True)
class _Entry:
    file: str
    line: int
    key: str
    value: str = field(repr=False)

    def refused(self, what: str, mend: str) -> OperatorError:
        return OperatorError(f"{self.file}, line {self.line}: {self.key}: {what}", mend)


@dataclass(frozen=True, slots=True)
class _Section:
    file: str
    line: int
    title: str
    entries: dict[str, list[_Entry]] = field(default_factory=dict)

    def one(self, key: str, convert: Callable[[_Entry], T], default: T) -> T:
        entries = self.entries.get(key)
        return convert(entries[0]) if entries else default

    def required(self, key: str, convert: Callable[[_Entry], T]) -> T:
        if key not in self.entries:
            raise OperatorError(f"{self.file}, line {self.line}: [{self.title}] has no {key}", f"add a line `{key} = …` below it")
        return convert(self.entries[key][0])

    def many(self, key: str, convert: Callable[[_Entry, str], T]) -> tuple[T, ...]:
        """Comma-separated values of all lines, in order, each once."""
        items = [(entry, item.strip()) for entry in self.entries.get(key, []) for item in entry.value.split(",")]
        if wrong := [entry for entry, item in items if not item and entry.value]:
            raise wrong[0].refused("an empty item", "take out the comma that nothing follows or precedes")
        return tuple(dict.fromkeys(convert(entry, item) for entry, item in items if item))


def _sections(text: str, name: str) -> list[_Section]:
    sections: list[_Section] = []
    for number, whole in enumerate(text.split("\n"), 1):
        line = whole.partition("#")[0].strip()
        if line.startswith("["):
            sections.append(_Section(name, number, _title(line, number, name)))
        elif line and not sections:
            raise OperatorError(f"{name}, line {number}: stands before any section", "a wg-quick file begins with [Interface]")
        elif line:
            _add_entry(sections[-1], line, number)
    return sections


def _title(line: str, number: int, name: str) -> str:
    for title in KEYS:
        if line.lower() == f"[{title.lower()}]":
            return title
    raise OperatorError(f"{name}, line {number}: unknown section", "the sections of a wg-quick file are [Interface] and [Peer]")


def _add_entry(section: _Section, line: str, number: int) -> None:
    written, equals, value = (part.strip() for part in line.partition("="))
    if not equals:
        raise OperatorError(f"{section.file}, line {number}: no '=' in it", "write `Key = value`")
    known = {key.lower(): key for key in KEYS[section.title]}
    key = known.get(written.lower())
    if key is None:
        close = difflib.get_close_matches(written.lower(), known, 1)
        mend = f"did you mean {known[close[0]]}?" if close else f"[{section.title}] knows {', '.join(known.values())}"
        shown = _shown(written) if written.isalnum() else "this"
        raise OperatorError(f"{section.file}, line {number}: {shown} is no key of [{section.title}]", mend)
    entry = _Entry(section.file, number, key, value)
    before = section.entries.setdefault(key, [])
    if before and key not in REPEATABLE:
        raise entry.refused(f"repeats line {before[0].line}", "keep one of them")
    before.append(entry)


def _interface(section: _Section) -> InterfaceSection:
    return InterfaceSection(
        private_key=section.required("PrivateKey", _key),
        addresses=section.many("Address", _address),
        dns=section.many("DNS", _name_server),
        mtu=section.one("MTU", lambda entry: _number(entry, MIN_MTU, 0xFFFF), None),
        listen_port=section.one("ListenPort", lambda entry: _number(entry, 0, 0xFFFF), 0),
        table=section.one("Table", _table, None),
        fwmark=section.one("FwMark", lambda entry: _number(entry, 0, 0xFFFFFFFF, off=True), 0),
    )


def _peer(section: _Section) -> PeerSection:
    return PeerSection(
        public_key=section.required("PublicKey", _key),
        preshared_key=section.one("PresharedKey", _key, NO_KEY),
        endpoint=section.one("Endpoint", _endpoint, None),
        allowed_ips=section.many("AllowedIPs", _network),
        persistent_keepalive=section.one("PersistentKeepalive", lambda entry: _number(entry, 0, 0xFFFF, off=True), 0),
    )


def _refuse_repeated(section: _Section, peer: PeerSection, peers: dict[bytes, PeerSection], taken: set[IPNetwork]) -> None:
    if peer.public_key in peers:
        raise section.entries["PublicKey"][0].refused("another [Peer] has the same key", "join the two sections")
    for network in peer.allowed_ips:
        if network in taken:
            raise section.entries["AllowedIPs"][0].refused(f"{network} is another [Peer]'s too", "leave it with one of them")


# values


def _shown(text: str) -> str:
    """What an error may repeat of the file: not what may be a key, or a part of one, in the wrong place."""
    return "this" if re.search(r"[A-Za-z0-9+/]{20}", text) else text


def _key(entry: _Entry) -> bytes:
    with contextlib.suppress(binascii.Error, ValueError):
        key = base64.b64decode(entry.value, validate=True)
        if len(key) == KEY_BYTES and _base64(key) == entry.value:  # one way to write a key, as wg(8) wants
            return key
    tool = "wg genpsk" if entry.key == "PresharedKey" else "wg genkey" if entry.key == "PrivateKey" else "wg pubkey"
    raise entry.refused("no key", f"44 characters of base64 ending in '=', as `{tool}` prints them")


def _base64(key: bytes) -> str:
    return base64.b64encode(key).decode()


def _number(entry: _Entry, low: int, high: int, off: bool = False) -> int:
    if off and entry.value.lower() == "off":
        return 0
    hexadecimal = re.fullmatch(r"0[xX][0-9a-fA-F]{1,8}", entry.value)
    if hexadecimal or re.fullmatch(r"[0-9]{1,10}", entry.value):
        number = int(entry.value, 16 if hexadecimal else 10)
        if low <= number <= high:
            return number
    raise entry.refused(f"{_shown(repr(entry.value))} is not in range", f"a number from {low} to {high}" + (", or off" if off else ""))


def _table(entry: _Entry) -> int | None:
    if entry.value.lower() in ("auto", "off"):
        return None if entry.value.lower() == "auto" else 0
    return _number(entry, 1, 0xFFFFFFFF)


def _address(entry: _Entry, item: str) -> IPInterface:
    with contextlib.suppress(ValueError):
        if "%" not in item:
            return ipaddress.ip_interface(item)
    raise entry.refused(f"{_shown(repr(item))} is no address", "write 192.0.2.1/32 or 2001:db8::1/128")


def _network(entry: _Entry, item: str) -> IPNetwork:
    """Host bits are cut off, as wg(8) does."""
    with contextlib.suppress(ValueError):
        if "%" not in item:
            return ipaddress.ip_network(item, strict=False)
    raise entry.refused(f"{_shown(repr(item))} is no network", "write 192.0.2.0/24 or 2001:db8::/32")


def _name_server(entry: _Entry, item: str) -> str:
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(item))
    if HOST_NAME.fullmatch(item) and not item.replace(".", "").isdigit():
        return item
    raise entry.refused(
        f"{_shown(repr(item))} is neither an address nor a search domain", "write 1.1.1.1, 2606:4700:4700::1111 or example.net"
    )


def _endpoint(entry: _Entry) -> Endpoint:
    host, _, port = entry.value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    name = host[1:-1] if bracketed else host
    if re.fullmatch(r"[0-9]{1,5}", port) and 1 <= int(port) <= 0xFFFF:
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(name)
            if bracketed == (address.version == 6):
                return Endpoint(str(address), int(port))
        if not bracketed and HOST_NAME.fullmatch(name) and not name.replace(".", "").isdigit():
            return Endpoint(name, int(port))
    raise entry.refused(
        f"{_shown(repr(entry.value))} is no endpoint", "write vpn.example.net:51820, 192.0.2.1:51820 or [2001:db8::1]:51820"
    )
