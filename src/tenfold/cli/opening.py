"""From what the user named to a network in memory, with its data or inputs and what measures it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from tenfold.bench.export import resized
from tenfold.cli import runs
from tenfold.cli.figures import Stage, accuracy, own_score
from tenfold.cli.network_options import Named
from tenfold.cli.option_names import renamed
from tenfold.cli.own_inputs import OwnBatches, first_inputs, own_batches
from tenfold.errors import ArgumentError, CheckpointError, DataError
from tenfold.layers.cost import Cost, cost
from tenfold.layers.swap import structure_of, to_dense
from tenfold.own_code import is_file_reference, load_own, place
from tenfold.plans.plan import Plan
from tenfold.plans.serialization import load, read_plan
from tenfold.train import Data, Recipe
from tenfold.train.calibration import calibration
from tenfold.train.distill import fingerprint
from tenfold.train.models.own import load_weights_


@dataclass(frozen=True)
class Opened:
    """A network in eval mode, and what belongs to it.

    Args:
        named: how the user named it.
        settings: of its run; of a network without one, what is known of it.
        model: as it was saved or made. On the GPU, where there is one, with a data set; else where its factory put it.
        plan: of its run; None without one.
        data: the data set; None without one.
        inputs: the user's batches; where there are both, they come before the data set's.
        first: the inputs of the first of these batches.
        score: the user's own; where there are both, it comes before the data set's accuracy.
    """

    named: Named
    settings: runs.Settings
    model: nn.Module
    plan: Plan | None = None
    data: Data | None = None
    inputs: OwnBatches | None = None
    first: Any = None
    score: Callable[[nn.Module], Any] | None = None

    @property
    def example(self) -> Any:
        """Inputs on the model's device that MACs are counted for: the first batch, or one image; None without any."""
        if self.inputs is None and self.data is None:
            return None
        return self._here(self.first if self.data is None or self.inputs is not None else self._images(1, torch.zeros))

    @property
    def counted_for(self) -> str:
        """What MACs are counted for, in words."""
        return "one image" if self.inputs is None else "the first batch of inputs"

    @property
    def title(self) -> str:
        """Network and data."""
        network = self.settings.network
        return f"{network} on {self.settings.data['name']}" if self.data is not None else network

    @property
    def dense(self) -> nn.Module:
        """The model with every factorised layer multiplied back."""
        return to_dense(self.model) if structure_of(self.model) else self.model

    @property
    def dense_cost(self) -> Cost:
        """Of the network before any compression."""
        if self.plan is None:
            return cost(self.dense, self.example)
        macs = self.plan.dense_macs if self.named.inputs is None else cost(self.dense, self.example).macs
        return Cost(self.plan.dense_params, macs)

    def batch(self, size: int | None) -> Any:
        """Inputs to be timed, on the model's device: random images, or rows of the first batch; None: 1, or all.

        Raises:
            ArgumentError: inputs whose first axis is no batch.
        """
        if self.inputs is None:
            return self._here(self._images(size or 1, torch.randn))
        with renamed(example_inputs="--batch-size"):
            return self._here(self.first if size is None else resized(self.first, size, None))

    def calibration(self, recipe: Recipe) -> Iterable[Any] | None:
        """Batches to calibrate on and to re-estimate batch norm from; None without inputs or data."""
        if self.inputs is not None:
            return self.inputs
        return None if self.data is None else calibration(self.data, recipe)

    def measure(self, name: str, model: nn.Module) -> Stage | None:
        """The figures of ``model`` at a stage called ``name``; None without a score or data."""
        if self.score is not None:
            assert self.settings.score is not None
            return own_score(name, model, self.score, self.settings.score)
        return None if self.data is None else accuracy(name, model, self.data)

    def _here(self, inputs: Any) -> Any:
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        return tree_map_only(Tensor, lambda t: t.to(device), inputs)

    def _images(self, count: int, fill: Callable[..., Tensor]) -> Tensor:
        assert self.data is not None
        return fill(count, self.data.channels, self.data.size, self.data.size)


def open_network(named: Named, *, needs: Sequence[str] = (), reason: str = "") -> Opened:
    """The network that the user named. What is missing is said before any code of the user's runs.

    Args:
        named: a run folder, or a factory.
        needs: of "inputs" and "score", what the verb cannot do without; a data set gives both.
        reason: why, for the error.

    Raises:
        ArgumentError: neither or both were named; something is missing; the user's code fails.
        CheckpointError: no run, an unfinished or a damaged one; code that only the folder names; weights of another
            network.
        DataError: the data set is missing, or another than the run was made with.
        PlanError: a plan for another model.
    """
    settings = settings_of(named)
    for need in needs:
        if getattr(settings, need) is None and not settings.data:
            example = "FILE.py:FUNCTION" if need == "score" else "FILE.py:NAME"
            why = f" {reason}" if reason else ""
            raise ArgumentError(f"`--{need}` must be given{why}: --{need} {example}, or a data set by --data.")
    inputs = None if settings.inputs is None else own_batches(settings.inputs)
    score = None if settings.score is None else load_own(settings.score, "score")
    if score is not None and not callable(score):
        raise ArgumentError(f"`score` must lead to a function of a model; {settings.score!r} is {score!r}.")
    data = _data(settings, named) if settings.data else None
    network = runs.network(settings, data)
    plan = None
    if named.run is not None:
        plan, network = read_plan(named.run / runs.MODEL), load(named.run / runs.MODEL, network)
    else:
        if named.weights is not None:
            load_weights_(network, named.weights)
        settings = replace(settings, weights={"file": _path(named), "checksum": fingerprint(network)})
        if data is not None:
            settings = replace(settings, data=settings.data | {"checksum": data.checksum})
    model = (network.to(runs.device()) if data is not None else network).eval()
    first = None if inputs is None else first_inputs(inputs, model)
    return Opened(named, settings, model, plan, data, inputs, first, score)


def settings_of(named: Named) -> runs.Settings:
    """What is known of the network before any of its code runs: recorded by its run, and named by the user.

    Raises:
        ArgumentError, CheckpointError: as `open_network`.
    """
    replaced = {"network": named.model, "inputs": named.inputs, "score": named.score}
    given = {key: value for key, value in replaced.items() if value is not None}
    root = None if named.data_root is None else str(named.data_root.resolve())
    data = {"name": named.data, "root": root, "checksum": None}
    if named.run is None:
        if named.model is None:
            raise ArgumentError(
                "`RUN` must be given: a folder that tenfold train or compress wrote; or --model FILE.py:FACTORY for a "
                "network of your own."
            )
        if named.data is None and not runs.is_own_network(named.model):
            raise ArgumentError(
                f"`--data` must be given for --model {named.model}, which is built for the classes and images of a "
                f"data set. A network of your own: --model FILE.py:FACTORY."
            )
        base = runs.Settings(
            command="compress", data={} if named.data is None else data, network=named.model, method={}, budget={},
            recipe={},
        )  # fmt: skip
        return replace(base, **given)
    if named.weights is not None:
        raise ArgumentError(f"`--weights` must be left out for the run '{named.run}', which has its own.")
    settings = runs.read_settings(named.run)
    typed = {"model": named.model, "inputs": named.inputs, "score": named.score, "data": named.data}
    require_word(settings, named.run, typed, trust=named.trust)
    if not (named.run / runs.MODEL).is_dir():
        resume = f"Go on with: tenfold train --out {named.run} --resume."
        raise CheckpointError(f"the training in '{named.run}' is not finished. {resume}")
    if named.data is not None:
        recorded = settings.data.get("checksum")
        settings = replace(settings, data=data | {"checksum": recorded})
    return replace(settings, **given)


def require_word(settings: runs.Settings, folder: Path, typed: Mapping[str, str | None], *, trust: bool) -> None:
    """Refuse code that only the run folder names: who opens a folder has not said that it may run.

    A file that the user names is vouched for as a whole.

    Args:
        settings: of the run.
        folder: of the run.
        typed: what the user named, by option; of these the code would run.
        trust: whether the user says that all of it may.

    Raises:
        CheckpointError: with what the folder names, and how to allow it.
    """
    files = {place(value) for value in typed.values() if value is not None and is_file_reference(value)}
    doubtful = {
        option: reference
        for option, reference in runs.own_code(settings).items()
        if option in typed
        and typed[option] is None
        and not (is_file_reference(reference) and place(reference) in files)
    }
    if doubtful and not trust:
        what = ", ".join(f"{option} {_shortened(reference)}" for option, reference in doubtful.items())
        options = " and ".join(f"--{option}" for option in doubtful)
        raise CheckpointError(
            f"the run in '{folder}' names code, which runs only on your word: {what}. If you know where it comes "
            f"from, say --trust, or name it yourself with {options}."
        )


def _shortened(reference: str, most: int = 200) -> str:
    """On one line; of a long one the end, which has the name."""
    return repr(reference if len(reference) <= most else f"...{reference[-most:]}")


def _data(settings: runs.Settings, named: Named) -> Data:
    """The data set of a run, from ``--data-root`` or where it was then; refused if its contents are others."""
    data = runs.read_data(settings.data["name"], named.data_root or settings.data["root"])
    if settings.data["checksum"] not in (None, data.checksum):
        raise DataError(
            f"the data set '{data.name}' found here has other contents than the one the run was made with: its "
            f"figures would not compare. Point `--data-root` at the same files."
        )
    return data


def _path(named: Named) -> str | None:
    return None if named.weights is None else str(named.weights.expanduser().resolve())
