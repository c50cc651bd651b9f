"""Language and vision models of the transformers library: GPT-2's own linear layer, tied heads, generation."""

import copy
from typing import Any

import pytest
import torch
from layer_stubs import entry_for
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import tenfold
from helpers import relative, state
from tenfold.layers import swap
from tenfold.layers.find import find
from tenfold.layers.matrix import LowRank, LowRankLinear
from tenfold.layers.spec import spec_of

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
TOKENS = torch.arange(14).reshape(2, 7)


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=61, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=60, pad_token_id=60
    )
    return transformers.GPT2LMHeadModel(config).eval()


def bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    return transformers.BertForSequenceClassification(config).eval()


def vit() -> Any:
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    return transformers.ViTForImageClassification(config).eval()


MODELS = {"gpt2": (gpt2, TOKENS), "bert": (bert, TOKENS), "vit": (vit, torch.randn(2, 3, 8, 8))}


def logits(model: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x).logits


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("slices", [1, 2])
def test_full_rank_is_exact(name: str, slices: int) -> None:
    make, x = MODELS[name]
    net = make()
    todo = {t.name: entry_for(net.get_submodule(t.name)) for t in find(net) if t.reason is None}
    if slices == 2:
        todo = {
            n: entry_for(net.get_submodule(n), slices=2)
            for n in todo
            if spec_of(net.get_submodule(n)).shape[1] % 2 == 0
        }
    small = swap.apply(net, todo)
    assert len(swap.structure_of(small)) == len(todo) > 4
    assert relative(logits(small, x), logits(net, x)) < 1e-4
    dense = swap.to_dense(small)
    assert repr(dense) == repr(net)
    assert relative(logits(dense, x), logits(net, x)) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_compression_keeps_the_budget_and_saves_and_loads(name: str, tmp_path) -> None:
    make, x = MODELS[name]
    net = make()
    before = state(net)
    small, plan, report = tenfold.compress(net, tenfold.ALDS(), tenfold.Budget(params=0.7), example_inputs=x)
    assert plan.params == report.small.params == tenfold.cost(small).params <= 0.7 * report.dense.params
    assert plan.macs == report.small.macs
    assert plan.macs < report.dense.macs
    assert logits(small, x).isfinite().all()
    tenfold.save(small, tmp_path / "saved", plan)
    assert torch.equal(logits(tenfold.load(tmp_path / "saved", make()), x), logits(small, x))
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[key])


def test_the_tied_head_of_gpt2_stays_dense_with_its_reason() -> None:
    net = gpt2()
    small, plan, _ = tenfold.compress(net, tenfold.ALDS(), tenfold.Budget(params=0.7))
    assert small.lm_head.weight is small.transformer.wte.weight
    head = plan.layers["lm_head"]
    assert (head.decomposition, head.tied_to, head.params) == ("dense", "transformer.wte", 0)
    assert "Embedding" in str(head.reason)
    assert any(isinstance(m, LowRankLinear) and m.spec.kind == "conv1d_gpt2" for m in small.modules())
    with pytest.raises(tenfold.UnsupportedLayer, match="'lm_head', which stays dense: an Embedding"):
        tenfold.plan(net, tenfold.ALDS(), tenfold.Budget(params=0.7), target_modules=["lm_head"])


def test_a_host_that_reads_the_type_of_a_weight_costs_nothing() -> None:
    """ViT casts its input to ``projection.weight.dtype``: a multiplied weight would be work that no plan knows of."""
    net, (_, x) = vit(), MODELS["vit"]
    small, plan, _ = tenfold.compress(net, tenfold.ALDS(), tenfold.Budget(macs=0.7), example_inputs=x)
    assert isinstance(small.vit.embeddings.patch_embeddings.projection, LowRank)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        small.set_attn_implementation("eager")  # the fused kernel is not counted on numbers
        small(x)
    assert counter.get_total_flops() // 2 == plan.macs


def test_near_the_full_budget_outputs_are_near() -> None:
    net = gpt2()
    errors = []
    for share in (0.6, 0.8, 0.98):
        small = tenfold.compress(net, tenfold.ALDS(measure="fro"), tenfold.Budget(params=share)).model
        errors.append(relative(logits(small, TOKENS), logits(net, TOKENS)))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.2


def test_the_weight_of_gpt2s_layer_is_stored_its_way() -> None:
    layer = gpt2().transformer.h[0].attn.c_attn
    small = swap.apply(nn.Sequential(layer), {"0": entry_for(layer)})[0]
    assert small.weight.shape == layer.weight.shape == (32, 96)
    assert (small.in_features, small.out_features) == (32, 96)
    assert relative(small.weight, layer.weight) < 1e-5
    x = torch.randn(2, 5, 32)
    assert relative(small(x), layer(x)) < 1e-5


def test_generation_with_a_cache_works_and_agrees_at_full_rank() -> None:
    net = gpt2()
    todo = {t.name: entry_for(net.get_submodule(t.name)) for t in find(net) if t.reason is None}
    small = swap.apply(net.double(), todo)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(TOKENS)}
    expected = net.generate(TOKENS, **options)
    assert expected.shape == (2, 13)
    assert torch.equal(small.generate(TOKENS, **options), expected)
    assert torch.equal(small.generate(TOKENS, **options, use_cache=False), expected)


def test_training_step_and_copies_work() -> None:
    small = tenfold.compress(gpt2(), tenfold.ALDS(), tenfold.Budget(params=0.7)).model.train()
    small(TOKENS, labels=TOKENS).loss.backward()
    factors = [p for m in small.modules() if isinstance(m, LowRank) for p in m.parameters()]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in factors)
    assert torch.equal(logits(copy.deepcopy(small).eval(), TOKENS), logits(small.eval(), TOKENS))


def test_macs_by_hand() -> None:
    """Per layer: qkv, projection, two of the feed-forward part, and attention's two products; then the head."""
    tokens, d = 14, 32
    each = tokens * (d * 3 * d + d * d + 2 * d * 4 * d) + 2 * 2 * 7 * 7 * d
    assert tenfold.cost(gpt2(), TOKENS).macs == 2 * each + tokens * d * 61
    assert tenfold.cost(gpt2(), {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}).macs == (
        2 * each + tokens * d * 61
    )
