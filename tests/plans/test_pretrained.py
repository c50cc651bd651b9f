"""Compressed models of transformers in Hugging Face's folders: they come back to the bit, or loading raises."""

import contextlib
import copy
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tenfold
from helpers import relative, same_state
from tenfold.layers.swap import structure_of

transformers = pytest.importorskip("transformers", minversion="5.0")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
TOKENS = torch.arange(14).reshape(2, 7)
PIXELS = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
SMALL = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2}
ENDS = {"bos_token_id": 0, "eos_token_id": 60, "pad_token_id": 60}


def bert(kind: str = "BertForSequenceClassification", **more: Any) -> Any:
    config = transformers.BertConfig(**SMALL, num_attention_heads=2, intermediate_size=48, **more)
    return getattr(transformers, kind)(config).eval()


def gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=61, n_positions=32, n_embd=32, n_layer=2, n_head=2, **ENDS)
    return transformers.GPT2LMHeadModel(config).eval()


def llama(tied: bool, dtype: torch.dtype = torch.float32) -> Any:
    config = transformers.LlamaConfig(
        **SMALL,
        **ENDS,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def clip() -> Any:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.CLIPConfig(
        text_config={"vocab_size": 61, **tower},
        vision_config={"image_size": 8, "patch_size": 4, **tower},
        projection_dim=32,
    )
    return transformers.CLIPModel(config).eval()


def wav2vec2() -> Any:
    """Its class gives the bias of one linear layer new random numbers, unless that bears the mark of what is loaded."""
    config = transformers.Wav2Vec2Config(
        vocab_size=32,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=(48, 48),
        conv_kernel=(4, 4),
        conv_stride=(2, 2),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    return transformers.Wav2Vec2ForCTC(config).eval()


def resnet() -> Any:
    config = transformers.ResNetConfig(embedding_size=16, hidden_sizes=[32, 48], depths=[1, 2])
    return transformers.ResNetForImageClassification(config).eval()


TEXT = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
MODELS: dict[str, tuple[Any, dict[str, torch.Tensor]]] = {
    "bert": (bert, TEXT),
    "encoder": (lambda: bert("BertModel"), TEXT),
    "untied": (lambda: bert("BertForMaskedLM", tie_word_embeddings=False), TEXT),
    "gpt2": (gpt2, TEXT),
    "llama": (lambda: llama(tied=True), TEXT),
    "sharded": (lambda: llama(tied=False), TEXT),
    "bfloat16": (lambda: llama(tied=True, dtype=torch.bfloat16), TEXT),
    "clip": (clip, TEXT | {"pixel_values": PIXELS}),
    "wav2vec2": (wav2vec2, {"input_values": torch.linspace(-1, 1, 400).reshape(2, 200)}),
    "resnet": (resnet, {"pixel_values": PIXELS}),
}
METHODS = {"resnet": tenfold.Tucker(), "gpt2": tenfold.SVD()}


@cache
def made(name: str) -> Any:
    torch.manual_seed(0)
    method = METHODS.get(name, tenfold.ALDS(slices=(1, 2)))
    small = tenfold.compress(MODELS[name][0](), method, tenfold.Budget(params=0.8)).model
    assert structure_of(small)
    return small


def compressed(name: str) -> Any:
    return copy.deepcopy(made(name))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """One folder for each model, and beside the weights what they are and give."""
    home = tmp_path_factory.mktemp("saved")
    for name, (_, inputs) in MODELS.items():
        small = compressed(name)
        small.save_pretrained(home / name, max_shard_size="20KB" if name == "sharded" else "1GB")
        with torch.no_grad():
            output = small(**inputs)[0]
        tensors = {key: tensor.detach().clone().contiguous() for key, tensor in small.state_dict().items()}
        tensors |= {"output": output.clone().contiguous()} | {f"input.{key}": x for key, x in inputs.items()}
        save_file(tensors, home / name / "expected.safetensors")
    return home


def asked(mode: str, home: Path) -> dict[str, Any]:
    script = Path(__file__).with_name("loads_pretrained.py")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PYTHONPATH"] = str(Path(tenfold.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(script), mode, str(home)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_fresh_process_loads_every_model_bit_for_bit_by_every_door(saved: Path) -> None:
    told = asked("with", saved)
    assert told.keys() == MODELS.keys()
    assert {name: [what for what, right in checks.items() if not right] for name, checks in told.items()} == {
        name: [] for name in MODELS
    }
    assert sum("cache" in what for checks in told.values() for what in checks) == 8


def test_without_tenfold_no_class_loads_a_compressed_model(saved: Path) -> None:
    told = asked("without", saved)
    assert told.keys() == MODELS.keys()
    for name, errors in told.items():
        assert all(error.startswith("RuntimeError: You set `ignore_mismatched_sizes`") for error in errors), name


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_missing_unexpected_or_changed(name: str, saved: Path) -> None:
    kind = type(MODELS[name][0]())
    again, info = kind.from_pretrained(saved / name, output_loading_info=True)
    assert {what: found for what, found in info.items() if found} == {}
    assert same_state(again, compressed(name))
    assert repr(again) == repr(compressed(name))
    assert not again.training
    assert all(p.requires_grad for p in again.parameters())


def test_generation_is_the_same_before_and_after(saved: Path) -> None:
    options: dict[str, Any] = {**TEXT, "max_new_tokens": 6, "do_sample": False}
    for name in ("gpt2", "llama", "sharded", "bfloat16"):
        again: Any = tenfold.from_pretrained(saved / name)
        assert torch.equal(again.generate(**options), compressed(name).generate(**options))


def test_ties_stay_and_are_written_once(saved: Path) -> None:
    for name, head in {"gpt2": "wte", "llama": "embed_tokens", "bfloat16": "embed_tokens"}.items():
        again: Any = tenfold.from_pretrained(saved / name)
        assert again.lm_head.weight is again.base_model.get_submodule(head).weight
        assert "lm_head.weight" not in load_file(saved / name / "model.safetensors")
    again = tenfold.from_pretrained(saved / "sharded")
    assert isinstance(again.lm_head, tenfold.LowRankLinear)


class TiedConfig(transformers.PretrainedConfig):
    model_type = "tied-layers"


class TiedLayers(transformers.PreTrainedModel):
    """Linear layers that share weights: as its class says, and as somebody tied them by hand."""

    config_class = TiedConfig
    _tied_weights_keys: Any = {"b.weight": "a.weight", "b.bias": "a.bias"}  # noqa: RUF012 - theirs

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.a, self.b, self.c, self.d = (nn.Linear(32, 32) for _ in range(4))
        self.post_init()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.d(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))))


@pytest.mark.parametrize("by_hand", ["nothing", "weight", "bias"])
def test_layers_that_share_weights_share_factors_again(by_hand: str, tmp_path: Path) -> None:
    net: Any = TiedLayers(TiedConfig(tie_word_embeddings=True)).eval()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    if by_hand != "nothing":
        setattr(net.d, by_hand, getattr(net.c, by_hand))
    small: Any = tenfold.apply(net, tenfold.plan(net, tenfold.SVD(), tenfold.Budget(params=0.6)))
    assert len(structure_of(small)) == 4
    small.save_pretrained(tmp_path)
    again: Any = TiedLayers.from_pretrained(tmp_path)
    assert same_state(again, small)
    assert list(map(id, again.a.factors)) == list(map(id, again.b.factors))
    assert again.a.held_bias is again.b.held_bias
    assert (again.c.factors[0] is again.d.factors[0]) is (by_hand == "weight")
    assert "b.encoder.weight" not in load_file(tmp_path / "model.safetensors")
    dense: Any = tenfold.to_dense(again)
    assert dense.a.weight is dense.b.weight


def test_shards_and_configs_are_as_of_any_model(saved: Path) -> None:
    index = json.loads((saved / "sharded" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    for name in MODELS:
        written = json.loads((saved / name / "config.json").read_text())["quantization_config"]
        assert written["quant_method"] == "tenfold"
        plan = tenfold.Plan.from_json(json.dumps(written["plan"]))
        assert plan.params == tenfold.cost(compressed(name)).params
        assert plan.layers.keys() == structure_of(compressed(name)).keys()


def test_what_was_loaded_is_saved_again_as_it_was(saved: Path, tmp_path: Path) -> None:
    for name in ("bert", "sharded"):
        again: Any = tenfold.from_pretrained(saved / name)
        again.save_pretrained(tmp_path / name, max_shard_size="20KB")
        assert same_state(tenfold.from_pretrained(tmp_path / name), again)
        assert (tmp_path / name / "config.json").read_text() == (saved / name / "config.json").read_text()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_type_is_asked_for_as_of_any_model(dtype: torch.dtype, saved: Path) -> None:
    again = transformers.AutoModelForSequenceClassification.from_pretrained(saved / "bert", dtype=dtype)
    assert same_state(again, compressed("bert").to(dtype))
    assert same_state(tenfold.from_pretrained(saved / "bert", dtype=dtype), again)


def test_a_head_more_or_less_is_as_with_any_model(saved: Path, tmp_path: Path) -> None:
    small = compressed("bert")
    base = transformers.AutoModel.from_pretrained(saved / "bert")
    assert same_state(base, small.bert)
    base.save_pretrained(tmp_path / "base")
    small.bert.save_pretrained(tmp_path / "part")
    for folder in ("base", "part"):
        with_head = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / folder)
        assert same_state(with_head.bert, small.bert)
        assert same_state(transformers.AutoModel.from_pretrained(tmp_path / folder), small.bert)


def test_made_dense_it_is_saved_as_a_plain_model(saved: Path, tmp_path: Path) -> None:
    for source in (compressed("gpt2"), tenfold.from_pretrained(saved / "gpt2")):
        dense: Any = tenfold.to_dense(source)
        dense.save_pretrained(tmp_path / "dense")
        assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
        assert same_state(again, dense)
        assert repr(again) == repr(gpt2())
        with torch.no_grad():
            assert relative(again(TOKENS).logits, source(TOKENS).logits) < 1e-5
    assert same_state(tenfold.from_pretrained(saved / "gpt2").dequantize(), dense)


def test_what_was_loaded_trains_changes_its_type_and_is_compressed_again(saved: Path) -> None:
    again: Any = tenfold.from_pretrained(saved / "bert").train()
    again(TOKENS, labels=torch.tensor([0, 1])).loss.backward()
    assert all(p.grad is not None for layer in structure_of(again).values() for p in layer.factors)
    assert again.half().dtype == torch.float16
    assert again.float().dtype == torch.float32
    smaller = tenfold.compress(again, tenfold.SVD(), tenfold.Budget(params=0.6)).model
    assert tenfold.cost(smaller).params < tenfold.cost(again).params


def test_the_weights_alone_load_strictly(saved: Path, tmp_path: Path) -> None:
    """As other loops load what is in the folder: into a model that is compressed already."""
    small, fresh = compressed("bert"), compressed("bert")
    with torch.no_grad():
        for p in fresh.parameters():
            p.zero_()
    fresh.load_state_dict(load_file(saved / "bert" / "model.safetensors"))
    assert same_state(fresh, small)
    tenfold.save(tenfold.from_pretrained(saved / "bert"), tmp_path / "own")
    assert same_state(tenfold.load(tmp_path / "own", bert()), small)


def test_factors_that_are_made_in_training_are_saved_as_well(tmp_path: Path) -> None:
    """The model is put into another form in place, by a step of its optimizer."""
    run = tenfold.begin(gpt2(), tenfold.Factors(start=0.5), tenfold.Budget(params=0.8), steps=4)
    model: Any = run.model
    optimizer = run.optimizer(torch.optim.SGD, lr=0.01)
    for step in range(4):
        model.save_pretrained(tmp_path / str(step))
        assert same_state(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / str(step)), model)
        assert bool(structure_of(model)) == (step >= 2)
        model(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()


def test_a_form_that_no_plan_describes_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model: Any = tenfold.begin(resnet(), tenfold.TDLRT(), tenfold.Budget(params=0.8)).model
    with pytest.raises(tenfold.PlanError, match=r"tenfold\.deploy"):
        model.save_pretrained(tmp_path / "trained")
    deployed: Any = tenfold.deploy(model)
    deployed.save_pretrained(tmp_path / "deployed")
    assert same_state(tenfold.from_pretrained(tmp_path / "deployed"), deployed)
    assert not list((tmp_path / "trained").iterdir())


def test_what_neither_class_nor_plan_describe_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenfold.runtimes.optimize._pays", lambda *_: True)
    made = [
        tenfold.optimize_for_inference(compressed("encoder"), TOKENS),
        tenfold.fold_batchnorm(resnet(), example_inputs=PIXELS),
        tenfold.fold_batchnorm(compressed("resnet"), example_inputs=PIXELS),
        tenfold.optimize_for_inference(compressed("resnet"), PIXELS),
    ]
    with contextlib.suppress(ImportError):
        import torch_pruning  # noqa: F401

        made.append(tenfold.prune_filters(resnet(), remove=0.2, example_inputs=PIXELS).model)
    for model in made:
        with pytest.raises(tenfold.CheckpointError, match="Save the model that it was made of"):
            model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def damaged(saved: Path, tmp_path: Path, change: Any) -> Path:
    """A copy of a folder with its weights and what its config says changed."""
    folder = tmp_path / "damaged"
    shutil.copytree(saved / "bert", folder)
    weights, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    change(weights, config["quantization_config"])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


LAYER = "bert.encoder.layer.0.output.dense"


def without_a_factor(weights: Any, written: Any) -> None:
    del weights[f"{LAYER}.encoder.weight"]


def other_rank(weights: Any, written: Any) -> None:
    written["plan"]["layers"][LAYER]["rank"] += 1


def other_name(weights: Any, written: Any) -> None:
    written["plan"]["layers"]["bert.other"] = written["plan"]["layers"].pop(LAYER)


def impossible_rank(weights: Any, written: Any) -> None:
    written["plan"]["layers"][LAYER]["rank"] = 1000


def other_shape(weights: Any, written: Any) -> None:
    written["plan"]["layers"][LAYER]["layer"]["shape"] = [32, 64]


def no_plan(weights: Any, written: Any) -> None:
    del written["plan"]


def no_object(weights: Any, written: Any) -> None:
    written["plan"] = ["bert"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (without_a_factor, tenfold.CheckpointError),
        (other_rank, tenfold.CheckpointError),
        (other_name, tenfold.CheckpointError),
        (impossible_rank, tenfold.PlanError),
        (other_shape, tenfold.PlanError),
        (no_plan, tenfold.CheckpointError),
        (no_object, tenfold.PlanError),
    ],
)
def test_what_does_not_fit_raises_by_every_door(change: Any, error: Any, saved: Path, tmp_path: Path) -> None:
    folder = damaged(saved, tmp_path, change)
    with pytest.raises(error):
        tenfold.from_pretrained(folder)
    with pytest.raises((error, RuntimeError)):
        transformers.AutoModel.from_pretrained(folder)
    with pytest.raises((tenfold.TenfoldError, RuntimeError)):  # where it would otherwise go on with random numbers
        transformers.AutoModel.from_pretrained(folder, ignore_mismatched_sizes=change is not other_name)


def test_other_folders_are_refused_with_what_to_do(saved: Path, tmp_path: Path) -> None:
    tenfold.save(compressed("bert"), tmp_path / "own")
    bert().save_pretrained(tmp_path / "dense")
    for folder, said in {"own": r"tenfold\.load", "dense": "a dense model", "nothing": "cannot be loaded"}.items():
        with pytest.raises(tenfold.CheckpointError, match=said):
            tenfold.from_pretrained(tmp_path / folder)
    shutil.copytree(saved / "bert", tmp_path / "cut")
    whole = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(tenfold.CheckpointError, match="cannot be loaded"):
        tenfold.from_pretrained(tmp_path / "cut")


class Batches(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": TOKENS[i % 2], "labels": torch.tensor(i % 2)}


def test_a_trainer_saves_resumes_and_trains_what_was_loaded(saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")

    def trainer(model: Any, steps: int) -> Any:
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        arguments = transformers.TrainingArguments(
            str(tmp_path / "run"),
            max_steps=steps,
            save_steps=2,
            lr_scheduler_type="constant",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        return transformers.Trainer(model, arguments, train_dataset=Batches())

    first, second, straight = (
        trainer(compressed("bert"), 2),
        trainer(compressed("bert"), 4),
        trainer(compressed("bert"), 4),
    )
    first.train()
    first.save_model(str(tmp_path / "end"))
    again = tenfold.from_pretrained(tmp_path / "end")
    assert same_state(again, first.model)
    assert not same_state(first.model, compressed("bert"))
    second.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    straight.train()
    for resumed, whole in zip(second.model.parameters(), straight.model.parameters(), strict=True):
        torch.testing.assert_close(resumed, whole, rtol=1e-5, atol=1e-6)  # examples come in another order
    assert not same_state(second.model, again)
    trainer(again, 1).train()
    assert not same_state(again, first.model)


def test_adapters_of_peft_go_on_the_factors_and_merge_into_them(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    small, places = compressed("gpt2"), r".*\.(encoder|decoder)"
    with torch.no_grad():
        before = small(TOKENS).logits
        adapted = peft.get_peft_model(small, peft.LoraConfig(r=2, target_modules=places, fan_in_fan_out=False))
        assert torch.equal(adapted(TOKENS).logits, before)
        added = {name.split(".lora_")[0] for name, _ in adapted.named_parameters() if ".lora_" in name}
        assert len(added) == 2 * len(structure_of(compressed("gpt2")))
        for i, (name, p) in enumerate(adapted.named_parameters()):
            if "lora_B" in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
        after = adapted(TOKENS).logits
        assert relative(after, before) > 0.01
        adapted.save_pretrained(tmp_path / "adapter")
        again = peft.PeftModel.from_pretrained(compressed("gpt2"), tmp_path / "adapter")
        assert torch.equal(again(TOKENS).logits, after)
        merged = again.merge_and_unload()
        assert relative(merged(TOKENS).logits, after) < 1e-5
    merged.save_pretrained(tmp_path / "merged")
    assert same_state(tenfold.from_pretrained(tmp_path / "merged"), merged)
    assert type(merged) is type(small)


class RecurrentModel(transformers.PreTrainedModel):
    config_class = TiedConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.lstm, self.head = nn.LSTM(32, 32), nn.Linear(32, 32)
        self.post_init()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0])


def test_factorised_recurrent_layers_are_refused_and_dense_ones_saved(tmp_path: Path) -> None:
    net: Any = RecurrentModel(TiedConfig()).eval()
    vars(net.lstm).pop("_is_hf_initialized", None)  # a mark by which a layer counts as more than a plain one
    plain: Any = tenfold.compress(net, tenfold.SVD(), tenfold.Budget(params=0.97), target_modules=["head"]).model
    plain.save_pretrained(tmp_path / "plain")
    assert same_state(RecurrentModel.from_pretrained(tmp_path / "plain"), plain)
    small: Any = tenfold.compress(net, tenfold.SVD(), tenfold.Budget(params=0.6)).model
    for refused in (small, tenfold.compress(plain, tenfold.SVD(), tenfold.Budget(params=0.6)).model):
        with pytest.raises(tenfold.CheckpointError, match="factorised recurrent"):
            cast("Any", refused).save_pretrained(tmp_path / "small")
    cast("Any", tenfold.to_dense(small)).save_pretrained(tmp_path / "dense")
