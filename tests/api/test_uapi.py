"""WireGuard's configuration protocol without sockets: what lines mean, what mistakes do, and what `get` is answered with."""

import ipaddress
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egressvpn.addresses import IPNetwork
from egressvpn.api.uapi import MAX_LINE, MAX_PART, Get, HangUp, InterfaceState, PeerState, Request, Requests, answer, errno_answer
from egressvpn.api.uapi_lines import Fwmark, ListenPort, PrivateKey, Set
from egressvpn.control.peers import PeerChange

KEY = bytes(range(32))
OTHER = bytes(range(100, 132))
NET = ipaddress.ip_network


def requests(text: str | bytes, at_once: int = 1 << 20) -> list[Request]:
    """What a connection asks for that brings this, so many octets at a time."""
    octets = text.encode() if isinstance(text, str) else text
    reader = Requests()
    found: list[Request] = []
    for start in range(0, len(octets), at_once):
        found += reader.feed(octets[start : start + at_once])
    return found


def asked(*lines: str) -> Set:
    """The one request that a `set` of these lines is."""
    (request,) = requests("\n".join(["set=1", *lines, "", ""]))
    assert isinstance(request, Set)
    return request


def peer(*lines: str) -> PeerChange:
    """The one change that a block of these lines is."""
    request = asked(f"public_key={KEY.hex()}", *lines)
    assert request.code == 0, request.why
    (change,) = request.peers
    assert change.public_key == KEY
    return change


def code_of(*lines: str) -> int | None:
    return asked(*lines).code


# operations


def test_get_asks_for_the_state() -> None:
    assert requests("get=1\n\n") == [Get()]


def test_a_connection_may_ask_for_several_things() -> None:
    assert requests("get=1\n\nset=1\nfwmark=1\n\nset=1\n\nget=1\n\n") == [Get(), Set((Fwmark(1),), code=0), Set(code=0), Get()]


@pytest.mark.parametrize("line", ["", "get", "get=2", "get=1 ", "get=1\r", "set=0", "GET=1", "set", "private_key=0", "\0", "é"])
def test_what_is_no_operation_ends_the_connection_without_an_answer(line: str) -> None:
    assert requests(f"{line}\nget=1\n\n") == [HangUp()]


def test_get_with_anything_behind_it_is_invalid_and_its_errno_has_no_sign() -> None:
    (request,) = requests("get=1\nx")
    assert isinstance(request, Set)
    assert request.code == 22


def test_after_a_wrong_get_the_connection_goes_on() -> None:
    wrong, right = requests("get=1\nx=y\n\nget=1\n\n")
    assert isinstance(wrong, Set)
    assert (wrong.code, right) == (22, Get())


def test_a_connection_that_says_nothing_asks_for_nothing() -> None:
    assert Requests().end() is None


def test_a_set_that_is_cut_off_is_answered_with_an_error_and_changes_nothing() -> None:
    reader = Requests()
    assert list(reader.feed(b"set=1\nfwmark=1\npublic_key=")) == []
    assert reader.end() == Set(code=-5, why="the operation was cut off")


def test_half_an_operation_that_is_cut_off_is_nothing() -> None:
    for text in (b"set=1", b"get=1\n", b"ge"):
        reader = Requests()
        assert list(reader.feed(text)) == []
        assert reader.end() is None


# the interface


def test_the_settings_of_the_interface_keep_their_order() -> None:
    request = asked(f"private_key={KEY.hex()}", "listen_port=51820", "fwmark=4294967295", "listen_port=0", "fwmark=0")
    assert request.settings == (PrivateKey(KEY), ListenPort(51820), Fwmark(0xFFFFFFFF), ListenPort(0), Fwmark(0))
    assert (request.replace_peers, request.peers, request.code) == (False, (), 0)


def test_an_all_zero_private_key_takes_the_identity_away() -> None:
    assert asked(f"private_key={'00' * 32}").settings == (PrivateKey(None),)


def test_replace_peers_replaces_the_peers() -> None:
    assert asked("replace_peers=true").replace_peers


@pytest.mark.parametrize(
    "line",
    [
        "private_key=",
        "private_key=" + "0" * 63,
        "private_key=" + "0" * 66,
        "private_key=" + "0g" * 32,
        "private_key=" + "00 " * 32,
        "listen_port=65536",
        "listen_port=-1",
        "listen_port=",
        "listen_port=+5",
        "listen_port=0x10",
        "listen_port=1_0",
        "listen_port= 5",
        "listen_port=" + "1" * 5000,
        "listen_port=٣",
        "fwmark=4294967296",
        "fwmark=off",
        "replace_peers=false",
        "replace_peers=1",
        "replace_peers=",
        "errno=0",
        "=",
        "=1",
        "protocol_version=1",
        "allowed_ip=10.0.0.0/8",
        "set=1",
    ],
)
def test_a_wrong_line_of_the_interface_is_invalid(line: str) -> None:
    assert code_of(line) == -22


@pytest.mark.parametrize("line", ["private_key", "x", "\0", " "])
def test_a_line_without_an_equals_sign_breaks_the_protocol(line: str) -> None:
    assert code_of(line) == -71
    assert code_of(f"public_key={KEY.hex()}", line) == -71


# peers


def test_a_block_with_nothing_but_its_key_is_a_peer() -> None:
    assert peer() == PeerChange(KEY)


def test_everything_that_can_be_said_of_a_peer() -> None:
    change = peer(
        "protocol_version=1",
        f"preshared_key={OTHER.hex()}",
        "endpoint=192.0.2.1:51820",
        "persistent_keepalive_interval=65535",
        "replace_allowed_ips=true",
        "allowed_ip=10.0.0.0/8",
        "allowed_ip=2001:db8::/32",
        "allowed_ip=-10.1.2.3/32",
    )
    networks = ((True, NET("10.0.0.0/8")), (True, NET("2001:db8::/32")), (False, NET("10.1.2.3/32")))
    assert change == PeerChange(KEY, False, False, OTHER, "192.0.2.1:51820", 65535, True, networks)


def test_a_peer_can_be_removed_and_be_updated_only() -> None:
    assert peer("remove=true") == PeerChange(KEY, remove=True)
    assert peer("update_only=true") == PeerChange(KEY, update_only=True)


def test_a_peer_may_have_several_blocks() -> None:
    request = asked(f"public_key={KEY.hex()}", "remove=true", f"public_key={OTHER.hex()}", f"public_key={KEY.hex().upper()}")
    assert request.peers == (PeerChange(KEY, remove=True), PeerChange(OTHER), PeerChange(KEY))


def test_the_all_zero_public_key_is_a_peer_like_any_other() -> None:
    assert asked(f"public_key={'00' * 32}").peers == (PeerChange(bytes(32)),)


def test_bits_behind_the_prefix_are_cut_off() -> None:
    change = peer("allowed_ip=192.0.2.77/24", "allowed_ip=2001:db8::1/32")
    assert change.allowed_ips == ((True, NET("192.0.2.0/24")), (True, NET("2001:db8::/32")))


def test_what_was_taken_from_other_peers_before_replace_allowed_ips_stays_taken() -> None:
    request = asked(f"public_key={KEY.hex()}", "allowed_ip=10.0.0.0/8", "replace_allowed_ips=true", "allowed_ip=10.1.0.0/16")
    taken = PeerChange(KEY, allowed_ips=((True, NET("10.0.0.0/8")),))
    kept = PeerChange(KEY, update_only=True, replace_allowed_ips=True, allowed_ips=((True, NET("10.1.0.0/16")),))
    assert request.peers == (taken, kept)


@pytest.mark.parametrize("endpoint", ["192.0.2.1:1", "[2001:db8::1]:65535", "[fe80::1%eth0]:51820"])
def test_an_endpoint_is_a_literal_address_and_a_port(endpoint: str) -> None:
    assert peer(f"endpoint={endpoint}").endpoint == endpoint


@pytest.mark.parametrize(
    "line",
    [
        "endpoint=",
        "endpoint=192.0.2.1",
        "endpoint=192.0.2.1:0",
        "endpoint=192.0.2.1:65536",
        "endpoint=2001:db8::1:51820",
        "endpoint=[192.0.2.1]:51820",
        "endpoint=vpn.example.net:51820",
        "endpoint=[2001:db8::1]",
        "preshared_key=",
        "preshared_key=0",
        "persistent_keepalive_interval=65536",
        "persistent_keepalive_interval=off",
        "replace_allowed_ips=false",
        "update_only=false",
        "remove=false",
        "remove=",
        "protocol_version=2",
        "protocol_version=",
        "allowed_ip=",
        "allowed_ip=10.0.0.0",
        "allowed_ip=10.0.0.0/",
        "allowed_ip=10.0.0.0/33",
        "allowed_ip=10.0.0.0/255.0.0.0",
        "allowed_ip=10.0.0.0/-1",
        "allowed_ip=10.0.0/8",
        "allowed_ip=010.0.0.0/8",
        "allowed_ip=2001:db8::/129",
        "allowed_ip=fe80::1%eth0/64",
        "allowed_ip=--10.0.0.0/8",
        "allowed_ip=/8",
        "public_key=",
        "public_key=00",
        "private_key=" + "00" * 32,
        "listen_port=1",
        "replace_peers=true",
        "last_handshake_time_sec=0",
        "rx_bytes=1",
    ],
)
def test_a_wrong_line_of_a_peer_is_invalid(line: str) -> None:
    assert code_of(f"public_key={KEY.hex()}", line) == -22


# mistakes


def test_what_stands_before_a_mistake_is_carried_out_and_what_follows_is_not() -> None:
    lines = ["fwmark=1", f"public_key={KEY.hex()}", "allowed_ip=10.0.0.0/8", "allowed_ip=wrong", "allowed_ip=11.0.0.0/8"]
    request = asked(*lines)
    assert request.settings == (Fwmark(1),)
    assert request.peers == (PeerChange(KEY, allowed_ips=((True, NET("10.0.0.0/8")),)),)
    assert request.code == -22


def test_after_a_mistake_the_connection_goes_on_with_the_next_operation() -> None:
    wrong, right = requests("set=1\nwrong\nfwmark=1\n\nget=1\n\n")
    assert isinstance(wrong, Set)
    assert (wrong.code, wrong.settings, right) == (-71, (), Get())


def test_a_client_that_stops_at_the_answer_may_begin_another_operation_at_once() -> None:
    reader = Requests()
    (wrong,) = reader.feed(b"set=1\nwrong\n")
    assert isinstance(wrong, Set)
    assert list(reader.feed(b"get=1\n\nset=1\nfwmark=7\n\n")) == [Get(), Set((Fwmark(7),), code=0)]


def test_a_line_that_never_ends_is_refused_and_not_kept() -> None:
    reader = Requests()
    assert list(reader.feed(b"set=1\nfwmark=1\nallowed_ip=")) == []
    (refused,) = [request for _ in range(1000) for request in reader.feed(b"1" * 1000)]
    assert refused == Set((Fwmark(1),), code=-5, why=f"a line of more than {MAX_LINE} octets")
    assert len(reader._rest) <= 2 * MAX_LINE
    assert list(reader.feed(b"1\nfwmark=2\n\nget=1\n\n")) == [Get()]


def test_a_first_line_that_never_ends_ends_the_connection() -> None:
    reader = Requests()
    found = [request for _ in range(100) for request in reader.feed(b"g" * 1000)]
    assert found == [HangUp()]
    assert len(reader._rest) <= 2 * MAX_LINE


def test_no_text_of_a_mistake_and_no_repr_shows_a_secret() -> None:
    secret = "5e" * 32
    shown = [
        *requests(f"set=1\nprivate_key={secret}\n{secret}\n\nset=1\n{secret}=1\n\nset=1\nprivate_key={secret}0\n\n"),
        *requests(f"set=1\npublic_key={KEY.hex()}\npreshared_key={secret}\npreshared_key={secret}0\n\n"),
        InterfaceState(bytes.fromhex(secret), 0, 0, (PeerState(KEY, bytes.fromhex(secret)),)),
    ]
    for request in shown:
        assert secret not in repr(request)
        assert repr(bytes.fromhex(secret)) not in repr(request)


# large operations


def test_a_large_set_comes_in_parts_that_together_are_the_whole() -> None:
    count = 2 * MAX_PART + 10
    networks = [NET(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}") for n in range(count)]
    text = f"set=1\nreplace_peers=true\npublic_key={KEY.hex()}\n" + "".join(f"allowed_ip={n}\n" for n in networks) + "\n"
    parts = [request for request in requests(text, 8192) if isinstance(request, Set)]
    assert [part.code for part in parts] == [None, None, 0]
    assert [part.replace_peers for part in parts] == [True, False, False]
    changes = [change for part in parts for change in part.peers]
    assert [change.update_only for change in changes] == [False, True, True]  # a part never makes a peer again
    assert [network for change in changes for _, network in change.allowed_ips] == networks
    assert all(len(change.allowed_ips) <= MAX_PART for change in changes)


def test_a_removed_peer_that_is_described_at_length_stays_removed() -> None:
    text = f"set=1\npublic_key={KEY.hex()}\nremove=true\n" + "allowed_ip=10.0.0.0/8\n" * (MAX_PART + 1) + "\n"
    changes = [change for part in requests(text) if isinstance(part, Set) for change in part.peers]
    assert changes[0].remove
    assert all(change.update_only or change.remove for change in changes)


def test_an_operation_is_the_same_however_its_octets_arrive() -> None:
    text = f"set=1\nfwmark=9\npublic_key={KEY.hex()}\nallowed_ip=10.0.0.0/8\n\nget=1\n\n"
    whole = requests(text)
    assert all(requests(text, at_once) == whole for at_once in range(1, 40))


# the answer to get


def text_of(state: InterfaceState) -> str:
    return b"".join(answer(state)).decode()


def test_an_interface_that_has_nothing_tells_nothing() -> None:
    assert text_of(InterfaceState(None, 0, 0, ())) == "errno=0\n\n"


def test_an_interface_is_told_as_wireguard_go_tells_it() -> None:
    state = PeerState(KEY, None, "192.0.2.1:1", 1_234_000_000_567, 11, 22, 25, (NET("10.0.0.0/8"), NET("::/0")))
    assert text_of(InterfaceState(OTHER, 51820, 7, (state, PeerState(OTHER, KEY)))) == (
        f"private_key={OTHER.hex()}\nlisten_port=51820\nfwmark=7\n"
        f"public_key={KEY.hex()}\npreshared_key={'00' * 32}\nprotocol_version=1\nendpoint=192.0.2.1:1\n"
        "last_handshake_time_sec=1234\nlast_handshake_time_nsec=567\ntx_bytes=11\nrx_bytes=22\npersistent_keepalive_interval=25\n"
        "allowed_ip=10.0.0.0/8\nallowed_ip=::/0\n"
        f"public_key={OTHER.hex()}\npreshared_key={KEY.hex()}\nprotocol_version=1\n"
        "last_handshake_time_sec=0\nlast_handshake_time_nsec=0\ntx_bytes=0\nrx_bytes=0\npersistent_keepalive_interval=0\n"
        "errno=0\n\n"
    )


def test_a_large_answer_is_made_in_small_blocks() -> None:
    networks = [NET(n << 8) for n in range(100_000)]
    blocks = list(answer(InterfaceState(None, 0, 0, [PeerState(KEY, None, allowed_ips=networks)])))
    assert max(map(len, blocks)) < 20_000
    assert b"".join(blocks).count(b"allowed_ip=") == 100_000


def test_an_errno_ends_an_answer() -> None:
    assert errno_answer(-98) == b"errno=-98\n\n"


# told, asked and carried out again

keys = st.binary(min_size=32, max_size=32)
networks = st.one_of(
    st.integers(0, 2**32 - 1).flatmap(lambda a: st.integers(0, 32).map(lambda n: NET((a, n), strict=False))),
    st.integers(0, 2**128 - 1).flatmap(lambda a: st.integers(0, 128).map(lambda n: ipaddress.IPv6Network((a, n), strict=False))),
)
endpoints = st.one_of(
    st.just(""),
    st.builds("{}:{}".format, st.ip_addresses(v=4), st.integers(1, 65535)),
    st.builds("[{}]:{}".format, st.ip_addresses(v=6), st.integers(1, 65535)),
)


def unique_networks(peers: Iterable[PeerState]) -> list[PeerState]:
    """As a table of allowed IPs has them: every network has one owner, every key is there once."""
    taken: set[IPNetwork] = set()
    kept: dict[bytes, PeerState] = {}
    for one in peers:
        own = [n for n in dict.fromkeys(one.allowed_ips) if n not in taken]
        taken.update(own)
        kept[one.public_key] = PeerState(
            one.public_key, one.preshared_key, one.endpoint, persistent_keepalive=one.persistent_keepalive, allowed_ips=tuple(own)
        )
    return list(kept.values())


@settings(max_examples=200)
@given(
    st.none() | keys.filter(any),
    st.integers(0, 65535),
    st.integers(0, 2**32 - 1),
    st.lists(
        st.builds(
            PeerState,
            keys,
            st.none() | keys.filter(any),
            endpoints,
            st.just(0),
            st.just(0),
            st.just(0),
            st.integers(0, 65535),
            st.lists(networks, max_size=5),
        ),
        max_size=5,
    ).map(unique_networks),
    st.integers(1, 300),
)
def test_what_is_told_can_be_set_and_is_told_again(key: bytes | None, port: int, mark: int, peers: list[PeerState], at_once: int) -> None:
    """The settings in the answer to `get`, sent as a `set`, say what was told."""
    told = text_of(InterfaceState(key, port, mark, peers)).removesuffix("errno=0\n\n").splitlines()
    lines = [line for line in told if not line.startswith(("last_handshake", "tx_bytes", "rx_bytes"))]
    (request,) = requests("\n".join(["set=1", *lines, "", ""]), at_once)
    assert isinstance(request, Set)
    assert request.code == 0, request.why
    again = [
        PeerState(
            change.public_key,
            change.preshared_key if any(change.preshared_key or b"") else None,
            change.endpoint or "",
            persistent_keepalive=change.persistent_keepalive or 0,
            allowed_ips=tuple(network for _, network in change.allowed_ips),
        )
        for change in request.peers
    ]
    assert again == peers
    told_settings = {type(setting): setting for setting in request.settings}
    assert told_settings.get(PrivateKey, PrivateKey(None)) == PrivateKey(key)
    assert told_settings.get(ListenPort, ListenPort(0)) == ListenPort(port)
    assert told_settings.get(Fwmark, Fwmark(0)) == Fwmark(mark)


fragments = st.sampled_from(
    [b"set=1", b"get=1", b"\n", b"\n\n", b"public_key=" + KEY.hex().encode(), b"allowed_ip=10.0.0.0/8", b"=", b"remove=true", b"x" * 9000]
)


@given(st.lists(st.one_of(fragments, st.binary(max_size=30)), max_size=40), st.integers(1, 50))
def test_nothing_that_arrives_breaks_the_reader(pieces: list[bytes], at_once: int) -> None:
    """Whatever comes, however cut: the same requests, one answer at most for each operation, and bounded memory."""
    octets = b"".join(pieces)
    reader = Requests()
    found = [request for start in range(0, len(octets), at_once) for request in reader.feed(octets[start : start + at_once])]
    assert len(reader._rest) <= MAX_LINE + at_once
    operations = octets.count(b"set=1\n") + octets.count(b"get=1\n")
    assert sum(isinstance(request, Get | Set) for request in found) <= operations
    assert sum(isinstance(request, HangUp) for request in found) <= 1
    if HangUp() in found:
        assert found[-1] == HangUp()
