"""gateway.toml: every refusal names file, line, key and mend."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressvpn.control.checks import deterministic
from egressvpn.control.config import ConfigError, key_lines, load, load_private_key, parse
from egressvpn.control.keys import decode_key, encode_key, new_private_key, public_key_of
from egressvpn.control.problems import Problem
from egressvpn.control.schema import Config
from egressvpn.errors import OperatorError

POOL = '[[pool]]\nname = "default"\naddresses = ["203.0.113.0/28"]\n'
HERE = Path("/etc/egressvpn/gateway.toml")


def test_a_pool_is_all_that_must_be_written() -> None:
    config = parse(POOL, HERE)
    assert config.gateway.name == "gateway"
    assert config.wireguard.max_devices == 16_384
    assert not config.gateway.set_sysctls
    assert config.metrics.max_peers == 100
    assert [str(network) for network in config.tunnel.networks] == ["100.64.0.0/16", "fd64::/64"]
    assert config.nat.timeouts.tcp_established == 7440
    assert str(config.pools[0].ports) == "1024-65535"


def test_opening_and_closing_connections_have_the_transitory_timeout_unless_said() -> None:
    timeouts = parse('[nat.timeouts]\ntcp_transitory = "300s"\ntcp_opening = "30s"\n' + POOL, HERE).nat.timeouts
    assert (timeouts.opening, timeouts.closing) == (30, 300)


def test_a_deterministic_pool_takes_the_first_ipv4_network_of_the_tunnel_unless_said() -> None:
    whole = parse(POOL + 'allocation = "deterministic"\n[tunnel]\nnetworks = ["fd64::/64", "100.64.0.0/22"]\n', HERE)
    assert [str(plan.inside) for pool in whole.pools if (plan := deterministic(pool, whole))] == ["100.64.0.0/22"]
    part = parse(POOL + 'allocation = "deterministic"\ninside = "100.64.4.0/24"\n', HERE)
    plan = deterministic(part.pools[0], part)
    assert plan is not None
    assert (plan.compression, plan.ports_per_user) == (16, 64_512 // 18)


def test_relative_paths_start_at_the_file() -> None:
    config = parse('[gateway]\nstate_dir = "state"\n[api]\nlisten = ["unix:api.sock"]\n' + POOL, Path("/srv/gw/gateway.toml"))
    assert config.state_dir == Path("/srv/gw/state")
    assert config.api_sockets == (Path("/srv/gw/api.sock"),)
    assert config.private_key_path == Path("/srv/gw/gateway.key")


def test_the_default_paths_are_absolute() -> None:
    config = parse(POOL, Path("/srv/gw/gateway.toml"))
    assert config.state_dir == Path("/var/lib/egressvpn")
    assert config.api_sockets == (Path("/run/egressvpn/api.sock"),)


REFUSED = [
    ("[wireguard]\nmtuu = 1420\n", 2, "wireguard.mtuu", "unknown key", "did you mean mtu?"),
    ("[wireguard]\nmtu = 1279\n", 2, "wireguard.mtu", "1279 is not accepted", "1280"),
    ("[wireguard]\nmtu = 65536\n", 2, "wireguard.mtu", "65536", "65535"),
    ('[wireguard]\nmtu = "1420"\n', 2, "wireguard.mtu", "'1420'", "1280"),
    ("[wireguard]\nmax_devices = 0\n", 2, "wireguard.max_devices", "0", "1 to"),
    ("[wireguard]\nlisten = []\n", 2, "wireguard.listen", "nothing to listen on", "0.0.0.0:51820"),
    ('[wireguard]\nlisten = [\n  "0.0.0.0:1",\n  "x",\n]\n', 2, "wireguard.listen", "'x'", "0.0.0.0:51820"),
    ('[wireguard]\nlisten = "0.0.0.0:1"\n', 2, "wireguard.listen", "not an array", "square brackets"),
    ("[wireguards]\n", 1, "wireguards", "unknown key", "did you mean wireguard?"),
    ("wireguard = 5\n", 1, "wireguard", "not a table", "[wireguard]"),
    ("[gateway]\nset_sysctls = 1\n", 2, "gateway.set_sysctls", "1 is not accepted", "true or false"),
    ("[gateway]\nname = 'a b'\n", 2, "gateway.name", "'a b'", "1 to 63"),
    ('[tunnel]\ninterface = "a/b"\n', 2, "tunnel.interface", "'a/b'", "1 to 15"),
    ('[tunnel]\ninterface = "sixteencharacter"\n', 2, "tunnel.interface", "sixteen", "1 to 15"),
    ("[tunnel]\nnetworks = []\n", 2, "tunnel.networks", "no networks", "100.64.0.0/16"),
    ('[tunnel]\nnetworks = ["100.64.0.0/31"]\n', 2, "tunnel.networks", "no room", "/30"),
    ('[tunnel]\nnetworks = ["100.64.0.1/16"]\n', 2, "tunnel.networks", "host bits", '"100.64.0.0/16"'),
    ('[tunnel]\nnetworks = ["224.0.0.0/8"]\n', 2, "tunnel.networks", "not for devices", "fd64::/64"),
    ('[tunnel]\nnetworks = ["100.64.0.0/16", "100.64.8.0/24"]\n', 2, "tunnel.networks", "overlaps 100.64.0.0/16 of the tunnel", "disjoint"),
    ('[nat]\nfiltering = "none"\n', 2, "nat.filtering", "'none'", '"address-dependent"'),
    ('[nat.timeouts]\nudp = "119s"\n', 2, "nat.timeouts.udp", "119s is below the 120s of RFC 4787", '"120s"'),
    ('[nat.timeouts]\ntcp_established = "2h"\n', 2, "nat.timeouts.tcp_established", "RFC 5382", '"7440s"'),
    ('[nat.timeouts]\ntcp_transitory = "3m"\n', 2, "nat.timeouts.tcp_transitory", "RFC 5382", '"240s"'),
    ('[nat.timeouts]\ntcp_opening = "5s"\n', 2, "nat.timeouts.tcp_opening", "RFC 5382 REQ-4", '"6s"'),
    ('[nat.timeouts]\ntcp_closing = "3m"\n', 2, "nat.timeouts.tcp_closing", "RFC 5382 REQ-5", '"240s"'),
    ('[nat.timeouts]\nudp = "8d"\n', 2, "nat.timeouts.udp", "more than the data path can measure", '"7d"'),
    ('[nat.timeouts]\ntcp_transitory = "8d"\n', 2, "nat.timeouts.tcp_transitory", "more than", '"7d"'),
    ("[nat.timeouts]\nicmp = 59\n", 2, "nat.timeouts.icmp", "RFC 5508", '"60s"'),
    ('[nat]\ntimeouts.icmp = "5"\n', 2, "nat.timeouts.icmp", "not a duration", "300s"),
    ('[nat]\nhold_down = "1w"\n', 2, "nat.hold_down", "'1w'", "7d"),
    ("[nat]\nmax_flows_per_device = 0\n", 2, "nat.max_flows_per_device", "0", "1 to"),
    ("[nat]\nmapping_rate = -1\n", 2, "nat.mapping_rate", "-1", "0 (no limit)"),
    ('[nat]\nexempt = ["203.0.113.8/29"]\n', 2, "nat.exempt", "overlaps 203.0.113.0/28, a network of this gateway", "take it out"),
    ('[nat]\nexempt = ["0.0.0.0/0"]\n', 2, "nat.exempt", "cannot be exempt", "name the networks"),
    (f"[nat]\nexempt = {[f'10.{n >> 8}.{n & 255}.0/24' for n in range(1001)]}\n", 2, "nat.exempt", "1001 networks", "merge"),
    (f"[policy]\ndeny = {[f'10.{n >> 8}.{n & 255}.0/24' for n in range(4001)]}\n", 2, "policy.deny", "4001 networks", "merge"),
    ('[policy]\ndeny = ["10.0.0.0/33"]\n', 2, "policy.deny", "not a network", "CIDR"),
    ('[api]\nlisten = ["192.0.2.1:8080"]\n', 2, "api.listen", "no TLS", "127.0.0.1"),
    ('[api]\nlisten = ["0.0.0.0:8080"]\n', 2, "api.listen", "no TLS", "127.0.0.1"),
    ("[api]\nlisten = []\n", 2, "api.listen", "nothing to listen on", "unix:"),
    ('[api]\ntls_cert_file = "x"\n', 1, "api", "TLS needs both files", "tls_key_file"),
    ('[metrics]\nlisten = "9586"\n', 2, "metrics.listen", "has no port", "0.0.0.0"),
    ("[metrics]\nmax_peers = -1\n", 2, "metrics.max_peers", "-1", "0 (none)"),
    ('[store]\nurl = "mysql://x"\n', 2, "store.url", "not a store", "sqlite:///"),
    ('[store]\nurl = "postgresql+psycopg://x"\n', 2, "store.url", "PostgreSQL", "sqlite:///"),
    ('[log]\nlevel = "loud"\n', 2, "log.level", "'loud'", '"debug"'),
    ('[log]\nnat_log = "../x"\n', 2, "log.nat_log", "'../x'", "without a slash"),
    ("[dataplane]\nworkers = 65\n", 2, "dataplane.workers", "65", "64"),
]


@pytest.mark.parametrize(("text", "line", "key", "what", "mend"), REFUSED, ids=[f"{row[2]}-{number}" for number, row in enumerate(REFUSED)])
def test_what_is_wrong_is_refused_with_line_key_and_mend(text: str, line: int, key: str, what: str, mend: str) -> None:
    problem = the_problem(text + POOL)
    assert (problem.file, problem.line, problem.key) == (HERE, line, key)
    assert what in problem.what
    assert mend in problem.mend


POOLS_REFUSED = [
    ("", 0, "pool", "no egress pool", "[[pool]]"),
    ('[pool]\nname = "x"\n', 1, "pool", "no egress pool", "[[pool]]"),
    ('[[pool]]\nname = "x"\n', 1, "pool[0]", "addresses is missing", "add addresses"),
    ('[[pool]]\naddresses = ["203.0.113.0/28"]\n', 1, "pool[0]", "name is missing", "add name"),
    ('[[pool]]\nname = "x"\naddresses = []\n', 3, "pool[0].addresses", "no addresses", "203.0.113.0/28"),
    ('[[pool]]\nname = "x"\naddresses = ["224.0.0.0/24"]\n', 3, "pool[0].addresses", "cannot be an egress address", "unicast"),
    ('[[pool]]\nname = "x"\naddresses = ["198.0.0.0/19", "2001:db8::/32"]\n', 3, "pool[0].addresses", "more than 4096", "smaller"),
    (POOL + 'ports = "80-443"\n', 4, "pool[0].ports", "port 80 is below 1024", "1024 or above"),
    (POOL + 'ports = "5000-4000"\n', 4, "pool[0].ports", "begins above its end", '"4000-5000"'),
    (POOL + 'ports = "4000-4100"\n', 1, "pool[0].block_size", "256 ports do not fit", "101"),
    (POOL + "block_size = 7\n", 4, "pool[0].block_size", "7", "8 to 64512"),
    (POOL + "max_blocks = 257\n", 4, "pool[0].max_blocks", "257", "1 to 256"),
    (POOL + 'allocation = "static"\n', 4, "pool[0].allocation", "'static'", '"deterministic"'),
    (
        POOL.replace("/28", "/30") + 'allocation = "deterministic"\n',
        4,
        "pool[0].allocation",
        "3 ports for each of",
        "fewer inside addresses",
    ),
    (POOL + 'allocation = "deterministic"\ninside = "10.0.0.0/24"\n', 5, "pool[0].inside", "10.0.0.0/24 is not in", "tunnel.networks"),
    (POOL.replace("203.0.113.0/28", "2001:db8::/64") + 'allocation = "deterministic"\n', 4, "pool[0].allocation", "no outside", "fewer"),
    (POOL + 'country = "Portugal"\n', 4, "pool[0].country", "'Portugal'", "two capital letters"),
    (POOL + POOL.replace("113.0", "113.16"), 5, "pool[1].name", 'two pools named "default"', "a name of its own"),
    (POOL + POOL.replace("default", "b"), 6, "pool[1].addresses", 'overlaps 203.0.113.0/28 of pool "default"', "disjoint"),
    (POOL + '[tunnel]\nnetworks = ["203.0.0.0/16"]\n', 3, "pool[0].addresses", "overlaps 203.0.0.0/16 of the tunnel", "disjoint"),
    (POOL + '[wireguard]\nlisten = ["203.0.113.5:51820"]\n', 5, "wireguard.listen", "CVE-2021-3773", "outside every pool"),
    (POOL + '[wireguard]\nendpoint = "203.0.113.5:51820"\n', 5, "wireguard.endpoint", "CVE-2021-3773", "outside every pool"),
    (POOL + '[metrics]\nlisten = "203.0.113.5:9586"\n', 5, "metrics.listen", "CVE-2021-3773", "outside every pool"),
]


@pytest.mark.parametrize(("text", "line", "key", "what", "mend"), POOLS_REFUSED, ids=[str(number) for number in range(len(POOLS_REFUSED))])
def test_pools_that_cannot_work_are_refused(text: str, line: int, key: str, what: str, mend: str) -> None:
    problem = the_problem(text)
    assert (problem.line, problem.key) == (line, key)
    assert what in problem.what
    assert mend in problem.mend


def test_several_problems_are_reported_together_in_the_order_of_the_file() -> None:
    with pytest.raises(ConfigError) as refused:
        parse(POOL + 'ports = "1-2"\n[wireguard]\nmtu = 1\n[nat]\nmax_flow = 5\n', HERE)
    assert [problem.key for problem in refused.value.problems] == ["pool[0].ports", "wireguard.mtu", "nat.max_flow"]
    assert str(refused.value).splitlines()[1].startswith(f"{HERE}:6: wireguard.mtu: 1 is not accepted; use 1280")


def test_a_syntax_error_is_refused_with_its_line() -> None:
    problem = the_problem("[gateway]\nname = lis1\n")
    assert (problem.line, problem.key) == (2, "")


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="egressvpn init"):
        load(tmp_path / "gateway.toml")


def test_a_file_that_is_not_text_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_bytes(b"# fine\n\xff\xfe")
    with pytest.raises(ConfigError, match=r"gateway.toml:2: not UTF-8"):
        load(path)


def test_a_directory_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path)


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_bytes(b"#" * 2_000_000)
    with pytest.raises(ConfigError, match="larger than"):
        load(path)


def test_tls_lets_the_api_leave_loopback(tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).touch()
    text = '[api]\nlisten = ["0.0.0.0:8443"]\ntls_cert_file = "cert.pem"\ntls_key_file = "key.pem"\n' + POOL
    assert parse(text, tmp_path / "gateway.toml").tls_files == (tmp_path / "cert.pem", tmp_path / "key.pem")


def test_tls_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        parse('[api]\ntls_cert_file = "cert.pem"\ntls_key_file = "key.pem"\n' + POOL, tmp_path / "gateway.toml")


SCALARS = st.one_of(st.integers(), st.text(max_size=5), st.booleans(), st.floats())
SOME_KEYS = st.sampled_from(["name", "mtu", "listen", "timeouts", "udp", "y"])
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(SOME_KEYS, inner, max_size=3), max_leaves=6)


@given(st.dictionaries(st.sampled_from(["gateway", "wireguard", "tunnel", "nat", "api", "x"]), VALUES))
def test_no_document_makes_the_reader_fail_otherwise(document: dict[str, Any]) -> None:
    from egressvpn.control.config import _Reader

    reader = _Reader()
    config = reader.config({**document, "pool": [{"name": "a", "addresses": ["203.0.113.0/28"]}]}, HERE)
    assert (config is None) == bool(reader.found)


def test_every_key_has_its_line() -> None:
    text = 'top = 1\n[a]\nx = [ # [\n  "=", "]"\n]\ny = "[[b]]"\n\n[[p]]\nn = 1\n[[p]]\nn = {k = 2}\n[a.b]\n"q" = 1\nr.s = 5\n'
    assert tomllib.loads(text)
    found = key_lines(text)
    assert found[("top",)] == 1
    assert found[("a", "y")] == 6
    assert found[("p", 0, "n")] == 9
    assert found[("p", 1, "n")] == 11
    assert found[("a", "b", "q")] == 13
    assert found[("a", "b", "r", "s")] == 14


@pytest.fixture
def keyed(tmp_path: Path) -> Config:
    path = tmp_path / "gateway.toml"
    path.write_text(POOL)
    return load(path)


def write_key(config: Config, content: str, mode: int = 0o600) -> None:
    config.private_key_path.write_text(content)
    config.private_key_path.chmod(mode)


def test_the_private_key_is_read(keyed: Config) -> None:
    key = new_private_key()
    write_key(keyed, encode_key(key) + "\n")
    assert load_private_key(keyed) == key


def test_a_missing_private_key_says_how_to_make_one(keyed: Config) -> None:
    with pytest.raises(ConfigError, match="wg genkey"):
        load_private_key(keyed)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_private_key_open_to_others_is_refused(keyed: Config, mode: int) -> None:
    write_key(keyed, encode_key(new_private_key()), mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_private_key(keyed)


@pytest.mark.parametrize("content", ["", "x", "A" * 43 + "=", "A" * 44, "ä" * 44, encode_key(bytes(range(31))), "!" * 44])
def test_what_is_no_private_key_is_refused_and_not_shown(keyed: Config, content: str) -> None:
    write_key(keyed, content)
    with pytest.raises(ConfigError, match="not a WireGuard key") as refused:
        load_private_key(keyed)
    assert len(content) < 10 or content not in str(refused.value)


def test_a_config_error_is_an_operator_error() -> None:
    assert issubclass(ConfigError, OperatorError)


def test_fresh_keys_are_clamped() -> None:
    key = new_private_key()
    assert (key[0] & 7, key[31] & 192) == (0, 64)
    assert decode_key(encode_key(key)) == key


def test_public_keys_are_those_that_wg_pubkey_computes() -> None:
    assert encode_key(public_key_of(bytes(range(32)))) == "j0DFrbaPJWJK5bIU6nZ6bslNgp09e14a0bpvPiE4KF8="


def the_problem(text: str) -> Problem:
    with pytest.raises(ConfigError) as refused:
        parse(text, HERE)
    assert len(refused.value.problems) == 1, str(refused.value)
    return refused.value.problems[0]
