"""A user's own code by reference: ``module.path:name`` or ``path/to/file.py:name``.

Importing runs the module. A reference that a person typed is that person's word for it; one that was read from a file
is not: its reader asks for the user's word first.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tenfold.errors import ArgumentError, shortened

_FORM = "Write module.path:NAME or path/to/file.py:NAME."


def is_file_reference(text: str) -> bool:
    """Whether ``text`` is written ``FILE.py:NAME``."""
    return text.rpartition(":")[0].endswith(".py")


def absolute(reference: str, folder: Path | None = None) -> str:
    """Make the path of a file reference absolute, so that it holds in any folder; a module's is returned as it is.

    Args:
        reference: of a file or a module.
        folder: that relative paths start from; None: the current one.
    """
    if not is_file_reference(reference):
        return reference
    file, _, name = reference.rpartition(":")
    return f"{((folder or Path()) / Path(file).expanduser()).resolve()}:{name}"


def place(reference: str) -> str:
    """The module name, or the absolute path of the file, that importing ``reference`` runs."""
    return absolute(reference).rpartition(":")[0]


def load_own(reference: str, argument: str) -> Any:
    """Import the object that ``reference`` names; its module is run if this process has not run it yet.

    A file may import what lies beside it: its folder is put at the end of ``sys.path``.

    Args:
        reference: ``module.path:name`` or ``path/to/file.py:name``; the name may have dots.
        argument: its name in the user's call, for errors.

    Raises:
        ArgumentError: nothing is found there, or running the module fails; the message names the nearest names.
    """
    path, _, name = reference.rpartition(":")
    if not path or not name:
        raise ArgumentError(f"`{argument}` must lead to an object of one's own; got {reference!r}. {_FORM}")
    found: Any = _module(path, reference, argument)
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            public = [n for n in dir(found) if not n.startswith("_")]
            near = difflib.get_close_matches(part, public, n=3) or public[:5]
            hint = f" It has {', '.join(near)}." if near else ""
            raise ArgumentError(
                f"`{argument}` must name something that '{path}' has; got {reference!r}.{hint}"
            ) from error
    return found


def call_own(function: Any, argument: str, reference: str, /, *args: Any, **kwargs: Any) -> Any:
    """Call a user's function; whatever it raises becomes an `ArgumentError` that names the argument.

    Args:
        function: the user's.
        argument: its name in the user's call, for errors.
        reference: that led to it, for errors.
        args: for the function.
        kwargs: for the function.

    Raises:
        ArgumentError: the function raised an exception.
    """
    try:
        return function(*args, **kwargs)
    except (Exception, SystemExit) as error:
        raise ArgumentError(
            f"`{argument}` must be code that runs; {reference!r} failed with {_said(error)}."
        ) from error


def _module(path: str, reference: str, argument: str) -> ModuleType:
    if path.endswith(".py"):
        file = Path(path).expanduser().resolve()
        if not file.is_file():
            raise ArgumentError(f"`{argument}` must name a file that there is; got {reference!r}: no file '{file}'.")
        return call_own(_from_file, argument, reference, file)
    if path.startswith("."):
        raise ArgumentError(
            f"`{argument}` must name a module by its whole name; got {reference!r}, which begins with a dot. {_FORM}"
        )
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and (path == error.name or path.startswith(f"{error.name}.")):
            raise ArgumentError(
                f"`{argument}` must name a module on the Python path; got {reference!r}: there is no '{error.name}'. "
                f"{_FORM}"
            ) from error
        raise _fails(reference, argument, error) from error
    except (Exception, SystemExit) as error:
        raise _fails(reference, argument, error) from error


def _fails(reference: str, argument: str, error: BaseException) -> ArgumentError:
    return ArgumentError(
        f"`{argument}` must name a module that can be imported; {reference!r} failed with {_said(error)}."
    )


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {shortened(str(error), 300)[1:-1]}"


def _from_file(file: Path) -> ModuleType:
    """The module in ``file``: by its plain name where Python would find that very file, so that it exists once only."""
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    spec = importlib.util.find_spec(file.stem) if file.stem.isidentifier() else None
    if spec is not None and spec.origin is not None and Path(spec.origin).resolve() == file:
        return importlib.import_module(file.stem)
    name = f"_own_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
