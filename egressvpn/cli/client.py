"""`client`: the reference client, the same core as initiator."""

from pathlib import Path

import click

from egressvpn.cli.common import Invocation, output_option, pass_invocation


@click.group()
def client() -> None:
    """The reference WARP-like client."""


@client.command("up")
@click.option("--dir", "directory", required=True, type=click.Path(file_okay=False, path_type=Path), help="Holds a wg-quick file.")
@click.option("--gso/--no-gso", default=True, help="Send runs of datagrams with one call; --no-gso sends each alone.")
@output_option
@pass_invocation
def client_up(invocation: Invocation, directory: Path, gso: bool) -> None:
    """Run the client in the foreground with the wg-quick file in DIR."""
    from egressvpn.app import client as application
    from egressvpn.observe import logs

    logs.configure("debug" if invocation.verbose else "info", "auto")
    application.run(directory, gso)
