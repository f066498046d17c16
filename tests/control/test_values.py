"""Durations, ports, addresses and networks as operators write them."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressvpn.control import values
from egressvpn.control.values import Endpoint, PortRange, UnacceptableError


@pytest.mark.parametrize(
    ("written", "seconds"), [("90s", 90), ("5m", 300), ("2h", 7200), ("7d", 604_800), (42, 42), ("0s", 0), (" 5 m ", 300)]
)
def test_durations_are_seconds(written: object, seconds: int) -> None:
    assert values.duration(written) == seconds


@pytest.mark.parametrize("written", ["5", "5x", "-5s", "", "1.5h", 1.5, True, None, -1, "366d", [], "5s5m"])
def test_what_is_no_duration_is_refused(written: object) -> None:
    with pytest.raises(UnacceptableError):
        values.duration(written)


@pytest.mark.parametrize(("written", "low", "high"), [("1024-65535", 1024, 65535), ("2000 - 3000", 2000, 3000), ("4000", 4000, 4000)])
def test_port_slices(written: str, low: int, high: int) -> None:
    assert values.ports(written) == PortRange(low, high)
    assert len(values.ports(written)) == high - low + 1


@pytest.mark.parametrize("written", ["1023-2000", "3000-2000", "1024-65536", "a-b", "", "-", "1024-", 1024, "80", "1024-2000-3000"])
def test_what_is_no_port_slice_is_refused(written: object) -> None:
    with pytest.raises(UnacceptableError):
        values.ports(written)


def test_a_slice_written_backwards_is_refused_with_the_right_one() -> None:
    with pytest.raises(UnacceptableError) as refused:
        values.ports("3000-2000")
    assert '"2000-3000"' in refused.value.mend


def test_host_bits_are_refused_with_the_network_that_was_meant() -> None:
    with pytest.raises(UnacceptableError) as refused:
        values.network("203.0.113.7/28")
    assert '"203.0.113.0/28"' in refused.value.mend
    assert '"203.0.113.7/32"' in refused.value.mend


@pytest.mark.parametrize("written", ["0.0.0.0:51820", "[::]:51820", "[2001:db8::1]:1", "192.0.2.1:65535"])
def test_socket_addresses_read_back_as_written(written: str) -> None:
    assert str(values.socket_address(written)) == written


@pytest.mark.parametrize(
    "written", ["0.0.0.0", ":51820", "::1:51820", "host:51820", "0.0.0.0:0", "0.0.0.0:65536", "[::1%eth0]:5", "0.0.0.0:-1", 51820, ""]
)
def test_what_is_no_socket_address_is_refused(written: object) -> None:
    with pytest.raises(UnacceptableError):
        values.socket_address(written)


@pytest.mark.parametrize("written", ["vpn.example.net:51820", "192.0.2.1:51820", "[2001:db8::1]:51820", "vpn_1.example.:1"])
def test_endpoints_read_back_as_written(written: str) -> None:
    assert str(values.endpoint(written)) == written


def test_an_empty_endpoint_is_none() -> None:
    assert values.endpoint("") is None


@pytest.mark.parametrize(
    "written", ["vpn.example.net", "bad host:1", "-x.example:1", "999.1.1.1:1", "0.0.0.0:51820", "[::]:1", "a..b:1", "x\n:1", 5]
)
def test_what_is_no_endpoint_is_refused(written: object) -> None:
    with pytest.raises(UnacceptableError):
        values.endpoint(written)


def test_a_literal_endpoint_knows_its_address() -> None:
    assert Endpoint("2001:db8::1", 1).address == ipaddress.ip_address("2001:db8::1")
    assert Endpoint("vpn.example.net", 1).address is None


@pytest.mark.parametrize("written", ["unix:", "unix:/", "0.0.0.0", 1])
def test_what_is_no_listener_is_refused(written: object) -> None:
    with pytest.raises(UnacceptableError):
        values.listener(written)


def test_an_item_written_twice_is_refused() -> None:
    with pytest.raises(UnacceptableError, match="twice"):
        values.list_of(values.network)(["10.0.0.0/8", "10.0.0.0/8"])


PARSERS = [values.duration, values.ports, values.address, values.network, values.socket_address, values.listener, values.endpoint]


@given(
    st.sampled_from(PARSERS), st.one_of(st.text(max_size=60), st.integers(), st.floats(), st.booleans(), st.lists(st.text(), max_size=2))
)
def test_nothing_but_unacceptable_ever_escapes_a_parser(parse: object, written: object) -> None:
    try:
        parse(written)  # type: ignore[operator]
    except UnacceptableError as error:
        refusal = error
    else:
        return
    assert refusal.what
    assert refusal.mend
