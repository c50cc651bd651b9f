"""A runtime puts out what the model puts out in eval mode, and leaves the model and the process as they were."""

import gc
import sys
import weakref

import pytest
import torch
from torch import nn

import tenfold
from helpers import same_state, state
from nets import DataDependent, WordAndImage, chain, image, linear_chain
from tenfold.layers.matrix import low_rank_class
from tenfold.layers.spec import spec_of
from tenfold.layers.tucker import TuckerConv
from tenfold.linalg.fold import NAMES as FOLDS
from tenfold.runtimes import NAMES, get_runtime
from tenfold.runtimes.foreign import foreign_errors
from tenfold.runtimes.onnx_layer import onnx_layer
from tenfold.runtimes.runtime import running

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
NEEDS_ONNX = ("onnx", "onnxscript", "onnxruntime")
WORDS = {"word": torch.tensor([4, 1]), "image": torch.randn(2, 3, 6, 6)}  # not in the order of `forward`


@pytest.fixture(params=NAMES)
def runtime(request):
    if request.param == "onnxruntime":
        for package in NEEDS_ONNX:
            pytest.importorskip(package)
    return get_runtime(request.param)


@pytest.fixture(params=["eager", "onnxruntime"])
def quick(request):
    """The runtimes that are ready in milliseconds."""
    if request.param == "onnxruntime":
        for package in NEEDS_ONNX:
            pytest.importorskip(package)
    return get_runtime(request.param)


class Difference(nn.Module):
    """Two inputs that must not change places."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, a, b):
        return self.layer(a) - b, b.sum(-1)


def expected(model, inputs):
    modes = [m.training for m in model.modules()]
    model.eval()
    with torch.no_grad():
        found = (
            model(**inputs)
            if isinstance(inputs, dict)
            else model(*inputs)
            if isinstance(inputs, tuple)
            else model(inputs)
        )
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    return list(found.values()) if isinstance(found, dict) else list(found) if isinstance(found, tuple) else [found]


def assert_same(runtime, call, wanted):
    for _ in range(2):  # buffers that a call writes to are used again
        torch.testing.assert_close(runtime.outputs(call()), wanted, **CLOSE)


CASES = {
    "convolutions and a norm": lambda: (chain(), image()),
    "three axes through linear layers": lambda: (linear_chain(6, 8, 5), torch.randn(2, 3, 6)),
    "two inputs": lambda: (Difference(), (torch.randn(2, 4), torch.randn(2, 4))),
    "inputs by keyword, one of integers": lambda: (WordAndImage(), WORDS),
    "keywords the other way round": lambda: (Difference(), {"b": torch.randn(2, 4), "a": torch.randn(2, 4)}),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_the_model_in_eval_mode(quick, case):
    model, inputs = CASES[case]()
    assert_same(quick, quick.prepare(model, inputs), expected(model, inputs))


def test_compressed_networks_too_and_the_compiler(runtime):
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 6))
    small = tenfold.compress(dense, tenfold.SVD(fold="spatial"), tenfold.Budget(params=0.8)).model
    x = torch.randn(2, 3, 4, 4)
    small(x)  # statistics of its own
    assert_same(runtime, runtime.prepare(small, x), expected(small, x))


@pytest.mark.parametrize("name", NAMES)
def test_model_inputs_and_process_are_left_as_they_were(name, monkeypatch):
    if name == "onnxruntime":
        pytest.importorskip("onnxruntime")
    model = chain().to(memory_format=torch.channels_last)
    model[2].eval()
    model[0].register_forward_hook(lambda *_: None)
    before, modes, x = state(model), [m.training for m in model.modules()], image().requires_grad_()
    formats = [p.stride() for p in model.parameters()]
    hooks = [len(m._forward_hooks) for m in model.modules()]
    kept, drawn = torch.get_num_threads(), torch.random.get_rng_state()
    inputs = x.detach().clone()
    call = get_runtime(name).prepare(model, x, threads=2)
    call()
    assert torch.get_num_threads() == kept
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert same_state(model, before)
    assert modes == [m.training for m in model.modules()]
    assert formats == [p.stride() for p in model.parameters()]
    assert hooks == [len(m._forward_hooks) for m in model.modules()]
    assert torch.equal(x.detach(), inputs)
    assert x.grad is None
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    model(x).sum().backward()  # and it trains on


def test_training_on_afterwards_does_not_wake_dropout_in_the_call(quick):
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9)), torch.randn(64, 4)
    call = quick.prepare(model, x)
    wanted = expected(model, x)
    model.train()
    assert_same(quick, call, wanted)


class Draws(nn.Linear):
    """Draws a random number for nothing."""

    def forward(self, x):
        torch.rand(1)
        return super().forward(x)


def test_random_numbers_are_left_as_they_were():
    model, x, drawn = Draws(3, 2), torch.randn(2, 3), torch.random.get_rng_state()
    get_runtime("eager").prepare(model, x)
    tenfold.optimize_for_inference(nn.Sequential(model, nn.Dropout()), x)
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_a_call_computes_without_autograd_on_its_threads_and_nothing_else_within_running():
    seen = []

    class Spy(nn.Linear):
        def forward(self, x):
            seen.append((torch.get_num_threads(), torch.is_grad_enabled(), self.training))
            return super().forward(x)

    call = get_runtime("eager").prepare(Spy(2, 2), torch.zeros(1, 2), threads=2)
    assert not call().requires_grad
    with running(2):
        call()
    assert set(seen) == {(2, False, False)}


LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (2, 6)),
    "linear without bias, three axes": (lambda: nn.Linear(6, 5, bias=False), (2, 3, 6)),
    "linear of one vector": (lambda: nn.Linear(6, 5), (6,)),
    "conv1d same": (lambda: nn.Conv1d(4, 6, 4, padding="same"), (2, 4, 9)),
    "conv2d uneven": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2)), (2, 4, 9, 8)),
    "conv2d grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding="valid", bias=False), (1, 4, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(4, 6, (3, 1, 2), padding=1), (1, 4, 5, 5, 5)),
    "conv2d transposed": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=2, padding=(1, 0), output_padding=(1, 0), groups=2),
        (2, 4, 5, 6),
    ),
    "conv1d transposed": (lambda: nn.ConvTranspose1d(4, 6, 3, dilation=2), (2, 4, 5)),
    "channels last": (lambda: nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), (2, 4, 7, 7)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", LAYERS)
def test_a_layer_prepared_alone_equals_the_module(quick, case):
    make, shape = LAYERS[case]
    layer, x = make(), torch.randn(*shape)
    assert_same(quick, quick.prepare_layer(layer, x), expected(layer, x))


def factorised():
    for fold in FOLDS:
        yield fold, nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1)), (2, 1, fold), (2, 4, 9, 8)
    yield "sliced", nn.Conv2d(4, 6, 3, padding="same"), (2, 2, "channel"), (2, 4, 7, 7)
    yield "grouped and sliced", nn.Conv2d(8, 6, 3, groups=2, bias=False), (2, 2, "spatial"), (2, 8, 7, 7)
    yield "transposed", nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (2, 1, "spatial"), (2, 4, 7, 7)
    yield "1d", nn.Conv1d(4, 6, 3), (2, 1, "input"), (2, 4, 7)
    yield "3d", nn.Conv3d(4, 6, 2), (2, 1, "spatial-t"), (2, 4, 5, 5, 5)
    yield "linear", nn.Linear(8, 6), (2, 1, "channel"), (2, 3, 8)
    yield "sliced linear", nn.Linear(8, 6), (2, 2, "channel"), (2, 3, 8)
    yield "sliced linear of rows", nn.Linear(8, 6, bias=False), (2, 4, "channel"), (5, 8)
    yield "tucker", nn.Conv2d(4, 6, 3, stride=2), None, (2, 4, 7, 7)
    yield "grouped tucker", nn.Conv1d(8, 6, 3, groups=2), None, (2, 8, 7)


@pytest.mark.parametrize("case", list(factorised()), ids=lambda case: case[0])
def test_a_factorised_layer_prepared_alone_equals_the_module(quick, case, monkeypatch):
    _, layer, structure, shape = case
    spec, x = spec_of(layer), torch.randn(*shape)
    if structure is None:
        small = TuckerConv.from_layer(layer, spec, (2, 2))
    else:
        small = low_rank_class(spec).from_layer(layer, spec, *structure)
    monkeypatch.delattr(torch.onnx, "export")  # the graph is written directly
    assert_same(quick, quick.prepare_layer(small, x), expected(small, x))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 7, 7)),
        (nn.Conv2d(4, 6, 3), (4, 7, 7)),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), (2, 4)),
    ],
)
def test_what_cannot_be_written_as_a_graph_is_captured(layer, shape):
    pytest.importorskip("onnxruntime")
    ort, x = get_runtime("onnxruntime"), torch.randn(*shape)
    assert onnx_layer(layer, x) is None
    assert_same(ort, ort.prepare_layer(layer, x), expected(layer, x))


def test_a_hook_is_part_of_what_a_layer_computes(quick):
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    layer.register_forward_hook(lambda *given: given[2] + 1)
    assert_same(quick, quick.prepare_layer(layer, x), expected(layer, x))


def test_calls_of_the_compiler_are_compiled_once_with_their_weights_and_freed():
    """More models of one class than torch keeps compilations of one function; none pushes another out."""
    from torch._dynamo.utils import counters

    x, compiler = torch.randn(2, 3, 4, 4), get_runtime("compile")
    with torch._dynamo.config.patch(recompile_limit=2):
        models = [nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)) for _ in range(4)]
        calls = [compiler.prepare(model, x) for model in models]
        wanted = [expected(model, x) for model in models]
        before = dict(counters["frames"])
        for model, call, outputs in zip(models, calls, wanted, strict=True):
            model[1].weight.data.zero_()
            assert_same(compiler, call, outputs)  # frozen
        del calls[0], call
        gc.collect()
        assert_same(compiler, calls[0], wanted[1])  # the end of one leaves the others as they are
        assert dict(counters["frames"]) == before
        assert before["ok"] >= len(models)
    left = [weakref.ref(model[0].weight) for model in models]
    del models, calls, model
    gc.collect()
    assert [ref() for ref in left] == [None] * 4


def test_a_missing_compiler_is_one_sentence(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("No working C++ compiler found\nin a long trace")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    with pytest.raises(tenfold.TenfoldError, match=r"cannot be compiled: torch.compile failed.*needs a C\+\+ compiler"):
        get_runtime("compile").prepare(nn.Linear(2, 2), torch.zeros(1, 2))


@pytest.mark.parametrize("name", NEEDS_ONNX)
def test_a_missing_package_names_the_extra(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(tenfold.TenfoldError, match=rf"needs {name}, which is missing: pip install 'tenfold\[export\]'"):
        get_runtime("onnxruntime")


def test_what_a_graph_cannot_hold_is_one_sentence():
    pytest.importorskip("onnxruntime")
    with pytest.raises(tenfold.TenfoldError, match="cannot be exported: ONNX failed"):
        get_runtime("onnxruntime").prepare(DataDependent(nn.Linear(4, 4)), torch.randn(2, 4))


def test_a_type_without_kernels_is_one_sentence():
    pytest.importorskip("onnxruntime")
    ort, conv, x = get_runtime("onnxruntime"), nn.Conv2d(3, 4, 3).double(), torch.randn(1, 3, 5, 5).double()
    with pytest.raises(tenfold.TenfoldError, match=r"ONNX Runtime failed.*Conv.*float32 runs") as refused:
        ort.prepare_layer(conv, x)
    assert ".." not in str(refused.value)


def test_foreign_messages_are_taken_as_far_as_they_say_something():
    for text, said in (("a:\n\nb.\nc", "a: b"), ("a\nb", "a"), ("", ""), ("a:", "a:")):
        with pytest.raises(tenfold.TenfoldError) as refused, foreign_errors("X", "Do Y."):
            raise ValueError(text)
        assert str(refused.value) == f"X failed with ValueError: {said}. Do Y."


def test_bad_arguments_are_refused(runtime):
    with pytest.raises(tenfold.ArgumentError, match="`runtime` must be one of eager, compile, onnxruntime; got 'fast'"):
        get_runtime("fast")
    for threads in (0, 1.5, True):
        with pytest.raises(tenfold.ArgumentError, match="`threads`"):
            runtime.prepare(nn.Linear(2, 2), torch.zeros(1, 2), threads=threads)
    for prepare in (runtime.prepare, runtime.prepare_layer):
        with pytest.raises(tenfold.ArgumentError, match=r"`inputs` must be inputs that the model accepts.*shapes"):
            prepare(nn.Linear(2, 2), torch.zeros(1, 3))
        with pytest.raises(tenfold.ArgumentError, match="`model` must not be wrapped"):
            prepare(nn.DataParallel(nn.Linear(2, 2)), torch.zeros(1, 2))
        with pytest.raises(tenfold.ArgumentError, match="meta device"):
            prepare(nn.Linear(2, 2, device="meta"), torch.zeros(1, 2))


def test_versions_name_the_package(runtime):
    package = {"onnxruntime": "onnxruntime"}.get(runtime.name, "torch")
    assert sys.modules[package].__version__ in runtime.version


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_eager_runs_where_the_tensors_are():
    model, x = chain().cuda(), image().cuda()
    assert_same(get_runtime("eager"), get_runtime("eager").prepare(model, x), expected(model, x))
