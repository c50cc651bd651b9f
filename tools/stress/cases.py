"""What is killed: the verbs that write, what stands before them, and what one does after a kill."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import nn
from typer.testing import CliRunner

import tenfold
from tenfold.cli.app import app

OLD, NEW = 1, 2
"""Seeds: of what stands before, and of what is written over it."""
_VARY = {"seconds", "throughput", "latency", "peak_memory", "place", "time", "date"}
"""Keys of what is not the same twice."""


@dataclass(frozen=True)
class Case:
    """Work on a folder that may be killed.

    Args:
        name: what it is called in results.
        before: what is there before.
        work: what is killed.
        after: what a user does then, who does not know how far it came; it ends where the work would have ended.
        standing: raises where neither the old nor the new is whole, before anybody mends it.
    """

    name: str
    before: Callable[[], None]
    work: Callable[[], None]
    after: Callable[[], None]
    standing: Callable[[], None] = lambda: None


def say(*words: object) -> str:
    """Call the program, in this process.

    Raises:
        AssertionError: it failed.
    """
    code, text = _said(*words)
    if code:
        raise AssertionError(f"tenfold {' '.join(map(str, words))} failed: {text}")
    return text


def _said(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def inputs(folder: Path) -> Path:
    """Write a data set of 48 images in two classes, and a network for it; returns the folder, in full."""
    generator = np.random.default_rng(0)
    y = np.arange(48) % 2
    x = (generator.random((48, 8, 8)) * 100 + 100 * y[:, None, None]).astype(np.uint8)
    np.savez(folder / "data.npz", x=x, y=y)
    (folder / "net.py").write_text(_NETWORK, encoding="utf-8")
    return folder.resolve()


_NETWORK = """
from torch import nn
def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2))
"""


def cases(folder: Path) -> list[Case]:
    """All of them, on what `inputs` wrote."""
    given = ("--data", f"npz:{folder / 'data.npz'}", "--model", f"{folder / 'net.py'}:make")
    train = ("train", *given, "--epochs", 2, "--batch-size", 16, "--out", "run")
    small = ("compress", "run", "--trust", "--method", "svd", "--out", "small")
    compare = ("compare", *given, "--methods", "svd", "--budgets", "0.6", "--epochs", 2)
    compare += ("--batch-size", 16, "--recovery", 1, "--out", "all")
    export = ("export", "run", "--trust", "--format", "torch-export", "--out", "net.pt2")
    old, new = ("--seed", OLD), ("--seed", NEW)

    def trained() -> None:
        say(*train, *old)

    def compressed() -> None:
        trained()
        say(*small, "--budget", "params=0.8")

    return [
        Case("train", lambda: None, lambda: say(*train, *new), lambda: _go_on(train, new)),
        Case(
            "train --force",
            trained,
            lambda: say(*train, *new, "--force"),
            lambda: _go_on(train, new),
            lambda: _standing("run"),
        ),
        Case("compress", trained, lambda: say(*small, *_HALF), lambda: say(*small, *_HALF, "--force")),
        Case(
            "compress --force",
            compressed,
            lambda: say(*small, *_HALF, "--force"),
            lambda: say(*small, *_HALF, "--force"),
            lambda: say("eval", "small", "--trust"),
        ),
        Case("compare", lambda: None, lambda: say(*compare), lambda: say(*compare)),
        Case("save", lambda: _save(OLD), lambda: _save(NEW), lambda: _save(NEW), _loads),
        Case("export", trained, lambda: say(*export), lambda: say(*export, "--force")),
    ]


_HALF = ("--budget", "params=0.6")


def _go_on(train: tuple[Any, ...], new: tuple[Any, ...]) -> None:
    """Go on with the training where its folder holds it; else begin it again, over what stands there."""
    code, text = _said("train", "--out", "run", "--resume", "--trust")
    if code and "no run at" in text:
        say(*train, *new)
    elif code:
        raise AssertionError(text)
    elif _seed("run") == OLD:
        say(*train, *new, "--force")


def _standing(out: str) -> None:
    """The old run, whole, is there; or the new one, to go on with, and while it has no checkpoint the old beside it."""
    code, text = _said("eval", out, "--trust")
    if code and "is not finished" not in text:
        raise AssertionError(text)
    assert code == 0 or _seed(out) == NEW
    assert code == 0 or Path(out, "checkpoint").exists() or Path(f".{out}.replaced", "model").is_dir()


def _seed(out: str) -> int:
    return json.loads(Path(out, "run.json").read_text(encoding="utf-8"))["recipe"]["seed"]


def _net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))


def _save(seed: int) -> None:
    tenfold.save(tenfold.compress(_net(seed), tenfold.SVD(), tenfold.Budget(params=0.8)).model, "saved")


def _loads() -> None:
    tenfold.load("saved", _net(0))


def left(folder: Path) -> dict[str, str]:
    """Every file below ``folder``, hidden ones too, and what must be the same after a kill as without: digests."""
    return {
        str(path.relative_to(folder)): _digest(path) if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def _digest(path: Path) -> str:
    if path.suffix in (".log", ".lock", ".html"):
        return "any"
    if path.suffix == ".pt2":  # an archive has the time in it
        program = torch.export.load(path).module()
        return _sha(program(torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8)).detach().numpy().tobytes())
    if path.suffix == ".json":
        return _sha(json.dumps(_steady(json.loads(path.read_text(encoding="utf-8")))).encode())
    if path.suffix == ".pt":
        return _sha(repr(torch.load(path, weights_only=True)).encode())
    if path.suffix == ".safetensors":  # whose notes are in no order
        with safe_open(str(path), framework="np") as opened:
            tensors = [(name, opened.get_tensor(name).tobytes()) for name in sorted(opened.keys())]
            return _sha(repr((tensors, sorted((opened.metadata() or {}).items()))).encode())
    return _sha(path.read_bytes())


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        steady = {key: _steady(item) for key, item in value.items() if key not in _VARY}
        return {key: item for key, item in steady.items() if key != "sha256"}  # of files that are compared themselves
    return [_steady(item) for item in value] if isinstance(value, list) else value


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def fresh(folder: Path, before: Path) -> Path:
    """A copy of what stands before, in the place of what a trial left."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(before, folder)
    return folder
