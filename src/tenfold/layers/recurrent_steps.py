"""Recurrent layers step by step: what torch's fused kernels compute, with whatever maps a hidden state to its gates.

Sequences are parts of one tensor, one part for each step: all sequences in a padded batch, those that have not ended in
a packed one. At every step the first so many sequences move on and the others keep their state: those that have ended,
or in reverse those that have not begun.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

State = tuple[Tensor, ...]
"""The hidden state ``(N, h)``; of an LSTM, the cell's as well."""
Cell = Callable[[Tensor, Tensor, State], State]
"""``(gates of the input, gates of the hidden state, state) -> state``; both gates ``(N, g h)``."""


def lstm_cell(x: Float[Tensor, "n gates"], hidden: Float[Tensor, "n gates"], state: State) -> State:
    """``c' = f c + i g``, ``h' = o tanh(c')`` with the gates i, f, g, o in a row; as `torch.nn.LSTM` has it."""
    i, f, g, o = (x + hidden).chunk(4, 1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_cell(x: Float[Tensor, "n gates"], hidden: Float[Tensor, "n gates"], state: State) -> State:
    """``h' = n + z (h - n)``, ``n = tanh(x_n + r hidden_n)`` with the gates r, z, n in a row; as `torch.nn.GRU`."""
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, 1), hidden.chunk(3, 1)
    n = torch.tanh(xn + (xr + hr).sigmoid() * hn)
    return (n + (xz + hz).sigmoid() * (state[0] - n),)


def tanh_cell(x: Float[Tensor, "n gates"], hidden: Float[Tensor, "n gates"], state: State) -> State:
    """``h' = tanh(x + hidden)``."""
    return (torch.tanh(x + hidden),)


def relu_cell(x: Float[Tensor, "n gates"], hidden: Float[Tensor, "n gates"], state: State) -> State:
    """``h' = relu(x + hidden)``."""
    return (torch.relu(x + hidden),)


def run_steps(
    cell: Cell,
    gates: Float[Tensor, "total gates"],
    recurrent: Callable[[Tensor], Tensor],
    state: State,
    sizes: Sequence[int],
    *,
    reverse: bool = False,
) -> tuple[Float[Tensor, "total h"], State]:
    """One direction of one recurrent layer: the outputs of all steps, and the last state.

    Args:
        cell: one step.
        gates: what the inputs add to the gates, the sequences of the first step first.
        recurrent: ``(N, h) -> (N, g h)``, what the hidden state adds.
        state: the first one.
        sizes: how many sequences there are at each step, never increasing.
        reverse: from the last step to the first.
    """
    if gates.is_meta:  # without numbers no step depends on another: one call does, of as many rows
        shapes = tuple(s.new_empty(len(gates), s.shape[1]) for s in state)
        return cell(gates, recurrent(shapes[0]), shapes)[0], state
    parts = gates.split(list(sizes))
    outputs = list(parts)
    for t in reversed(range(len(parts))) if reverse else range(len(parts)):
        n = sizes[t]
        active = state if n == len(state[0]) else tuple(s[:n] for s in state)
        new = cell(parts[t], recurrent(active[0]), active)
        outputs[t] = new[0]
        state = new if active is state else tuple(torch.cat([a, s[n:]]) for a, s in zip(new, state, strict=True))
    return torch.cat(outputs), state


@dataclass(frozen=True)
class Sequences:
    """Sequences as torch's kernels take them.

    Args:
        data: ``(T, N, f)`` where all are of one length; else all steps of all sequences, ``(total, f)``, as a
            `PackedSequence` holds them.
        batch_sizes: then, how many sequences there are at each step, on the CPU.
    """

    data: Tensor
    batch_sizes: Tensor | None = None

    def of(self, data: Tensor) -> Sequences:
        """Other numbers for the same steps."""
        return replace(self, data=data)

    @property
    def count(self) -> Any:
        """The number of sequences; a tensor while `torch.jit.trace` runs."""
        return self.data.shape[1] if self.batch_sizes is None else int(self.batch_sizes[0])

    @property
    def sizes(self) -> list[int]:
        """The number of sequences at each step."""
        return [self.data.shape[1]] * len(self.data) if self.batch_sizes is None else self.batch_sizes.tolist()

    def flat(self) -> Tensor:
        """All steps of all sequences, ``(total, f)``."""
        return self.data.flatten(0, 1) if self.batch_sizes is None else self.data

    def like(self, flat: Tensor) -> Sequences:
        """`flat` numbers, with the same steps."""
        return self.of(flat.reshape(*self.data.shape[:2], -1) if self.batch_sizes is None else flat)

    def reversed(self) -> Sequences:
        """Each sequence from its last step to its first; its own inverse."""
        if self.batch_sizes is None:
            return self.of(self.data.flip(0))
        sizes = self.batch_sizes
        steps = torch.arange(len(sizes)).repeat_interleave(sizes)
        begin = sizes.cumsum(0) - sizes
        which = torch.arange(len(steps)) - begin[steps]
        lengths = (sizes[:, None] > torch.arange(int(sizes[0]))).sum(0)
        return self.of(self.data[(begin[lengths[which] - 1 - steps] + which).to(self.data.device)])
