import json
import subprocess
from pathlib import Path

import pytest

from egressvpn.errors import OperatorError
from egressvpn.netio.journal import read, write
from egressvpn.netio.sysctl import ensure_forwarding, restore
from egressvpn.netio.tun import open_tun
from tests.netio.namespace import changes, crash, isolated, snapshot, uplink

PROC = Path("/proc/sys/net")
BOTH = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")


@isolated
def test_when_not_allowed_the_error_names_the_sysctls_and_both_mends(tmp_path: Path) -> None:
    tun = open_tun("egress0", 1420)
    before = snapshot()
    with pytest.raises(OperatorError) as refused:
        ensure_forwarding(False, "egress0", tmp_path / "sysctl.json")
    assert str(refused.value) == (
        "the kernel does not forward: net.ipv4.ip_forward, net.ipv6.conf.all.forwarding is not 1; "
        "`sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1` (keep it in /etc/sysctl.d), or [gateway] set_sysctls = true"
    )
    assert changes(before, snapshot()) == {}
    assert list(tmp_path.iterdir()) == []
    tun.close()


@isolated
def test_what_is_right_already_needs_no_permission_and_no_journal(tmp_path: Path) -> None:
    tun = open_tun("egress0", 1420)
    _set_all("1")
    assert ensure_forwarding(False, "egress0", tmp_path / "sysctl.json") == []
    assert list(tmp_path.iterdir()) == []
    restore(tmp_path / "sysctl.json")
    assert _all() == ["1", "1"]
    tun.close()


@isolated
def test_what_we_set_is_restored_with_every_side_effect(tmp_path: Path) -> None:
    uplink()
    _put("ipv4/conf/up0/forwarding", "1")  # a machine that forwards on one interface only, and is hardened
    _put("ipv6/conf/up1/forwarding", "1")
    _put("ipv4/conf/all/accept_redirects", "0")
    before = snapshot()
    tun = open_tun("egress0", 1420)
    remarks = ensure_forwarding(True, "egress0", tmp_path / "sysctl.json")
    assert _all() == ["1", "1"]
    assert remarks[:2] == ["set net.ipv4.ip_forward = 1 (restored on exit)", "set net.ipv6.conf.all.forwarding = 1 (restored on exit)"]
    assert (tmp_path / "sysctl.json").stat().st_mode & 0o777 == 0o600
    tun.close()
    assert "net.ipv4.ip_forward" in restore(tmp_path / "sysctl.json")
    assert changes(before, snapshot()) == {}
    assert list(tmp_path.iterdir()) == []


@isolated
def test_after_a_crash_the_next_start_knows_what_was_there(tmp_path: Path) -> None:
    uplink()
    before = snapshot()
    crash(lambda: _start(tmp_path))
    assert _all() == ["1", "1"]
    tun = open_tun("egress0", 1420)
    ensure_forwarding(True, "egress0", tmp_path / "sysctl.json")
    assert _all() == ["1", "1"]
    tun.close()
    restore(tmp_path / "sysctl.json")
    assert changes(before, snapshot()) == {}


@isolated
def test_after_a_crash_a_start_that_may_not_set_them_restores_and_refuses(tmp_path: Path) -> None:
    crash(lambda: _start(tmp_path))
    tun = open_tun("egress0", 1420)
    with pytest.raises(OperatorError, match="does not forward"):
        ensure_forwarding(False, "egress0", tmp_path / "sysctl.json")
    assert _all() == ["0", "0"]
    tun.close()


@isolated
def test_a_switch_that_cannot_be_set_takes_the_other_back(tmp_path: Path) -> None:
    tun = open_tun("egress0", 1420)
    before = snapshot()
    subprocess.run(["mount", "--bind", "/proc/sys/net/ipv6", "/proc/sys/net/ipv6"], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", "/proc/sys/net/ipv6"], check=True)
    with pytest.raises(OperatorError, match=r"no permission to set net\.ipv6\.conf\.all\.forwarding = 1; .*container"):
        ensure_forwarding(True, "egress0", tmp_path / "sysctl.json")
    assert changes(before, snapshot()) == {}
    assert list(tmp_path.iterdir()) == []
    tun.close()


@isolated
def test_a_journal_of_another_boot_is_dropped_unused(tmp_path: Path) -> None:
    path = tmp_path / "sysctl.json"
    write(path, [("net/ipv4/ip_forward", "0")])
    journal = json.loads(path.read_text())
    path.write_text(json.dumps({**journal, "boot": "another"}))
    _put("ipv4/ip_forward", "1")
    assert restore(path) == []
    assert _all()[0] == "1"
    assert not path.exists()


@isolated
@pytest.mark.parametrize("versions", [frozenset({4}), frozenset({6})])
def test_only_the_versions_in_use_are_touched(tmp_path: Path, versions: frozenset[int]) -> None:
    tun = open_tun("egress0", 1420)
    ensure_forwarding(True, "egress0", tmp_path / "sysctl.json", versions)
    assert _all() == [str(int(version in versions)) for version in (4, 6)]
    tun.close()


@isolated
@pytest.mark.parametrize(("everywhere", "expected"), [("0", "0"), ("1", "2"), ("2", "0")])
def test_replies_may_come_from_anywhere(tmp_path: Path, everywhere: str, expected: str) -> None:
    _put("ipv4/conf/all/rp_filter", everywhere)
    _put("ipv4/conf/default/rp_filter", "1")
    tun = open_tun("egress0", 1420)
    _put("ipv6/conf/egress0/disable_ipv6", "1")
    _set_all("1")
    ensure_forwarding(False, "egress0", tmp_path / "sysctl.json")
    assert _got("ipv4/conf/egress0/rp_filter") == expected
    assert _got("ipv6/conf/egress0/disable_ipv6") == "0"
    tun.close()


@isolated
def test_an_interface_that_listens_to_router_advertisements_is_mentioned(tmp_path: Path) -> None:
    uplink()
    _put("ipv6/conf/up1/accept_ra", "2")
    tun = open_tun("egress0", 1420)
    remarks = ensure_forwarding(True, "egress0", tmp_path / "sysctl.json")
    assert [remark.split()[0] for remark in remarks if "router advertisements" in remark] == ["up0"]
    tun.close()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 1}', '"x"', "\x00"], ids=range(7))
def test_a_damaged_journal_is_told_and_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sysctl.json"
    path.write_text(text)
    with pytest.raises(OperatorError, match="is damaged"):
        restore(path)
    assert path.read_text() == text


@pytest.mark.parametrize("key", ["kernel/core_pattern", "net/../kernel/core_pattern", "/etc/passwd"])
def test_a_journal_cannot_make_us_write_elsewhere(tmp_path: Path, key: str) -> None:
    write(tmp_path / "sysctl.json", [(key, "x")])
    with pytest.raises(OperatorError, match="no sysctl of ours"):
        restore(tmp_path / "sysctl.json")


def test_a_journal_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="state_dir"):
        write(tmp_path / "missing" / "sysctl.json", [])
    assert read(tmp_path / "missing" / "sysctl.json") == []


def _start(directory: Path) -> None:
    open_tun("egress0", 1420)
    ensure_forwarding(True, "egress0", directory / "sysctl.json")


def _set_all(value: str) -> None:
    for key in BOTH:
        _put(key, value)


def _all() -> list[str]:
    return [_got(key) for key in BOTH]


def _put(key: str, value: str) -> None:
    (PROC / key).write_text(value)


def _got(key: str) -> str:
    return (PROC / key).read_text().strip()
