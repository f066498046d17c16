"""`init`, `check`, `up`: the gateway's configuration, and the gateway itself."""

import json
from pathlib import Path
from typing import Final

import click

from egressvpn.cli.common import Invocation, echo_json, output_option, pass_invocation, write_private
from egressvpn.errors import OperatorError

DEFAULT_DIR: Final = "/etc/egressvpn"

_TEMPLATE: Final = """\
# egressvpn: every key and its default is shown in examples/gateway.toml. After a change: `egressvpn check`.

[gateway]
name = {name}
state_dir = {state_dir}          # store and NAT log
set_sysctls = true   # the gateway may switch on IP forwarding, and switches it back when it ends

[wireguard]
listen = {listen}
{endpoint}
private_key_file = "gateway.key"

[tunnel]
networks = {networks}   # devices' addresses come from here
dns = ["1.1.1.1", "2606:4700:4700::1111"]   # what devices are told to resolve with

[[pool]]
name = "default"
addresses = {pool}   # routed to this machine, and none of them an address of this machine

[api]
listen = [{api}]
"""


@click.command()
@click.option("--pool", "pools", multiple=True, required=True, metavar="CIDR", help="Egress addresses, routed to this machine. Repeat it.")
@click.option("--network", "networks", multiple=True, metavar="CIDR", help="Devices' tunnel addresses [default: 100.64.0.0/16, fd64::/64].")
@click.option("--listen", multiple=True, metavar="ADDR:PORT", help="UDP [default: 0.0.0.0:51820, [::]:51820].")
@click.option("--endpoint", metavar="HOST:PORT", help="What devices are told to connect to.")
@click.option(
    "--dir",
    "directory",
    default=DEFAULT_DIR,
    show_default=True,
    metavar="DIR",
    help="Any other DIR is self-contained: state and API socket are in it.",
)
@click.option("--force", is_flag=True, help="Overwrite the configuration and the private key.")
@output_option
@pass_invocation
def init(
    invocation: Invocation,
    pools: tuple[str, ...],
    networks: tuple[str, ...],
    listen: tuple[str, ...],
    endpoint: str | None,
    directory: str,
    force: bool,
) -> None:
    """Write gateway.toml and a fresh private key."""
    from egressvpn.control.config import parse
    from egressvpn.control.keys import encode_key, new_private_key, public_key_of

    home = Path(directory).absolute()
    config_path, key_path = home / "gateway.toml", home / "gateway.key"
    standard = home == Path(DEFAULT_DIR)
    content = _content(pools, networks, listen, endpoint, standard=standard)
    parse(content, config_path)  # refuse before anything is written
    for path in (config_path, key_path):
        if path.exists() and not force:
            raise OperatorError(
                f"{path} is there already", "choose another --dir, or overwrite it with --force (devices then need the new key)"
            )
    private_key = new_private_key()
    _make_directories(home, standard)
    write_private(key_path, encode_key(private_key) + "\n", force=force)
    write_private(config_path, content, force=force)
    public_key = encode_key(public_key_of(private_key))
    if invocation.json:
        echo_json({"config": str(config_path), "private_key_file": str(key_path), "public_key": public_key})
        return
    click.echo(f"wrote {config_path} and {key_path}")
    click.echo(f"public key: {public_key}")
    option = "" if standard else f" --config {config_path}"
    if not endpoint:
        click.echo(f"first: set wireguard.endpoint in {config_path}")
    click.echo(f"next: egressvpn{option} peer add NAME --qr, then egressvpn{option} up")


def _content(pools: tuple[str, ...], networks: tuple[str, ...], listen: tuple[str, ...], endpoint: str | None, *, standard: bool) -> str:
    """The text of a gateway.toml; JSON's strings are TOML's strings."""
    return _TEMPLATE.format(
        name='"gateway"',
        state_dir=json.dumps("/var/lib/egressvpn" if standard else "state"),
        listen=_array(listen or ("0.0.0.0:51820", "[::]:51820")),
        endpoint=f"endpoint = {json.dumps(endpoint)}"
        if endpoint
        else '# endpoint = "vpn.example.net:51820"   # set it: what devices are told',
        networks=_array(networks or ("100.64.0.0/16", "fd64::/64")),
        pool=_array(pools),
        api=json.dumps("unix:/run/egressvpn/api.sock" if standard else "unix:api.sock"),
    )


def _array(items: tuple[str, ...]) -> str:
    return "[" + ", ".join(map(json.dumps, items)) + "]"


def _make_directories(home: Path, standard: bool) -> None:
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not standard:
            (home / "state").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"cannot create {home}: {error.strerror}", "run as root, or choose another --dir") from None


@click.command()
@output_option
@pass_invocation
def check(invocation: Invocation) -> None:
    """Validate the configuration; name file, line, key and the mend."""
    from egressvpn.control.checks import notes
    from egressvpn.control.config import ConfigError, load_private_key
    from egressvpn.control.keys import encode_key, public_key_of

    try:
        config = invocation.config()
        public_key = encode_key(public_key_of(load_private_key(config)))
    except ConfigError as error:
        if not invocation.json:
            raise
        problems = [
            {"file": str(found.file), "line": found.line or None, "key": found.key, "what": found.what, "mend": found.mend}
            for found in error.problems
        ]
        echo_json({"ok": False, "problems": problems, "notes": []})
        raise SystemExit(1) from None
    found = notes(config)
    if invocation.json:
        echo_json({"ok": True, "problems": [], "notes": found})
        return
    pools = sum(len(pool.addresses) for pool in config.pools)
    click.echo(f"OK  configuration {config.path}")
    click.echo(f"OK  private key {config.private_key_path}, public key {public_key}")
    click.echo(f"OK  {len(config.tunnel.networks)} tunnel network(s), {pools} pool network(s), none overlaps, none is listened on")
    for note in found:
        click.echo(f"note  {note}")


@click.command()
@output_option
@pass_invocation
def up(invocation: Invocation) -> None:
    """Run the gateway in the foreground. SIGTERM drains and ends it."""
    config = invocation.config()
    from egressvpn.app import gateway
    from egressvpn.observe import logs

    logs.configure("debug" if invocation.verbose else config.log.level, config.log.format)
    gateway.run(config)
