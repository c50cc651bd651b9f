"""Saving and loading: bitwise, without pickle, whole or not at all."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

import tenfold
from helpers import same_state, state
from nets import Residual, Tied
from tenfold.errors import CheckpointError, PlanError
from tenfold.layers import swap
from tenfold.layers.cost import Cost
from tenfold.layers.matrix import LowRank
from tenfold.linalg.fold import NAMES
from tenfold.plans import serialization as store


@pytest.fixture
def small() -> nn.Module:
    return tenfold.compress(Residual().eval(), tenfold.ALDS(), tenfold.Budget(params=0.5)).model


@pytest.fixture
def saved(small: nn.Module, tmp_path: Path) -> Path:
    tenfold.save(small, tmp_path / "saved")
    return tmp_path / "saved"


# ---- there and back


def test_a_fresh_dense_model_becomes_the_saved_one_bitwise(small: nn.Module, saved: Path) -> None:
    torch.manual_seed(7)
    fresh = Residual().eval()
    before, random = state(fresh), torch.get_rng_state()
    loaded = tenfold.load(saved, fresh)
    assert same_state(loaded, small)
    assert repr(loaded) == repr(small)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(x), small(x))
    assert same_state(fresh, before)  # which is itself untouched
    torch.set_rng_state(random)


@pytest.mark.parametrize("fold", [*NAMES, None])
def test_every_format_survives_json_building_saving_loading_and_the_way_back(fold: str | None, tmp_path: Path) -> None:
    net, x = Residual().eval(), torch.randn(2, 3, 8, 8)
    method = tenfold.SVD(fold=fold) if fold else tenfold.Tucker()
    plan = tenfold.plan(net, method, tenfold.Budget(params=0.6), example_inputs=x)
    assert fold in {layer.fold for layer in plan.layers.values() if layer.decomposition != "dense"}
    read = tenfold.Plan.from_json(plan.to_json())
    assert read == plan
    built = tenfold.apply(net, read)
    assert tenfold.cost(built, x) == Cost(plan.params, plan.macs)
    tenfold.save(built, tmp_path / "saved", read)
    loaded = tenfold.load(tmp_path / "saved", Residual().eval())
    assert same_state(loaded, built)
    assert torch.equal(loaded(x), built(x))
    dense = tenfold.to_dense(loaded)
    assert not swap.structure_of(dense)
    torch.testing.assert_close(dense(x), loaded(x), rtol=1e-4, atol=1e-5)
    again = tenfold.apply(dense, read)
    torch.testing.assert_close(again(x), loaded(x), rtol=1e-4, atol=1e-5)


def test_two_files_and_no_pickle(saved: Path) -> None:
    assert sorted(p.name for p in saved.iterdir()) == ["model.safetensors", "plan.json"]
    assert [p.name for p in saved.parent.iterdir()] == ["saved"]  # no temporary left beside it
    assert json.loads((saved / "plan.json").read_text())["format"] == "tenfold-plan/1"
    header = (saved / "model.safetensors").read_bytes()
    notes = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    assert notes["aliases"] == "{}"
    assert set(notes) == {"aliases", "sha256"}


def test_the_plan_that_is_given_keeps_its_errors(tmp_path: Path) -> None:
    net = Residual()
    small, plan, _ = tenfold.compress(net, tenfold.ALDS(), tenfold.Budget(params=0.5))
    tenfold.save(small, tmp_path / "saved", plan)
    assert store.read_plan(tmp_path / "saved") == plan
    assert same_state(tenfold.load(tmp_path / "saved", net), small)


def test_the_plan_must_be_the_one_that_was_built(small: nn.Module, tmp_path: Path) -> None:
    other = tenfold.plan(Residual(), tenfold.SVD(), tenfold.Budget(params=0.3))
    with pytest.raises(PlanError, match="`plan` must be the plan that `model` was built from"):
        tenfold.save(small, tmp_path / "saved", other)
    assert list(tmp_path.iterdir()) == []


def test_dense_models_are_saved_too(tmp_path: Path) -> None:
    net = Residual()
    tenfold.save(net, tmp_path / "saved")
    assert same_state(tenfold.load(tmp_path / "saved", Residual()), net)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_types_are_kept_bitwise(dtype: torch.dtype, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 8)).to(dtype)
    small = tenfold.compress(net, tenfold.ALDS(), tenfold.Budget(params=0.6)).model
    tenfold.save(small, tmp_path / "saved")
    assert same_state(tenfold.load(tmp_path / "saved", net), small)


def test_channels_last_models_are_saved_and_loaded(tmp_path: Path) -> None:
    net = Residual().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    small = tenfold.compress(net, tenfold.ALDS(), tenfold.Budget(params=0.5)).model
    tenfold.save(small, tmp_path / "saved")
    loaded = tenfold.load(tmp_path / "saved", net)
    assert same_state(loaded, small)
    for a, b in zip(loaded.parameters(), small.parameters(), strict=True):
        assert a.stride() == b.stride()


def test_ties_and_frozen_weights_survive(tmp_path: Path) -> None:
    net = Tied()
    net.first.weight.requires_grad_(False)
    small = tenfold.compress(net, tenfold.ALDS(), tenfold.Budget(params=0.8)).model
    tenfold.save(small, tmp_path / "saved")
    loaded = tenfold.load(tmp_path / "saved", net)
    assert same_state(loaded, small)
    assert loaded.head.weight is loaded.table.weight
    assert isinstance(loaded.first, LowRank)
    assert loaded.first.encoder.weight is loaded.second.encoder.weight
    assert not loaded.first.encoder.weight.requires_grad
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:  # and are written once
        written, aliases = set(file.keys()), json.loads(file.metadata()["aliases"])
    assert aliases["head.weight"] == "table.weight"
    assert aliases["second.encoder.weight"] == "first.encoder.weight"
    assert not written & set(aliases)
    assert written | set(aliases) == set(small.state_dict())
    names = json.loads((tmp_path / "saved" / "plan.json").read_text())["layers"]
    assert names["second"]["tied_to"] == "first"


def test_views_of_one_storage_come_back_as_the_model_has_them(tmp_path: Path) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)
            self.register_buffer("table", torch.randn(4, 4))
            self.register_buffer("row", self.table[1])
            self.register_buffer("flipped", self.table.mT)
            self.register_buffer("nothing", torch.zeros(0))
            self.register_buffer("empty", torch.zeros(0))

    net = Views()
    tenfold.save(net, tmp_path / "saved")
    assert same_state(tenfold.load(tmp_path / "saved", Views()), net)


def test_mode_and_device_are_those_of_the_given_model(saved: Path) -> None:
    assert tenfold.load(saved, Residual().train()).training
    assert not any(m.training for m in tenfold.load(saved, Residual().eval()).modules())


# ---- what does not fit


def edit(saved: Path, change) -> None:
    body = json.loads((saved / "plan.json").read_text())
    change(body)
    (saved / "plan.json").write_text(json.dumps(body))


def first_layer(body: dict) -> dict:
    return next(layer for layer in body["layers"].values() if layer["decomposition"] == "low-rank")


def test_nothing_there(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match=r"no saved model at .* Pass a folder written by tenfold\.save"):
            tenfold.load(folder, Residual())


@pytest.mark.parametrize("name", ["plan.json", "model.safetensors"])
def test_one_of_the_files_is_missing(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        tenfold.load(saved, Residual())


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_truncated_weights(saved: Path, kept: float) -> None:
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        tenfold.load(saved, Residual())


def test_garbage_and_pickles_are_not_read_as_weights(saved: Path) -> None:
    for content in (b"\xff" * 4096, b""):
        (saved / "model.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged or truncated"):
            tenfold.load(saved, Residual())
    torch.save({"conv1.weight": torch.zeros(3)}, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        tenfold.load(saved, Residual())


@pytest.mark.parametrize("aliases", ["[]", "{", '{"a": "nowhere"}', "3"])
def test_damaged_aliases(saved: Path, aliases: str) -> None:
    from safetensors.torch import load_file, save_file

    file = saved / "model.safetensors"
    save_file(load_file(file), file, metadata={"aliases": aliases})
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        tenfold.load(saved, Residual())


@pytest.mark.parametrize("cut", [0, 1, 100])
def test_a_truncated_plan(saved: Path, cut: int) -> None:
    text = (saved / "plan.json").read_text()
    (saved / "plan.json").write_text(text[:cut])
    with pytest.raises(PlanError, match="no JSON"):
        tenfold.load(saved, Residual())


def test_a_plan_that_is_no_text(saved: Path) -> None:
    (saved / "plan.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match=r"plan\.json' is damaged"):
        tenfold.load(saved, Residual())


def test_an_edited_rank_no_longer_fits_the_weights(saved: Path) -> None:
    def lower(body: dict) -> None:
        first_layer(body)["rank"] = 1
        first_layer(body)["slices"] = 1

    edit(saved, lower)
    with pytest.raises(CheckpointError, match=r"is for another model: 0 tensors missing .* of another shape or type"):
        tenfold.load(saved, Residual())


def test_an_impossible_rank(saved: Path) -> None:
    edit(saved, lambda body: first_layer(body).update(rank=999))
    with pytest.raises(PlanError, match="`rank` must be an integer in"):
        tenfold.load(saved, Residual())


@pytest.mark.parametrize("model", [Residual(width=16), nn.Linear(3, 3)])
def test_another_model(saved: Path, model: nn.Module) -> None:
    before = state(model)
    with pytest.raises(PlanError, match="for another model"):
        tenfold.load(saved, model)
    assert same_state(model, before)


def test_a_model_of_another_type_says_so(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"float32 saved, \(.*\) float64 here"):
        tenfold.load(saved, Residual().double())


def test_a_model_that_is_factorised_already(saved: Path, small: nn.Module) -> None:
    with pytest.raises(PlanError, match="another kind of module there"):
        tenfold.load(saved, small)


def test_state_that_only_pickle_could_hold_is_refused(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

        def set_extra_state(self, state: dict[str, int]) -> None: ...

    with pytest.raises(CheckpointError, match="'_extra_state' is a dict"):
        tenfold.save(Extra(2, 2), tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


# ---- whole or not at all


@pytest.mark.parametrize("part", ["save_file", "plan_of"])
def test_a_failed_save_leaves_the_earlier_one_whole(
    part: str, saved: Path, small: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {p.name: p.read_bytes() for p in saved.iterdir()}

    def fail(*args: object, **kwargs: object) -> None:
        if part == "save_file":
            Path(str(args[1])).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(store, part, fail)
    with pytest.raises(OSError, match="no space left"):
        tenfold.save(swap.to_dense(small), saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == files
    assert [p.name for p in saved.parent.iterdir()] == ["saved"]


def test_saving_again_replaces_the_whole(saved: Path) -> None:
    net = Residual()
    tenfold.save(net, saved)
    tenfold.save(net, saved)
    assert same_state(tenfold.load(saved, Residual()), net)
    assert [p.name for p in saved.parent.iterdir()] == ["saved"]


def test_what_save_did_not_write_is_never_deleted(small: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(CheckpointError, match=r"new or empty folder.* holds .*thesis\.tex"):
            tenfold.save(small, path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "thesis.tex"]


def test_relative_nested_and_empty_folders_are_taken(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("a", "b/c/d", str(tmp_path / "e"), "f/"):
        tenfold.save(small, path)
        assert same_state(tenfold.load(path, Residual()), small)
    (tmp_path / "empty").mkdir()
    tenfold.save(small, "empty")
    assert same_state(tenfold.load("empty", Residual()), small)


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_permissions_follow_the_umask(small: nn.Module, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        tenfold.save(small, tmp_path / "saved")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "saved", *(tmp_path / "saved").iterdir())}
    assert modes == {"saved": 0o750, "plan.json": 0o640, "model.safetensors": 0o640}


@pytest.mark.parametrize(
    ("buffer", "says"),
    [
        (torch.arange(8).expand(4, 8), "an expanded view"),
        (torch.zeros(3, dtype=torch.complex128), "of type complex128"),
        (torch.eye(3).to_sparse(), "of layout torch.sparse_coo"),
    ],
)
def test_a_buffer_that_no_file_can_hold_is_refused_before_anything_is_written(tmp_path, buffer, says):
    model = nn.Linear(4, 4)
    model.register_buffer("odd", buffer)
    with pytest.raises(CheckpointError, match=f"'odd' is {says}"):
        tenfold.save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_buffers_of_eight_bits_travel(tmp_path):
    model = nn.Linear(4, 4)
    model.register_buffer("small", torch.ones(3).to(torch.float8_e4m3fn))
    tenfold.save(model, tmp_path / "model")
    assert torch.equal(tenfold.load(tmp_path / "model", model=model).small.float(), model.small.float())
