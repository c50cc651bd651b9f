"""Files that strangers wrote: each reader of the project, and files to damage for it.

Whatever stands in a file, its reader gives a value or one sentence of tenfold's, in reasonable length, and leaves alone
what it was to fill.
"""

import hashlib
import io
import json
import shutil
import struct
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn

from tenfold import Plan
from tenfold.bench.compare.read_yaml import read_experiment
from tenfold.bench.compare.results import RUN_FORMAT, RunResult
from tenfold.cli.runs import FORMAT as RUN_FOLDER
from tenfold.cli.runs import RUN, read_settings, recipe_of
from tenfold.errors import TenfoldError
from tenfold.plans.serialization import read_weights, write_weights
from tenfold.train import Parts, load_checkpoint, load_data, save_checkpoint
from tenfold.train.checkpoint import MODEL, STATE
from tenfold.train.models.own import load_weights_

ODD = [-507, -1, 0, 2**31, 10**40, 1e308, -0.5, True, None, "", "x" * 500, "\ud800", [], {}, [[]], {"a": {}}]
PLAN: dict[str, Any] = {
    "format": "tenfold-plan/1",
    "method": "svd",
    "dense_params": 500,
    "budget": {"params": 0.5},
    "layers": {
        "0": {
            "decomposition": "low-rank",
            "rank": 2,
            "slices": 1,
            "fold": "channel",
            "params": 70,
            "layer": {"shape": [8, 3, 3, 3], "calls": [[1, [8, 8], [8, 8]]]},
        },
        "1": {"decomposition": "dense", "params": 5},
    },
}
RECORD: dict[str, Any] = {
    "format": RUN_FOLDER,
    "command": "train",
    "data": {"name": "digits", "root": None, "checksum": "0"},
    "network": "cnn",
    "method": {"method": "dense"},
    "budget": {},
    "recipe": {"epochs": 2, "milestones": [1, 2], "schedule": "multistep"},
}
RESULT: dict[str, Any] = {
    "format": RUN_FORMAT,
    "id": "a",
    "label": "a",
    "method": "svd",
    "fields": {},
    "kind": "post-training",
    "budget": {"params": 0.5},
    "seed": 0,
    "model": "cnn",
    "data": {},
    "recipe": {},
    "epochs": {"training": 1},
    "place": {
        "versions": {}, "commit": None, "dirty": None, "cpu": "a", "cores": 1, "threads": 1, "gpu": None,
        "device": "cpu",
    },
    "price": {"dense_params": 5, "params": 3, "dense_macs": 5, "macs": 3},
    "spectra": [{"layer": "a", "before": {"index": [1], "value": [1.0]}, "after": {"index": [1], "value": [1.0]}}],
}  # fmt: skip
EXPERIMENT = """
name: a
data: {name: digits, examples: 100}
model: cnn
methods: [svd, {method: trp, energy: 0.9}]
budgets: [{params: 0.5}, {params: 0.3, macs: 0.4}]
seeds: [0, 1]
recipe: {epochs: 3, lr: 1e-2}
recovery: 1
"""

values = st.recursive(
    st.sampled_from(ODD)
    | st.integers()
    | st.integers(1, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@dataclass(frozen=True)
class Reader:
    """A reader, and what is put before it.

    Args:
        name: what is read.
        whole: contents that are read.
        files: damaged ones.
        read: reads them in an empty folder of its own; raises `TenfoldError` where it refuses, `AssertionError` where
            a promise does not hold.
    """

    name: str
    whole: Any
    files: st.SearchStrategy[Any]
    read: Callable[[Any, Path], object]

    def try_(self, content: Any, folder: Path) -> bool:
        """Whether it was read; False where it was refused.

        Raises:
            AssertionError: neither, or the sentence is none.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            self.read(content, folder)
        except TenfoldError as refused:
            sentence = str(refused)
        else:
            return True
        assert len(sentence) < 1500, "the sentence is too long"
        sentence.encode()
        return False


def feed(reader: Reader, folder: Path, examples: int, seed: int) -> dict[str, Any]:
    """How often a reader read and refused; the first file that it did neither with, if any."""
    counts: Counter[bool] = Counter()
    failures: list[str] = []

    @seeded(seed)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(reader.files)
    def eat(content: Any) -> None:
        counts[reader.try_(content, folder)] += 1

    try:
        eat()
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        failures.append(f"{type(error).__name__}: {str(error)[:300]}")
    return {"reader": reader.name, "read": counts[True], "refused": counts[False], "failures": failures}


# ---- damage


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a value can be exchanged: every key and index, at every depth."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, item in items for deeper in places(item, (*path, key)))]


def exchanged(body: Any, path: tuple[Any, ...], new: Any) -> Any:
    """``body`` with ``new`` at a place."""
    if not path:
        return new
    copy = dict(body) if isinstance(body, dict) else list(body)
    copy[path[0]] = exchanged(body[path[0]], path[1:], new)
    return copy


def damaged(body: Any) -> st.SearchStrategy[str]:
    """Texts like the JSON of ``body`` with one value exchanged, or cut off somewhere; or of something else."""
    inside = [path for path in places(body) if path]
    other = st.builds(lambda path, new: json.dumps(exchanged(body, path, new)), st.sampled_from(inside), values)
    whole = json.dumps(body)
    cut = st.integers(0, len(whole)).map(lambda end: whole[:end])
    return st.one_of(other, other, other, cut, values.map(json.dumps))


def garbled(whole: bytes) -> st.SearchStrategy[bytes]:
    """``whole`` with up to four bytes exchanged, cut off somewhere, or with something behind it; or something else."""
    change = st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255))

    def exchange(changes: list[tuple[int, int]]) -> bytes:
        copy = bytearray(whole)
        for at, byte in changes:
            copy[at] = byte
        return bytes(copy)

    end = st.integers(0, len(whole)).map(lambda n: whole[:n])
    behind = st.binary(max_size=20).map(lambda more: whole + more)
    return st.lists(change, min_size=1, max_size=4).map(exchange) | end | behind | st.binary(max_size=100)


# ---- the readers


def _plan(text: str, _: Path) -> None:
    plan = Plan.from_json(text)
    assert 0 <= plan.dense_params < 2**63
    assert plan.params >= 0
    assert Plan.from_json(plan.to_json()) == plan


def _record(text: str, folder: Path) -> None:
    (folder / RUN).write_text(text, encoding="utf-8")
    recipe_of(read_settings(folder))


def _result(text: str, folder: Path) -> None:
    (folder / "a.json").write_text(text, encoding="utf-8")
    found = RunResult.read(folder / "a.json")
    assert found.price is None or found.price.kept["params"] >= 0


def _experiment(content: str | bytes, folder: Path) -> None:
    file = folder / "a.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    read_experiment(file)


def _unless_whole(model: nn.Module, read: Callable[[], object]) -> None:
    """Read into ``model``; where that is refused, it is as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        read()
    except TenfoldError:
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        raise


def _aliases(aliases: str, folder: Path) -> None:
    save_file({"0.weight": torch.ones(2, 2)}, folder / "a.safetensors", metadata={"aliases": aliases})
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    _unless_whole(model, lambda: read_weights(model, folder / "a.safetensors"))


def _weights(content: bytes, folder: Path) -> None:
    (folder / "a.safetensors").write_bytes(content)
    model = nn.Linear(2, 2)
    _unless_whole(model, lambda: read_weights(model, folder / "a.safetensors"))


def _own_weights(content: bytes, folder: Path) -> None:
    file = folder / ("a.pt" if content[:2] == b"PK" else "a.safetensors")
    file.write_bytes(content)
    model = nn.Linear(2, 2)
    _unless_whole(model, lambda: load_weights_(model, file))


def _parts() -> Parts:
    model = nn.Linear(2, 2)
    for p in model.parameters():
        nn.init.ones_(p)
    return Parts(model, {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)})


def _checkpoint(damage: tuple[str, Any], folder: Path) -> None:
    """A checkpoint with one of its files exchanged; its checksums are those of the damaged files, as an attacker's."""
    name, content = damage
    save_checkpoint(folder / "c", _parts(), {"epoch": 1})
    file = folder / "c" / name
    if name == RUN:
        file.write_text(content, encoding="utf-8")
    else:
        file.write_bytes(content)
        body = json.loads((folder / "c" / RUN).read_text(encoding="utf-8"))
        body["sha256"][name] = hashlib.sha256(content).hexdigest()
        (folder / "c" / RUN).write_text(json.dumps(body), encoding="utf-8")
    parts = _parts()
    _unless_whole(parts.model, lambda: load_checkpoint(folder / "c", parts))


def _arrays(content: bytes, folder: Path) -> None:
    (folder / "a.npz").write_bytes(content)
    load_data(f"npz:{folder / 'a.npz'}")


def _saved(write: Callable[[Any], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _of_safetensors() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_weights(nn.Linear(2, 2), Path(folder) / "a")
        return (Path(folder) / "a").read_bytes()


def _of_checkpoint() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "c", _parts(), {"epoch": 1})
        return {name: (Path(folder) / "c" / name).read_bytes() for name in (MODEL, STATE, RUN)}


def _array(shape: str, kind: str, body: bytes) -> bytes:
    """An ``.npy`` file whose header says what it will."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


_X, _Y = np.zeros((20, 4, 4), np.uint8), np.arange(20) % 2


def _archive() -> bytes:
    return _saved(lambda file: np.savez(file, x=_X, y=_Y))


def _archives() -> st.SearchStrategy[bytes]:
    """Archives of images and labels, damaged; and such whose headers lie."""
    x, y = _X, _Y
    shapes = st.sampled_from(
        ["(10**12,)", "(1000000000000,)", "(20, 4, 4)", "(-1,)", "()", "(2**63, 2**63)", "(9999999, 9999999, 9999999)"]
    )
    kinds = st.sampled_from(["<i8", "|u1", "|O", "<f4", "<U99999999", "|V1000000", "zz", "<M8[s]"])
    bodies = st.binary(max_size=64)

    def archive(array: bytes, name: str) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as made:
            for each in "xy":
                own = _saved(lambda f, each=each: np.save(f, x if each == "x" else y))
                made.writestr(f"{each}.npy", array if each == name else own)
        return file.getvalue()

    labels = st.sampled_from([10**12, -1, 2**63, 2**64 - 1, 1]).map(
        lambda n: _saved(lambda file: np.savez(file, x=x, y=np.full(20, n, np.uint64 if n > 2**62 else np.int64)))
    )
    lying = st.builds(archive, st.builds(_array, shapes, kinds, bodies), st.sampled_from("xy"))
    return garbled(_archive()) | lying | labels


def _readers() -> list[Reader]:
    parts = _of_checkpoint()
    binary = [st.tuples(st.just(name), garbled(parts[name])) for name in (MODEL, STATE)]
    record = st.tuples(st.just(RUN), damaged(json.loads(parts[RUN])))
    state = _saved(lambda file: torch.save(nn.Linear(2, 2).state_dict(), file))
    plain = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
    yaml = damaged(
        {"name": "a", "data": {"name": "digits"}, "model": "cnn", "methods": ["svd"], "budgets": [{"params": 0.5}]}
    )
    alias, experiment = {"1.weight": "0.weight"}, garbled(EXPERIMENT.encode()) | yaml
    kept, own = _of_safetensors(), garbled(state) | garbled(save(plain))
    return [
        Reader("plan.json", json.dumps(PLAN), damaged(PLAN), _plan),
        Reader("run.json", json.dumps(RECORD), damaged(RECORD), _record),
        Reader("a result of compare", json.dumps(RESULT), damaged(RESULT), _result),
        Reader("an experiment in YAML", EXPERIMENT, experiment, _experiment),
        Reader("model.safetensors, aliases", json.dumps(alias), damaged(alias), _aliases),
        Reader("model.safetensors", kept, garbled(kept), _weights),
        Reader("--weights", state, own, _own_weights),
        Reader("a checkpoint", (RUN, parts[RUN].decode()), st.one_of(record, *binary), _checkpoint),
        Reader("npz:FILE", _archive(), _archives(), _arrays),
    ]


READERS = _readers()
