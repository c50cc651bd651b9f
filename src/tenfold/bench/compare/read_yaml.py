"""Experiments from YAML files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tenfold.bench.compare.experiment import Experiment
from tenfold.errors import ArgumentError, TenfoldError, shortened
from tenfold.files import read_text
from tenfold.own_code import absolute

_FLOAT = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+")


def read_experiment(path: Path | str) -> Experiment:
    """The experiment in a YAML file; see `Experiment.from_dict`. ``name`` may be left out: the folder's then.

    Numbers are read as YAML 1.2 and Python do: ``1e-4`` is one.

    Raises:
        ArgumentError: no such file, no YAML, a key twice or unknown, or a value that cannot be.
        TenfoldError: PyYAML is missing.
    """
    path = Path(path)
    try:
        body = _parsed(read_text(path))
    except (OSError, ValueError) as error:
        sentence = shortened(str(error), 300)[1:-1]
        raise ArgumentError(f"`experiment` must be a YAML file; '{path}' cannot be read: {sentence}.") from error
    if not isinstance(body, dict):
        raise ArgumentError(f"`experiment` must be a YAML file of keys and values; '{path}' holds {shortened(body)}.")
    try:
        return Experiment.from_dict({"name": path.resolve().parent.name} | _beside(body, path.resolve().parent))
    except TenfoldError as error:
        spelled = re.sub(r"`(\w+)`", r"`\1:`", str(error))  # a key of a file, not an option
        raise ArgumentError(f"in '{path}': {spelled}") from error


def _beside(body: dict[Any, Any], folder: Path) -> dict[Any, Any]:
    """``body`` with the user's own code, ``my_file.py:name``, looked for from the folder of the YAML file."""

    def found(value: Any, key: str) -> Any:
        if isinstance(value, str):
            return absolute(value, folder)
        return value | {key: found(value[key], key)} if isinstance(value, dict) and key in value else value

    placed = {key: found(body[key], "name") for key in ("data", "model") if key in body}
    methods = body.get("methods")
    if isinstance(methods, list):
        placed["methods"] = [found(each, "method") for each in methods]
    return body | placed


def _parsed(text: str) -> Any:
    """What YAML says, with plain types only.

    Raises:
        ValueError: no YAML, a key twice, or one that is no text (``{params: 0,25}`` has the key 25).
    """
    try:
        import yaml
    except ImportError as error:
        raise TenfoldError("Experiments need PyYAML, which is missing: pip install 'tenfold[train]'.") from error

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        merge = "tag:yaml.org,2002:merge"
        keys = [loader.construct_object(key, deep=True) for key, _ in node.value if key.tag != merge]
        odd = next((key for key in keys if not isinstance(key, str)), None)
        if odd is not None or None in keys:
            raise ValueError(
                f"its keys must be text; got {shortened(odd)} (line {node.start_mark.line + 1} and after). Put quotes "
                "around it, or, where a decimal comma was meant, a point into it"
            )
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ValueError(f"it has the key {twice!r} twice (line {node.start_mark.line + 1} and after)")
        return dict(loader.construct_mapping(node, deep=True))

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
