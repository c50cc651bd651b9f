"""Finding methods by file, and building them by name."""

import pytest

import tenfold
from methods.drop_in import methods_from
from tenfold.methods.contract.method import Method

FILE = '''
from dataclasses import dataclass
from typing import ClassVar

from tenfold.methods.contract.method import Method
from tenfold.methods.dense import Dense as Imported


@dataclass(frozen=True)
class Half(Method):
    """Abstract: `plan` is missing."""

    name: ClassVar[str] = "half"


@dataclass(frozen=True)
class Whole(Imported):
    """A method of its own."""

    number: int = 3

    name: ClassVar[str] = "{name}"
'''


@pytest.fixture
def folder(tmp_path):
    with methods_from(tmp_path):
        yield tmp_path


def test_the_methods_of_the_library_are_found():
    found = tenfold.list_methods()
    assert {"alds", "svd", "dense"} <= set(found)
    assert list(found) == sorted(found)
    assert found["alds"] is tenfold.ALDS
    assert all(issubclass(cls, Method) and cls.name == name for name, cls in found.items())


def test_a_file_in_the_folder_is_a_method(folder):
    (folder / "throwaway.py").write_text(FILE.format(name="whole"))
    found = tenfold.list_methods()
    assert found["whole"].__module__ == "tenfold.methods.throwaway"
    assert "half" not in found
    assert found["dense"] is tenfold.Dense
    assert tenfold.get_method("whole", number=4).number == 4


def test_two_methods_of_one_name_are_refused(folder):
    (folder / "throwaway.py").write_text(FILE.format(name="svd"))
    with pytest.raises(tenfold.TenfoldError, match=r"'svd' is in tenfold\.methods\.throwaway and another file"):
        tenfold.list_methods()


def test_a_method_is_built_with_its_fields():
    assert tenfold.get_method("alds") == tenfold.ALDS()
    assert tenfold.get_method("alds", measure="rss", slices=[1, 2]) == tenfold.ALDS(measure="rss", slices=(1, 2))


@pytest.mark.parametrize(
    ("name", "message"), [("ald", "got 'ald'. Did you mean 'alds'?"), ("zzz", "got 'zzz'."), ("", "got ''.")]
)
def test_an_unknown_name_lists_the_known_ones(name, message):
    with pytest.raises(tenfold.ArgumentError) as caught:
        tenfold.get_method(name)
    known = ", ".join(tenfold.list_methods())
    assert str(caught.value).startswith(f"`method` must be one of {known}, or FILE.py:CLASS; ")
    assert str(caught.value).endswith(message)


def test_an_unknown_field_lists_the_known_ones():
    with pytest.raises(tenfold.ArgumentError, match="`measures` is no field of alds; it has: measure, slices, folds"):
        tenfold.get_method("alds", measures="max")
    with pytest.raises(tenfold.ArgumentError, match="`fold` is no field of dense; it has: none"):
        tenfold.get_method("dense", fold="channel")


def test_a_value_out_of_range_is_named():
    with pytest.raises(tenfold.ArgumentError, match="`measure` must be one of max, spectral"):
        tenfold.get_method("alds", measure="mean")
