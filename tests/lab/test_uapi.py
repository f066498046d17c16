"""The stock `wg` drives the gateway and the reference client, unmodified; what it sets on the gateway is kept."""

import base64
import contextlib
import re
import subprocess
import time
from collections.abc import Iterator

import pytest
import traffic
from clients import QuickFile, ReferenceClient, WireGuardGo
from gateways import ENDPOINT4, Egress
from topology import INTERNET4, WIREGUARD_PORT, Lab, run

from tests.lab.wg_tool import Wg, interface_of, key, sections

HOLD_PORT = """
import socket, time
held = socket.socket(type=socket.SOCK_DGRAM)
held.bind(("0.0.0.0", 7777))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def wg(lab: Lab, gateway: Egress) -> Iterator[Wg]:
    """`wg` on the gateway, which has no devices before and after."""
    wg = Wg(lab, lab.gateway, interface_of(gateway))
    private = wg.show("private-key")
    yield wg
    wg.set("private-key", wg.file(private), "fwmark", "off", "listen-port", str(WIREGUARD_PORT))
    for peer in wg.peers():
        wg.set("peer", peer, "remove")


@pytest.fixture
def client(lab: Lab) -> Iterator[Wg]:
    """`wg` on a reference client that has a key and nothing else."""
    reference = ReferenceClient(lab, 1, QuickFile(f"[Interface]\nPrivateKey = {key()[0]}\n", (), (), 1420, (), ""))
    reference.start()
    yield Wg(lab, reference.namespace, reference.name)
    reference.stop()


@pytest.fixture(params=["wg", "client"])
def interface(request: pytest.FixtureRequest) -> Wg:
    """Both, one after the other."""
    return request.getfixturevalue(request.param)


# both


def test_wg_shows_the_interface(interface: Wg) -> None:
    assert interface("show", "interfaces").stdout.split() == [interface.interface]
    shown = interface("show").stdout
    assert f"interface: {interface.interface}" in shown
    assert f"listening port: {interface.show('listen-port')}" in shown
    assert int(interface.show("listen-port")) > 0
    assert interface.show("fwmark") == "off"
    assert interface.show("peers") == ""
    private = interface.show("private-key")
    assert run(["wg", "pubkey"], stdin=private).stdout.strip() == interface.show("public-key")


def test_everything_that_is_set_of_a_peer_is_shown(interface: Wg) -> None:
    _, peer = key()
    secret = run(["wg", "genpsk"]).stdout.strip()
    networks = "10.1.0.0/16,10.2.3.4/32,2001:db8:7::/48"
    interface.set(
        *("peer", peer, "preshared-key", interface.file(secret), "endpoint", "192.0.2.77:1234"),
        *("persistent-keepalive", "3600", "allowed-ips", networks),
    )
    assert list(interface.peers()) == [peer]
    assert interface.peers()[peer][:5] == [secret, "192.0.2.77:1234", networks, "0", "0"]
    assert interface.peers()[peer][6] == "3600"
    interface.set("peer", peer, "preshared-key", "/dev/null", "persistent-keepalive", "off", "endpoint", "[2001:db8:2::77]:4321")
    assert interface.peers()[peer][:3] == ["(none)", "[2001:db8:2::77]:4321", networks]
    assert interface.peers()[peer][6] == "off"
    interface.set("peer", peer, "remove")
    assert interface.peers() == {}


def test_showconf_can_be_set_again(interface: Wg) -> None:
    (_, one), (_, two) = key(), key()
    interface.set("fwmark", "0x1234", "peer", one, "allowed-ips", "10.1.0.0/16,::/0", "peer", two, "endpoint", "192.0.2.77:1")
    shown = interface.showconf()
    interface.set("fwmark", "off", "peer", one, "remove", "peer", two, "allowed-ips", "10.9.0.0/16")
    interface.conf("setconf", shown)
    assert sections(interface.showconf()) == sections(shown)


def test_addconf_adds_and_syncconf_makes_equal(interface: Wg) -> None:
    (_, one), (_, two), (_, three) = key(), key(), key()
    private = interface.show("private-key")
    port = interface.show("listen-port")
    head = f"[Interface]\nPrivateKey = {private}\nListenPort = {port}\n"
    interface.conf("setconf", f"{head}[Peer]\nPublicKey = {one}\nAllowedIPs = 10.1.0.0/16\n")
    interface.conf("addconf", f"[Peer]\nPublicKey = {two}\nAllowedIPs = 10.2.0.0/16, 10.3.0.0/16\n")
    assert {peer: line[2] for peer, line in interface.peers().items()} == {one: "10.1.0.0/16", two: "10.2.0.0/16,10.3.0.0/16"}
    interface.conf(
        "syncconf",
        f"{head}[Peer]\nPublicKey = {two}\nAllowedIPs = 10.3.0.0/16\n[Peer]\nPublicKey = {three}\nAllowedIPs = 10.2.0.0/16\n",
    )
    assert {peer: line[2] for peer, line in interface.peers().items()} == {two: "10.3.0.0/16", three: "10.2.0.0/16"}


def test_a_network_given_to_one_peer_leaves_the_other(interface: Wg) -> None:
    (_, one), (_, two) = key(), key()
    interface.set("peer", one, "allowed-ips", "10.1.0.0/16,10.2.0.0/16", "peer", two, "allowed-ips", "10.2.0.0/16")
    assert {peer: line[2] for peer, line in interface.peers().items()} == {one: "10.1.0.0/16", two: "10.2.0.0/16"}


def test_the_private_key_can_be_set_changed_and_taken_away(interface: Wg) -> None:
    """netns.sh: keys are clamped, /dev/null takes one away, a peer with our own key is ignored, and removed when we take its key."""
    private, public = key()
    interface.set("private-key", interface.file(private))
    assert interface.show("public-key") == public
    interface.set("peer", public, "allowed-ips", "10.1.0.0/16")
    assert interface.peers() == {}
    interface.set("private-key", "/dev/null")
    assert interface.show("private-key") == "(none)"
    interface.set("peer", public, "allowed-ips", "10.1.0.0/16")
    assert list(interface.peers()) == [public]
    interface.set("private-key", interface.file(private))
    assert interface.peers() == {}
    interface.set("private-key", interface.file("/" * 42 + "8="))
    assert base64.b64decode(interface.show("private-key")) == b"\xf8" + b"\xff" * 30 + b"\x7f"
    interface.set("peer", public)
    assert list(interface.peers()) == [public]


def test_all_zero_and_other_low_order_public_keys_are_peers_nothing_is_ever_sent_to(interface: Wg) -> None:
    zero = base64.b64encode(bytes(32)).decode()
    interface.set("peer", zero, "persistent-keepalive", "1", "endpoint", "192.0.2.77:1")
    time.sleep(1.5)
    assert interface.peers()[zero][5] == "0"
    interface.set("peer", zero, "remove")


def test_a_port_in_use_is_refused_and_nothing_changes(lab: Lab, interface: Wg) -> None:
    before = interface.show("listen-port")
    lab.start("holder", interface.namespace, "python3", "-c", HOLD_PORT)
    try:
        while "held" not in lab.processes.output("holder"):
            time.sleep(0.02)
        refused = interface.set("listen-port", "7777", check=False)
        assert refused.returncode == 1
        assert "Address already in use" in refused.stderr
        assert interface.show("listen-port") == before
    finally:
        lab.processes.stop("holder")


def test_the_port_moves_and_may_be_left_to_chance(lab: Lab, interface: Wg) -> None:
    interface.set("listen-port", "7778")
    assert interface.show("listen-port") == "7778"
    assert listening(lab, interface.namespace, 7778)
    interface.set("listen-port", "7778")  # the same again
    interface.set("listen-port", "0")
    chosen = int(interface.show("listen-port"))
    assert chosen not in (0, 7778)
    assert listening(lab, interface.namespace, chosen)
    assert not listening(lab, interface.namespace, 7778)


def listening(lab: Lab, namespace: str, port: int) -> list[str]:
    """The local addresses of UDP sockets with that port."""
    lines = lab.run(namespace, "ss", "-Hlun").stdout.splitlines()
    return [at for line in lines if (at := line.split()[3]).endswith(f":{port}")]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("set=1\nnonsense=1\n\n", "errno=-22\n\n"),
        ("set=1\nlisten_port=70000\n\n", "errno=-22\n\n"),
        ("set=1\nlisten_port\n\n", "errno=-71\n\n"),
        ("set=1\npublic_key=12\n\n", "errno=-22\n\n"),
        ("set=1\nfwmark=1\n", "errno=-5\n\n"),
        ("get=1\nx\n\n", "errno=22\n\n"),
        ("set=1\nfwmark=9\nfwmark=x\nfwmark=10\n\nget=1\n\n", "errno=-22\n\n"),
        ("rubbish\n\n", ""),
        ("", ""),
        ("\0" * 100_000, ""),
    ],
)
def test_bad_input_is_answered_as_specified(interface: Wg, text: str, answer: str) -> None:
    assert interface.ask(text).startswith(answer)
    assert interface("show", interface.interface).returncode == 0
    assert interface.show("fwmark") in ("off", "0x9")


# the gateway


def test_a_peer_that_wg_adds_is_a_device_with_a_name_from_its_key(lab: Lab, gateway: Egress, wg: Wg) -> None:
    private, public = key()
    wg.set("peer", public, "allowed-ips", "100.64.9.9/32,fd64::9:9/128")
    name = f"wg-{base64.b64decode(public).hex()[:16]}"
    listed = gateway.json("peer", "list")["items"]
    assert [(item["name"], item["public_key"]) for item in listed] == [(name, public)]
    client = WireGuardGo(lab, 2, wg.quick_file(private, "100.64.9.9/32, fd64::9:9/128"))
    client.start()
    try:
        traffic.first_answer(lab, client.namespace, INTERNET4[0])
        line = wg.peers()[public]
        assert line[1].startswith("192.0.2.12:")
        assert abs(int(line[3]) - time.time()) < 10
        assert int(line[4]) > 148
        assert int(line[5]) > 92
        gateway.command("peer", "remove", name)
        assert wg.peers() == {}
    finally:
        client.stop()


def test_what_wg_sets_survives_a_restart(lab: Lab, gateway: Egress, wg: Wg) -> None:
    private, public = key()
    _, peer = key()
    secret = run(["wg", "genpsk"]).stdout.strip()
    wg.set("listen-port", "7779", "fwmark", "0x77", "private-key", wg.file(private))
    wg.set("peer", peer, "preshared-key", wg.file(secret), "allowed-ips", "100.64.9.1/32", "persistent-keepalive", "7")
    wg.set("peer", peer, "endpoint", "192.0.2.77:77")
    before = sections(wg.showconf())
    gateway.stop()
    gateway.start()
    assert sections(wg.showconf()) == before
    assert wg.show("public-key") == public
    said = lab.processes.output(gateway.name, "err")
    assert "7779" in said
    assert str(WIREGUARD_PORT) in said
    wg.set("listen-port", str(WIREGUARD_PORT), "fwmark", "off")  # as configured: nothing is noted
    gateway.stop()
    gateway.start()
    assert wg.show("listen-port") == str(WIREGUARD_PORT)
    assert "set by wg" not in lab.processes.output(gateway.name, "err")


def test_a_gateway_without_a_key_starts_and_answers_nobody_until_it_gets_one(lab: Lab, gateway: Egress, wg: Wg) -> None:
    wg.set("private-key", "/dev/null")
    gateway.stop()
    gateway.start()
    assert wg.show("private-key") == "(none)"
    private, public = key()
    wg.set("private-key", wg.file(private))
    assert wg.show("public-key") == public
    assert (gateway.directory / "gateway.key").read_text().strip() == private
    assert (gateway.directory / "gateway.key").stat().st_mode & 0o777 == 0o600


def test_a_changed_key_is_the_one_that_clients_must_know(lab: Lab, gateway: Egress, wg: Wg) -> None:
    private, public = key()
    wg.set("peer", public, "allowed-ips", "100.64.9.9/32")
    client = WireGuardGo(lab, 2, wg.quick_file(private, "100.64.9.9/32"))
    client.start()
    try:
        traffic.first_answer(lab, client.namespace, INTERNET4[0])
        wg.set("private-key", wg.file(key()[0]))
        assert traffic.ping(lab, client.namespace, INTERNET4[0], wait=1) == []
        other = Wg(lab, client.namespace, "wg0")
        (old,) = other.peers()
        fresh = wg.show("public-key")
        other.set("peer", old, "remove", "peer", fresh, "endpoint", ENDPOINT4, "allowed-ips", "0.0.0.0/0")
        traffic.first_answer(lab, client.namespace, INTERNET4[0])
    finally:
        client.stop()


def test_traffic_goes_on_over_a_moved_port(lab: Lab, wg: Wg) -> None:
    """The gateway's datagrams come from the new port from then on, and the client follows."""
    private, public = key()
    wg.set("peer", public, "allowed-ips", "100.64.9.9/32")
    client = WireGuardGo(lab, 2, wg.quick_file(private, "100.64.9.9/32"))
    client.start()
    try:
        traffic.first_answer(lab, client.namespace, INTERNET4[0])
        wg.set("listen-port", "7780")
        wg.set("peer", public, "persistent-keepalive", "1")  # the gateway writes first: the client cannot know the port
        other = Wg(lab, client.namespace, "wg0")
        deadline = time.monotonic() + 5
        while ":7780" not in other.show("endpoints"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        traffic.first_answer(lab, client.namespace, INTERNET4[0])
    finally:
        client.stop()


def test_syncconf_of_the_same_configuration_interrupts_nothing(lab: Lab, wg: Wg) -> None:
    private, public = key()
    wg.set("peer", public, "allowed-ips", "100.64.9.9/32")
    client = WireGuardGo(lab, 2, wg.quick_file(private, "100.64.9.9/32"))
    client.start()
    try:
        traffic.first_answer(lab, client.namespace, INTERNET4[0])
        handshake = wg.peers()[public][3]
        wg.conf("syncconf", wg.showconf())
        wg.set("peer", public, "allowed-ips", "100.64.9.9/32,10.77.0.0/16")
        assert len(traffic.ping(lab, client.namespace, INTERNET4[0], count=3)) == 3
        assert wg.peers()[public][3] == handshake
    finally:
        client.stop()


def test_a_hundred_thousand_allowed_ips_in_one_set_hold_up_nobody(lab: Lab, wg: Wg) -> None:
    private, public = key()
    _, giant = key()
    wg.set("peer", public, "allowed-ips", "100.64.9.9/32")
    client = WireGuardGo(lab, 2, wg.quick_file(private, "100.64.9.9/32"))
    client.start()
    try:
        traffic.first_answer(lab, client.namespace, INTERNET4[0])
        networks = [f"172.16.{n >> 8}.{n & 255}/32" for n in range(65_280)] + [f"fd77::{n + 1:x}/128" for n in range(65_280)]
        config = wg.file(f"[Peer]\nPublicKey = {giant}\nAllowedIPs = {', '.join(networks)}\n")
        argv = lab.inside(lab.gateway, "wg", "addconf", wg.interface, config)
        began = time.monotonic()
        waits = []
        with subprocess.Popen(argv, stderr=subprocess.PIPE) as setting:
            pings = subprocess.Popen(
                lab.inside(client.namespace, "ping", "-n", "-i", "0.02", INTERNET4[0]), stdout=subprocess.PIPE, text=True
            )
            while setting.poll() is None:
                asked = time.monotonic()
                wg.ask("get=1\nx\n\n")
                waits.append(time.monotonic() - asked)
            seconds = time.monotonic() - began
            pings.send_signal(2)
            said = pings.communicate()[0]
            assert setting.returncode == 0, setting.stderr.read()
        (sent, received) = map(int, re.search(r"(\d+) packets transmitted, (\d+) received", said).groups())
        figures = f"{seconds:.1f} s, {len(waits)} answers, the slowest {max(waits):.3f} s, {sent - received} of {sent} pings lost"
        assert sorted(wg.peers()[giant][2].split(",")) == sorted(networks)
        assert max(waits) < 0.5, figures
        assert sent - received <= 0.02 * sent + 1, figures
    finally:
        client.stop()
        wg.set("peer", giant, "remove")


def test_a_hundred_clients_that_say_nothing_or_half_of_it_hold_up_nobody(wg: Wg) -> None:
    with contextlib.ExitStack() as crowd:
        for said in (b"", b"set=1\n", b"set=1\nfwmark=1\nlis", b"get=1\n") * 25:
            crowd.enter_context(wg.connect()).sendall(said)
        began = time.monotonic()
        wg.set("fwmark", "7")
        assert wg.show("fwmark") == "0x7"
        assert time.monotonic() - began < 2
    assert wg.show("fwmark") == "0x7"


# the client


def test_a_client_with_nothing_but_a_key_becomes_one_by_wg_alone(lab: Lab, gateway: Egress, wg: Wg, client: Wg) -> None:
    wg.set("peer", client.show("public-key"), "allowed-ips", "100.64.9.9/32")
    client.set("peer", wg.show("public-key"), "endpoint", ENDPOINT4, "allowed-ips", "0.0.0.0/0", "persistent-keepalive", "25")
    lab.ip(client.namespace, f"addr add 100.64.9.9/32 dev {client.interface}", f"route replace {INTERNET4[0]} dev {client.interface}")
    traffic.first_answer(lab, client.namespace, INTERNET4[0])
    assert client.peers()[wg.show("public-key")][1] == ENDPOINT4
