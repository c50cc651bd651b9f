"""Checkpoints: what goes in comes out, ties are kept, and what is damaged is refused in one sentence."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from helpers import same_state
from nets import norm_dropout
from tenfold.errors import CheckpointError
from tenfold.train import Parts, load_checkpoint, save_checkpoint


def parts(model, steps=0):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(4, 2, 6, 6)).square().sum().backward()
        optimizer.step()
    return Parts(model, {"optimizer": optimizer})


def test_round_trip_of_model_optimizer_and_record(tmp_path):
    saved = parts(norm_dropout(), steps=2)
    save_checkpoint(tmp_path / "c", saved, {"epoch": 2, "note": "as it was"})
    loaded = parts(norm_dropout())
    assert not same_state(saved.model, loaded.model)
    record = load_checkpoint(tmp_path / "c", loaded)
    assert (record["epoch"], record["note"]) == (2, "as it was")
    assert same_state(saved.model, loaded.model)
    old, new = (list(p.others["optimizer"].state.values()) for p in (saved, loaded))
    assert all(torch.equal(a["momentum_buffer"], b["momentum_buffer"]) for a, b in zip(old, new, strict=True))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["c", "model.safetensors", "run.json", "state.pt"]


class Tied(nn.Module):
    def __init__(self, tie=True):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        if tie:
            self.two.weight = self.one.weight
        self.register_buffer("view", torch.arange(12.0).reshape(3, 4).T)
        self.shape = [1]

    def get_extra_state(self):
        return self.shape

    def set_extra_state(self, state):
        self.shape = state


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path):
    model = Tied()
    model.shape = [4, 2]
    save_checkpoint(tmp_path / "c", Parts(model, {}), {})
    assert set(load_file(tmp_path / "c" / "model.safetensors")) == {"one.weight", "one.bias", "two.bias", "view"}
    again = Tied()
    load_checkpoint(tmp_path / "c", Parts(again, {}))
    assert again.two.weight is again.one.weight
    assert torch.equal(again.one.weight, model.one.weight)
    assert torch.equal(again.view, model.view)
    assert again.shape == [4, 2]
    loose = Tied(tie=False)
    load_checkpoint(tmp_path / "c", Parts(loose, {}))
    assert torch.equal(loose.two.weight, model.one.weight)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    first = parts(norm_dropout(), steps=1)
    save_checkpoint(tmp_path / "c", first, {"epoch": 1})
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "c", parts(norm_dropout(), steps=2), {"epoch": object()})
    loaded = parts(norm_dropout())
    assert load_checkpoint(tmp_path / "c", loaded)["epoch"] == 1
    assert same_state(first.model, loaded.model)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "run.json"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "missing"])
def test_damage_is_refused_in_one_sentence(tmp_path, name, damage):
    save_checkpoint(tmp_path / "c", parts(norm_dropout(), steps=1), {"epoch": 1})
    path = tmp_path / "c" / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        middle = len(content) // 2
        changed = content[:middle] + bytes([content[middle] ^ 0x80]) + content[middle + 1 :]
        path.write_bytes({"truncated": content[:middle], "changed": changed, "empty": b""}[damage])
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "c", parts(norm_dropout()))
    assert str(tmp_path / "c") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "record", ["[]", "3", '{"format": 1}', '{"format": 1, "sha256": []}', '{"format": 9, "sha256": {}}']
)
def test_a_foreign_record_is_refused(tmp_path, record):
    save_checkpoint(tmp_path / "c", parts(norm_dropout()), {})
    (tmp_path / "c" / "run.json").write_text(record)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "c", parts(norm_dropout()))


def test_a_newer_format_says_so(tmp_path):
    save_checkpoint(tmp_path / "c", parts(norm_dropout()), {})
    path = tmp_path / "c" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(CheckpointError, match="has format 2; this version of tenfold reads 1"):
        load_checkpoint(tmp_path / "c", parts(norm_dropout()))


def test_code_in_the_state_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit('ran')",))

    class Holder:
        def state_dict(self):
            return {"x": Evil()}

    save_checkpoint(tmp_path / "c", Parts(norm_dropout(), {"optimizer": Holder()}), {})
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(tmp_path / "c", parts(norm_dropout()))
