"""/metrics, read back by the Prometheus client's own parsers."""

import re
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from egressvpn.observe.metrics import registry, render
from egressvpn.verdict import Verdict
from tests.observe.gateway import KEY, FixedGateway

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
Sample = tuple[str, frozenset[tuple[str, str]]]


def scrape(gateway: FixedGateway, max_peers: int = 100, accept: str = "") -> dict[Sample, float]:
    body, content_type = render(registry(gateway, max_peers), accept)
    parse = parse_openmetrics if "openmetrics" in content_type else parse_text
    families = list(parse(body.decode()))
    return {(sample.name, frozenset(sample.labels.items())): sample.value for family in families for sample in family.samples}


def sample(name: str, /, **labels: str) -> Sample:
    return name, frozenset(labels.items())


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_the_numbers_of_the_view_arrive_in_both_formats(accept: str) -> None:
    seen = scrape(FixedGateway(), accept=accept)
    assert seen[sample("egress_packets_total", direction="upload")] == 1000
    assert seen[sample("egress_bytes_total", direction="download")] == 3_000_000
    assert seen[sample("egress_drops_total", reason="policy_denied")] == 9
    assert seen[sample("egress_flows")] == 17
    assert seen[sample("egress_flows_created_total")] == 170
    assert seen[sample("egress_slice_violations_total")] == 0
    assert seen[sample("egress_ports_used", pool="default", address="203.0.113.5")] == 17
    assert seen[sample("egress_handshakes_total", result="completed")] == 4
    assert seen[sample("egress_key_age_seconds", key="current")] == 3600
    assert seen[sample("egress_build_info", version="0.1.0")] == 1
    assert seen[sample("wireguard_device_info", device="egress0", public_key=KEY)] == 1


def test_ports_and_blocks_are_told_by_pool_and_what_was_refused_is_counted() -> None:
    seen = scrape(FixedGateway())
    told = {name: seen[sample(f"egress_{name}", pool="default")] for name in ("blocks_used", "blocks_free", "blocks_held")}
    assert told == {"blocks_used": 6, "blocks_free": 496, "blocks_held": 2}
    assert seen[sample("egress_port_exhaustion_total", pool="default")] == 8
    assert {name: seen[sample(f"egress_{name}_total")] for name in ("quota_exceeded", "nat_log_dropped", "flows_expired")} == {
        "quota_exceeded": 7,
        "nat_log_dropped": 1,
        "flows_expired": 153,
    }
    assert (seen[sample("egress_blocks_allocated_total")], seen[sample("egress_blocks_released_total")]) == (5, 2)
    assert (seen[sample("egress_mappings")], seen[sample("egress_mappings_created_total")]) == (12, 120)
    assert seen[sample("egress_flows_limit")] == 1024


def test_the_example_alerts_speak_of_metrics_that_there_are() -> None:
    rules = (Path(__file__).parents[2] / "examples" / "alerts.yml").read_text()
    named = set(re.findall(r"\begress_\w+", rules))
    assert len(named) > 8
    assert named - {name for name, _ in scrape(FixedGateway())} == set()


def test_histograms_are_cumulative() -> None:
    seen = scrape(FixedGateway())
    assert [seen[sample("egress_worker_batch_packets_bucket", le=le)] for le in ("1.0", "3.0", "7.0", "+Inf")] == [10, 15, 17, 18]
    assert seen[sample("egress_worker_batch_packets_count")] == 18
    assert seen[sample("egress_worker_batch_packets_sum")] == 60
    assert seen[sample("egress_handshake_seconds_bucket", le="0.001")] == 3


def test_both_families_of_wireguard_names_speak_of_every_device() -> None:
    seen = scrape(FixedGateway())
    ours = {
        "interface": "egress0",
        "public_key": f"{1:043d}=",
        "allowed_ips": "100.64.0.3/32,fd64::3/128",
        "friendly_name": 'odd "name" \\ 1',
    }
    assert seen[sample("wireguard_sent_bytes_total", **ours)] == 201
    assert seen[sample("wireguard_received_bytes_total", **ours)] == 101
    assert seen[sample("wireguard_latest_handshake_seconds", **ours)] == 1_700_000_000
    theirs = {"device": "egress0", "public_key": f"{1:043d}="}
    assert seen[sample("wireguard_peer_receive_bytes_total", **theirs)] == 101
    assert seen[sample("wireguard_peer_transmit_bytes_total", **theirs)] == 201
    assert seen[sample("wireguard_peer_last_handshake_seconds", **theirs)] == 1_700_000_000
    assert seen[sample("wireguard_peer_info", **theirs, endpoint="192.0.2.11:40000", name=ours["friendly_name"])] == 1


def test_every_reason_has_a_series_from_the_start() -> None:
    reasons = {dict(labels)["reason"] for name, labels in scrape(FixedGateway()) if name == "egress_drops_total"}
    assert reasons == {verdict.label for verdict in Verdict if verdict is not Verdict.PASS}


@pytest.mark.parametrize(("devices", "cap", "shown"), [(5, 3, 3), (5, 0, 0), (2, 100, 2)])
def test_series_per_device_are_capped_and_what_is_left_out_is_counted(devices: int, cap: int, shown: int) -> None:
    seen = scrape(FixedGateway(devices), cap)
    for name in ("wireguard_sent_bytes_total", "wireguard_peer_info", "wireguard_peer_receive_bytes_total"):
        assert sum(key[0] == name for key in seen) == shown
    assert seen[sample("egress_metrics_omitted_peers")] == devices - shown
    assert seen[sample("egress_devices")] == devices


def test_no_created_series_double_the_counters() -> None:
    assert not [name for name, _ in scrape(FixedGateway()) if name.endswith("_created")]


def test_registering_reads_nothing_from_the_gateway() -> None:
    class Untouchable(FixedGateway):
        def counters(self) -> None:  # type: ignore[override]
            raise AssertionError

    registry(Untouchable(), 100)
