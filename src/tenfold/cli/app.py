"""The program ``tenfold``: its verbs, and nothing else."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from tenfold.cli import bench, compare, compress, doctor, evaluate, export, methods, plan, report, train

app = typer.Typer(
    name="tenfold",
    help="Smaller, faster neural networks by low-rank weights: while they train, or after.",
    epilog="A first round:\n\n"
    "tenfold train --data digits --model cnn --epochs 10 --out runs/a\n\n"
    "tenfold compress runs/a --budget params=0.25 --finetune 3 --out runs/b\n\n"
    "tenfold bench runs/b",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"tenfold {version('tenfold')}")
        raise typer.Exit


@app.callback()
def _options(
    asked: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    pass


for _module in (train, compress, plan, evaluate, compare, report, bench, doctor, export, methods):
    app.command(name=_module.NAME, epilog=_module.EXAMPLES)(_module.command)


def main() -> None:
    """Entry point. The folder at hand is searched last, so that ``--model my_module:make`` finds a user's own."""
    sys.path.append(str(Path.cwd()))
    app()
