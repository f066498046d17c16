"""`peer`: what operators do with devices, on a real store."""

import configparser
import io
import stat
from ipaddress import ip_network
from pathlib import Path

import pytest

from egressvpn.cli import peer
from egressvpn.control.config import load, load_private_key
from egressvpn.control.keys import decode_key, encode_key, public_key_of
from egressvpn.control.store import PeerChange, open_store
from tests.cli.conftest import Run, read_json

KEY = encode_key(bytes(range(1, 33)))


def wg_quick(text: str) -> configparser.ConfigParser:
    read = configparser.ConfigParser()
    read.optionxform = str  # type: ignore[assignment, method-assign]
    read.read_string(text)
    return read


def test_add_prints_a_file_whose_private_key_is_the_devices(run: Run, home: Path) -> None:
    added = run("peer", "add", "phone", "--psk")
    assert (added.exit_code, added.stderr) == (0, "")
    file = wg_quick(added.stdout)
    private = decode_key(file["Interface"]["PrivateKey"])
    assert private is not None
    shown = read_json(run("peer", "show", "phone", "-o", "json"))
    assert shown["public_key"] == encode_key(public_key_of(private))
    assert shown["preshared_key"] is True
    assert shown["addresses"] == ["100.64.0.2/32", "fd64::2/128"]
    assert file["Peer"]["PublicKey"] == encode_key(public_key_of(load_private_key(load(home / "gateway.toml"))))
    assert file["Peer"]["Endpoint"] == "192.0.2.1:51820"


def test_the_devices_private_key_is_kept_nowhere(run: Run, home: Path) -> None:
    private = wg_quick(run("peer", "add", "phone").stdout)["Interface"]["PrivateKey"]
    for path in home.rglob("*"):
        if path.is_file():
            octets = path.read_bytes()
            assert private.encode() not in octets
            assert decode_key(private) not in octets  # type: ignore[operator]


def test_add_writes_the_file_for_its_owner_only_and_does_not_overwrite(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "phone.conf"
    added = run("peer", "add", "phone", "--conf", str(target))
    assert (added.exit_code, added.stdout) == (0, "")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert "PrivateKey" in wg_quick(target.read_text())["Interface"]
    refused = run("peer", "add", "tv", "--conf", str(target))
    assert refused.exit_code == 1
    assert "--force" in refused.stderr
    assert [item["name"] for item in read_json(run("peer", "list", "-o", "json"))["items"]] == ["phone"]
    assert run("peer", "add", "tv", "--conf", str(target), "--force").exit_code == 0
    assert "# tv" in target.read_text()


def test_a_file_that_cannot_be_written_leaves_no_device(run: Run, tmp_path: Path) -> None:
    assert run("peer", "add", "phone", "--conf", str(tmp_path / "none" / "x.conf")).exit_code == 1
    assert run("peer", "add", "phone", "--conf", "/proc/x.conf").exit_code == 1
    assert read_json(run("peer", "list", "-o", "json"))["items"] == []


def test_with_its_own_key_the_device_gets_a_file_without_one(run: Run) -> None:
    added = run("peer", "add", "phone", "--public-key", KEY)
    assert added.exit_code == 0
    assert "# PrivateKey = " in added.stdout
    assert "PrivateKey" not in wg_quick(added.stdout)["Interface"]
    assert read_json(run("peer", "show", "phone", "-o", "json"))["public_key"] == KEY


def test_one_key_is_for_one_device(run: Run) -> None:
    run("peer", "add", "phone", "--public-key", KEY)
    refused = run("peer", "add", "tv", "--public-key", KEY)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "device phone has this public key already" in refused.stderr


@pytest.mark.parametrize("key", ["nonsense", "", KEY[:-1], "@" * 44])
def test_what_is_no_key_is_refused(run: Run, key: str) -> None:
    refused = run("peer", "add", "phone", f"--public-key={key}")
    assert refused.exit_code == 1
    assert "44 characters of base64" in refused.stderr
    assert read_json(run("peer", "list", "-o", "json"))["items"] == []


def test_the_gateways_own_key_is_refused(run: Run, home: Path) -> None:
    own = encode_key(public_key_of(load_private_key(load(home / "gateway.toml"))))
    assert "gateway's own public key" in run("peer", "add", "phone", "--public-key", own).stderr


@pytest.mark.parametrize("name", ["Phone", "a b", "../x", "x" * 64])
def test_bad_names_are_refused(run: Run, name: str) -> None:
    refused = run("peer", "add", name)
    assert refused.exit_code == 1
    assert "1 to 63 of a-z 0-9 . _ -" in refused.stderr


def test_a_qr_code_holds_the_complete_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(peer, "_draw", drawn.append)
    added = run("peer", "add", "phone", "--qr")
    assert added.stdout == ""
    assert "PrivateKey" in wg_quick(drawn[0])["Interface"]


def test_a_qr_code_is_drawn_and_fits_a_terminal(run: Run) -> None:
    added = run("peer", "add", "phone", "--qr", "--psk")
    lines = added.stdout.splitlines()
    assert added.exit_code == 0
    assert 30 <= len(lines) <= 42
    assert max(map(len, lines)) <= 80
    assert set("".join(lines)) <= set("█▀▄ ")


def test_without_an_endpoint_no_device_is_added(bare: Run, tmp_path: Path) -> None:
    config = str(tmp_path / "x" / "gateway.toml")
    bare("init", "--pool", "203.0.113.0/28", "--dir", str(tmp_path / "x"))
    refused = bare("--config", config, "peer", "add", "phone")
    assert refused.exit_code == 1
    assert f'add endpoint = "HOST:PORT" under [wireguard] in {config}' in refused.stderr
    assert read_json(bare("--config", config, "-o", "json", "peer", "list"))["items"] == []


def test_list_shows_devices_in_table_and_json_whichever_side_the_option_is_on(run: Run) -> None:
    run("peer", "add", "phone", "--tag", "b", "--tag", "a")
    run("peer", "add", "tv")
    table = run("peer", "list").stdout.splitlines()
    assert table[0].split() == ["NAME", "ENABLED", "ALLOWED", "IPS", "ENDPOINT", "POOL", "TAGS", "PUBLIC", "KEY"]
    assert table[1].startswith("phone  yes      100.64.0.2, fd64::2  –         default  a, b")
    before, after = run("-o", "json", "peer", "list"), run("peer", "list", "-o", "json")
    assert before.stdout == after.stdout
    assert [(item["name"], item["tags"]) for item in read_json(after)["items"]] == [("phone", ["a", "b"]), ("tv", [])]


def test_what_a_tool_has_set_is_shown(run: Run, home: Path) -> None:
    run("peer", "add", "phone", "--public-key", KEY)
    networks = tuple((True, ip_network(f"10.{number}.0.0/16")) for number in range(20))
    config = load(home / "gateway.toml")
    with open_store(config.store.url, config.state_dir) as store:
        change = PeerChange(bytes(range(1, 33)), endpoint="192.0.2.7:9", persistent_keepalive=25, allowed_ips=networks)
        store.apply([change, PeerChange(b"x" * 32)], pool="default", limit=9, now=0)
    listed = run("peer", "list").stdout
    assert (
        "100.64.0.2, fd64::2, 10.0.0.0/16, 10.1.0.0/16, 10.2.0.0/16, 10.3.0.0/16, 10.4.0.0/16, 10.5.0.0/16, and 14 more  192.0.2.7:9"
        in listed
    )
    assert "wg-7878787878787878  yes" in listed
    shown = read_json(run("peer", "show", "phone", "-o", "json"))
    assert shown["addresses"] == ["100.64.0.2/32", "fd64::2/128"]
    assert (len(shown["allowed_ips"]), shown["allowed_ips"][-1]) == (22, "10.19.0.0/16")
    assert (shown["endpoint"], shown["persistent_keepalive"]) == ("192.0.2.7:9", 25)
    assert "192.0.2.7:9" in run("peer", "show", "phone").stdout


def test_an_empty_list_says_what_to_do_on_stderr(run: Run) -> None:
    empty = run("peer", "list")
    assert (empty.exit_code, empty.stdout) == (0, "")
    assert "peer add" in empty.stderr


def test_disable_enable_and_remove(run: Run) -> None:
    run("peer", "add", "phone")
    assert run("peer", "disable", "phone").stdout == "disabled phone\n"
    assert read_json(run("peer", "show", "phone", "-o", "json"))["enabled"] is False
    assert read_json(run("peer", "enable", "phone", "-o", "json"))["enabled"] is True
    assert run("peer", "remove", "phone").stdout == "removed phone\n"
    assert run("peer", "show", "phone").exit_code == 1


def test_show_tells_everything_but_secrets(run: Run) -> None:
    added = wg_quick(run("peer", "add", "phone", "--psk").stdout)
    shown = run("peer", "show", "phone").stdout
    assert "100.64.0.2/32, fd64::2/128" in shown
    assert added["Peer"]["PresharedKey"] not in shown
    assert added["Peer"]["PresharedKey"] not in run("-o", "json", "peer", "show", "phone").stdout


def test_config_repeats_the_file_without_the_private_key(run: Run) -> None:
    added, again = wg_quick(run("peer", "add", "phone", "--psk").stdout), run("peer", "config", "phone")
    assert again.exit_code == 0
    assert dict(wg_quick(again.stdout)["Peer"]) == dict(added["Peer"])
    assert "PrivateKey" not in wg_quick(again.stdout)["Interface"]
    coded = run("peer", "config", "phone", "--qr")
    assert "no private key" in coded.stderr


@pytest.mark.parametrize("verb", ["show", "remove", "enable", "disable", "config"])
def test_an_unknown_device_is_refused_in_one_line(run: Run, verb: str) -> None:
    refused = run("peer", verb, "nobody")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr == "egressvpn: there is no device named nobody; `egressvpn peer list` shows the names\n"


def test_an_unknown_pool_is_refused_with_the_known_ones(run: Run) -> None:
    assert "the configuration has: default" in run("peer", "add", "phone", "--pool", "mars").stderr


def test_json_of_add_carries_the_file(run: Run) -> None:
    added = read_json(run("peer", "add", "phone", "-o", "json"))
    assert added["name"] == "phone"
    assert "PrivateKey" in wg_quick(added["configuration"])["Interface"]
    assert io.StringIO(added["configuration"]).readline() == "[Interface]\n"
