"""Work that waits for another package: done once it is there, and nothing is left behind."""

import sys
from pathlib import Path

import pytest

from tenfold.when_imported import when_imported


def test_work_waits_for_a_module_and_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "awaited_part.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finders, done = list(sys.meta_path), []
    when_imported("awaited_part", lambda: done.append(sys.modules["awaited_part"].value))
    assert done == []
    import awaited_part  # pyright: ignore[reportMissingImports]

    assert done == [1]
    assert sys.meta_path == finders
    assert "exec_module" not in vars(awaited_part.__spec__.loader)
    when_imported("awaited_part", lambda: done.append(2))
    assert done == [1, 2]
    del sys.modules["awaited_part"]
    when_imported("awaited_missing", lambda: done.append(3))
    with pytest.raises(ModuleNotFoundError):
        import awaited_missing  # noqa: F401  # pyright: ignore[reportMissingImports]
    assert done == [1, 2]
    assert sys.meta_path == finders
