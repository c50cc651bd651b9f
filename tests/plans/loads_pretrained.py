"""Run in a process of its own: what comes out of folders that another one saved, as JSON; see test_pretrained.py.

``python loads_pretrained.py with|without FOLDER``: with tenfold imported before transformers, or without it.
"""

import copy
import json
import sys
from pathlib import Path

if sys.argv[1] == "with":
    import tenfold

import torch
import transformers
from safetensors.torch import load_file

EXPECTED = "expected.safetensors"


def loaded(kind, folder: Path) -> str:
    """What loading by a class says: the error, or nothing."""
    try:
        kind.from_pretrained(folder)
    except Exception as error:  # noqa: BLE001 - whatever it says
        return f"{type(error).__name__}: {error}"
    return ""


def named(folder: Path):
    (name,) = transformers.AutoConfig.from_pretrained(folder).architectures
    return getattr(transformers, name)


def compared(folder: Path) -> dict[str, bool]:
    """Whether a folder's model is, to the bit, what was saved, by every door."""
    expected = load_file(folder / EXPECTED)
    output = expected.pop("output")
    inputs = {name.removeprefix("input."): expected.pop(name) for name in list(expected) if name.startswith("input.")}
    told = {}
    for door in (tenfold.from_pretrained, named(folder).from_pretrained):
        model = copy.deepcopy(
            door(folder)
        )  # mapped files lie where they lie: products of unaligned tensors round apart
        own = model.state_dict()
        told[f"{door.__qualname__} weights"] = own.keys() == expected.keys() and all(
            own[name].dtype == expected[name].dtype and torch.equal(own[name], expected[name]) for name in own
        )
        with torch.no_grad():
            told[f"{door.__qualname__} outputs"] = torch.equal(model(**inputs)[0], output)
        if model.can_generate():
            made = model.generate(**inputs, max_new_tokens=5, do_sample=False)
            told[f"{door.__qualname__} cache"] = torch.equal(
                made, model.generate(**inputs, max_new_tokens=5, do_sample=False, use_cache=False)
            )
    return told


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    folders = sorted(path for path in Path(sys.argv[2]).iterdir() if path.is_dir())
    if sys.argv[1] == "with":
        answers = {path.name: compared(path) for path in folders}
    else:
        answers = {
            path.name: [loaded(kind, path) for kind in (transformers.AutoModel, named(path))] for path in folders
        }
        assert "tenfold" not in sys.modules
    sys.stdout.write(json.dumps(answers) + "\n")
