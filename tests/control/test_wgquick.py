import base64
import ipaddress
import random
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressvpn.control.wgquick import NO_KEY, Endpoint, InterfaceSection, PeerSection, WgQuick, parse, read, render
from egressvpn.errors import OperatorError

KEY = bytes(range(32))
KEY64 = base64.b64encode(KEY).decode()
OTHER64 = base64.b64encode(bytes(range(1, 33))).decode()

# What `egressvpn peer add` prints and what the manual pages show, in every form they allow.
FULL = f"""\ufeff# a laptop
[interface]
PRIVATEKEY = {KEY64}   # made with wg genkey
Address=100.64.0.2/32,fd64::2
address = 192.0.2.9/24
DNS = 1.1.1.1, 2606:4700:4700::1111, example.net
MTU = 1420
ListenPort = 51821
Table = 0x7
FwMark = 0xca6c
SaveConfig = false
PostUp = iptables -A FORWARD -i %i -j ACCEPT; echo = done
PostUp = true
PreDown = false

[PEER]\r
PublicKey = {OTHER64}\r
PresharedKey = {KEY64}
Endpoint = [2001:db8::1]:51820
AllowedIPs = 0.0.0.0/0, ::/0
allowedips = 192.0.2.77/24
PersistentKeepalive = 25
"""


def test_a_file_with_everything_in_it_is_understood() -> None:
    assert parse(FULL[1:]) == WgQuick(
        InterfaceSection(
            KEY,
            tuple(map(ipaddress.ip_interface, ("100.64.0.2/32", "fd64::2/128", "192.0.2.9/24"))),
            ("1.1.1.1", "2606:4700:4700::1111", "example.net"),
            1420,
            51821,
            7,
            0xCA6C,
        ),
        (
            PeerSection(
                bytes(range(1, 33)),
                KEY,
                Endpoint("2001:db8::1", 51820),
                tuple(map(ipaddress.ip_network, ("0.0.0.0/0", "::/0", "192.0.2.0/24"))),
                25,
            ),
        ),
    )


def test_hooks_are_named_and_not_carried_out() -> None:
    assert [remark.split(" is ")[0] for remark in parse(FULL[1:], "laptop.conf").remarks] == [
        "laptop.conf, line 12: PostUp",
        "laptop.conf, line 13: PostUp",
    ]


def test_the_least_that_is_allowed() -> None:
    assert parse(f"[Interface]\nPrivateKey={KEY64}") == WgQuick(InterfaceSection(KEY))


@pytest.mark.parametrize(
    ("word", "table", "mark"),
    [("auto", None, "off"), ("off", 0, "0"), ("OFF", 0, "0x0"), ("254", 254, "OFF"), ("4294967295", 2**32 - 1, "00")],
)
def test_words_for_table_and_mark(word: str, table: int | None, mark: str) -> None:
    interface = parse(f"[Interface]\nPrivateKey={KEY64}\nTable={word}\nFwMark={mark}").interface
    assert (interface.table, interface.fwmark) == (table, 0)


@pytest.mark.parametrize(
    ("interface", "message"),
    [
        ("Adress = 10.0.0.1/32", r"t\.conf, line 3: Adress is no key of \[Interface\]; did you mean Address\?"),
        ("Jc = 4", r"line 3: Jc is no key of \[Interface\]; \[Interface\] knows PrivateKey, "),
        ("Address = 10.0.0.1/33", r"line 3: Address: '10\.0\.0\.1/33' is no address; write 192"),
        ("Address = 10.0.0.1/32,", "line 3: Address: an empty item"),
        ("Address = fe80::1%eth0", "is no address"),
        ("MTU = 575", "line 3: MTU: '575' is not in range; a number from 576 to 65535"),
        ("MTU = 0x10000", "MTU: '0x10000' is not in range"),
        ("MTU = -1", "not in range"),
        ("MTU = 1_420", "not in range"),
        ("MTU = ١٤٢٠", "not in range"),
        ("MTU =", "not in range"),
        ("MTU = 1420\nMTU = 1420", "line 4: MTU: repeats line 3; keep one"),
        ("ListenPort = 65536", "ListenPort"),
        ("FwMark = 0x100000000", "FwMark.*or off"),
        ("Table = main", "Table"),
        ("DNS = 999.1.1.1", "DNS: '999.1.1.1' is neither"),
        ("DNS = -x.net", "neither"),
        ("MTU 1420", r"line 3: no '=' in it; write `Key = value`"),
        ("[Pear]", "line 3: unknown section"),
        ("[Interface]", r"line 3: a second \[Interface\]"),
        ("[Peer]", r"line 3: \[Peer\] has no PublicKey"),
        ("PublicKey = x", r"PublicKey is no key of \[Interface\]"),
    ],
)
def test_a_mistake_is_told_with_file_line_key_and_mend(interface: str, message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        parse(f"[Interface]\nPrivateKey = {KEY64}\n{interface}\n", "t.conf")


@pytest.mark.parametrize(
    ("peer", "message"),
    [
        ("Endpoint = 192.0.2.1", "Endpoint: '192.0.2.1' is no endpoint"),
        ("Endpoint = 192.0.2.1:0", "no endpoint"),
        ("Endpoint = 2001:db8::1:51820", "no endpoint"),
        ("Endpoint = [192.0.2.1]:51820", "no endpoint"),
        ("Endpoint = [vpn.example.net]:51820", "no endpoint"),
        ("Endpoint = vpn..net:51820", "no endpoint"),
        (f"Endpoint = {'a' * 300}:51820", "no endpoint"),
        ("AllowedIPs = 0.0.0.0/0, nonsense", "AllowedIPs: 'nonsense' is no network"),
        ("PersistentKeepalive = 65536", "PersistentKeepalive: .* 0 to 65535, or off"),
        (f"PublicKey = {KEY64}", "line 5: PublicKey: repeats line 4"),
        (f"[Peer]\nPublicKey = {OTHER64}", r"line 6: PublicKey: another \[Peer\] has the same key"),
        (f"AllowedIPs = ::/0\n[Peer]\nPublicKey = {KEY64}\nAllowedIPs = ::/0", r"line 8: AllowedIPs: ::/0 is another \[Peer\]'s too"),
    ],
)
def test_a_mistake_in_a_peer_is_told_with_its_line(peer: str, message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        parse(f"[Interface]\nPrivateKey = {KEY64}\n[Peer]\nPublicKey = {OTHER64}\n{peer}\n", "t.conf")


@pytest.mark.parametrize("text", ["", "# nothing", "\n\n"])
def test_a_file_without_an_interface_is_refused(text: str) -> None:
    with pytest.raises(OperatorError, match=r"t\.conf has no \[Interface\]"):
        parse(text, "t.conf")


def test_a_line_before_any_section_is_refused() -> None:
    with pytest.raises(OperatorError, match="line 1: stands before any section"):
        parse(f"PrivateKey = {KEY64}")


@pytest.mark.parametrize("key", ["", KEY64[:-1], KEY64[:-2] + "9=", KEY64 + "=", "A" * 44, f"{KEY64[:20]} {KEY64[20:]}", "é" * 44])
@pytest.mark.parametrize("name", ["PrivateKey", "PresharedKey"])
def test_a_malformed_secret_is_refused_and_not_repeated(name: str, key: str) -> None:
    own, shared = (key, OTHER64) if name == "PrivateKey" else (OTHER64, key)
    with pytest.raises(OperatorError, match=rf"line \d+: {name}: no key; 44 characters of base64") as refused:
        parse(f"[Interface]\nPrivateKey = {own}\n[Peer]\nPublicKey = {OTHER64}\nPresharedKey = {shared}\n")
    assert not key or key not in str(refused.value)


@pytest.mark.parametrize("line", [f"{KEY64}", f"{KEY64[:43]} = x", KEY64.replace("=", " = ")])
def test_a_secret_on_a_line_of_its_own_is_not_repeated(line: str) -> None:
    with pytest.raises(OperatorError) as refused:
        parse(f"[Interface]\nPrivateKey = {OTHER64}\n{line}\n")
    assert KEY64[:20] not in str(refused.value)


def test_secrets_are_in_no_repr() -> None:
    told = repr(parse(FULL[1:]))
    assert KEY64 not in told
    assert repr(KEY) not in told
    assert "Endpoint(host='2001:db8::1'" in told


def test_a_file_is_read_and_its_mode_remarked_on(tmp_path: Path) -> None:
    path = tmp_path / "wg0.conf"
    path.write_text(FULL)
    path.chmod(0o644)
    assert "chmod 600" in read(path).remarks[0]
    path.chmod(stat.S_IRUSR)
    assert read(path) == parse(FULL[1:])
    assert all("chmod" not in remark for remark in read(path).remarks)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read"), (b"\xff\xfe", "is not UTF-8"), (bytes(2 << 20), "larger than"), (b"\0", "stands before")],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "wg0.conf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OperatorError, match=message):
        read(path)


def test_without_a_private_key_the_client_is_told_where_to_put_it() -> None:
    text = render(WgQuick(InterfaceSection(b"")))
    assert text == "[Interface]\n# PrivateKey = (the client's own; add it here)\n"
    with pytest.raises(OperatorError, match=r"line 1: \[Interface\] has no PrivateKey"):
        parse(text)


def test_a_long_host_name_is_judged_at_once() -> None:
    with pytest.raises(OperatorError, match="no endpoint"):
        parse(f"[Interface]\nPrivateKey={KEY64}\n[Peer]\nPublicKey={KEY64}\nEndpoint={'a-' * 120}!:1")


keys = st.binary(min_size=32, max_size=32)
ports = st.integers(1, 65535)
ips = st.ip_addresses(v=4) | st.ip_addresses(v=6)
labels = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=4).map(".".join)


@st.composite
def interfaces_on(draw: st.DrawFn) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    address = draw(ips)
    return ipaddress.ip_interface(f"{address}/{draw(st.integers(0, address.max_prefixlen))}")


sections = st.builds(
    InterfaceSection,
    keys,
    st.lists(interfaces_on(), max_size=4, unique=True).map(tuple),
    st.lists(ips.map(str) | names, max_size=4, unique=True).map(tuple),
    st.none() | st.integers(576, 65535),
    st.integers(0, 65535),
    st.none() | st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
)
peers = st.builds(
    PeerSection,
    keys,
    keys | st.just(NO_KEY),
    st.none() | st.builds(Endpoint, ips.map(str) | names, ports),
    st.lists(interfaces_on().map(lambda interface: interface.network), max_size=4, unique=True).map(tuple),
    st.integers(0, 65535),
)


@st.composite
def configurations(draw: st.DrawFn) -> WgQuick:
    """Peers with keys and networks of their own."""
    several = draw(st.lists(peers, max_size=3, unique_by=lambda peer: peer.public_key))
    taken: set[object] = set()
    apart = []
    for peer in several:
        free = tuple(network for network in peer.allowed_ips if network not in taken)
        taken.update(free)
        apart.append(PeerSection(peer.public_key, peer.preshared_key, peer.endpoint, free, peer.persistent_keepalive))
    return WgQuick(draw(sections), tuple(apart))


@given(configurations())
def test_what_is_rendered_is_read_back_the_same(configuration: WgQuick) -> None:
    assert parse(render(configuration)) == configuration


@given(configurations(), st.randoms(use_true_random=False))
def test_case_spaces_comments_and_order_do_not_matter(configuration: WgQuick, chance: random.Random) -> None:
    def disturb(line: str) -> str:
        key, equals, value = line.partition("=")
        swapped = "".join(letter.swapcase() if chance.random() < 0.5 else letter for letter in key)
        return f"  {swapped}{' ' * chance.randrange(3)}{equals} {value} # {chance.random()}\r"

    blocks = [block.split("\n") for block in render(configuration).strip().split("\n\n")]
    for block in blocks:
        rest = block[1:]
        chance.shuffle(rest)
        block[1:] = rest
    assert parse("\n".join(disturb(line) for block in blocks for line in block)) == configuration


@given(st.text(max_size=300) | st.lists(st.sampled_from(FULL.splitlines()), max_size=30).map("\n".join))
def test_any_text_is_read_or_refused_and_nothing_else(text: str) -> None:
    try:
        parsed = parse(text)
    except OperatorError:
        return
    assert parse(render(parsed)) == parsed


@pytest.mark.parametrize(
    "line", ["{half} = x", "MTU = {key}", "Address = {key}", "DNS = {key}", "Endpoint = {key}", "Table = {half}", "ListenPort = {key}"]
)
def test_a_key_in_the_wrong_place_is_not_repeated_in_the_error(line: str) -> None:
    """Mail programs break long lines, and people paste into the wrong one."""
    with pytest.raises(OperatorError) as caught:
        parse(f"[Interface]\n{line.format(key=KEY64, half=KEY64[20:43])}\n")
    assert KEY64[20:40] not in str(caught.value)
    assert KEY64[:20] not in str(caught.value)
