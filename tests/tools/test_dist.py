"""The wheel holds the whole package, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIST = """
from setuptools import Distribution
made = Distribution({"script_name": "setup.py"})
made.parse_config_files(["pyproject.toml"])
made.include_package_data = False  # what the configuration names, not what lies about
command = made.get_command_obj("build_py")
command.ensure_finalized()
for line in command.get_outputs(include_bytecode=False):
    print(line)
"""
"""What setuptools would put into a wheel, without building one."""


def test_every_file_of_the_package_is_in_the_wheel_and_nothing_else() -> None:
    done = subprocess.run([sys.executable, "-c", LIST], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [Path(line).parts for line in done.stdout.splitlines() if line.startswith("build")]
    wheel = {Path(*parts[parts.index("lib") + 1 :]) for parts in lines}
    files = {f.relative_to(ROOT / "src") for f in (ROOT / "src" / "tenfold").rglob("*") if f.is_file()}
    package = {file for file in files if file.suffix != ".pyc"}
    assert wheel == package
    assert {Path("tenfold/py.typed"), Path("tenfold/bench/report/page.css")} <= wheel


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no clone")
def test_nothing_that_is_made_along_is_kept_in_the_repository() -> None:
    words = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""
