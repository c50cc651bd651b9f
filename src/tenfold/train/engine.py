"""Accelerate, for the length of one run: device, precision and loss scaling."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tenfold.errors import TenfoldError

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextlib.contextmanager
def engine(precision: str) -> Iterator[Accelerator]:
    """Make an ``Accelerator`` for the block, on the device that it finds, with the given precision.

    Accelerate keeps one precision for the whole process and refuses a second; here each run has its own, and what was
    set before comes back after it.

    Args:
        precision: "no", "bf16" or "fp16".

    Raises:
        TenfoldError: accelerate is missing, cannot do this precision here, or was launched with several processes.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError as error:
        raise TenfoldError("Training needs accelerate, which is missing: pip install 'tenfold[train]'.") from error
    shared = AcceleratorState._shared_state
    before = dict(shared)
    AcceleratorState._reset_state()
    try:
        try:
            accelerator = Accelerator(mixed_precision=precision)
        except ValueError as error:
            raise _unable(precision, str(error)) from error
        if precision == "fp16" and accelerator.scaler is None:  # Accelerate would go on in float32
            raise _unable(precision, f"it needs a GPU, and the device is {accelerator.device.type!r}.")
        if accelerator.num_processes > 1:
            raise TenfoldError(
                f"`fit` runs in one process; this is one of {accelerator.num_processes}. Launch it without torchrun, "
                "or use the method's optimizer in a distributed loop of your own."
            )
        yield accelerator
    finally:
        shared.clear()
        shared.update(before)


def _unable(precision: str, reason: str) -> TenfoldError:
    return TenfoldError(
        f"`precision` must be one that this device can do; got {precision!r}: {reason} Use 'no' or 'bf16'."
    )
