"""What an operator is told before starting a gateway that is allowed, but perhaps not meant."""

from pathlib import Path

from egressvpn.control.checks import notes
from egressvpn.control.config import parse

POOL = '[[pool]]\nname = "default"\naddresses = ["203.0.113.0/28", "2001:db8:113::/64"]\n'
QUIET = '[wireguard]\nlisten = ["192.0.2.1:51820"]\nendpoint = "192.0.2.1:51820"\n'


def noted(text: str) -> str:
    return "\n".join(notes(parse(text, Path("/etc/egressvpn/gateway.toml"))))


def test_an_explicit_configuration_has_no_notes() -> None:
    assert noted(QUIET + POOL) == ""


def test_listening_everywhere_is_noted_with_the_pools() -> None:
    assert "none of 203.0.113.0/28, 2001:db8:113::/64 may be an address of this machine" in noted(POOL)


def test_a_missing_endpoint_is_noted() -> None:
    assert "endpoint is not set" in noted(POOL)


def test_a_resolver_that_the_policy_denies_is_noted() -> None:
    assert "10.0.0.53 is denied" in noted(QUIET + '[tunnel]\ndns = ["10.0.0.53"]\n' + POOL)


def test_a_pool_without_a_family_of_the_tunnel_is_noted() -> None:
    assert "pool default has no IPv6 addresses" in noted(QUIET + POOL.replace(', "2001:db8:113::/64"', ""))


def test_metrics_for_everyone_are_noted() -> None:
    assert "readable by everyone" in noted(QUIET + '[metrics]\nlisten = "0.0.0.0:9586"\n' + POOL)


def test_an_exempt_destination_that_is_denied_is_noted() -> None:
    assert noted(QUIET + '[nat]\nexempt = ["10.1.0.0/16"]\n' + POOL) == ""  # the longer prefix decides
    assert "nat.exempt 10.0.0.0/8 is denied" in noted(QUIET + '[nat]\nexempt = ["10.0.0.0/8"]\n' + POOL)


def test_a_gateway_without_a_nat_log_is_noted() -> None:
    assert "log.nat_log is off" in noted(QUIET + '[log]\nnat_log = ""\n' + POOL)


def test_keys_without_effect_yet_are_noted_when_set() -> None:
    text = noted(QUIET + POOL + "block_size = 512\n[dataplane]\nworkers = 2\n")
    assert text == "dataplane.workers is set, but takes effect in a later release only"
