"""Training hyper-parameters as one dataclass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from tenfold.errors import check
from tenfold.train.data.augment import AUGMENTATIONS
from tenfold.train.schedule import SCHEDULES, Schedule, make_schedule, window

AUTO = "auto"
"""Left to a probe as the training begins; see `tenfold.train.probe`."""
PRECISIONS = ("no", "bf16", "fp16", AUTO)
MEMORY_FORMATS = ("contiguous", "channels_last", AUTO)
_LATER = ("distill", "temperature", "memory_format")
"""Fields that checkpoints of version 0.1.0 may lack."""


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters of a training run, apart from those of the method.

    Args:
        epochs: passes over the training set, >= 1.
        batch_size: examples of one optimizer step, >= 1.
        lr: base learning rate, > 0.
        momentum: in [0, 1).
        weight_decay: >= 0.
        schedule: "constant", "cosine", "linear" or "multistep".
        warmup: epochs of linear climb at the start of the schedule, >= 0.
        milestones: of "multistep": epochs at which the rate is multiplied by ``gamma``, ascending.
        gamma: in (0, 1].
        total: length of the schedule in epochs, >= epochs; the run follows its *last* ``epochs``. None: ``epochs``.
        label_smoothing: in [0, 1).
        clip_norm: limit of the gradient's 2-norm, > 0; None for no limit.
        accumulate: parts that each batch is computed in, >= 1: less memory, the same step (but for batch norm, which
            sees the parts).
        precision: "no" (float32), "bf16" or "fp16" autocast; fp16 needs a GPU. "auto": "bf16" where a probe finds it
            clearly faster here, else "no".
        memory_format: of kernels and images, "contiguous" or "channels_last": the same network, often faster so; or
            "auto", the one that a probe finds faster here.
        augment: "none", "crop" or "crop-flip".
        distill: weight ``a`` of the teacher in the loss ``(1 - a) CE + a T^2 KL(teacher || student)``, in [0, 1];
            0: no teacher.
        temperature: ``T`` that the logits of teacher and student are divided by, > 0.
        seed: of order, augmentation and dropout, >= 0.

    Raises:
        ArgumentError: a value outside its range.
    """

    epochs: int = 20
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup: float = 0.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    total: int | None = None
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    precision: str = "no"
    memory_format: str = "contiguous"
    augment: str = "none"
    distill: float = 0.0
    temperature: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for name in ("epochs", "batch_size", "accumulate"):
            value = getattr(self, name)
            check(isinstance(value, int) and value >= 1, name, "an integer >= 1", value)
        check(isinstance(self.seed, int) and self.seed >= 0, "seed", "an integer >= 0", self.seed)
        check(math.isfinite(self.lr) and self.lr > 0, "lr", "> 0", self.lr)
        check(0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)
        check(0 <= self.weight_decay < math.inf, "weight_decay", ">= 0", self.weight_decay)
        check(self.schedule in SCHEDULES, "schedule", f"one of {', '.join(SCHEDULES)}", self.schedule)
        check(0 <= self.warmup < math.inf, "warmup", ">= 0 epochs", self.warmup)
        ascending = list(self.milestones) == sorted(set(self.milestones))
        check(ascending and all(m > 0 for m in self.milestones), "milestones", "ascending and > 0", self.milestones)
        check(
            (self.schedule == "multistep") == bool(self.milestones),
            "milestones",
            'given for the schedule "multistep", and for no other',
            self.milestones,
        )
        check(0 < self.gamma <= 1, "gamma", "in (0, 1]", self.gamma)
        whole = self.epochs if self.total is None else self.total
        check(isinstance(whole, int) and whole >= self.epochs, "total", f">= epochs = {self.epochs}", whole)
        check(0 <= self.label_smoothing < 1, "label_smoothing", "in [0, 1)", self.label_smoothing)
        check(self.clip_norm is None or self.clip_norm > 0, "clip_norm", "> 0 or None", self.clip_norm)
        check(self.precision in PRECISIONS, "precision", f"one of {', '.join(PRECISIONS)}", self.precision)
        check(
            self.memory_format in MEMORY_FORMATS,
            "memory_format",
            f"one of {', '.join(MEMORY_FORMATS)}",
            self.memory_format,
        )
        check(self.augment in AUGMENTATIONS, "augment", f"one of {', '.join(AUGMENTATIONS)}", self.augment)
        check(0 <= self.distill <= 1, "distill", "in [0, 1]", self.distill)
        check(0 < self.temperature < math.inf, "temperature", "> 0", self.temperature)

    @property
    def left_open(self) -> list[str]:
        """The fields that a probe is to decide: those that are "auto"."""
        return [name for name in ("precision", "memory_format") if getattr(self, name) == AUTO]

    def factor(self) -> Schedule:
        """The learning-rate factor as a function of this run's time in epochs."""
        total = self.epochs if self.total is None else self.total
        whole = make_schedule(self.schedule, total, warmup=self.warmup, milestones=self.milestones, gamma=self.gamma)
        return window(whole, total, self.epochs)

    def rewound(self, epochs: int) -> Recipe:
        """The recipe of a retraining after this one: ``epochs`` long, at the rates of this schedule's last epochs.

        Args:
            epochs: in [1, the epochs of the schedule].

        Raises:
            ArgumentError: epochs out of range.
        """
        total = self.epochs if self.total is None else self.total
        check(1 <= epochs <= total, "epochs", f"in [1, {total}], the epochs of the schedule to rewind", epochs)
        return replace(self, epochs=epochs, total=total)

    def differences(self, saved: Mapping[str, object]) -> list[str]:
        """The fields that keep this recipe from resuming a run of the recipe ``saved``; empty if there are none.

        ``epochs`` may differ where the schedule does not depend on it.

        Args:
            saved: a recipe as JSON gives it back; fields that it lacks had their defaults.
        """
        absent = {f.name: f.default for f in fields(self) if f.name in _LATER}
        old, new = absent | dict(saved), {**asdict(self), "milestones": list(self.milestones)}
        if self.total is None and self.schedule in ("constant", "multistep"):
            old["epochs"] = new["epochs"]
        return [f"`{key}`: {old.get(key)!r} -> {value!r}" for key, value in new.items() if old.get(key) != value]
