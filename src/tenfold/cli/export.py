"""``tenfold export``: a run as a file that runs without tenfold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch.utils._pytree import tree_map_only

from tenfold.bench.export import Exported, export, free_axes, named_axes
from tenfold.cli import tables
from tenfold.cli.command import Outcome, verb
from tenfold.cli.network_options import takes_network
from tenfold.cli.opening import open_network
from tenfold.cli.options import Force, check_file, with_default
from tenfold.cli.progress import Steps
from tenfold.cli.source import NetworkSource
from tenfold.layers.cost import count_params
from tenfold.layers.fold_batchnorm import NormFold, fold_batchnorm, norm_folds
from tenfold.plans.rendering import short
from tenfold.runtimes.onnx_capture import onnx_runtime
from tenfold.runtimes.optimize import optimized

NAME = "export"
EXAMPLES = (
    "Examples:\n\n"
    "tenfold export runs/b --out model.onnx\n\n"
    "tenfold export runs/b --format onnx --opset 21 --fold-batchnorm --out model.onnx\n\n"
    "tenfold export runs/b --format torch-export --dynamic height,width --out model.pt2"
)
Opset = Annotated[int | None, typer.Option(min=1, help=with_default("Of the ONNX operators.", "torch's choice"))]


@verb
@takes_network
def command(
    *,
    source: NetworkSource,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the file goes.", show_default=False)],
    format: Annotated[
        str, typer.Option(help="onnx, or torch-export: an archive for torch.export.load and AOTInductor.")
    ] = "onnx",
    opset: Opset = None,
    fold_norms: Annotated[
        bool,
        typer.Option("--fold-batchnorm", help="Fold every batch norm that allows it into the layer before it: exact."),
    ] = False,
    optimize: Annotated[
        bool,
        typer.Option(
            "--optimize",
            help="Also what is measured faster here for the inputs at hand, in ONNX Runtime (torch for torch-export): "
            "memory format, and sliced layers as single convolutions. The file may grow.",
        ),
    ] = False,
    tolerance: Annotated[
        float,
        typer.Option(help="Largest difference to the run's outputs; relative to the largest where that is above 1."),
    ] = 1e-4,
    dynamic: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Axes of any length beside the batch: height and width of images, length of sequences (their last "
            "axis; length=1: the second).",
        ),
    ] = None,
    force: Force = False,
) -> Outcome:
    r"""Write a run as ONNX or torch.export, any batch size, checked against the run on random inputs.

    The first axis of every input is the batch. With a data set, inputs are images as it normalises them:
    (x - mean) / std. A file whose outputs differ is not left behind. ONNX needs: pip install 'tenfold\[export]'.
    """
    check_file(out, force=force)
    if format == "onnx":
        onnx_runtime()
    words = () if dynamic is None else dynamic.split(",")
    opened = open_network(source, needs=["inputs"], reason="to trace the network with")
    model = opened.model.cpu()
    example = opened.example
    free = free_axes(words, example)
    folds: list[NormFold] = []
    with Steps().step("exporting"):
        shipped, chosen = model, None
        if fold_norms or optimize:
            folds = norm_folds(model, example_inputs=example)
        if optimize:
            chosen = optimized(model, example, runtime="onnxruntime" if format == "onnx" else "eager")
            shipped = chosen.model
        elif fold_norms:
            shipped = fold_batchnorm(model, example_inputs=example)
        kind = {"format": format, "opset": opset, "tolerance": tolerance, "dynamic": words}
        made = export(shipped, example, out, reference=model, **kind)
    train = None if opened.data is None else opened.data.train
    shapes = tree_map_only(
        torch.Tensor, lambda t: [named_axes(t, free).get(i, n) for i, n in enumerate(t.shape)], example
    )
    body: dict[str, Any] = {
        "command": NAME,
        "run": str(source),
        "file": str(out),
        "format": made.format,
        "opset": made.opset,
        "bytes": made.bytes,
        "params": count_params(shipped),
        "torch": torch.__version__,
        "input": {"shape": shapes} | ({} if train is None else {"mean": list(train.mean), "std": list(train.std)}),
        "folded": list(chosen.folded) if chosen else [fold.norm for fold in folds if fold.reason is None],
        "not_folded": {fold.norm: fold.reason for fold in folds if fold.reason is not None},
        "joined": [] if chosen is None else list(chosen.joined),
        "memory_format": None if chosen is None else chosen.memory_format,
        "check": {
            "difference": {str(n): gap for n, gap in made.difference.items()},
            "largest_output": made.magnitude,
            "tolerance": tolerance,
        },
    }
    return Outcome(body, _shown(made, body, folds))


def _shown(made: Exported, body: dict[str, Any], folds: list[NormFold]) -> list[Any]:
    runner = "ONNX Runtime" if made.format == "onnx" else "torch.export.load"
    table = tables.table(("Batch", "Largest difference", "Largest output"))
    for n, gap in made.difference.items():
        table.add_row(str(n), f"{gap:.2e}", f"{made.magnitude:.3g}")
    shown: list[Any] = [tables.titled(f"Checked in {runner} against torch, random inputs", table)]
    if folds:
        shown.append(f"Batch norms folded: {len(body['folded'])} of {len(folds)}")
        shown += [f"Not folded, {name}: {reason}" for name, reason in body["not_folded"].items()]
    if body["memory_format"] is not None:
        shown.append(f"Sliced layers joined: {len(body['joined'])}; memory format: {body['memory_format']}")
    about = f"{made.format}" if made.opset is None else f"ONNX, opset {made.opset}"
    size = short(made.bytes)
    return [*shown, f"Written to {made.path}: {about}, {size} bytes, input {body['input']['shape']}"]
