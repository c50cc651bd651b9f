"""Files that strangers wrote: whatever stands in one, its reader gives a value or one sentence of tenfold's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from helpers import same_state, state
from tenfold import Plan
from tenfold.bench.compare.results import RUN_FORMAT, RunResult
from tenfold.cli.runs import FORMAT as RUN_FOLDER
from tenfold.cli.runs import RUN, read_settings, recipe_of, training_folder
from tenfold.errors import TenfoldError, TenfoldWarning
from tenfold.files import parse_json
from tenfold.plans.serialization import read_weights, write_weights
from tenfold.train import Parts, load_checkpoint, save_checkpoint

FEW = settings(max_examples=40, deadline=None, derandomize=True)
ODD = [-507, -1, 0, 2**31, 10**40, 1e308, -0.5, True, None, "", "x" * 500, "\ud800", [], {}, [[]], {"a": {}}]
values = st.recursive(
    st.sampled_from(ODD) | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
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


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a value can be exchanged: every key and index, at every depth."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, item in items for deeper in places(item, (*path, key)))]


def exchanged(body: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(body) if isinstance(body, dict) else list(body)
    copy[path[0]] = exchanged(body[path[0]], path[1:], new)
    return copy


def damaged(body: Any) -> st.SearchStrategy[str]:
    """Texts like ``body``'s with one value exchanged, one key added, or cut off somewhere."""
    other = st.builds(lambda path, new: json.dumps(exchanged(body, path, new)), st.sampled_from(places(body)), values)
    whole = json.dumps(body)
    return other | st.integers(0, len(whole)).map(lambda end: whole[:end]) | values.map(json.dumps)


def one_sentence(refused: TenfoldError) -> None:
    assert len(str(refused)) < 1500
    str(refused).encode()


@FEW
@given(damaged(PLAN))
def test_a_plan_is_read_or_refused(text):
    try:
        plan = Plan.from_json(text)
    except TenfoldError as refused:
        one_sentence(refused)
    else:
        assert 0 <= plan.dense_params < 2**63
        assert Plan.from_json(plan.to_json()) == plan


@FEW
@given(text=damaged(RECORD))
def test_a_run_record_is_read_or_refused(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp() / "record"
    folder.mkdir(exist_ok=True)
    (folder / RUN).write_text(text)
    try:
        recipe_of(read_settings(folder))
    except TenfoldError as refused:
        one_sentence(refused)


@FEW
@given(text=damaged(RESULT))
def test_a_result_is_read_or_refused(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "result.json"
    file.write_text(text)
    try:
        found = RunResult.read(file)
    except TenfoldError as refused:
        one_sentence(refused)
    else:
        assert found.price is None or found.price.kept["params"] >= 0


@FEW
@given(aliases=damaged({"b": "a"}))
def test_weights_are_read_whole_or_refused_and_leave_the_model(tmp_path_factory, aliases):
    file, model = tmp_path_factory.getbasetemp() / "a.safetensors", nn.Linear(2, 2)
    before = state(model)
    save_file({"weight": torch.ones(2, 2)}, file, metadata={"aliases": aliases})
    with pytest.raises(TenfoldError) as refused:  # there is no bias, and no alias makes one of its shape
        read_weights(model, file)
    one_sentence(refused.value)
    assert same_state(model, before)


@FEW
@given(st.data())
def test_a_checkpoint_is_read_whole_or_leaves_everything(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "checkpoint"
    parts = _parts()
    save_checkpoint(folder, parts, {"epoch": 1})
    text = (folder / RUN).read_text()
    (folder / RUN).write_text(data.draw(damaged(json.loads(text))))
    nn.init.constant_(next(parts.model.parameters()), 3.0)
    before = state(parts.model)
    try:
        load_checkpoint(folder, parts)
    except TenfoldError as refused:
        one_sentence(refused)
        assert same_state(parts.model, before)


def _parts() -> Parts:
    model = nn.Linear(2, 2)
    return Parts(model, {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1)})


def test_a_checkpoint_whose_optimizer_does_not_fit_leaves_the_model(tmp_path):
    parts = _parts()
    save_checkpoint(tmp_path / "c", parts, {})
    other = nn.Linear(2, 2)
    two = [{"params": [other.weight]}, {"params": [other.bias]}]
    before = state(other)
    with pytest.raises(TenfoldError):
        load_checkpoint(tmp_path / "c", Parts(other, {"optimizer": torch.optim.SGD(two, lr=0.1)}))
    assert same_state(other, before)


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 2}', "1e999", "-Infinity", "NaN", "1" + "0" * 40, "9" * 5000, "[" * 100 + "]" * 100,
     "[" * 100_000, '"\\ud800"', '{"\\ud800": 1}', "", "{"],
)  # fmt: skip
def test_json_that_means_nothing_certain_is_refused_in_short(text):
    with pytest.raises(ValueError, match=r".") as refused:
        parse_json(text)
    assert len(str(refused.value)) < 200
    with pytest.raises(TenfoldError):
        Plan.from_json(text)


def test_a_byte_order_mark_is_skipped():
    assert Plan.from_json("\ufeff" + json.dumps(PLAN)) == Plan.from_json(json.dumps(PLAN))


@pytest.mark.parametrize("number", [-507, 10**40, 2**63, 70])
def test_a_plan_of_a_model_smaller_than_its_layers_or_beyond_all_models_is_refused(number):
    with pytest.raises(TenfoldError, match=r"dense_params|64 bits"):
        Plan.from_json(json.dumps(PLAN | {"dense_params": number}))


def test_a_device_is_no_plan():
    from tenfold.files import read_text

    with pytest.raises(OSError, match="no regular file"):
        read_text(Path("/dev/zero"))


def test_a_changed_number_is_noticed_and_one_that_is_not_finite_is_said(tmp_path):
    model, file = nn.Linear(4, 4), tmp_path / "w.safetensors"
    write_weights(model, file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(TenfoldError, match="not those that were saved"):
        read_weights(model, file)
    nn.init.constant_(model.bias, float("nan"))
    with pytest.warns(TenfoldWarning, match="bias"):
        write_weights(model, file)
    read_weights(model, file)


def test_a_run_whose_successor_was_killed_before_its_first_checkpoint_is_not_lost(tmp_path):
    out, old = tmp_path / "run", tmp_path / ".run.replaced"
    (out / "model").mkdir(parents=True)
    (out / RUN).write_text(json.dumps(RECORD))
    settings = read_settings(out)
    out.rename(old)  # as a kill leaves it, right after the old run was put aside
    assert read_settings(out) == settings
    assert (out / "model").is_dir()
    out.rename(old)
    settings.write(out)  # killed a little later: the new one has a record and no checkpoint
    with pytest.raises(RuntimeError), training_folder(out, settings):
        raise RuntimeError("fails before a checkpoint")
    assert (out / "model").is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
