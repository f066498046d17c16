"""The kernel's forwarding switches: checked, and set only when the configuration allows; put back on exit or after a crash.

Documentation/networking/ip-sysctl.rst. Two kinds, with different owners:
- the switches of the machine (`net.ipv4.ip_forward`, `net.ipv6.conf.all.forwarding`) belong to the operator. Each of them
  also overwrites switches of single interfaces, so the journal holds every value that the write may change, the machine's
  own first: restoring runs in that order.
- the switches of our own interface are ours. They are set without asking, and vanish with the interface.

Two gateways of one machine that both set sysctls: the one that changed them restores them when it exits. Set them by hand there.
"""

import contextlib
import errno
from pathlib import Path
from typing import Final

from egressvpn.errors import OperatorError
from egressvpn.netio import journal

PROC: Final = Path("/proc/sys")
FORWARD4: Final = "net/ipv4/ip_forward"
FORWARD6: Final = "net/ipv6/conf/all/forwarding"
STRICT: Final = "1"
LOOSE: Final = "2"
RA_UNLESS_FORWARDING: Final = "1"  # accept_ra: 2 accepts always

# What a write of the first also changes: devinet.c inet_forward_change, addrconf.c addrconf_forward_change.
SIDE_EFFECTS: Final = {
    FORWARD4: ("net/ipv4/conf/all/accept_redirects", "net/ipv4/conf/*/forwarding"),
    FORWARD6: ("net/ipv6/conf/*/forwarding",),
}


def ensure_forwarding(allowed: bool, interface: str, journal_path: Path, versions: frozenset[int] = frozenset({4, 6})) -> list[str]:
    """Make the machine forward between `interface`, which must exist, and the rest. Returns remarks for the log.

    Raises OperatorError, with nothing changed, when a switch of the machine is off and we may not turn it on.
    """
    restore(journal_path)
    wrong = [key for version, key in ((4, FORWARD4), (6, FORWARD6)) if version in versions and _read(key) != "1"]
    if wrong and not allowed:
        settings = " ".join(f"{_dotted(key)}=1" for key in wrong)
        raise OperatorError(
            f"the kernel does not forward: {', '.join(_dotted(key) for key in wrong)} is not 1",
            f"`sysctl -w {settings}` (keep it in /etc/sysctl.d), or [gateway] set_sysctls = true",
        )
    remarks = []
    if wrong:
        before = [(key, value) for machine in wrong for key, value in _before(machine)]
        journal.write(journal_path, before)
        remarks = [f"set {_dotted(key)} = 1 (restored on exit)" for key in wrong] + (_router_remarks() if FORWARD6 in wrong else [])
        try:
            for key in wrong:
                _write(key, "1")
        except OperatorError:
            restore(journal_path)
            raise
    _own(interface, versions)
    return remarks


def restore(journal_path: Path) -> list[str]:
    """Put back what we changed, in this run or in one that crashed. Returns the sysctls that changed back."""
    restored = []
    for key, value in journal.read(journal_path):
        if ".." in key.split("/") or not key.startswith("net/"):
            raise OperatorError(f"{journal_path} is damaged: {key!r} is no sysctl of ours", "delete it")
        if _read(key) in (value, None):  # None: the interface is gone
            continue
        _write(key, value)
        restored.append(_dotted(key))
    journal.discard(journal_path)
    return restored


def _before(machine: str) -> list[tuple[str, str]]:
    """The switch and everything a write of it changes, as they are now."""
    touched = [str(path.relative_to(PROC)) for pattern in SIDE_EFFECTS[machine] for path in sorted(PROC.glob(pattern))]
    return [(key, value) for key in dict.fromkeys([machine, *touched]) if (value := _read(key)) is not None]


def _router_remarks() -> list[str]:
    """A machine that forwards IPv6 stops listening to router advertisements, and may lose its default route."""
    listening = [
        path.parent.name
        for path in sorted((PROC / "net/ipv6/conf").glob("*/accept_ra"))
        if path.parent.name not in ("all", "default", "lo") and path.read_text().strip() == RA_UNLESS_FORWARDING
    ]
    return [
        f"{name} no longer accepts router advertisements while IPv6 is forwarded: if its default route comes from them, "
        f"set net.ipv6.conf.{name}.accept_ra = 2"
        for name in listening
    ]


def _own(interface: str, versions: frozenset[int]) -> None:
    """The switches of our own interface. rp_filter: replies come from anywhere; the stricter of `all` and its own counts."""
    strict = _read("net/ipv4/conf/all/rp_filter") == STRICT
    wanted = {
        f"net/ipv4/conf/{interface}/rp_filter": LOOSE if strict else "0",
        f"net/ipv4/conf/{interface}/forwarding": "1",
    }
    if 6 in versions:
        wanted |= {f"net/ipv6/conf/{interface}/disable_ipv6": "0", f"net/ipv6/conf/{interface}/forwarding": "1"}
    for key, value in wanted.items():
        if _read(key) != value:
            _write(key, value)


def _read(key: str) -> str | None:
    with contextlib.suppress(FileNotFoundError):
        return (PROC / key).read_text().strip()
    return None


def _write(key: str, value: str) -> None:
    try:
        (PROC / key).write_text(value)
    except FileNotFoundError as error:
        raise OperatorError(
            f"this kernel has no {_dotted(key)}", "boot with IPv6 (no ipv6.disable=1), or use no IPv6 pool and network"
        ) from error
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise OperatorError(f"cannot set {_dotted(key)} = {value}: {error.strerror}", "set it by hand") from error
        raise OperatorError(
            f"no permission to set {_dotted(key)} = {value}",
            "run as root; in a container, set it from outside (`--sysctl`) or mount /proc/sys writable",
        ) from error


def _dotted(key: str) -> str:
    """As sysctl(8) writes it: a dot inside an interface's name becomes a slash."""
    return "/".join(part.replace("/", ".") for part in key.split("."))
