"""The command line: `egressvpn`, also `python -m egressvpn`.

Exit codes: 0 done; 1 refused or failed, one line on stderr saying what and how to mend it, no traceback; 2 wrong usage. Commands import
what they need when they run, so that `egressvpn up` and shell completion do not wait for what they do not use.
"""

import sys

import click

from egressvpn import __version__
from egressvpn.cli.common import Invocation, output_option
from egressvpn.errors import OperatorError

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


@click.group(context_settings=HELP)
@click.option(
    "--config", "config_path", envvar="EGRESSVPN_CONFIG", metavar="PATH", help="The configuration [default: /etc/egressvpn/gateway.toml]."
)
@output_option
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@click.version_option(__version__, prog_name="egressvpn")
@click.pass_context
def cli(context: click.Context, config_path: str | None, verbose: bool) -> None:
    """A WireGuard egress gateway: decrypts, decides, translates, and lets packets out to the Internet."""
    invocation = context.ensure_object(Invocation)
    invocation.verbose = verbose
    if config_path:
        invocation.config_path = config_path


def main() -> None:
    """The console script."""
    try:
        cli.main(prog_name="egressvpn", standalone_mode=True)
    except OperatorError as error:
        click.echo(f"egressvpn: {error}", err=True)
        sys.exit(1)


def _assemble() -> None:
    from egressvpn.cli import client, gateway, observation, peer

    for command in (
        gateway.init,
        gateway.check,
        gateway.up,
        observation.status,
        observation.flows,
        observation.pool,
        peer.peer,
        client.client,
    ):
        cli.add_command(command)


_assemble()
