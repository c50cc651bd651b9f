"""From what the user named to a network in memory, with its data or inputs and what measures it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from tenfold.bench.export import resized
from tenfold.cli import runs
from tenfold.cli.figures import ByAccuracy, ByOwnScore
from tenfold.cli.option_names import renamed
from tenfold.cli.own_inputs import OwnBatches, first_inputs, own_batches
from tenfold.cli.source import Named, NetworkSource
from tenfold.errors import ArgumentError, DataError
from tenfold.layers.cost import Cost, cost
from tenfold.layers.swap import multiplied_back
from tenfold.own_code import load_own
from tenfold.plans.plan import Plan
from tenfold.plans.serialization import load_planned
from tenfold.train import Data, Recipe
from tenfold.train.calibration import CalibrationBatches
from tenfold.train.distill import fingerprint
from tenfold.train.models.own import load_weights_


@dataclass(frozen=True)
class Opened:
    """An opened network in eval mode, with its data or inputs, plan and score.

    Args:
        named: how the user named it.
        settings: of its run; of a network without one, what is known of it.
        model: as it was saved or made. On the GPU, where there is one, with a data set; else where its factory put it.
        plan: of its run; None without one.
        data: the data set; None without one.
        inputs: the user's batches; where there are both, they come before the data set's.
        first: the inputs of the first of these batches.
        score: what measures it, by the user's function or else by the accuracy on the data set; None without either.
    """

    named: Named
    settings: runs.Settings
    model: nn.Module
    plan: Plan | None = None
    data: Data | None = None
    inputs: OwnBatches | None = None
    first: Any = None
    score: ByAccuracy | ByOwnScore | None = None

    @property
    def example(self) -> Any:
        """Inputs on the model's device that MACs are counted for: the first batch, or one image; None without any."""
        if self.inputs is None and self.data is None:
            return None
        return self._here(self.first if self.data is None or self.inputs is not None else self._images(1, torch.zeros))

    @property
    def counted_for(self) -> str:
        """The inputs that MACs are counted for, in words."""
        return "one image" if self.inputs is None else "the first batch of inputs"

    @property
    def title(self) -> str:
        """Network and data."""
        network = self.settings.network
        return f"{network} on {self.settings.data['name']}" if self.data is not None else network

    @property
    def dense(self) -> nn.Module:
        """The model with every factorised layer multiplied back."""
        return multiplied_back(self.model)

    @property
    def dense_cost(self) -> Cost:
        """Cost of the network before any compression."""
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
        return None if self.data is None else CalibrationBatches(self.data, recipe)

    def _here(self, inputs: Any) -> Any:
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        return tree_map_only(Tensor, lambda t: t.to(device), inputs)

    def _images(self, count: int, fill: Callable[..., Tensor]) -> Tensor:
        assert self.data is not None
        return fill(count, self.data.channels, self.data.size, self.data.size)


def open_network(source: NetworkSource, *, needs: Sequence[str] = (), reason: str = "") -> Opened:
    """Open the network that the user named. What is missing is said before any code of the user's runs.

    Args:
        source: a run folder, or a factory.
        needs: of "inputs" and "score", what the verb cannot do without; a data set gives both.
        reason: why, for the error.

    Raises:
        ArgumentError: something is missing; the user's code fails.
        CheckpointError: a damaged model; weights of another network.
        DataError: the data set is missing, or another than the run was made with.
        PlanError: a plan for another model.
    """
    named, settings = source.named, source.settings
    for need in needs:
        if getattr(settings, need) is None and not settings.data:
            example = "FILE.py:FUNCTION" if need == "score" else "FILE.py:NAME"
            why = f" {reason}" if reason else ""
            raise ArgumentError(f"`--{need}` must be given{why}: --{need} {example}, or a data set by --data.")
    inputs = None if settings.inputs is None else own_batches(settings.inputs)
    score = None if settings.score is None else _own_score(settings.score)
    data = _data(settings, named) if settings.data else None
    if score is None and data is not None:
        score = ByAccuracy(data)
    network = runs.network(settings, data)
    plan = None
    if named.run is not None:
        network, plan = load_planned(named.run / runs.MODEL, network)
    else:
        file = None if named.weights is None else str(named.weights.expanduser().resolve())
        if file is not None:
            load_weights_(network, file)
        settings = replace(settings, weights={"file": file, "checksum": fingerprint(network)})
        if data is not None:
            settings = replace(settings, data=settings.data | {"checksum": data.checksum})
    model = (network.to(runs.device()) if data is not None else network).eval()
    first = None if inputs is None else first_inputs(inputs, model)
    return Opened(named, settings, model, plan, data, inputs, first, score)


def _own_score(reference: str) -> ByOwnScore:
    function = load_own(reference, "score")
    if not callable(function):
        raise ArgumentError(f"`score` must lead to a function of a model; {reference!r} is {function!r}.")
    return ByOwnScore(function, reference)


def _data(settings: runs.Settings, named: Named) -> Data:
    """The data set of a run, from ``--data-root`` or where it was then; refused if its contents are others."""
    data = runs.read_data(settings.data["name"], named.data_root or settings.data["root"])
    if settings.data["checksum"] not in (None, data.checksum):
        raise DataError(
            f"the data set '{data.name}' found here has other contents than the one the run was made with: its "
            f"figures would not compare. Point `--data-root` at the same files."
        )
    return data
