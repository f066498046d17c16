"""A gateway that shows fixed numbers: the twin that the API, the metrics and the command line are tested against."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egressvpn.observe.nat_history import Whois, whois
from egressvpn.observe.view import AddressUsage, Count, Counters, Flow, Histogram, PeerCounters, Status
from egressvpn.verdict import VERDICTS, Verdict

KEY = "gW6aK9QtLvBxBjDrvdcEsqzEoDyS0pg00/BBKB/ltxo="


class FixedGateway:
    """Implements GatewayView. Set `failing` or `devices` to see something else."""

    def __init__(self, devices: int = 2) -> None:
        self.failing: list[str] = []
        self.health: list[str] = []
        self.devices = devices
        self.log: list[Path] = []

    def readiness(self) -> list[str]:
        return self.failing

    def status(self) -> Status:
        return {
            "name": "lis1",
            "version": "0.1.0",
            "state": "degraded" if self.failing else "ready",
            "reasons": self.failing,
            "uptime_seconds": 93_784.5,
            "interface": "egress0",
            "public_key": KEY,
            "listen": ["0.0.0.0:51820", "[::]:51820"],
            "workers": [
                {
                    "number": 0,
                    "pid": 4242,
                    "restarts": 1,
                    "aead": "libcrypto",
                    "jit": True,
                    "cpu_seconds": 12.34,
                    "resident_bytes": 157_286_400,
                }
            ],
            "pools": [
                {
                    "name": "default",
                    "addresses": ["203.0.113.0/28"],
                    "ports": "1024-65535",
                    "ports_used": 17,
                    "country": "PT",
                    "city": "Lisbon",
                }
            ],
            "devices": {"enabled": 2, "disabled": 1, "connected": 1},
            "sessions": 3,
            "flows": 17,
            "traffic": {"upload": {"packets": 1000, "bytes": 1_500_000}, "download": {"packets": 2000, "bytes": 3_000_000}},
            "drops": {"replayed": 2, "policy_denied": 9},
            "health": self.health,
        }

    def flows(self, peer: str | None, limit: int) -> list[dict[str, Any]]:
        if peer not in (None, "phone"):
            raise LookupError(peer)
        flow = Flow(
            peer="phone",
            protocol="tcp",
            internal="100.64.0.2:40000",
            external="203.0.113.5:2000",
            remote="198.51.100.2:443",
            state="established",
            idle_seconds=1.5,
            sent_packets=5,
            sent_bytes=500,
            received_packets=6,
            received_bytes=60_000,
        )
        return [dict(flow) for _ in range(3)][:limit]

    def pools(self) -> list[AddressUsage]:
        return [
            {
                "pool": "default",
                "address": address,
                "ports": [1024, 65535],
                "used": {"tcp": 10, "udp": 6, "icmp": 1},
                "block_size": 256,
                "blocks": {"all": 252, "used": 3, "free": 248, "held": 1},
                "devices": 2,
                "exhausted": 4,
            }
            for address in ("203.0.113.5", "203.0.113.6")
        ]

    def whois(self, address: str, port: int | None, begin: str, end: str) -> Whois:
        return whois(self.log, address, port, begin, end)

    async def explain(self, peer: str, destination: str) -> dict[str, Any]:
        if peer != "phone":
            raise LookupError(peer)
        return {
            "peer": peer,
            "destination": destination,
            "protocol": "tcp",
            "verdict": "pass",
            "why": "it may pass",
            "rule": None,
            "way": "translated",
            "pool": "default",
            "internal": "100.64.0.2",
            "external": "203.0.113.5",
            "block": {"ports": [1024, 1279]},
        }

    def counters(self) -> Counters:
        drops = np.zeros(VERDICTS, np.int64)
        drops[Verdict.REPLAYED], drops[Verdict.POLICY_DENIED] = 2, 9
        return Counters(
            interface="egress0",
            public_key=KEY,
            devices=self.devices,
            traffic={"upload": Count(1000, 1_500_000), "download": Count(2000, 3_000_000)},
            drops=drops,
            flows=17,
            max_flows=1024,
            flows_created=170,
            flows_expired=153,
            mappings=12,
            mappings_created=120,
            blocks_allocated=5,
            blocks_released=2,
            quota_exceeded=7,
            nat_log_dropped=1,
            slice_violations=0,
            pools=self.pools(),
            handshakes={"completed": 4, "bad_mac1": 1},
            handshake_seconds=Histogram((0.001, 0.01), (3, 1, 0), 0.005),
            batch_packets=Histogram((1, 3, 7), np.array([10, 5, 2, 1]), 60),
            key_age_seconds={"current": 3600.0},
        )

    def peers(self, limit: int) -> Sequence[PeerCounters]:
        return [
            PeerCounters(
                public_key=f"{number:043d}=",
                name=f'odd "name" \\ {number}',
                addresses=[f"100.64.0.{number + 2}/32", f"fd64::{number + 2}/128"],
                endpoint="192.0.2.11:40000",
                received_bytes=100 + number,
                sent_bytes=200 + number,
                last_handshake_seconds=1_700_000_000.0 if number else 0.0,
            )
            for number in range(min(limit, self.devices))
        ]
