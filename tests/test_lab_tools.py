"""The lab's own instruments tell the truth: what the lab tests conclude from them rests on these."""

import struct
import subprocess
import sys
from pathlib import Path

import pytest
import servers
import stun
from clients import QuickFile
from datagrams import data_messages
from processes import Identity, Processes, cpu_seconds, memory_bytes, start_time
from scapy.layers.dns import DNS, DNSQR
from topology import Lab, LabError, run

QUICK = """[Interface]
PrivateKey = 0000000000000000000000000000000000000000000=
Address = 100.64.0.2/32, fd64::2/128
DNS = 198.51.100.2, 2001:db8:51::2
MTU = 1380

[Peer]
PublicKey = 1111111111111111111111111111111111111111111=
Endpoint = 192.0.2.1:51820
AllowedIPs = 0.0.0.0/0, ::/0
PersistentKeepalive = 25
"""


@pytest.mark.parametrize(("kind", "address"), [("A", "198.51.100.3"), ("AAAA", "2001:db8:51::3")])
def test_the_dns_server_answers_from_its_table(kind: str, address: str) -> None:
    query = bytes(DNS(id=77, rd=1, qd=DNSQR(qname="alt.example.net", qtype=kind)))
    answer = DNS(servers.dns(query, ("192.0.2.9", 5353)))
    assert (answer.id, answer.qr, answer.ancount) == (77, 1, 1)
    assert answer.an[0].rdata == address


@pytest.mark.parametrize("address", ["203.0.113.7", "2001:db8:113::7"])
def test_a_stun_client_learns_what_the_server_saw(address: str) -> None:
    class Wire:
        """A socket whose other end is the server, seen from `address`."""

        answer = b""

        def sendto(self, request: bytes, to: tuple[str, int]) -> None:
            self.answer = servers.stun(request, (address, 40_000)) or b""

        def recv(self, size: int) -> bytes:
            return self.answer

    assert stun.ask(Wire(), "198.51.100.2", 3478) == (address, 40_000)  # type: ignore[arg-type]


def test_a_wg_quick_file_is_read_and_stripped() -> None:
    quick = QuickFile.parse(QUICK)
    assert quick.addresses == ("100.64.0.2/32", "fd64::2/128")
    assert quick.allowed == ("0.0.0.0/0", "::/0")
    assert quick.mtu == 1380
    assert quick.stripped().splitlines() == [line for line in QUICK.splitlines() if line.split(" ")[0] not in {"Address", "DNS", "MTU"}]
    assert "Endpoint = [2001:db8:2::1]:51820\n" in quick.with_endpoint("[2001:db8:2::1]:51820").text


def test_a_super_packet_is_taken_apart_and_a_repeated_nonce_is_seen(tmp_path: Path) -> None:
    messages = [struct.pack("<IIQ", 4, 9, counter) + bytes(48) for counter in (5, 6, 7)]
    file = tmp_path / "outer.pcap"
    file.write_bytes(pcap([ip_udp(b"".join(messages)), ip_udp(messages[1][:-16])]))
    seen = [(m.receiver, m.counter) for m in data_messages(file)]
    assert seen == [(9, 5), (9, 6), (9, 7), (9, 6)]


def test_a_process_is_known_by_its_start_time_and_ended_with_its_children(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.start("shell", ["sh", "-c", "sleep 60 & echo $!; wait"])
    while not (child := processes.output("shell").strip()):
        pass
    grandchild = Identity(int(child), start_time(int(child)))
    identity = processes.identity("shell")
    assert identity is not None
    assert memory_bytes(identity.pid) > 0
    assert cpu_seconds(identity.pid) >= 0
    assert not Identity(identity.pid, identity.started - 1).alive()
    processes.stop("shell", patience=0.2)
    assert processes.identity("shell") is None
    assert not grandchild.alive()


def test_a_prefix_that_could_name_other_namespaces_is_refused() -> None:
    with pytest.raises(LabError):
        Lab(prefix="evl.*")


def test_a_failed_command_is_reported_with_what_it_said() -> None:
    with pytest.raises(LabError, match="exited 3: no"):
        run(["sh", "-c", "echo no >&2; exit 3"])


def test_the_lab_says_what_it_needs_to_an_unprivileged_user() -> None:
    program = "import os; os.geteuid = lambda: 1000; import topology; topology.require_root()"
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(servers.__file__).parent, capture_output=True, text=True, check=False)
    assert "needs root" in done.stderr


def ip_udp(payload: bytes) -> bytes:
    """An Ethernet frame with an IPv4 UDP datagram; lengths and checksums are nobody's business here."""
    return bytes(12) + b"\x08\x00" + b"\x45" + bytes(8) + b"\x11" + bytes(2) + bytes([192, 0, 2, 1]) + bytes(4) + bytes(8) + payload


def pcap(frames: list[bytes]) -> bytes:
    records = b"".join(struct.pack("=IIII", 0, 0, len(frame), len(frame)) + frame for frame in frames)
    return struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1) + records
