"""Networks with recurrent layers, from a budget to a file: each of their matrices is a layer of the plan."""

import copy
import importlib
import json

import pytest
import torch
from torch import nn

import tenfold
from helpers import same_state, state
from tenfold.layers.cost import count_params
from tenfold.layers.recurrent import Recurrent
from tenfold.plans import within_latency

STEPS, COUNT = 4, 6
MATRICES = [f"rnn.weight_{part}_l{k}{way}" for k in (0, 1) for way in ("", "_reverse") for part in ("ih", "hh")]


class Recogniser(nn.Module):
    """A convolution, a recurrent layer that holds most of the parameters, a classifier of every column."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, hidden: int = 16, layers: int = 2, both: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 16, 3, padding=1)
        self.rnn = kind(16, hidden, layers, bidirectional=both, batch_first=True)
        self.head = nn.Linear(hidden * (1 + both), 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.rnn.flatten_parameters()
        return self.head(self.rnn(self.conv(x).relu().transpose(1, 2))[0])


def net(*options) -> Recogniser:
    torch.manual_seed(0)
    made = Recogniser(*options).eval()
    with torch.no_grad():  # spectra that fall: what is kept is then more than half
        for name, p in made.named_parameters():
            if p.ndim == 2:
                u, s, vh = torch.linalg.svd(p, full_matrices=False)
                p.copy_((u * s * 0.7 ** torch.arange(len(s))) @ vh * (4 if "rnn" in name else 1))
    return made


def batches(count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(COUNT, 8, STEPS, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("budget", [tenfold.Budget(params=0.3), tenfold.Budget(macs=0.3)], ids=["params", "macs"])
def test_budgets_far_below_what_is_not_recurrent_are_kept(kind, budget):
    model, x = net(kind), batches()[0]
    before = state(model)
    result = tenfold.compress(model, tenfold.SVD(), budget, example_inputs=x)
    assert max(result.report.kept[name] for name in budget.costs) <= 0.3
    assert list(result.plan.layers) == ["conv", *MATRICES, "head"]
    assert isinstance(result.model.rnn, Recurrent)
    assert (result.plan.params, result.plan.macs) == (result.report.small.params, result.report.small.macs)
    assert type(model.rnn) is kind
    assert same_state(model, before)


class Reading(Recogniser):
    """Its own code reads a matrix of the recurrent layer as a tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / self.rnn.weight_hh_l0.norm()


def test_a_model_that_reads_the_matrices_itself_keeps_them():
    model, x = Reading().eval(), batches()[0]
    small, plan, _ = tenfold.compress(model, tenfold.SVD(), tenfold.Budget(params=0.95), example_inputs=x)
    assert plan.layers["rnn"].reason == "the model reads its matrices as tensors, which they would be no more"
    assert type(small.rnn) is nn.LSTM
    assert small(x).shape == model(x).shape
    with pytest.raises(tenfold.ArgumentError, match="example_inputs"):
        tenfold.survey(net(), example_inputs=torch.zeros(3))


METHODS = [
    tenfold.ALDS(),
    tenfold.SVD(),
    tenfold.SVDEnergy(),
    tenfold.LRank(),
    tenfold.VBMF(),
    tenfold.Tucker(),
    tenfold.PCA(),
    tenfold.ActivationSVD(),
    tenfold.Calibrated(),
]


@pytest.mark.filterwarnings("ignore:.*vectors of.*:tenfold.TenfoldWarning")
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_every_method_after_training_decomposes_their_matrices(method):
    model, data = net(), batches()
    small, plan, _ = tenfold.compress(model, method, tenfold.Budget(params=0.5), example_inputs=data[0], data=data)
    done = [name for name in MATRICES if plan.layers[name].decomposition != "dense"]
    assert len(done) >= 4
    assert count_params(small) == plan.params <= 0.5 * count_params(model)
    assert plan.macs == tenfold.cost(small, data[0]).macs
    assert torch.isfinite(small(data[0])).all()


def test_data_make_a_network_that_is_nearer_to_the_dense_one():
    model, data = net(), batches(8)
    budget, x = tenfold.Budget(params=0.5), batches(10)[-1]

    def error(small):
        return float((small(x) - model(x)).detach().norm() / model(x).detach().norm())

    plain = tenfold.compress(model, tenfold.SVD(), budget, data=data).model
    fitted = tenfold.compress(model, tenfold.SVD(), budget, data=data, refit="both").model
    by_hand = copy.deepcopy(plain)
    report = tenfold.refit_(by_hand, model, data, factors="both")
    assert set(MATRICES) <= set(report.layers)
    assert all(layer.after <= layer.before for layer in report.layers.values())
    assert error(fitted) == pytest.approx(error(by_hand), rel=1e-4)
    assert error(fitted) < 0.9 * error(plain)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"target_modules": ["rnn"]}, MATRICES),
        ({"target_modules": ["weight_hh_l0", "head"]}, ["rnn.weight_hh_l0", "head"]),
        ({"target_modules": r".*weight_ih_l\d"}, ["rnn.weight_ih_l0", "rnn.weight_ih_l1"]),
        ({"exclude_modules": ["rnn"]}, ["conv", "head"]),
        ({"exclude_modules": r"rnn\..*hh.*|conv|head"}, [name for name in MATRICES if "_ih_" in name]),
    ],
)
def test_they_are_selected_by_their_names_or_all_at_once(options, left):
    problem = tenfold.survey(net(), **options)
    assert [site.name for site in problem.sites] == left


def test_a_recurrent_layer_of_which_nothing_is_decomposed_is_torchs_own_again():
    model = net()
    small = tenfold.compress(model, tenfold.SVD(), tenfold.Budget(params=0.98), exclude_modules=["rnn"]).model
    assert type(small.rnn) is nn.LSTM
    assert {n for n in small.state_dict() if "rnn" in n} == {n for n in model.state_dict() if "rnn" in n}
    assert small.rnn.weight_hh_l0 is not model.rnn.weight_hh_l0


def test_plans_travel_as_json_and_models_as_files(tmp_path):
    model, x = net(), batches()[0]
    small, plan, _ = tenfold.compress(model, tenfold.ALDS(), tenfold.Budget(params=0.4), example_inputs=x)
    assert tenfold.Plan.from_json(plan.to_json()) == plan
    torch.testing.assert_close(tenfold.apply(net(), plan)(x), small(x), rtol=0, atol=0)
    tenfold.save(small, tmp_path / "small", plan)
    torch.testing.assert_close(tenfold.load(tmp_path / "small", Recogniser()).eval()(x), small(x), rtol=0, atol=0)
    edited = plan.edit("rnn.weight_hh_l1", decomposition="low-rank", rank=2, slices=1)
    assert tenfold.apply(model, edited).rnn.weight_hh_l1.rank == 2
    again = tenfold.compress(small, tenfold.SVD(), tenfold.Budget(params=0.5), example_inputs=x)
    torch.testing.assert_close(tenfold.to_dense(small)(x), small(x), rtol=1e-4, atol=1e-5)
    assert again.report.dense.params == count_params(model)


def test_files_from_before_their_matrices_had_names_are_read(tmp_path):
    model, x = net(), batches()[0]
    small, plan, _ = tenfold.compress(model, tenfold.SVD(), tenfold.Budget(params=0.98), exclude_modules=["rnn"])
    tenfold.save(small, tmp_path / "old", plan)
    file = tmp_path / "old" / "plan.json"
    body = json.loads(file.read_text())
    params = sum(body["layers"].pop(name)["params"] for name in MATRICES)
    body["layers"]["rnn"] = {"decomposition": "dense", "params": params, "reason": "an LSTM"}
    file.write_text(json.dumps(body))
    torch.testing.assert_close(tenfold.load(tmp_path / "old", Recogniser()).eval()(x), small(x), rtol=0, atol=0)


def test_it_trains_on_and_what_is_frozen_stays():
    model, x = net(), batches()[0]
    model.rnn.weight_ih_l0.requires_grad_(False)
    small = tenfold.compress(model, tenfold.SVD(), tenfold.Budget(params=0.4)).model.train()
    frozen = {name for name, p in small.named_parameters() if not p.requires_grad}
    assert frozen == {"rnn.weight_ih_l0.encoder.weight", "rnn.weight_ih_l0.decoder.weight"}
    before = state(small)
    optimizer = torch.optim.SGD([p for p in small.parameters() if p.requires_grad], lr=0.1)
    small(x).square().mean().backward()
    optimizer.step()
    moved = {name for name, value in state(small).items() if not torch.equal(value, before[name])}
    assert moved == before.keys() - frozen


def test_a_limit_on_latency_leaves_recurrences_to_the_kernel(monkeypatch):
    monkeypatch.setattr(within_latency, "_times", lambda problem: problem.sites)
    problem = within_latency.with_times(tenfold.survey(net(), example_inputs=batches()[0]))
    assert [site.name for site in problem.sites] == ["conv", *(n for n in MATRICES if "_ih_" in n), "head"]
    assert problem.times == problem.sites
    reasons = {found.name: found.reason for found in problem.found}
    assert {reasons[n] for n in MATRICES if "_hh_" in n} == {within_latency.RECURRENCE}


def test_a_limit_on_latency_with_nothing_but_recurrences_says_so():
    problem = tenfold.survey(net(), example_inputs=batches()[0], target_modules=["weight_hh_l0"])
    with pytest.raises(tenfold.UnsupportedLayer, match=r"'rnn.weight_hh_l0'.*: a recurrence"):
        within_latency.with_times(problem)


@pytest.mark.parametrize("method", [tenfold.NuclearNorm(), tenfold.Factors(start=0)], ids=lambda m: m.name)
def test_methods_that_train_leave_them_whole_until_the_end(method):
    model = Beside(net(), nn.Linear(64, 64))
    run = tenfold.begin(model, method, tenfold.Budget(params=0.8), steps=1)
    assert type(run.model.net.rnn) is nn.LSTM
    optimizer = run.optimizer(torch.optim.SGD, lr=0.01)
    run.model(batches()[0]).square().mean().backward()
    optimizer.step()
    assert run.finish().report.kept["params"] <= 0.8


class Beside(nn.Module):
    def __init__(self, net: nn.Module, wide: nn.Module) -> None:
        super().__init__()
        self.net, self.wide = net, wide

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.net(x).flatten(1)
        return self.wide(y[:, :64])


def test_onnx_has_a_node_for_all_steps_and_the_factors_in_the_file(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    export = importlib.import_module("tenfold.bench.export").export
    model, x = net(nn.LSTM, 96, 1, False), batches()[0][..., :1]  # factors of few numbers torch multiplies
    small = tenfold.compress(model, tenfold.SVD(), tenfold.Budget(params=0.4)).model.eval()
    done = export(small, x, tmp_path / "small.onnx")
    graph = onnx.load(tmp_path / "small.onnx").graph
    assert sum(node.op_type == "LSTM" for node in graph.node) == 1
    numbers = sum(torch.Size(tensor.dims).numel() for tensor in graph.initializer)
    assert numbers < 1.2 * count_params(small)
    assert max(done.difference.values()) < 1e-5
