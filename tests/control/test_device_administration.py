"""Names, tunnel addresses, and the file a client runs with."""

import configparser
import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressvpn.addresses import IPNetwork
from egressvpn.control import devices
from egressvpn.control.config import parse
from egressvpn.control.devices import ClientConfiguration
from egressvpn.control.keys import encode_key, new_private_key, public_key_of
from egressvpn.control.schema import Config
from egressvpn.control.store import DeviceKey, PeerChange, open_store
from egressvpn.errors import OperatorError

TEXT = """
[wireguard]
endpoint = "vpn.example.net:51820"
mtu = 1400
[tunnel]
networks = ["100.64.0.0/29", "fd64::/64"]
[[pool]]
name = "default"
addresses = ["203.0.113.0/28"]
[[pool]]
name = "other"
addresses = ["203.0.113.16/28"]
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return parse(TEXT, tmp_path / "gateway.toml")


def test_the_first_host_address_is_the_gateways_and_the_second_the_first_devices(config: Config) -> None:
    assert [str(devices.gateway_address(network)) for network in config.tunnel.networks] == ["100.64.0.1", "fd64::1"]
    assert [str(address) for address in devices.allocate(config.tunnel.networks, set())] == ["100.64.0.2", "fd64::2"]


def test_the_lowest_free_address_is_taken(config: Config) -> None:
    taken = {"100.64.0.2/32", "100.64.0.4/32", "fd64::2/128", "fd64::3/128"}
    assert [str(address) for address in devices.allocate(config.tunnel.networks, taken)] == ["100.64.0.3", "fd64::4"]


def test_a_full_network_is_refused(config: Config) -> None:
    taken = {f"100.64.0.{number}/32" for number in range(2, 7)}
    with pytest.raises(OperatorError, match=r"every address of 100.64.0.0/29 is in use; add a network"):
        devices.allocate(config.tunnel.networks, taken)


def test_a_new_device_gets_no_address_of_a_network_that_is_anothers(config: Config) -> None:
    taken = {"100.64.0.0/30", "fd64::/72", "10.0.0.0/8", "fd65::/16"}
    assert [str(address) for address in devices.allocate(config.tunnel.networks, taken)] == ["100.64.0.4", "fd64::100:0:0:0"]


def test_a_way_out_that_holds_the_whole_tunnel_network_does_not_count(config: Config) -> None:
    taken = {"0.0.0.0/0", "100.64.0.0/10", "100.64.0.0/29", "::/0", "100.64.0.2/32"}
    assert [str(address) for address in devices.allocate(config.tunnel.networks, taken)] == ["100.64.0.3", "fd64::2"]


TAKEN = st.one_of(
    st.tuples(st.integers(0, 255), st.integers(25, 32)).map(
        lambda drawn: ipaddress.ip_network((f"10.0.0.{drawn[0]}", drawn[1]), strict=False)
    ),
    st.sampled_from([ipaddress.ip_network(n) for n in ("10.0.0.0/8", "10.0.1.0/24", "0.0.0.0/0", "::/0", "fd64::/64")]),
)


@given(st.integers(24, 30), st.sets(TAKEN))
def test_allocation_agrees_with_a_linear_scan(length: int, taken: set[IPNetwork]) -> None:
    network = ipaddress.ip_network(f"10.0.0.0/{length}")
    counted = [n for n in taken if n.version == 4 and not network.subnet_of(n)]  # type: ignore[arg-type]
    free = [host for host in list(network.hosts())[1:] if not any(host in n for n in counted)]
    texts = {str(n) for n in taken}
    if free:
        assert devices.allocate([network], texts) == free[:1]
    else:
        with pytest.raises(OperatorError):
            devices.allocate([network], texts)


@pytest.mark.parametrize("name", ["a", "phone-1", "a.b_c", "x" * 63, "0"])
def test_names_that_may_be(name: str) -> None:
    assert devices.check_name(name) == name


@pytest.mark.parametrize("name", ["", "Phone", "a b", "x" * 64, "a/b", "ä", "a\n", "../x"])
def test_names_that_may_not_be(name: str) -> None:
    with pytest.raises(OperatorError, match="1 to 63"):
        devices.check_name(name)


@pytest.mark.parametrize("tags", [["a b"], [""], ["x" * 64], ["t"] * 33])
def test_tags_that_may_not_be(tags: list[str]) -> None:
    with pytest.raises(OperatorError):
        devices.check_tags(tags)


def test_the_gateways_own_key_is_not_a_devices() -> None:
    own = public_key_of(new_private_key())
    with pytest.raises(OperatorError, match="gateway's own"):
        devices.check_public_key(encode_key(own), own)


@pytest.mark.parametrize("written", ["", "abc", "A" * 43 + "=", "/dev/null"])
def test_what_is_no_public_key_is_refused(written: str) -> None:
    with pytest.raises(OperatorError, match="44 characters"):
        devices.check_public_key(written, b"g" * 32)


def test_a_device_goes_to_the_first_pool_unless_said_otherwise(config: Config) -> None:
    with open_store(config.store.url, config.path.parent) as store:
        assert devices.add(store, config, "a", DeviceKey(b"a" * 32), now=0).pool == "default"
        assert devices.add(store, config, "b", DeviceKey(b"b" * 32), pool="other", now=0).pool == "other"
        with pytest.raises(OperatorError, match="no pool named mars; the configuration has: default, other"):
            devices.add(store, config, "c", DeviceKey(b"c" * 32), pool="mars", now=0)


def test_a_freed_address_is_given_again(config: Config) -> None:
    with open_store(config.store.url, config.path.parent) as store:
        for number in range(3):
            devices.add(store, config, f"d{number}", DeviceKey(bytes([number + 1]) * 32), now=0)
        store.remove_device("d1")
        assert str(devices.add(store, config, "new", DeviceKey(b"n" * 32), now=0).addresses[0]) == "100.64.0.3"


def client(config: Config, private_key: bytes | None, secret: bytes | None) -> ClientConfiguration:
    with open_store(config.store.url, config.path.parent) as store:
        device = devices.add(store, config, "phone", DeviceKey(b"p" * 32, preshared_key=secret), now=0)
    return ClientConfiguration(device, config, b"g" * 32, private_key)


def test_the_clients_file_has_everything_wg_quick_needs(config: Config) -> None:
    made = client(config, b"k" * 32, b"s" * 32)
    read = configparser.ConfigParser()
    read.optionxform = str  # type: ignore[assignment, method-assign]
    read.read_string(made.wg_quick())
    assert dict(read["Interface"]) == {
        "PrivateKey": encode_key(b"k" * 32),
        "Address": "100.64.0.2/32, fd64::2/128",
        "DNS": "1.1.1.1, 2606:4700:4700::1111",
        "MTU": "1400",
    }
    assert dict(read["Peer"]) == {
        "PublicKey": encode_key(b"g" * 32),
        "PresharedKey": encode_key(b"s" * 32),
        "Endpoint": "vpn.example.net:51820",
        "AllowedIPs": "0.0.0.0/0, ::/0",
        "PersistentKeepalive": "25",
    }


def test_a_device_without_an_address_of_its_own_gets_a_file_without_one(config: Config) -> None:
    with open_store(config.store.url, config.path.parent) as store:
        change = PeerChange(b"p" * 32, allowed_ips=((True, ipaddress.ip_network("10.0.0.0/8")),))
        store.apply([change], pool="default", limit=9, now=0)
        (device,) = store.devices()
    assert "Address" not in ClientConfiguration(device, config, b"g" * 32, None).wg_quick()


def test_without_the_private_key_the_file_says_where_it_goes(config: Config) -> None:
    text = client(config, None, None).wg_quick()
    assert "\n# PrivateKey = \n" in text
    assert "\nPrivateKey" not in text
    assert "PresharedKey" not in text


def test_no_secret_is_in_the_repr_of_a_clients_configuration(config: Config) -> None:
    shown = repr(client(config, b"k" * 32, b"s" * 32))
    assert "kkkk" not in shown
    assert "ssss" not in shown


def test_without_an_endpoint_no_client_is_configured(config: Config) -> None:
    mute = parse(TEXT.replace('endpoint = "vpn.example.net:51820"', ""), config.path)
    with pytest.raises(OperatorError, match=r"add endpoint = \"HOST:PORT\" under \[wireguard\] in"):
        devices.require_endpoint(mute)
