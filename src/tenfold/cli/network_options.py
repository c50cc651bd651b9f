"""The options by which a verb is given a network: a run folder, or one that the user already has."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from tenfold.cli.command import Outcome, signed
from tenfold.cli.source import Named, source_of
from tenfold.own_code import absolute

_PANEL = "A network of your own"
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Run the code that the run folder names: its network, inputs, score or data.",
                 rich_help_panel=_PANEL),
]  # fmt: skip
_KINDS: dict[str, Any] = {
    "run": Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="A folder that tenfold train or compress wrote.", show_default=False),
    ],
    "model": Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:FACTORY",
            help="In place of RUN: a function that returns the network; of a file, or module.path:FACTORY. "
            "With --data also resnet20, timm:NAME, ... Beside RUN: where its network's code is.",
            rich_help_panel=_PANEL,
        ),
    ],
    "weights": Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Its weights: .safetensors, or a state dict of torch.save. Without: as the factory returns them.",
            rich_help_panel=_PANEL,
        ),
    ],
    "inputs": Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:NAME",
            help="Batches, or a function that returns them: tensors, tuples or dicts as the network takes them, or "
            "(inputs, target). The first one counts MACs and is timed; all of them calibrate.",
            rich_help_panel=_PANEL,
        ),
    ],
    "score": Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:FUNCTION",
            help="A function of a model that returns a number, higher is better.",
            rich_help_panel=_PANEL,
        ),
    ],
    "data": Annotated[
        str | None,
        typer.Option(
            help="In place of --inputs and --score, for classifiers of square images: digits, npz:FILE, "
            "imagefolder:FOLDER, ... or FILE.py:FUNCTION, which returns what tenfold.train.make_data does.",
            rich_help_panel=_PANEL,
        ),
    ],
    "data_root": Annotated[
        Path | None,
        typer.Option(
            "--data-root", metavar="FOLDER", help="Where the data set's files are, if not in the usual places."
        ),
    ],
    "trust": Trust,
}


def takes_network(work: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Give a verb ``RUN``, ``--model`` and what goes with them; it receives them as ``source``, a `NetworkSource`."""
    own = [p for p in inspect.signature(work, eval_str=True).parameters.values() if p.name != "source"]

    @functools.wraps(work)
    def wrapped(**options: Any) -> Outcome:
        typed: dict[str, Any] = {f.name: options.pop(f.name) for f in fields(Named)}
        typed |= {name: absolute(typed[name]) for name in ("model", "inputs", "score", "data") if typed[name]}
        return work(source=source_of(Named(**typed)), **options)

    keyword = inspect.Parameter.KEYWORD_ONLY
    extra = [inspect.Parameter(f.name, keyword, default=f.default, annotation=_KINDS[f.name]) for f in fields(Named)]
    return signed(wrapped, [extra[0], *own, *extra[1:]])
