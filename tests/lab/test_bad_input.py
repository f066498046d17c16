"""Whatever arrives on the UDP port or at the pool: no crash, no answer longer than the question, a drop counted."""

import json
import sys

import traffic
from clients import WireGuardGo
from gateways import Egress
from topology import GATEWAY4, GATEWAY6, INTERNET4, WIREGUARD_PORT, Lab

# every length and first octet, then random ones; prints how many were sent and the answers as (asked, answered) lengths
GARBAGE = """
import json, random, socket, sys
host, port = sys.argv[1], int(sys.argv[2])
r = random.Random(7)
s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
s.connect((host, port)); s.settimeout(0.5)
datagrams = [bytes([kind]) + bytes(3) + r.randbytes(n) for kind in range(6) for n in range(0, 200, 3)]
datagrams += [r.randbytes(r.randrange(1, 1400)) for _ in range(500)] + [b"", bytes(65507)]
for d in datagrams: s.send(d)
answers = []
try:
    while True: answers.append(len(s.recv(65535)))
except TimeoutError: pass
print(json.dumps({"sent": len(datagrams), "answers": answers}))
"""

# IP packets of every kind to an address of the pool, straight from the Internet's side
PACKETS = """
import random, socket, sys
r = random.Random(11)
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
source = socket.inet_aton("198.51.100.2")
for n in range(600):
    body = r.randbytes(r.randrange(0, 600))
    protocol = r.choice([1, 6, 17, 47, 50, r.randrange(256)])
    header = bytes([0x45, 0]) + (20 + len(body)).to_bytes(2, "big") + r.randbytes(2) + bytes(2) + bytes([r.randrange(2, 64), protocol])
    destination = f"203.0.113.{r.randrange(16)}"
    s.sendto(header + bytes(2) + source + socket.inet_aton(destination) + body, (destination, 0))
"""


def test_garbage_on_the_udp_port_is_counted_and_never_answered(lab: Lab, gateway: Egress) -> None:
    worker = gateway.worker()
    before = sum(gateway.drops().values())
    sent = 0
    for host in (GATEWAY4, GATEWAY6):
        done = lab.run(lab.client(1), sys.executable, "-c", GARBAGE, host, str(WIREGUARD_PORT))
        report = json.loads(done.stdout)
        assert report["answers"] == []
        sent += report["sent"]
    assert sum(gateway.drops().values()) - before >= sent
    assert gateway.worker() == worker


def test_garbage_at_the_pool_is_counted_and_hurts_nobody(lab: Lab, gateway: Egress) -> None:
    worker = gateway.worker()
    client = WireGuardGo(lab, 1, gateway.add_peer("bystander"))
    client.start()
    try:
        traffic.first_answer(lab, client.namespace, INTERNET4[0])
        before = sum(gateway.drops().values())
        lab.run(lab.internet, sys.executable, "-c", PACKETS)
        assert len(traffic.ping(lab, client.namespace, INTERNET4[0], count=5, interval=0.05)) == 5
        assert sum(gateway.drops().values()) > before
        assert gateway.worker() == worker
    finally:
        client.stop()
