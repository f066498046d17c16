"""`peer`: devices. Every command works on the store, whether or not the gateway runs; a running one follows within a second."""

import datetime as dt
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from egressvpn.cli.common import Invocation, echo_json, echo_pairs, echo_table, output_option, pass_invocation, write_private
from egressvpn.errors import OperatorError

if TYPE_CHECKING:
    from egressvpn.control.config import Config
    from egressvpn.control.devices import ClientConfiguration
    from egressvpn.control.store import Device


def _complete_names(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """The devices' names, for the shell's completion; nothing when they cannot be read."""
    try:
        invocation = context.find_root().ensure_object(Invocation)
        invocation.config_path = context.find_root().params.get("config_path") or invocation.config_path
        with invocation.store(invocation.config()) as store:
            return [device.name for device in store.devices() if device.name.startswith(incomplete)]
    except OperatorError:
        return []


NETWORKS_SHOWN: Final = 8  # of a device, in the list

name_argument = click.argument("name", shell_complete=_complete_names)


@click.group()
def peer() -> None:
    """Devices that may connect."""


@peer.command()
@click.argument("name")
@click.option("--public-key", metavar="KEY", help="The device's own public key; without it a key pair is made.")
@click.option("--tag", "tags", multiple=True, metavar="T", help="Repeat it.")
@click.option("--pool", metavar="POOL", help="Where it egresses [default: the first pool].")
@click.option("--psk", is_flag=True, help="Add a preshared key.")
@click.option("--conf", metavar="FILE|-", help="Write the client's configuration to FILE (0600) instead of stdout.")
@click.option("--qr", is_flag=True, help="Show the client's configuration as a QR code.")
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@output_option
@pass_invocation
def add(
    invocation: Invocation,
    name: str,
    public_key: str | None,
    tags: tuple[str, ...],
    pool: str | None,
    psk: bool,
    conf: str | None,
    qr: bool,
    force: bool,
) -> None:
    """Add a device and print its wg-quick file. Its private key is shown this once and kept nowhere."""
    from egressvpn.control import devices, keys
    from egressvpn.control.config import load_private_key
    from egressvpn.control.store import DeviceKey

    config = invocation.config()
    devices.require_endpoint(config)
    target = _conf_target(conf, force)
    gateway_key = keys.public_key_of(load_private_key(config))
    private_key = keys.new_private_key() if public_key is None else None
    own_key = keys.public_key_of(private_key) if private_key else devices.check_public_key(str(public_key), gateway_key)
    secret = keys.new_private_key() if psk else None
    with invocation.store(config) as store:
        device = devices.add(store, config, name, DeviceKey(own_key, preshared_key=secret), tags=tags, pool=pool, now=int(time.time()))
        made = devices.ClientConfiguration(device, config, gateway_key, private_key)
        try:
            if target is not None:
                write_private(target, made.wg_quick(), force=force)
        except OperatorError:
            store.remove_device(name)  # its private key is lost: nobody could use it
            raise
    _show_configuration(invocation, made, conf, target, qr)


def _conf_target(conf: str | None, force: bool) -> Path | None:
    """Where to write the file, or None for stdout; refused before anything is changed."""
    if conf in (None, "-"):
        return None
    target = Path(str(conf))
    if target.exists() and not force:
        raise OperatorError(f"{target} is there already", "choose another file, or overwrite it with --force")
    if not target.parent.is_dir():
        raise OperatorError(f"there is no directory {target.parent}", "create it, or choose another file")
    return target


def _show_configuration(invocation: Invocation, made: "ClientConfiguration", conf: str | None, target: Path | None, qr: bool) -> None:
    """JSON, or the file's text unless it went to a file or only a QR code was asked for."""
    text = made.wg_quick()
    if invocation.json:
        echo_json({**_described(made.device), "conf": None if target is None else str(target), "configuration": None if target else text})
        return
    if target is not None:
        click.echo(f"wrote {target}", err=True)
    elif conf == "-" or not qr:
        click.echo(text, nl=False)
    if qr:
        if made.private_key is None:
            click.echo("note: this code has no private key; the device must add its own", err=True)
        _draw(text)


def _draw(text: str) -> None:
    """The QR code that WireGuard's phone apps scan; on a terminal always light on black, which is what its blocks assume."""
    import io

    import segno

    drawn = io.StringIO()
    essential = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    segno.make(essential, error="L", micro=False, boost_error=False).terminal(drawn, border=2, compact=True)
    for line in drawn.getvalue().splitlines():
        click.secho(line, fg="bright_white", bg="black")


@peer.command("list")
@output_option
@pass_invocation
def list_(invocation: Invocation) -> None:
    """All devices."""
    config = invocation.config()
    with invocation.store(config) as store:
        devices = store.devices()
    if invocation.json:
        echo_json({"items": [_described(device) for device in devices]})
        return
    rows = [
        (d.name, "yes" if d.enabled else "no", _networks_text(d), d.endpoint or None, d.pool, ", ".join(d.tags), _key_text(d))
        for d in devices
    ]
    columns = ("NAME", "ENABLED", "ALLOWED IPS", "ENDPOINT", "POOL", "TAGS", "PUBLIC KEY")
    echo_table(columns, rows, empty="no devices yet: add one with `egressvpn peer add NAME`")


@peer.command()
@name_argument
@output_option
@pass_invocation
def show(invocation: Invocation, name: str) -> None:
    """One device."""
    described = _described(_found(invocation, invocation.config(), name))
    if invocation.json:
        echo_json(described)
        return
    echo_pairs((key.replace("_", " "), _plain(value)) for key, value in described.items())


@peer.command()
@name_argument
@output_option
@pass_invocation
def remove(invocation: Invocation, name: str) -> None:
    """Remove a device; its packets stop at once."""
    _change(invocation, "remove", name)


@peer.command()
@name_argument
@output_option
@pass_invocation
def enable(invocation: Invocation, name: str) -> None:
    """Let a disabled device connect again."""
    _change(invocation, "enable", name)


@peer.command()
@name_argument
@output_option
@pass_invocation
def disable(invocation: Invocation, name: str) -> None:
    """Keep a device, but let none of its packets through."""
    _change(invocation, "disable", name)


@peer.command("config")
@name_argument
@click.option("--conf", metavar="FILE|-", help="Write it to FILE (0600) instead of stdout.")
@click.option("--qr", is_flag=True, help="Show it as a QR code.")
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@output_option
@pass_invocation
def config_(invocation: Invocation, name: str, conf: str | None, qr: bool, force: bool) -> None:
    """A device's wg-quick file, without the private key that the gateway never had."""
    from egressvpn.control import devices, keys
    from egressvpn.control.config import load_private_key

    config = invocation.config()
    devices.require_endpoint(config)
    target = _conf_target(conf, force)
    gateway_key = keys.public_key_of(load_private_key(config))
    made = devices.ClientConfiguration(_found(invocation, config, name), config, gateway_key)
    if target is not None:
        write_private(target, made.wg_quick(), force=force)
    _show_configuration(invocation, made, conf, target, qr)


def _found(invocation: Invocation, config: "Config", name: str) -> "Device":
    with invocation.store(config) as store:
        return store.device(name)


def _change(invocation: Invocation, verb: str, name: str) -> None:
    with invocation.store(invocation.config()) as store:
        device = getattr(store, f"{verb}_device")(name)
    if invocation.json:
        echo_json(_described(device))
    else:
        click.echo(f"{verb}d {name}")


def _described(device: "Device") -> dict[str, Any]:
    """A device as JSON shows it; no secrets."""
    return {
        "id": device.id,
        "name": device.name,
        "enabled": device.enabled,
        "public_key": _key_text(device),
        "preshared_key": device.preshared_key is not None,
        "addresses": [f"{address}/{address.max_prefixlen}" for address in device.addresses],
        "allowed_ips": list(map(str, device.allowed_ips)),
        "endpoint": device.endpoint or None,
        "persistent_keepalive": device.persistent_keepalive,
        "pool": device.pool,
        "tags": list(device.tags),
        "created_at": dt.datetime.fromtimestamp(device.created_at, dt.UTC).isoformat().replace("+00:00", "Z"),
    }


def _networks_text(device: "Device") -> str:
    """The allowed IPs in a line: addresses without their length, and no more than a person reads."""
    shown = [str(n.network_address if n.prefixlen == n.max_prefixlen else n) for n in device.allowed_ips[:NETWORKS_SHOWN]]
    more = len(device.allowed_ips) - NETWORKS_SHOWN
    return ", ".join([*shown, *([f"and {more} more"] if more > 0 else [])])


def _key_text(device: "Device") -> str:
    from egressvpn.control.keys import encode_key

    return encode_key(device.public_key)


def _plain(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else value
