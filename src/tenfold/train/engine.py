"""Accelerate, for the length of one run: device, precision and loss scaling."""

from __future__ import annotations

import contextlib
import os
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
    refuse_launched()
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
        refuse_launched(accelerator.num_processes)
        yield accelerator
    finally:
        shared.clear()
        shared.update(before)


def refuse_launched(processes: int = 1) -> None:
    """Raise `TenfoldError` in one of several processes that a launcher started: all would write the same files.

    Args:
        processes: that are known of; what torchrun, accelerate and mpirun say of theirs is read here.
    """
    counts = [os.environ.get(name, "") for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")]
    processes = max([processes, *(int(count) for count in counts if count.isdecimal())])
    if processes > 1:
        raise TenfoldError(
            f"tenfold's own trainings and commands run in one process; this is one of {processes}. Start it without "
            "torchrun (or unset WORLD_SIZE), or use tenfold.begin in a distributed loop of your own."
        )


def _unable(precision: str, reason: str) -> TenfoldError:
    return TenfoldError(
        f"`precision` must be one that this device can do; got {precision!r}: {reason} Use 'no' or 'bf16'."
    )
