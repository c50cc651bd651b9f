"""``tenfold export``: a run as a file that runs without tenfold."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch.utils._pytree import tree_map_only

from tenfold.bench.export import Exported, check_int8, export, free_axes, named_axes
from tenfold.bench.int8 import Quantized
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
from tenfold.runtimes.timing import WORTH
from tenfold.train import Recipe

NAME = "export"
EXAMPLES = (
    "Examples:\n\n"
    "tenfold export runs/b --out model.onnx\n\n"
    "tenfold export runs/b --format onnx --opset 21 --fold-batchnorm --out model.onnx\n\n"
    "tenfold export runs/b --int8 static --out model.onnx\n\n"
    "tenfold export runs/b --format torch-export --dynamic height,width --out model.pt2"
)
_BATCH = 64
"""Images of a data set that are calibrated on at once."""
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
    int8: Annotated[
        str | None,
        typer.Option(
            metavar="static|dynamic",
            help="Quantise the ONNX file. static: weights and activations, in ranges seen on 384 training images or "
            "examples of --inputs; dynamic: linear layers alone. Says what outputs, size and time become.",
        ),
    ] = None,
    force: Force = False,
) -> Outcome:
    r"""Write a run as ONNX or torch.export, any batch size, checked against the run on random inputs.

    The first axis of every input is the batch. With a data set, inputs are images as it normalises them:
    (x - mean) / std. A file whose outputs differ is not left behind. ONNX needs: pip install 'tenfold\[export]'.
    """
    check_file(out, force=force)
    check_int8(int8, format, given=int8 is not None)
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
        kind = {"format": format, "opset": opset, "tolerance": tolerance, "dynamic": words, "int8": int8}
        data = None if int8 is None else opened.calibration(Recipe(batch_size=_BATCH))
        made = export(shipped, example, out, reference=model, data=data, **kind)
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
        "int8": None if made.int8 is None else asdict(made.int8),
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
    if made.int8 is not None:
        shown += _quantized(made.int8, made.bytes)
    about = f"{made.format}" if made.opset is None else f"ONNX, opset {made.opset}"
    about += "" if made.int8 is None else f", int8 ({made.int8.kind})"
    size = short(made.bytes)
    return [*shown, f"Written to {made.path}: {about}, {size} bytes, input {body['input']['shape']}"]


def _quantized(made: Quantized, size: int) -> list[Any]:
    table = tables.table(("", "Bytes", "ms", "Error of outputs", "Same top class"))
    table.add_row("float", short(made.float_bytes), f"{made.float_ms:.3f}", "", "")
    same = "" if made.same_top is None else f"{made.same_top:.2%}"
    table.add_row("int8", short(size), f"{made.int8_ms:.3f}", f"{made.error:.2%}", same)
    on = "random examples" if made.random else "examples that were not calibrated on" if made.calibrated else "examples"
    gain = made.float_ms / made.int8_ms
    shown = [tables.titled(f"In int8, {made.kind}; one thread; outputs of {made.measured} {on}", table)]
    return shown if gain >= WORTH else [*shown, f"Not faster than float here, or by no more than noise ({gain:.2f}×)."]
