"""What the user named to a verb, a run or a network, and all that is known of it before any of its code runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tenfold.cli import runs
from tenfold.errors import ArgumentError, CheckpointError
from tenfold.methods.alds import ALDS
from tenfold.methods.calibrated import Calibrated
from tenfold.methods.contract.method import Method
from tenfold.own_code import is_file_reference, place
from tenfold.train import Recipe


@dataclass(frozen=True)
class Named:
    """The options by which the user named a run or a network; paths of files of code are absolute.

    Args:
        run: a run folder.
        model: a network that the user has, or, beside ``run``, the code of the run's.
        weights: a file of weights.
        inputs: a reference to batches.
        score: a reference to a function of a model.
        data: a data set.
        data_root: folder of its files.
        trust: whether code that the run folder names may run.
    """

    run: Path | None = None
    model: str | None = None
    weights: Path | None = None
    inputs: str | None = None
    score: str | None = None
    data: str | None = None
    data_root: Path | None = None
    trust: bool = False

    def __str__(self) -> str:
        """What to call it: the folder, or the factory."""
        return str(self.run if self.run is not None else self.model)

    @property
    def words(self) -> str:
        """The options as they are typed on a command line."""
        if self.run is not None:
            return f"{self.run}" + (" --trust" if self.trust else "")
        given = {"model": self.model, "weights": self.weights, "inputs": self.inputs, "score": self.score}
        given |= {"data": self.data, "data-root": self.data_root}
        return " ".join(f"--{name} {value}" for name, value in given.items() if value is not None)


@dataclass(frozen=True)
class NetworkSource:
    """A run or a network that a verb was given.

    Args:
        named: how the user named it.
        settings: of its run; of a network without one, what is known of it.
        recipe: of the training that its run descends from; the default one without a run.
    """

    named: Named
    settings: runs.Settings
    recipe: Recipe

    def __str__(self) -> str:
        """What to call it: the folder, or the factory."""
        return str(self.named)

    @property
    def default_method(self) -> Method:
        """The method where none is named: the one that looks at data where there are any, else by weights alone.

        Neither makes slices, which are slower than their MACs, and often than the dense layer.
        """
        if self.settings.data or self.settings.inputs:
            return Calibrated()
        return ALDS(folds=("spatial", "spatial-t", "channel"), slices=(1,), measure="fro")


def source_of(named: Named) -> NetworkSource:
    """Read what is known of the run or network that the user named, before any of its code runs.

    Raises:
        ArgumentError: neither or both of a run and a network were named, or a network of tenfold's without its data.
        CheckpointError: no run, an unfinished or a damaged one; code that only the folder names.
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
        return NetworkSource(named, replace(base, **given), Recipe())
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
    return NetworkSource(named, replace(settings, **given), runs.recipe_of(settings))


def require_word(settings: runs.Settings, folder: Path, typed: Mapping[str, str | None], *, trust: bool) -> None:
    """Raise `CheckpointError` for code that only the run folder names: the user has not said that it may run.

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
