"""Projecting many found at once equals one SVD per matrix; and what is left alone, bit for bit."""

import pytest
import torch
from torch import nn

from optim.layers import LAYERS, folded_weights, made, norm_of, on_rows_of, polar, projected
from tenfold.layers.folded_weight import FoldedWeight
from tenfold.linalg.fold import NAMES, Fold
from tenfold.optim.distributed import owners
from tenfold.optim.projection import projector
from tenfold.optim.projection.projector import ProjectionSettings, project_

NEAR = {"rtol": 1e-7, "atol": 1e-8}


def weights(layers):
    return {name: layer.weight.detach().clone() for name, layer in layers.items()}


def equal(layers, before, names=None) -> bool:
    return all(torch.equal(layers[name].weight, before[name]) for name in names or layers)


# ---- the projection itself


@pytest.mark.parametrize(
    "settings",
    [ProjectionSettings(), ProjectionSettings(transfer=True), ProjectionSettings(transfer=True, tail=0.3)],
    ids=str,
)
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("fold", NAMES)
def test_all_layers_at_once_equal_an_svd_for_each_of_their_matrices(fold, norms, settings):
    layers = made()
    before, found = weights(layers), folded_weights(layers, fold, norms=norms)
    outcome = project_(found, [2] * len(found), settings)
    assert outcome.ranks == dict.fromkeys(LAYERS, 2)
    assert not outcome.broken
    for folded in found:
        wanted = projected(before[folded.name], folded, 2, transfer=settings.transfer, tail=settings.tail)
        torch.testing.assert_close(folded.weight.detach(), wanted, **NEAR, msg=lambda m, s=folded: f"{s.name}: {m}")


def test_ranks_may_differ_from_layer_to_layer_of_one_shape():
    layers = made()
    before, found = weights(layers), folded_weights(layers, norms=True)
    ranks = [1 + i % 3 for i in range(len(found))]
    assert ranks[2] != ranks[3]  # the twins
    for rule in (ranks, lambda _: ranks):
        for name, layer in layers.items():
            layer.weight.data.copy_(before[name])
        project_(found, rule, ProjectionSettings(transfer=True))
        for folded, rank in zip(found, ranks, strict=True):
            torch.testing.assert_close(
                folded.weight.detach(), projected(before[folded.name], folded, rank, transfer=True), **NEAR
            )


@pytest.mark.parametrize("fold", NAMES)
def test_a_rule_sees_the_singular_values_of_every_matrix_of_each_layer(fold):
    layers = made()
    found, seen = folded_weights(layers, fold), []

    def rule(spectra):
        seen.extend(spectra)
        return [0] * len(spectra)

    before = weights(layers)
    assert project_(found, rule, ProjectionSettings()).ranks == {}
    assert equal(layers, before)
    for folded, s in zip(found, seen, strict=True):
        torch.testing.assert_close(s, torch.linalg.svdvals(folded.matrices), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_coarser_types_are_projected_as_well_as_they_can_hold_it(dtype):
    layers = made(dtype)
    before, found = weights(layers), folded_weights(layers, norms=True)
    project_(found, [2] * len(found), ProjectionSettings(transfer=True))
    eps = max(torch.finfo(dtype).eps, 2e-6)
    for folded in found:
        assert folded.weight.dtype == dtype
        wanted = projected(before[folded.name], folded, 2, transfer=True)
        torch.testing.assert_close(folded.weight.detach().double(), wanted, rtol=eps, atol=eps)


def test_memory_formats_stay():
    conv = nn.Conv2d(8, 6, 3).to(memory_format=torch.channels_last)
    found = folded_weights({"conv": conv})
    wanted = projected(conv.weight.detach(), found[0], 2)
    project_(found, [2], ProjectionSettings())
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(conv.weight.detach().double(), wanted, rtol=1e-5, atol=1e-6)


def test_autocast_does_not_reach_the_weights():
    one, other = made(torch.float32), made(torch.float32)
    project_(folded_weights(one, norms=True), [2] * len(one), ProjectionSettings(transfer=True))
    with torch.autocast("cpu", torch.bfloat16):
        project_(folded_weights(other, norms=True), [2] * len(other), ProjectionSettings(transfer=True))
    assert equal(one, weights(other))


def test_no_slots_no_work():
    assert project_([], [], ProjectionSettings()).ranks == {}


# ---- the metric


def test_a_norm_without_scales_counts_by_its_variances_and_one_without_statistics_not_at_all():
    layer = nn.Conv2d(5, 6, 3).double()
    (folded,) = folded_weights({"conv": layer})
    folded.norm = nn.BatchNorm2d(6, affine=False)
    folded.norm.running_var.copy_(torch.tensor([1.0, 4.0, 9.0, 1.0, 16.0, 25.0]))
    wanted = 1 / (folded.norm.running_var + folded.norm.eps).sqrt()
    torch.testing.assert_close(folded.metric[0], wanted)
    folded.norm = nn.BatchNorm2d(6, track_running_stats=False)
    assert folded.metric is None


def test_a_norm_whose_scales_are_all_zero_gives_no_metric():
    """As residual branches start; every projection would be as good, among them the one onto nothing."""
    for shape in ((2, 9), (9, 2)):
        layer = nn.Linear(*shape).double()
        before = layer.weight.detach().clone()
        (folded,) = folded_weights({"layer": layer}, norms=True)
        folded.norm.weight.data.zero_()
        project_([folded], [1], ProjectionSettings(transfer=True))
        folded.norm = None
        torch.testing.assert_close(layer.weight.detach(), projected(before, folded, 1, transfer=True), **NEAR)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_channels_that_are_switched_off_do_not_let_the_rank_grow(shape):
    """In the metric the matrix has few directions; those left over go to the dead rows, as the limit a -> 0 would."""
    layer = nn.Linear(*shape).double()
    (folded,) = folded_weights({"layer": layer}, norms=True)
    before, metric = layer.weight.detach().clone(), folded.norm.weight.data
    metric[2:] = 0.0
    project_([folded], [3], ProjectionSettings())
    live = torch.linalg.svd(before[:2], full_matrices=False)[2]
    rest = before[2:] - before[2:] @ live.T @ live
    third = torch.linalg.svd(rest, full_matrices=False)[2][:1]
    wanted = before @ live.T @ live + torch.cat([torch.zeros_like(before[:2]), rest @ third.T @ third])
    torch.testing.assert_close(layer.weight.detach(), wanted, rtol=1e-4, atol=1e-5)


# ---- what is left alone


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_weight_of_the_rank_is_left_bit_for_bit(dtype, norms):
    layers = made(dtype)
    found = folded_weights(layers, norms=norms)
    project_(found, [2] * len(found), ProjectionSettings(transfer=True))
    before = weights(layers)
    project_(found, [2] * len(found), ProjectionSettings(transfer=True))
    assert equal(layers, before)


def test_the_full_rank_is_bitwise_the_identity():
    layers = made(torch.float32)
    before, found = weights(layers), folded_weights(layers, norms=True)
    project_(found, [folded.fold.full_rank for folded in found], ProjectionSettings(transfer=True))
    assert equal(layers, before)


def test_ranks_above_the_largest_that_saves_leave_a_weight_alone():
    layers = made()
    before, found = weights(layers), folded_weights(layers)
    for folded in found[:3]:
        folded.most = 1
    outcome = project_(found, lambda spectra: [2] * len(spectra), ProjectionSettings(pull=0.1))
    names = list(LAYERS)
    assert equal(layers, before, names[:3])
    assert set(outcome.ranks) == set(outcome.pull) == set(names[3:])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_left_alone_and_the_others_are_projected(bad, known):
    layers = made()
    layers["twin"].weight.data[0, 0, 0, 0] = bad
    before, found = weights(layers), folded_weights(layers, norms=True)
    ranks = [2] * len(found)
    outcome = project_(found, ranks if known else lambda _: ranks, ProjectionSettings(transfer=True, pull=0.5))
    assert outcome.broken == ["twin"]
    assert "twin" not in outcome.ranks
    torch.testing.assert_close(layers["twin"].weight.detach(), before["twin"], rtol=0, atol=0, equal_nan=True)
    assert outcome.pull["twin"].abs().sum() == 0
    for folded in found:
        if folded.name != "twin":  # conv2d is of the same shape and in the same batch
            torch.testing.assert_close(
                folded.weight.detach(), projected(before[folded.name], folded, 2, transfer=True), **NEAR
            )


def test_statistics_that_are_not_numbers_leave_their_layer_alone():
    layers = made()
    before, found = weights(layers), folded_weights(layers, norms=True)
    found[0].norm.running_var[1] = float("nan")
    assert project_(found, [2] * len(found), ProjectionSettings()).broken == ["linear"]
    assert equal(layers, before, ["linear"])
    assert not any(equal(layers, before, [name]) for name in LAYERS if name != "linear")


def test_what_would_overflow_is_not_written():
    layer = nn.Linear(8, 8).half()
    layer.weight.data.fill_(0).fill_diagonal_(60000.0)
    before = layer.weight.detach().clone()
    project_(folded_weights({"layer": layer}), [2], ProjectionSettings(transfer=True))  # c = 2
    assert torch.equal(layer.weight, before)


# ---- what is projected beside the weights


@pytest.mark.parametrize("fold", NAMES)
def test_the_pull_is_lambda_u_v_of_the_leading_directions(fold):
    layers = made()
    before, found = weights(layers), folded_weights(layers, fold)
    ranks = [1 + i % 2 for i in range(len(found))]
    outcome = project_(found, ranks, ProjectionSettings(pull=0.25))
    for folded, rank in zip(found, ranks, strict=True):
        wanted = 0.25 * polar(before[folded.name], folded, rank)
        torch.testing.assert_close(outcome.pull[folded.name], wanted, rtol=1e-6, atol=1e-7)


OPTIMIZERS = {
    "momentum_buffer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "exp_avg": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
}


def stepped(layers, kind):
    """An optimizer after two steps with random gradients."""
    optimizer = OPTIMIZERS[kind]([layer.weight for layer in layers.values()])
    for _ in range(2):
        for layer in layers.values():
            layer.weight.grad = torch.randn_like(layer.weight)
        optimizer.step()
    state = {name: {k: v.clone() for k, v in optimizer.state[x.weight].items()} for name, x in layers.items()}
    return optimizer, state


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("fold", ["channel", "spatial"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_first_moments_are_projected_on_the_same_rows_and_nothing_else_is(kind, fold, norms):
    layers = made()
    optimizer, state = stepped(layers, kind)
    before, found = weights(layers), folded_weights(layers, fold, norms=norms)
    project_(found, [2] * len(found), ProjectionSettings(transfer=True, momentum="project"), optimizer)
    for folded in found:
        for key, value in optimizer.state[folded.weight].items():
            old = state[folded.name][key]
            if key == kind:
                wanted = on_rows_of(old, before[folded.name], folded, 2)
                torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-7)
                assert not torch.allclose(value, old)
            else:
                assert torch.equal(value, old)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_moments_of_a_weight_that_is_not_finite_are_left_bit_for_bit(kind):
    layers = made()
    optimizer, state = stepped(layers, kind)
    with torch.no_grad():
        layers["linear"].weight[0, 0] = float("nan")
    found = folded_weights(layers)
    assert project_(found, [2] * len(found), ProjectionSettings(momentum="project"), optimizer).broken == ["linear"]
    for folded in found:
        assert torch.equal(optimizer.state[folded.weight][kind], state[folded.name][kind]) == (folded.name == "linear")


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_keep_leaves_the_optimizer_bit_for_bit(kind):
    layers = made()
    optimizer, state = stepped(layers, kind)
    found = folded_weights(layers)
    project_(found, [2] * len(found), ProjectionSettings(), optimizer)
    for folded in found:
        assert optimizer.state[folded.weight].keys() == state[folded.name].keys()
        assert all(torch.equal(v, state[folded.name][k]) for k, v in optimizer.state[folded.weight].items())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_reset_puts_the_first_moments_of_what_was_projected_to_zero_and_nothing_else(kind):
    layers = made()
    optimizer, state = stepped(layers, kind)
    found = folded_weights(layers)
    project_(found, [0, *[2] * (len(found) - 1)], ProjectionSettings(momentum="reset"), optimizer)
    for folded in found:
        for key, value in optimizer.state[folded.weight].items():
            old = state[folded.name][key]
            assert torch.equal(value, torch.zeros_like(old) if key == kind and folded.name != "linear" else old)


# ---- warm starts


def moved(layers, by):
    g = torch.Generator().manual_seed(5)
    for layer in layers.values():
        layer.weight.data += by * torch.randn(layer.weight.shape, generator=g, dtype=layer.weight.dtype)


@pytest.mark.parametrize("norms", [False, True])
def test_warm_projections_follow_weights_that_move_a_little(norms):
    layers, bases = made(torch.float32), {}
    found = folded_weights(layers, norms=norms)
    ranks, settings = [2] * len(found), ProjectionSettings(transfer=True)
    project_(found, ranks, settings, bases=bases)
    assert set(bases) == set(LAYERS)
    for _ in range(3):
        moved(layers, 1e-3)
        before = weights(layers)
        project_(found, ranks, settings, bases=bases)
        for folded in found:
            wanted = projected(before[folded.name], folded, 2, transfer=True)
            torch.testing.assert_close(folded.weight.detach().double(), wanted, rtol=1e-4, atol=2e-5)


def test_a_basis_that_is_of_no_use_any_more_is_found_out_by_its_residual(monkeypatch):
    layers, bases = made(torch.float32), {}
    found, ranks = folded_weights(layers), [2] * len(LAYERS)
    project_(found, ranks, ProjectionSettings(), bases=bases)
    for seed, layer in enumerate(layers.values()):
        layer.weight.data = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(seed))
    before = weights(layers)
    project_(found, ranks, ProjectionSettings(), bases=bases)
    for folded in found:
        wanted = projected(before[folded.name], folded, 2)
        torch.testing.assert_close(folded.weight.detach().double(), wanted, rtol=1e-4, atol=2e-5)
    monkeypatch.setattr(projector, "DRIFT", 1e9)
    for name, layer in layers.items():
        layer.weight.data.copy_(before[name])
    project_(found, ranks, ProjectionSettings(), bases={name: torch.roll(x, 1, -2) for name, x in bases.items()})
    errors = [(s.weight.detach() - projected(before[s.name], s, 2)).norm() / before[s.name].norm() for s in found]
    assert max(errors) > 1e-2  # what the residual saves us from


# ---- who does what


def test_work_is_shared_longest_first():
    found = folded_weights(made())
    work = {folded.name: folded.work for folded in found}
    for processes in (1, 2, 3, 20):
        whose = owners([folded.work for folded in found], processes)
        load = [sum(work[s.name] for s, o in zip(found, whose, strict=True) if o == p) for p in range(processes)]
        assert max(load) - min(load) <= max(work.values())
        assert set(whose) == set(range(min(processes, len(found))))


def test_a_folded_weight_reads_the_weight_that_its_module_has_by_now():
    layer = nn.Linear(6, 6)
    (folded,) = folded_weights({"layer": layer})
    layer.weight = nn.Parameter(torch.randn(6, 6))
    before = layer.weight.detach().clone()
    project_([folded], [2], ProjectionSettings())
    torch.testing.assert_close(layer.weight.detach().double(), projected(before, folded, 2), rtol=1e-5, atol=1e-6)


def test_gpt2s_transposed_linear_layers_are_projected_with_their_outputs_in_the_rows():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D(9, 7).double()
    conv1d.weight.data.normal_()
    twin = nn.Linear(7, 9).double()
    twin.weight.data.copy_(conv1d.weight.T)
    norm = norm_of(twin)
    for layer in (conv1d, twin):
        from tenfold.layers.spec import spec_of

        spec = spec_of(layer)
        project_([FoldedWeight("x", layer, spec, Fold(spec.shape), 7, norm)], [2], ProjectionSettings(transfer=True))
    torch.testing.assert_close(conv1d.weight.T, twin.weight, **NEAR)
