"""The lab's command line; see the Makefile for the picture, and `lab.py --help`."""

import os
import signal
import sys

import click
from clients import WireGuardGo
from demo import demo as run_demo
from gateways import ENDPOINT6, Egress
from topology import Lab, LabError, require_root


@click.group()
@click.option("--prefix", envvar="EVL_PREFIX", default="evl", show_default=True, help="First part of the namespaces' names.")
@click.option("--clients", envvar="CLIENTS", type=click.IntRange(1, 40), default=2, show_default=True, help="How many clients.")
@click.pass_context
def main(context: click.Context, prefix: str, clients: int) -> None:
    """Build, use and remove the egressvpn lab."""
    context.obj = Lab(prefix, clients)


@main.command()
@click.pass_obj
def up(lab: Lab) -> None:
    """Build it, start the gateway and connect the clients; leave it standing."""
    lab.up()
    try:
        gateway = Egress(lab)
        files = gateway.prepare(lab.clients)
        seconds = gateway.start(echo=True)
        for number, quick in enumerate(files, 1):
            WireGuardGo(lab, number, quick if number % 2 else quick.with_endpoint(ENDPOINT6)).start()
    except BaseException:
        lab.down()
        raise
    click.echo(f"gateway ready after {seconds:.1f} s, {lab.clients} clients connected; configuration: {gateway.directory}/gateway.toml")


@main.command()
@click.pass_obj
def down(lab: Lab) -> None:
    """Remove it, whatever its state."""
    require_root()
    lab.down()


@main.command()
@click.pass_obj
def status(lab: Lab) -> None:
    """Namespaces and processes that stand; exit status 1 when there are none."""
    standing = lab.standing()
    for namespace in standing:
        click.echo(namespace)
    for name in lab.processes.names():
        identity = lab.processes.identity(name)
        click.echo(f"  {name}: {f'pid {identity.pid}' if identity else 'ended'}")
    if not standing:
        click.echo("no lab stands", err=True)
        sys.exit(1)


@main.command()
@click.pass_obj
def demo(lab: Lab) -> None:
    """Drive real traffic through the gateway and show what happened; leaves nothing."""
    sys.exit(0 if run_demo(lab) else 1)


@main.command()
@click.argument("namespace", default="gw")
@click.option("--device", default="any", show_default=True)
@click.option("--write", type=click.Path(), help="Write a pcap file instead of printing.")
@click.pass_obj
def capture(lab: Lab, namespace: str, device: str, write: str | None) -> None:
    """Show the packets of a namespace with tcpdump, until interrupted."""
    _become(lab, namespace, "tcpdump", "-n", "-i", device, *(["-U", "-w", write] if write else ["-l"]))


@main.command()
@click.argument("namespace", default="gw")
@click.pass_obj
def shell(lab: Lab, namespace: str) -> None:
    """A shell inside a namespace."""
    _become(lab, namespace, os.environ.get("SHELL", "bash"))


def _become(lab: Lab, namespace: str, *argv: str) -> None:
    name = namespace if namespace.startswith(f"{lab.prefix}-") else f"{lab.prefix}-{namespace}"
    if name not in lab.standing():
        raise LabError(f"there is no namespace {name}; `make -C netns-lab up` builds the lab")
    command = lab.inside(name, *argv)
    os.execvp(command[0], command)


def _terminated(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)  # so that what was built is removed
    try:
        main(standalone_mode=True)
    except LabError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
