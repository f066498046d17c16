"""`python -m egressvpn`."""

from egressvpn.cli import main

main()
