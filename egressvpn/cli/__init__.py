"""The command line: `egressvpn`, also `python -m egressvpn`.

Exit codes: 0 done; 1 refused or failed, one line on stderr saying what and how to mend it, no traceback; 2 wrong usage. Commands import
what they need when they run, so that `egressvpn up` and shell completion do not wait for what they do not use.
"""

import os
from typing import Any

import click

from egressvpn import __version__
from egressvpn.cli import accountability, client, gateway, observation, peer
from egressvpn.cli.common import DEFAULT_CONFIG, Invocation, output_option
from egressvpn.errors import OperatorError

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


class Refusing(click.Group):
    """Turns an error meant for operators into its line on stderr and exit code 1."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except OperatorError as error:
            for line in str(error).splitlines():
                click.echo(f"egressvpn: {line}", err=True)
            context.exit(1)


@click.group(cls=Refusing, context_settings=SETTINGS)
@click.option("--config", "config_path", envvar="EGRESSVPN_CONFIG", metavar="PATH", help=f"The configuration [default: {DEFAULT_CONFIG}].")
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
    if os.environ.get("NO_COLOR"):
        context.color = False


for command in (
    *(gateway.init, gateway.check, gateway.up),
    *(observation.status, observation.flows, observation.pool),
    *(accountability.whois, accountability.explain),
    *(peer.peer, client.client),
):
    cli.add_command(command)


def main() -> None:
    """The console script."""
    cli.main(prog_name="egressvpn")
