"""Files that strangers wrote: whatever stands in one, its reader gives a value or one sentence of tenfold's."""

import json
from pathlib import Path

import pytest
import torch
from tools.stress.strangers import PLAN, READERS, RECORD, Reader, feed, garbled
from torch import nn

from helpers import same_state, state
from tenfold import Plan
from tenfold.cli.runs import RUN, read_settings, training_folder
from tenfold.errors import TenfoldError, TenfoldWarning
from tenfold.files import parse_json
from tenfold.plans.serialization import read_weights, write_weights
from tenfold.train import Parts, load_checkpoint, save_checkpoint

FEW = 40


@pytest.mark.parametrize("reader", READERS, ids=[reader.name for reader in READERS])
def test_a_file_is_read_or_refused(reader, tmp_path):
    assert reader.try_(reader.whole, tmp_path / "whole")
    assert feed(reader, tmp_path / "files", FEW, seed=0)["failures"] == []


def test_the_law_sees_a_reader_that_breaks(tmp_path):
    def breaks(content: bytes, _: Path) -> None:
        if len(content) > 10:
            raise IndexError("raw")

    reader = Reader("breaks", b"", garbled(b"0123456789"), breaks)
    assert "IndexError: raw" in feed(reader, tmp_path, FEW, seed=0)["failures"][0]
    silent = Reader("silent", b"", garbled(b"0"), lambda *_: None)
    assert feed(silent, tmp_path, FEW, seed=0)["read"] == FEW


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
