"""/metrics: one collector that turns `Counters` into metric families while a scrape waits. No metric object is touched per packet.

Two families of names that existing WireGuard dashboards query (MindFlavor's exporter and mdlayher's), then `egress_*`. Series per
device are capped by `[metrics] max_peers`; how many devices fell out is a metric itself.
"""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from egressvpn import __version__
from egressvpn.observe.view import Counters, GatewayView, Histogram, PeerCounters
from egressvpn.verdict import Verdict


def registry(view: GatewayView, max_peers: int) -> CollectorRegistry:
    """A registry with everything the gateway measures, and this process's own CPU and memory."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    made = CollectorRegistry()
    made.register(GatewayCollector(view, max_peers))
    ProcessCollector(registry=made)
    return made


def render(source: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The exposition and its content type, in the format the scraper asks for."""
    encode, content_type = choose_encoder(accept)
    return encode(source), content_type


class GatewayCollector(Collector):
    """Reads the view once per scrape."""

    def __init__(self, view: GatewayView, max_peers: int) -> None:
        self._view = view
        self._max_peers = max_peers

    def describe(self) -> Iterable[Metric]:
        return []  # registering must not scrape: the gateway may not be up yet

    def collect(self) -> Iterator[Metric]:
        counters = self._view.counters()
        peers = list(self._view.peers(self._max_peers))[: self._max_peers]
        yield from _exporter_peers(counters, peers)
        yield from _wireguard_peers(counters, peers)
        yield from _packets(counters)
        yield from _translation(counters)
        yield from _handshakes(counters)
        yield from _gateway(counters, counters.devices - len(peers))


def _exporter_peers(counters: Counters, peers: list[PeerCounters]) -> Iterator[Metric]:
    """The names of prometheus_wireguard_exporter."""
    labels = ["interface", "public_key", "allowed_ips", "friendly_name"]
    sent = CounterMetricFamily("wireguard_sent_bytes", "Bytes sent to the peer", labels=labels)
    received = CounterMetricFamily("wireguard_received_bytes", "Bytes received from the peer", labels=labels)
    handshake = GaugeMetricFamily("wireguard_latest_handshake_seconds", "UNIX time of the latest handshake, 0 for never", labels=labels)
    for peer in peers:
        values = [counters.interface, peer.public_key, ",".join(peer.addresses), peer.name]
        sent.add_metric(values, peer.sent_bytes)
        received.add_metric(values, peer.received_bytes)
        handshake.add_metric(values, peer.last_handshake_seconds)
    yield from (sent, received, handshake)


def _wireguard_peers(counters: Counters, peers: list[PeerCounters]) -> Iterator[Metric]:
    """The names of mdlayher's wireguard_exporter."""
    device = GaugeMetricFamily("wireguard_device_info", "Metadata about the device", labels=["device", "public_key"])
    device.add_metric([counters.interface, counters.public_key], 1)
    labels = ["device", "public_key"]
    info = GaugeMetricFamily("wireguard_peer_info", "Metadata about the peer", labels=[*labels, "endpoint", "name"])
    received = CounterMetricFamily("wireguard_peer_receive_bytes", "Bytes received from the peer", labels=labels)
    sent = CounterMetricFamily("wireguard_peer_transmit_bytes", "Bytes sent to the peer", labels=labels)
    handshake = GaugeMetricFamily("wireguard_peer_last_handshake_seconds", "UNIX time of the last handshake, 0 for never", labels=labels)
    for peer in peers:
        values = [counters.interface, peer.public_key]
        info.add_metric([*values, peer.endpoint, peer.name], 1)
        received.add_metric(values, peer.received_bytes)
        sent.add_metric(values, peer.sent_bytes)
        handshake.add_metric(values, peer.last_handshake_seconds)
    yield from (device, info, received, sent, handshake)


def _packets(counters: Counters) -> Iterator[Metric]:
    packets = CounterMetricFamily("egress_packets", "Inner packets let through", labels=["direction"])
    octets = CounterMetricFamily("egress_bytes", "Bytes of inner packets let through", labels=["direction"])
    for direction, count in counters.traffic.items():
        packets.add_metric([direction], count.packets)
        octets.add_metric([direction], count.octets)
    drops = CounterMetricFamily("egress_drops", "Packets and handshakes not let through", labels=["reason"])
    for verdict in Verdict:
        if verdict is not Verdict.PASS:
            drops.add_metric([verdict.label], int(counters.drops[verdict]))
    batches = _histogram("egress_worker_batch_packets", "Datagrams taken by one receive call of a worker", counters.batch_packets)
    yield from (packets, octets, drops, batches)


def _translation(counters: Counters) -> Iterator[Metric]:
    """What RFC 7659 counts of a NAT, where it makes sense here; what was refused is in egress_drops by reason."""
    yield GaugeMetricFamily("egress_flows", "Flows being tracked", counters.flows)
    yield GaugeMetricFamily("egress_flows_limit", "Flows that there is room for", counters.max_flows)
    yield CounterMetricFamily("egress_flows_created", "Flows begun", counters.flows_created)
    yield CounterMetricFamily("egress_flows_expired", "Flows that were idle for too long", counters.flows_expired)
    yield GaugeMetricFamily("egress_mappings", "Internal endpoints that have an external one", counters.mappings)
    yield CounterMetricFamily("egress_mappings_created", "Mappings made", counters.mappings_created)
    yield CounterMetricFamily("egress_blocks_allocated", "Blocks of ports given to devices", counters.blocks_allocated)
    yield CounterMetricFamily("egress_blocks_released", "Blocks of ports taken back", counters.blocks_released)
    yield CounterMetricFamily("egress_quota_exceeded", "Flows refused because of a limit of their device", counters.quota_exceeded)
    yield CounterMetricFamily("egress_nat_log_dropped", "Events that the NAT log does not have", counters.nat_log_dropped)
    yield CounterMetricFamily(
        "egress_slice_violations", "Packets held back for a port outside the gateway's slice: a bug if not 0", counters.slice_violations
    )
    yield from _pools(counters)


def _pools(counters: Counters) -> Iterator[Metric]:
    used = GaugeMetricFamily("egress_ports_used", "Ports in use of an egress address, all protocols", labels=["pool", "address"])
    pools: dict[str, dict[str, int]] = {}
    for at in counters.pools:
        used.add_metric([at["pool"], at["address"]], sum(at["used"].values()))
        sums = pools.setdefault(at["pool"], {"used": 0, "free": 0, "held": 0, "exhausted": 0})
        for state in ("used", "free", "held"):
            sums[state] += at["blocks"][state]
        sums["exhausted"] += at["exhausted"]
    yield used
    told = {"used": "Blocks of ports that devices have", "free": "Blocks nobody has", "held": "Blocks held back for their last device"}
    for state, documentation in told.items():
        blocks = GaugeMetricFamily(f"egress_blocks_{state}", documentation, labels=["pool"])
        for pool, sums in pools.items():
            blocks.add_metric([pool], sums[state])
        yield blocks
    exhaustion = CounterMetricFamily("egress_port_exhaustion", "Times that a device was refused for want of a free block", labels=["pool"])
    for pool, sums in pools.items():
        exhaustion.add_metric([pool], sums["exhausted"])
    yield exhaustion


def _handshakes(counters: Counters) -> Iterator[Metric]:
    results = CounterMetricFamily("egress_handshakes", "WireGuard handshakes by outcome", labels=["result"])
    for result, count in counters.handshakes.items():
        results.add_metric([result], count)
    yield results
    yield _histogram("egress_handshake_seconds", "Time that control worked on a handshake", counters.handshake_seconds)
    age = GaugeMetricFamily("egress_key_age_seconds", "Age of the gateway's own keys", labels=["key"])
    for key, seconds in counters.key_age_seconds.items():
        age.add_metric([key], seconds)
    yield age


def _gateway(counters: Counters, omitted: int) -> Iterator[Metric]:
    yield GaugeMetricFamily("egress_devices", "Devices in the data path", counters.devices)
    yield GaugeMetricFamily(
        "egress_metrics_omitted_peers", "Devices without series of their own, because of metrics.max_peers", max(0, omitted)
    )
    build = GaugeMetricFamily("egress_build_info", "The running version", labels=["version"])
    build.add_metric([__version__], 1)
    yield build


def _histogram(name: str, documentation: str, observed: Histogram) -> Metric:
    """Buckets count everything up to their bound, as Prometheus wants them."""
    family = HistogramMetricFamily(name, documentation)
    running, buckets = 0, []
    for bound, count in zip([*map(str, map(float, observed.bounds)), "+Inf"], observed.counts, strict=True):
        running += int(count)
        buckets.append((bound, float(running)))
    family.add_metric([], buckets, observed.total)
    return family
