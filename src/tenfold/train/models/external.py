"""Networks of other libraries, when these are installed: ``timm:NAME``, ``torchvision:NAME``, ``hf:NAME``."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from tenfold.errors import TenfoldError

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")


class Logits(nn.Module):
    """Wrapper of a transformers classifier: ``pixel_values`` in, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, channels, size, size)``."""
        return self.model(pixel_values=x).logits


def timm_model(name: str, classes: int, channels: int, size: int) -> nn.Module:
    """A freshly initialised network of timm; nothing is downloaded. Arguments as in `build_model`.

    Raises:
        TenfoldError: timm is missing or broken, the name is unknown, or timm refuses the sizes.
    """
    timm = _library("timm", "timm")
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    sizes: dict[str, Any] = {"num_classes": classes, "in_chans": channels}
    try:
        try:  # transformers fix their size when they are built; convolutional networks know no such argument
            return timm.create_model(name, pretrained=False, img_size=size, **sizes)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return timm.create_model(name, pretrained=False, **sizes)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise _refused("timm", name, error) from error


def torchvision_model(name: str, classes: int, channels: int, size: int) -> nn.Module:
    """A freshly initialised classifier of torchvision, without auxiliary heads; nothing is downloaded.

    Arguments as in `build_model`.

    Raises:
        TenfoldError: torchvision is missing or does not fit torch, the name is unknown, or the images are not RGB.
    """
    models = _library("torchvision.models", "torchvision")
    names = models.list_models(module=models)
    if name not in names:
        raise _unknown("torchvision", name, names)
    if channels != 3:
        raise TenfoldError(
            f"`channels` must be 3 for torchvision:{name}; got {channels}. Use RGB images, timm, or a network of ours."
        )
    options: dict[str, Any] = {"weights": None, "num_classes": classes}
    if name in ("googlenet", "inception_v3"):  # their heads for training would make the output a tuple
        options |= {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        options["image_size"] = size
    try:
        return models.get_model(name, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise _refused("torchvision", name, error) from error


def hf_model(name: str, classes: int, channels: int, size: int) -> nn.Module:
    """An image classifier of transformers, with its trained weights: a local folder, or a name in the local cache.

    Arguments as in `build_model`. A head of another number of classes is replaced by a fresh one. The other sizes
    belong to the weights and must
    agree. A folder that holds a ``config.json`` and no weights gives a freshly initialised network of the sizes asked
    for. Nothing is downloaded, and no code of the checkpoint is run.

    Raises:
        TenfoldError: transformers is missing or broken; nothing is found there; the weights are for other images.
    """
    library = _library("transformers", "'tenfold[hf]'")
    folder = Path(name)
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = library.AutoConfig.from_pretrained(name, **local)
        wanted = {"num_channels": channels, "image_size": size}
        known = {key: value for key, value in wanted.items() if isinstance(getattr(config, key, None), int)}
        if folder.is_dir() and not any(file for pattern in WEIGHTS for file in folder.glob(pattern)):
            for key, value in {**known, "num_labels": classes}.items():
                setattr(config, key, value)
            return Logits(library.AutoModelForImageClassification.from_config(config)).train()
        for key, value in known.items():
            _check_size(name, key, getattr(config, key), value)
        if config.num_labels != classes:
            local |= {"num_labels": classes, "ignore_mismatched_sizes": True}
        made = library.AutoModelForImageClassification.from_pretrained(name, dtype=torch.float32, **local)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError) as error:
        raise TenfoldError(
            f"`name` must lead to an image classifier of transformers; got 'hf:{name}': {_first_line(error)} "
            "Give the folder of its config.json and weights, or fetch it into the cache first: hf download NAME."
        ) from error
    return Logits(made).train()


EXTERNAL: dict[str, Callable[[str, int, int, int], nn.Module]] = {
    "timm": timm_model,
    "torchvision": torchvision_model,
    "hf": hf_model,
}
"""By what stands before the colon: ``(name, classes, channels, size) -> nn.Module``."""


def _check_size(name: str, key: str, found: int, asked: int) -> None:
    if found != asked:
        word = {"num_channels": "channels", "image_size": "size"}[key]
        raise TenfoldError(
            f"`{word}` must be {found} for hf:{name}, whose weights are for it; got {asked}. Give it such images."
        )


def _library(module: str, install: str) -> ModuleType:
    """Import an optional library, or say what to install."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = getattr(error, "name", None) == package
        state = "which is missing" if missing else f"which cannot be imported ({_first_line(error)})"
        raise TenfoldError(f"`name` asks for {package}, {state}: pip install {install}.") from error
    except (RuntimeError, AttributeError, OSError) as error:
        # what a build of torchvision for another build of torch raises; timm imports torchvision
        raise TenfoldError(
            f"`name` asks for {package}, which is installed and cannot be imported: {_first_line(error)} "
            f"Most often torchvision was built for another torch than the {torch.__version__} here: install the two "
            "from the same index, or use one of tenfold's own networks."
        ) from error


def _unknown(library: str, name: str, names: Iterable[str]) -> TenfoldError:
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.4)
    hint = f" Nearest: {', '.join(near)}." if near else ""
    return TenfoldError(f"`name` must be a classifier that {library} knows; got '{library}:{name}'.{hint}")


def _refused(library: str, name: str, error: Exception) -> TenfoldError:
    return TenfoldError(f"{library} cannot build {name!r} in these sizes: {_first_line(error)} Change `size`.")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{lines[0].rstrip('.')}." if lines else f"{type(error).__name__}."
