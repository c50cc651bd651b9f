"""The interface of a runtime: a model and its inputs become a call without arguments that runs one forward pass."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tenfold.errors import ArgumentError, check, is_count, shortened
from tenfold.layers.copy_model import sharing_copy
from tenfold.layers.cost import call_arguments
from tenfold.layers.usable import refuse_unusable, refuse_without_numbers

Call = Callable[[], Any]
"""One forward pass on inputs that are bound already."""


class Runtime(ABC):
    """Base class of runtimes. Abstract.

    What `prepare` returns runs the model in eval mode as its weights are when `prepare` is called; a change of them
    afterwards may or may not be seen.
    """

    name: ClassVar[str]

    @property
    @abstractmethod
    def version(self) -> str:
        """The package that runs models with its version, and the settings that change how fast they run."""

    def prepare(self, model: nn.Module, inputs: Any, *, threads: int = 1) -> Call:
        """Make ready one forward pass of a model on given inputs, in eval mode, without autograd.

        On a GPU the call returns before the work is done; see `wait`. Called within `running`, it does nothing
        but the forward pass.

        Args:
            model: any module; untouched.
            inputs: a tensor, a tuple of positional or a dict of keyword arguments, on the device of the model.
            threads: that a pass may use on the CPU, >= 1.

        Returns:
            a function of no arguments; `outputs` reads what it returns.

        Raises:
            ArgumentError: a wrapped model, one without numbers, or inputs that it does not take.
            TenfoldError: this runtime cannot run the model.
        """
        with self._ready(model, inputs, threads) as own:
            args, kwargs = call_arguments(inputs)
            return self._bind(own, args, kwargs, threads)

    def prepare_layer(self, module: nn.Module, inputs: Tensor, *, threads: int = 1) -> Call:
        """Make ready one forward pass of a single layer, dense or factorised; as `prepare`, and fast where that is not.

        Args:
            module: a linear or convolutional layer, or a factorised one; untouched.
            inputs: its input.
            threads: as in `prepare`.

        Raises:
            ArgumentError: as in `prepare`.
            TenfoldError: this runtime cannot run the layer.
        """
        return self.prepare(module, inputs, threads=threads)

    @abstractmethod
    def outputs(self, result: Any) -> list[Tensor]:
        """The tensors in what a prepared call returned, as it stands until the next call."""

    @abstractmethod
    def _bind(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], threads: int) -> Call:
        """The call of ``model``, a copy of this runtime's own in eval mode that takes the arguments."""

    @staticmethod
    @contextlib.contextmanager
    def _ready(model: nn.Module, inputs: Any, threads: int) -> Iterator[nn.Module]:
        """A copy of ``model`` in eval mode that takes the inputs; threads and random numbers are put back after."""
        check(is_count(threads), "threads", "an integer >= 1", threads)
        refuse_unusable(model)
        refuse_without_numbers(model)
        gpus = list({t.device for t in torch_tensors(inputs) if t.is_cuda})
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(gpus), torch_threads(threads):
            own = sharing_copy(model).eval()
            _first_pass(own, *call_arguments(inputs))
            yield own


@contextlib.contextmanager
def running(threads: int) -> Iterator[None]:
    """The state that prepared calls run in: no autograd, and so many threads of torch; put back after.

    A call outside of it enters it by itself; who times calls enters it once for all of them.

    Args:
        threads: as many as the calls were prepared for.
    """
    with torch_threads(threads), torch.inference_mode():
        yield


def wait(inputs: Any) -> None:
    """Wait until the devices that tensors among ``inputs`` are on have done all their work."""
    for device in {t.device for t in torch_tensors(inputs) if t.is_cuda}:
        torch.cuda.synchronize(device)


def in_state(call: Call, threads: int) -> Call:
    """``call`` in the state of `running`, which is entered only where it does not hold already."""

    def run() -> Any:
        if torch.is_inference_mode_enabled() and torch.get_num_threads() == threads:
            return call()
        with running(threads):
            return call()

    return run


def torch_tensors(result: Any) -> list[Tensor]:
    """The tensors in what a module takes or returns, in order."""
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


@contextlib.contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """So many threads of torch for the block; as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _first_pass(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run the model by torch once: what fails here fails everywhere."""
    try:
        model(*args, **kwargs)
    except Exception as error:
        raise ArgumentError(
            f"`inputs` must be inputs that the model accepts; its forward pass failed with {type(error).__name__}: "
            f"{shortened(str(error), 300)[1:-1]}. Pass a tensor, a tuple of positional or a dict of keyword arguments "
            f"on the model's device."
        ) from error
