"""Private keys, preshared keys, session keys and cookies show in no repr, no log and no error. (The lab looks at whole processes.)"""

import base64
import dataclasses
import importlib
import inspect
import ipaddress
import logging
import pkgutil
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import structlog

import egressvpn
from egressvpn.addresses import Path as NetworkPath
from egressvpn.api.uapi import InterfaceState, PeerState, Requests
from egressvpn.app.uapi import own_private_key
from egressvpn.control import wgquick
from egressvpn.control.config import load
from egressvpn.control.peers import PeerChange
from egressvpn.control.records import DeviceKey
from egressvpn.control.store import Store, open_store
from egressvpn.errors import OperatorError
from egressvpn.observe import logs
from egressvpn.wireguard.interface import Install, Interface
from egressvpn.wireguard.noise import diffie_hellman
from tests.disclosure import disclosed
from tests.wireguard.pair import CLIENT, GATEWAY, PSK, T0, WALL, Pair, cookie_reply, only, polled

SECRET = bytes.fromhex("97ab3fd0c2185e74b06911fa8d43e7205cb86af19e27d4033b7f10c846ad52e9")
WRITTEN = base64.b64encode(SECRET).decode()
SECRET_NAME = re.compile(r"(^|_)(private|preshared|psk|secret|chaining|shared|receive|send|mac1|cookie)(_key|$)|^key$|^stored$")
NOT_SECRET = {  # names and texts
    ("egressvpn.control.problems", "Problem", "key"),
    ("egressvpn.control.wgquick", "_Entry", "key"),
    ("egressvpn.control.batch", "_Peer", "key"),
    ("egressvpn.control.schema", "WireGuard", "private_key_file"),
}


def test_the_search_finds_a_secret_however_it_is_written() -> None:
    hidden = {
        "raw": SECRET[3:11],
        "hexadecimal": f"key={SECRET.hex().upper()}",
        "base64": WRITTEN,
        "bytes": f"{SECRET[8:]!r}",
        "numbers": f"{list(SECRET)}",
    }
    for way, shown in hidden.items():
        assert way in disclosed([SECRET], shown)
    assert disclosed([SECRET], base64.urlsafe_b64encode(b"ab" + SECRET)) == {"base64"}
    assert disclosed([SECRET], "nothing of " + WRITTEN[:8]) == set()
    assert disclosed([bytes(32)], "00" * 32) == set()


def test_every_field_for_a_secret_is_out_of_its_objects_repr() -> None:
    shown = [
        (kind.__module__, kind.__name__, field.name)
        for kind in _classes()
        if dataclasses.is_dataclass(kind)
        for field in dataclasses.fields(kind)
        if SECRET_NAME.search(field.name) and field.repr
    ]
    assert set(shown) == NOT_SECRET


def test_no_object_of_a_handshake_shows_a_key() -> None:
    drawn: list[bytes] = []
    pair = Pair(psk=PSK)
    secrets, outputs = [PSK], []
    for interface in (pair.client, pair.gateway):
        _record_randomness(interface, drawn)
        secrets += [identity.private_key for identity in interface.identities]
    secrets.append(diffie_hellman(secrets[1], pair.gateway.public_key))

    transmit = pair.initiate()
    seen = _everything(pair.client)  # while the handshake is under way
    reply = cookie_reply(pair.gateway.public_key, transmit.datagram, SECRET[:16])
    pair.client.receive(reply, GATEWAY, T0, WALL)
    pair.gateway.receive(transmit.datagram, CLIENT, T0, WALL)
    answer = only(polled(pair.gateway), Install)
    pair.client.receive(answer.response, GATEWAY, T0, WALL)
    outputs += [transmit, answer, *polled(pair.client)]
    secrets += [answer.receive_key, answer.send_key, SECRET[:16], *(octets for octets in drawn if len(octets) == 32)]

    seen += _everything(pair.client) + _everything(pair.gateway) + _everything(outputs)
    assert len(secrets) >= 9
    assert {type(each).__name__ for each in seen} >= {"Interface", "Peer", "Macs", "LocalIdentity", "Outstanding", "Initiator", "Install"}
    assert {type(each).__name__ for each in seen if disclosed(secrets, f"{each!r} {each}")} == set()


@pytest.mark.parametrize(
    "value",
    [
        DeviceKey(bytes(32), preshared_key=SECRET),
        PeerChange(bytes(32), preshared_key=SECRET),
        PeerState(bytes(32), SECRET),
        InterfaceState(SECRET, 51820, 0, [PeerState(bytes(32), SECRET)]),
        wgquick.InterfaceSection(SECRET),
        wgquick.PeerSection(bytes(32), SECRET),
        Install(1, 2, 3, SECRET, SECRET, True, NetworkPath(b"")),
        Interface(SECRET, None, bytes),  # type: ignore[arg-type]
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_hold_a_secret_do_not_show_it(value: Any) -> None:
    assert disclosed([SECRET], f"{value!r} {value} {[value]} {_everything(value)}") == set()


HALF = WRITTEN[:22], WRITTEN[22:]


@pytest.mark.parametrize(
    "text",
    [
        f"[Interface]\nPrivateKey = {WRITTEN[:-2]}\n",
        f"[Interface]\nPrivateKey = {WRITTEN}x\n",
        f"[Interface]\nPrivateKey = {SECRET.hex()}\n",
        f"[Interface]\n{WRITTEN}\n",
        f"[Interface]\nPrivateKey = {WRITTEN}\nPrivateKey = {WRITTEN}\n",
        f"[Interface]\nPrivateKey = {HALF[0]}\n{HALF[1]}\n",
        f"[Interface]\nPrivateKey = {WRITTEN}\n[Peer]\nPublicKey = {WRITTEN}\nPresharedKey = {WRITTEN} {WRITTEN}\n",
        f"{WRITTEN}\n",
        f"[{WRITTEN}]\n",
    ],
)
def test_a_mistake_in_a_wg_quick_file_is_told_without_its_keys(text: str, tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as caught:
        wgquick.parse(text, "phone.conf")
    assert disclosed([SECRET], _told(caught.value)) == set()

    file = tmp_path / "phone.conf"
    file.write_text(text)
    with pytest.raises(OperatorError) as caught:
        wgquick.read(file)
    assert disclosed([SECRET], _told(caught.value)) == set()


@pytest.mark.parametrize(
    "line",
    [
        "private_key={0}",
        "private_key={0}0",
        "private_key={0} ",
        "privat_key={0}",
        "{0}",
        "{0}={0}",
        "listen_port={0}",
        "public_key={0}\npreshared_key={0}0",
        "public_key={0}\nendpoint={0}",
        "public_key={0}\nallowed_ip={0}",
        "public_key={0}\n{0}={0}",
    ],
)
def test_a_mistake_in_a_set_is_told_without_its_keys(line: str) -> None:
    requests = Requests()
    made = [*requests.feed(f"set=1\nprivate_key={SECRET.hex()}\n{line.format(SECRET.hex())}\n\n".encode())]
    (last,) = [request for request in (*made, requests.end()) if request is not None]
    peers = [peer.public_key for peer in getattr(last, "peers", ())]
    assert disclosed([SECRET], _shown(last)) == set() or peers == [SECRET]  # which is told, for it is public
    assert disclosed([SECRET], getattr(last, "why", "")) == set()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store("sqlite:///egressvpn.db", tmp_path / "state") as opened:
        yield opened


@pytest.mark.parametrize("table", ["device", "device_key", "allowed_ip"])
def test_a_failing_store_shows_no_preshared_key(store: Store, tmp_path: Path, table: str) -> None:
    def refuse(verb: str) -> None:
        engine = sa.create_engine(f"sqlite:///{tmp_path / 'state/egressvpn.db'}")
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE TRIGGER no_{verb} BEFORE {verb} ON {table} BEGIN SELECT RAISE(ABORT, 'no'); END")
        engine.dispose()

    key = DeviceKey(bytes(32), preshared_key=SECRET)
    host = ipaddress.ip_address("100.64.0.2")
    change = PeerChange(bytes([1]) * 32, preshared_key=SECRET, allowed_ips=((True, ipaddress.ip_network("100.64.0.3")),))
    refuse("INSERT")
    attempts: list[Callable[[], Any]] = [
        lambda: store.add_device("phone", key, pool="default", allocate=lambda _: [host], tags=[], limit=9, now=1),
        lambda: store.apply([change], replace=False, pool="default", limit=9, now=1, own_key=bytes([2]) * 32),
    ]
    for attempt in attempts:
        with pytest.raises((OperatorError, sa.exc.SQLAlchemyError)) as caught:
            attempt()
        assert disclosed([SECRET], _told(caught.value)) == set()


@pytest.mark.parametrize("written", [WRITTEN[:-2], WRITTEN + WRITTEN, SECRET.hex(), f"{WRITTEN}\n{WRITTEN}"])
def test_a_broken_private_key_file_is_told_without_it(written: str, tmp_path: Path) -> None:
    directory = tmp_path / "etc"
    _initialised(directory)
    (directory / "gateway.key").write_text(written)
    config = load(directory / "gateway.toml")

    with open_store(config.store.url, tmp_path / "state") as opened, pytest.raises(OperatorError) as caught:
        own_private_key(config, opened)

    assert disclosed([SECRET], _told(caught.value)) == set()


@pytest.mark.parametrize("output", ["json", "console"])
def test_a_traceback_in_the_log_shows_no_variables(capsys: pytest.CaptureFixture[str], output: str) -> None:
    before = logging.root.handlers[:], logging.root.level
    try:
        logs.configure("debug", output)
        try:
            _fail(SECRET, WRITTEN)
        except ZeroDivisionError:
            structlog.get_logger().exception("event failed", kind=3)
            logging.getLogger("trio").exception("crashed")
        said = capsys.readouterr().err
    finally:
        structlog.reset_defaults()
        logging.root.handlers[:], logging.root.level = before
    assert said.count("ZeroDivisionError") >= 2
    assert disclosed([SECRET], said) == set()


def _fail(private_key: bytes, preshared_key: str) -> float:
    peer = wgquick.PeerSection(bytes(32), private_key)
    return len(preshared_key) / (len(peer.allowed_ips) - len(private_key) + 32)


def _told(error: BaseException) -> str:
    """All that may be printed of an error."""
    return f"{error} {error!r} {''.join(traceback.format_exception(error))}"


def _shown(value: Any) -> str:
    return " ".join(f"{each!r} {each}" for each in _everything(value))


def _classes() -> Iterator[type]:
    """Every class of the package."""
    for found in pkgutil.walk_packages(egressvpn.__path__, "egressvpn."):
        if found.name.rpartition(".")[2] not in ("__main__", "env"):
            module = importlib.import_module(found.name)
            yield from (kind for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__ == found.name)


def _everything(root: Any) -> list[Any]:
    """Every object of this package that can be reached from this one."""
    found, waiting, known = [], [root], set[int]()
    while waiting:
        value = waiting.pop()
        if id(value) in known:
            continue
        known.add(id(value))
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value
        elif type(value).__module__.startswith("egressvpn."):
            found.append(value)
            slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
            waiting += [getattr(value, name) for name in slots if hasattr(value, name)] + list(getattr(value, "__dict__", {}).values())
    return found


def _record_randomness(interface: Interface, drawn: list[bytes]) -> None:
    """Keep what the interface draws: its ephemeral private keys are among it."""
    draw = interface._random

    def recording(count: int) -> bytes:
        drawn.append(draw(count))
        return drawn[-1]

    interface._random = recording


def _initialised(directory: Path) -> None:
    """A configuration as `egressvpn init` writes it."""
    from click.testing import CliRunner

    from egressvpn.cli import cli

    done = CliRunner().invoke(cli, ["init", "--dir", str(directory), "--pool", "203.0.113.0/29", "--endpoint", "192.0.2.1:51820"])
    assert done.exit_code == 0, done.output
