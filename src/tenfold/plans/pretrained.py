"""Compressed models of transformers in Hugging Face's own folders: config.json with the plan, and safetensors."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from tenfold.errors import CheckpointError, TenfoldError, shortened
from tenfold.layers.pretrained import METHOD
from tenfold.when_imported import when_imported


def from_pretrained(path: Path | str, **options: Any) -> nn.Module:
    """Load a compressed model from the folder that its ``save_pretrained`` wrote: the same class, bit for bit.

    ``AutoModel.from_pretrained`` and those of all other classes of transformers load it as well, once tenfold has been
    imported; without tenfold they raise.

    Args:
        path: a folder, or what transformers finds in its cache or on a hub by name.
        options: as ``from_pretrained`` of transformers takes them; ``dtype`` is the saved one unless it is given.

    Returns:
        the model in eval mode.

    Raises:
        CheckpointError: nothing there, files that are missing or damaged or do not fit one another, or a dense model.
        PlanError: a plan that is malformed, or is for another model.
        TenfoldError: transformers is missing, or older than 5.
    """
    library = _library()
    local = Path(path)
    if local.is_dir() and not (local / "config.json").is_file():
        raise CheckpointError(
            f"`path` must be a folder that save_pretrained wrote; '{local}' has no config.json. A folder that "
            "tenfold.save wrote is read by tenfold.load."
        )
    try:
        config = library.AutoConfig.from_pretrained(str(path))
        _require_compressed(str(path), config)
        names = config.architectures or []
        kind = next((getattr(library, name) for name in names if name in dir(library)), library.AutoModel)
        return kind.from_pretrained(str(path), **{"dtype": "auto", "use_safetensors": True} | options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, TenfoldError):
            raise
        raise CheckpointError(
            f"'{path}' cannot be loaded: {shortened(str(error), 300)[1:-1]} Save the model again by save_pretrained."
        ) from error


def _require_compressed(path: str, config: Any) -> None:
    written = getattr(config, "quantization_config", None)
    method = written.get("quant_method") if isinstance(written, dict) else None
    if method != METHOD:
        kind = "a dense model" if method is None else f"one of {shortened(method)}"
        raise CheckpointError(
            f"`path` must hold a compressed model; '{path}' holds {kind}. Load it by transformers.AutoModel, "
            "and compress it."
        )


def _library() -> Any:
    try:
        library = import_module("transformers")
        import_module("transformers.modeling_utils")
        registered = METHOD in import_module("transformers.quantizers.auto").AUTO_QUANTIZER_MAPPING
    except ImportError as error:
        raise TenfoldError(
            f"transformers is missing or broken ({shortened(str(error), 120)[1:-1]}): pip install 'tenfold[hf]'."
        ) from error
    if not registered:
        raise TenfoldError(
            f"transformers must be 5 or newer to load compressed models; {library.__version__} is installed: "
            "pip install 'tenfold[hf]'."
        )
    return library


def _register() -> None:
    """Have transformers know tenfold's folders. One that is too old does not take part: loading and saving raise."""
    try:
        import_module("tenfold.plans.hf_quantizer")
    except ImportError:
        return


when_imported("transformers.modeling_utils", _register)
