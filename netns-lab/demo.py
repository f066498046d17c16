"""`make demo`: real WireGuard clients reach the Internet through the gateway, and every step says what it saw.

client1 reaches the gateway over IPv4, client2 over IPv6, and so on alternating. A step that fails is reported and the next
one goes on; the last line is PASS, or FAIL and the steps that did.
"""

import ipaddress
import time
from collections.abc import Callable

import traffic
from clients import WireGuardGo
from gateways import ENDPOINT6, Egress
from topology import INTERNET4, POOL4, POOL6, WIREGUARD_PORT, Lab, LabError, run

SIZE = 50_000_000
POOLS = {4: ipaddress.ip_network(POOL4), 6: ipaddress.ip_network(POOL6)}


class Report:
    """Runs steps, prints a line for each, remembers what failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def step(self, who: str, what: str, action: Callable[[], str]) -> bool:
        try:
            mark, seen = "ok  ", action()
        except (LabError, OSError, ValueError, KeyError, StopIteration) as error:
            mark, seen = "FAIL", f"{error}".strip() or type(error).__name__
            self.failed.append(f"{who} {what}")
        print(f"  {mark} {what:<22} {seen}", flush=True)
        return mark == "ok  "

    def close(self) -> bool:
        print("PASS" if not self.failed else f"FAIL {'; '.join(self.failed)}", flush=True)
        return not self.failed


def demo(lab: Lab) -> bool:
    """Build, drive, show, remove. Whether everything worked."""
    report = Report()
    begun = time.monotonic()
    lab.down()
    lab.up()
    try:
        _show(lab, report)
    except LabError as error:
        print(f"  FAIL {error}")
        report.failed.append("gateway")
    finally:
        lab.down()
    print(f"\n{time.monotonic() - begun:.0f} s; nothing of the lab is left.")
    return report.close()


def _show(lab: Lab, report: Report) -> None:
    gateway = Egress(lab)
    print(f"The lab stands: {' '.join(lab.standing())}")
    print("Starting the gateway (a first start compiles the packet path) …", flush=True)
    files = gateway.prepare(lab.clients)
    print(f"  ok   ready after           {gateway.start(echo=True):.1f} s", flush=True)
    clients = []
    for number, quick in enumerate(files, 1):
        over6 = number % 2 == 0
        client = WireGuardGo(lab, number, quick.with_endpoint(ENDPOINT6) if over6 else quick)
        clients.append(client)
        _drive(lab, client, report, f"IPv{6 if over6 else 4}")
    _gateway_view(gateway, report)
    for client in clients:
        client.stop()
    report.step("gateway", "SIGTERM", lambda: _stopped(gateway))


def _drive(lab: Lab, client: WireGuardGo, report: Report, outer: str) -> None:
    print(f"\n{client.name}: wireguard-go, to the gateway's UDP port {WIREGUARD_PORT} over {outer}")
    if not report.step(client.name, "handshake", lambda: _handshake(lab, client)):
        return
    for version in (4, 6):
        for what, action in (
            ("ping", _pings),
            ("seen by HTTP server", _seen),
            ("download", _download),
            ("upload", _upload),
            ("DNS over UDP", _dns),
            ("traceroute", _traceroute),
        ):
            report.step(client.name, f"{what} v{version}", lambda action=action, version=version: action(lab, client, version))  # type: ignore[misc]


def _handshake(lab: Lab, client: WireGuardGo) -> str:
    client.start()
    first = traffic.first_answer(lab, client.namespace, INTERNET4[0])
    if client.handshake_age() is None:
        raise LabError("wg shows no handshake")
    return f"done; first ping answered after {first:.1f} ms; inside addresses {', '.join(client.quick.addresses)}"


def _pings(lab: Lab, client: WireGuardGo, version: int) -> str:
    times = traffic.ping(lab, client.namespace, traffic.INTERNET[version], count=5)
    if len(times) < 5:
        raise LabError(f"{len(times)} of 5 answered")
    return f"5 of 5 answered by {traffic.INTERNET[version]}, median {sorted(times)[2]:.2f} ms"


def _seen(lab: Lab, client: WireGuardGo, version: int) -> str:
    address, port = traffic.seen_address(lab, client.namespace, version)
    if ipaddress.ip_address(address) not in POOLS[version]:
        raise LabError(f"{address} is not in the pool {POOLS[version]}")
    return f"{address} port {port}, of the pool {POOLS[version]}"


def _transferred(transfer: traffic.Transfer) -> str:
    if not transfer.intact:
        raise LabError(str(transfer))
    return str(transfer)


def _download(lab: Lab, client: WireGuardGo, version: int) -> str:
    return _transferred(traffic.download(lab, client.namespace, version, SIZE))


def _upload(lab: Lab, client: WireGuardGo, version: int) -> str:
    return _transferred(traffic.upload(lab, client.namespace, version, SIZE))


def _dns(lab: Lab, client: WireGuardGo, version: int) -> str:
    server = next(s for s in client.quick.dns if ipaddress.ip_address(s).version == version)
    kind = "A" if version == 4 else "AAAA"
    return f"www.example.net {kind} is {traffic.dns(lab, client.namespace, server, 'www.example.net', kind)}, says {server}"


def _traceroute(lab: Lab, client: WireGuardGo, version: int) -> str:
    hops = traffic.traceroute(lab, client.namespace, version)
    if len(hops) < 2 or hops[-1] != traffic.INTERNET[version] or hops[0] == "*":
        raise LabError(f"the gateway is not seen as a hop: {' → '.join(hops)}")
    return " → ".join(hops)


def _gateway_view(gateway: Egress, report: Report) -> None:
    print("\nThe gateway's view: egressvpn status")
    report.step("gateway", "status", lambda: f"healthy\n{gateway.command('status').stdout.rstrip()}")
    print("\negressvpn flows")
    report.step("gateway", "flows", lambda: f"\n{gateway.command('flows', '--limit', '12').stdout.rstrip()}")
    print("\nPackets not let through, by reason (egress_drops_total)")
    report.step("gateway", "drop counters", lambda: _drops(gateway))


def _drops(gateway: Egress) -> str:
    drops = gateway.drops()
    counted = {reason: count for reason, count in drops.items() if count}
    return f"{len(drops)} reasons, {len(counted)} of them counted something" + "".join(f"\n       {r} {n}" for r, n in counted.items())


def _stopped(gateway: Egress) -> str:
    begun = time.monotonic()
    status = gateway.stop()
    if status != 0:
        raise LabError(f"exit status {status}: {gateway.lab.processes.output(gateway.name, 'err').strip()[-500:]}")
    left = run(["ip", "-n", gateway.lab.gateway, "-brief", "link", "show", "egress0"], check=False)
    if left.returncode == 0:
        raise LabError("egress0 is still there")
    return f"drained and gone after {time.monotonic() - begun:.1f} s, exit status 0, egress0 removed"
