"""`init` and `check`, and what every command has in common."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from egressvpn import __version__
from egressvpn.control.config import load, load_private_key
from egressvpn.control.keys import encode_key, public_key_of
from tests.cli.conftest import Run, read_json


def test_init_writes_a_configuration_that_check_accepts(run: Run, home: Path) -> None:
    checked = run("check")
    assert checked.exit_code == 0
    assert "OK  configuration" in checked.output
    config = load(home / "gateway.toml")
    assert config.gateway.set_sysctls
    assert config.state_dir == home / "state"
    assert config.api_sockets == (home / "api.sock",)
    assert [str(network) for network in config.pools[0].addresses] == ["203.0.113.0/28", "2001:db8:113::/64"]
    assert [str(network) for network in config.tunnel.networks] == ["100.64.0.0/16", "fd64::/64"]


def test_init_keeps_everything_private(home: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (home, *home.iterdir())}
    assert modes == {"gw": 0o700, "gateway.toml": 0o600, "gateway.key": 0o600, "state": 0o700}


def test_init_shows_the_public_key_and_not_the_private_one(bare: Run, tmp_path: Path) -> None:
    made = bare("init", "--pool", "203.0.113.0/28", "--dir", str(tmp_path / "x"))
    private = load_private_key(load(tmp_path / "x" / "gateway.toml"))
    assert encode_key(public_key_of(private)) in made.output
    assert encode_key(private) not in made.output


def test_init_takes_what_it_is_told(bare: Run, tmp_path: Path) -> None:
    options = ["--pool", "203.0.113.0/28", "--network", "10.9.0.0/24", "--listen", "192.0.2.1:443", "--listen", "[2001:db8::1]:443"]
    made = bare("-o", "json", "init", *options, "--endpoint", "vpn.example.net:443", "--dir", str(tmp_path / "x"))
    assert read_json(made)["config"] == str(tmp_path / "x" / "gateway.toml")
    config = load(tmp_path / "x" / "gateway.toml")
    assert [str(at) for at in config.wireguard.listen] == ["192.0.2.1:443", "[2001:db8::1]:443"]
    assert str(config.wireguard.endpoint) == "vpn.example.net:443"
    assert [str(network) for network in config.tunnel.networks] == ["10.9.0.0/24"]


def test_init_does_not_overwrite_unless_forced(bare: Run, home: Path) -> None:
    before = (home / "gateway.key").read_text()
    again = ["init", "--pool", "203.0.113.0/28", "--dir", str(home)]
    refused = bare(*again)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "is there already; choose another --dir, or overwrite it with --force" in refused.stderr
    assert (home / "gateway.key").read_text() == before
    assert bare(*again, "--force").exit_code == 0
    assert (home / "gateway.key").read_text() != before


def test_init_refuses_nonsense_before_anything_is_written(bare: Run, tmp_path: Path) -> None:
    refused = bare("init", "--pool", "203.0.113.1/28", "--dir", str(tmp_path / "x"))
    assert refused.exit_code == 1
    assert 'write "203.0.113.0/28"' in refused.stderr
    assert not (tmp_path / "x").exists()


def test_a_quote_in_an_option_cannot_smuggle_a_key_into_the_file(bare: Run, tmp_path: Path) -> None:
    refused = bare("init", "--pool", "203.0.113.0/28", "--endpoint", 'x:1"\nmtu = 1300 #', "--dir", str(tmp_path / "x"))
    assert refused.exit_code == 1
    assert not (tmp_path / "x").exists()


def test_init_needs_a_pool(bare: Run, tmp_path: Path) -> None:
    assert bare("init", "--dir", str(tmp_path)).exit_code == 2


def test_check_names_every_problem_on_a_line_of_its_own(run: Run, home: Path) -> None:
    path = home / "gateway.toml"
    path.write_text(path.read_text().replace("[tunnel]", "mtu = 5\n[tunnel]").replace("listen =", "lissten =", 1))
    refused = run("check")
    assert refused.exit_code == 1
    lines = refused.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"egressvpn: {path}:") for line in lines)
    assert "wireguard.lissten: unknown key; did you mean listen?" in lines[0]
    document = read_json(run("check", "-o", "json"))
    assert not document["ok"]
    assert [problem["key"] for problem in document["problems"]] == ["wireguard.lissten", "wireguard.mtu"]


def test_check_refuses_a_key_that_others_may_read(run: Run, home: Path) -> None:
    (home / "gateway.key").chmod(0o644)
    refused = run("check")
    assert refused.exit_code == 1
    assert f"chmod 600 {home / 'gateway.key'}" in refused.stderr


def test_check_in_json_tells_the_notes(run: Run) -> None:
    document = read_json(run("check", "-o", "json"))
    assert document["ok"]
    assert any("wireguard.listen takes every local address" in note for note in document["notes"])


def test_without_a_configuration_the_mend_is_init(bare: Run, tmp_path: Path) -> None:
    refused = bare("--config", str(tmp_path / "none.toml"), "check")
    assert refused.exit_code == 1
    assert "egressvpn init" in refused.stderr


def test_the_option_wins_over_the_environment(run: Run, tmp_path: Path) -> None:
    assert run("--config", str(tmp_path / "none.toml"), "check").exit_code == 1


def test_the_version(bare: Run) -> None:
    assert bare("--version").stdout == f"egressvpn, version {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["peer", "add"], ["-o", "yaml", "check"], ["flows", "--limit", "0"], ["check", "extra"]]
)
def test_wrong_usage_exits_2(run: Run, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell: str) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "egressvpn"],
        env={**os.environ, "_EGRESSVPN_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "egressvpn" in made.stdout


def test_devices_names_are_completed(run: Run, home: Path) -> None:
    for name in ("phone", "laptop"):
        assert run("peer", "add", name).exit_code == 0
    environment = {**os.environ, "_EGRESSVPN_COMPLETE": "bash_complete", "COMP_WORDS": "egressvpn peer show p", "COMP_CWORD": "3"}
    made = subprocess.run([sys.executable, "-m", "egressvpn"], env=environment, capture_output=True, text=True, check=True)
    assert made.stdout == "plain,phone\n"


def test_the_command_line_starts_without_what_it_does_not_need() -> None:
    program = "import sys, egressvpn.cli; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numba", "numpy", "httpx", "rich", "segno", "alembic", "sqlalchemy", "starlette", "hypercorn", "trio"} & set(loaded)


def test_up_refuses_in_one_line_without_a_traceback(bare: Run, tmp_path: Path) -> None:
    refused = bare("--config", str(tmp_path / "none.toml"), "up")
    assert refused.exit_code == 1
    assert len(refused.stderr.splitlines()) == 1
