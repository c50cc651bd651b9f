"""The command line: builds dataclasses, calls the library, prints. One file per verb."""

from tenfold.cli.app import main as main
