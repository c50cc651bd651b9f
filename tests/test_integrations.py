"""Training runs in other loops: Accelerate, the Trainer of transformers and Lightning train as the plain loop does."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tenfold
from helpers import same_state, state
from tenfold.integrations import lightning_callback, trainer_callback
from tenfold.layers.swap import structure_of
from tenfold.optim.hooks import stepped

STEPS = 4
METHODS = {
    "trp": tenfold.TRP(every=2),
    "lrpet": tenfold.LRPET(every=2),
    "factors": tenfold.Factors(start=0.5),
    "nuclear-norm": tenfold.NuclearNorm(strength=0.05),
}


@pytest.fixture(params=METHODS, name="method")
def _method(request: pytest.FixtureRequest) -> tenfold.Method:
    return METHODS[request.param]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))


def begun(method: tenfold.Method, model: nn.Module | None = None) -> tenfold.TrainingRun:
    budget = tenfold.Budget(params=0.7)
    return tenfold.begin(
        net() if model is None else model, method, budget, target_modules=".*", steps=STEPS, steps_per_epoch=2
    )


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for i in range(STEPS):
        g = torch.Generator().manual_seed(i)
        yield torch.randn(4, 16, generator=g), torch.randint(8, (4,), generator=g)


def plain(run: tenfold.TrainingRun) -> nn.Module:
    optimizer = run.optimizer(torch.optim.SGD, lr=0.05)
    for x, y in batches():
        optimizer.zero_grad()
        F.cross_entropy(run.model(x), y).backward()
        optimizer.step()
    return run.model


@pytest.mark.parametrize("first", ["attach", "prepare"])
def test_accelerate_trains_the_same_in_either_order(method: tenfold.Method, first: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    run = begun(method)
    optimizer = torch.optim.SGD(run.model.parameters(), lr=0.05)
    if first == "attach":
        run.attach(optimizer)
        model, optimizer = accelerator.prepare(run.model, optimizer)
    else:
        model, optimizer = accelerator.prepare(run.model, optimizer)
        assert run.attach(optimizer) is optimizer
    assert run.works_in(optimizer)
    assert run.works_in(stepped(optimizer))
    for x, y in batches():
        optimizer.zero_grad()
        accelerator.backward(F.cross_entropy(model(x), y))
        optimizer.step()
    assert same_state(run.model, plain(begun(method)))
    with pytest.raises(tenfold.ArgumentError, match="this run has its optimizer"):
        run.attach(optimizer)


def test_figures_are_what_the_model_has_now() -> None:
    run = begun(METHODS["factors"])
    assert run.figures() == {"params": sum(p.numel() for p in net().parameters())}
    plain(run)
    layers = structure_of(run.model)
    assert run.figures() == {"params": sum(p.numel() for p in run.model.parameters())} | {
        f"rank/{name}": layer.rank for name, layer in layers.items()
    }
    assert layers
    kernels = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    run = tenfold.begin(kernels, tenfold.TDLRT(start=0.5), tenfold.Budget(params=0.7))
    run.optimizer(lr=0.1)
    before = state(run.model)
    assert {name.rsplit("/", 1)[-1] for name in run.figures() if name != "params"} == {"0", "1"}
    assert all(type(value) is float for value in run.figures().values())
    assert same_state(before, run.model)


class Losses(nn.Module):
    """As the Trainer wants a model: it returns its loss."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": F.cross_entropy(self.body(x), y)}


class Examples(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4 * STEPS

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        x, y = list(batches())[i // 4]
        return {"x": x[i % 4], "y": y[i % 4]}


def trainer(model: nn.Module, folder: Path, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    pytest.importorskip("accelerate")

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(Examples())

    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        optim="sgd",
        learning_rate=0.05,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=2,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    return InOrder(model, arguments, train_dataset=Examples(), **options)


def test_the_trainer_of_transformers_trains_as_the_plain_loop(method: tenfold.Method, tmp_path: Path) -> None:
    run, told = begun(method, Losses(net())), list[dict[str, float]]()
    trainer(run.model, tmp_path, callbacks=[trainer_callback(run, told.append)]).train()
    wanted = plain(begun(method))
    assert same_state(run.model.body, wanted)
    assert told[-1] == run.figures()
    assert len(told) > 1
    assert run.finish().plan.compresses
    own = begun(method, Losses(net()))
    optimizer = own.optimizer(torch.optim.SGD, lr=0.05)
    trainer(own.model, tmp_path, callbacks=[trainer_callback(own)], optimizers=(optimizer, None)).train()
    assert same_state(own.model.body, wanted)


def test_a_trainer_of_another_model_is_refused(tmp_path: Path) -> None:
    run, other = begun(METHODS["trp"], Losses(net())), Losses(net())
    with pytest.raises(tenfold.ArgumentError, match=r"must be `run\.model`"):
        trainer(other, tmp_path, callbacks=[trainer_callback(run)]).train()
    refused = tenfold.begin(Losses(net()), tenfold.SFW(), target_modules=".*")
    with pytest.raises(tenfold.ArgumentError, match="optimizer"):
        trainer(refused.model, tmp_path, callbacks=[trainer_callback(refused)]).train()


def test_callbacks_take_runs_only() -> None:
    for make in (trainer_callback, lightning_callback):
        with pytest.raises(tenfold.ArgumentError, match=r"`run` must be a training run, from tenfold\.begin"):
            make(net())


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("tenfold.integrations.import_module", missing)
    for make, said in ((trainer_callback, r"tenfold\[hf\]"), (lightning_callback, "pip install 'lightning'")):
        with pytest.raises(tenfold.TenfoldError, match=said):
            make(begun(METHODS["trp"]))


def lightning() -> Any:
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    pytest.skip("neither lightning nor pytorch_lightning can be imported")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_lightning_trains_as_the_plain_loop(method: tenfold.Method, tmp_path: Path) -> None:
    library = lightning()

    class Module(library.LightningModule):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            x, y = batch
            return F.cross_entropy(self.body(x), y)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.body.parameters(), lr=0.05)

    def fit(module: Any, run: tenfold.TrainingRun, told: list[dict[str, float]]) -> None:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        library.Trainer(
            accelerator="cpu",
            max_epochs=1,
            default_root_dir=tmp_path,
            enable_model_summary=False,
            callbacks=[lightning_callback(run, told.append)],
            **quiet,
        ).fit(module, torch.utils.data.DataLoader(list(batches()), batch_size=None))

    run, told = begun(method), list[dict[str, float]]()
    fit(Module(run.model), run, told)
    assert same_state(run.model, plain(begun(method)))
    assert told == [run.figures()]
    with pytest.raises(tenfold.ArgumentError, match=r"must be `run\.model`"):
        fit(Module(net()), begun(method), told)
