"""From words to values."""

from collections.abc import Sequence
from typing import Literal

import pytest

import tenfold
from tenfold.cli import parse
from tenfold.cli.docs import arguments, field_docs
from tenfold.cli.option_names import options_for
from tenfold.plans.rendering import short
from tenfold.train import Recipe


def test_a_point_makes_a_fraction():
    assert parse.budget(["params=0.25"]) == tenfold.Budget(params=0.25)
    assert parse.budget(["params=250_000"]) == tenfold.Budget(params=250_000)
    assert parse.budget(["params=1.0", "macs=2"]) == tenfold.Budget(params=1.0, macs=2)
    assert parse.budget(["params=25%", "macs=50 %"]) == tenfold.Budget(params=0.25, macs=0.5)
    assert parse.budget([]) is None


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("3", int, 3),
        ("0.5", float, 0.5),
        ("word", str, "word"),
        ("true", bool, True),
        ("none", int | None, None),
        ("3", int | None, 3),
        ("3", str | int, 3),
        ("2.5", int | float, 2.5),
        ("epoch", Literal["epoch"] | int, "epoch"),
        ("1,2,4", Sequence[int] | None, (1, 2, 4)),
        ("(1, 2)", tuple[int, ...], (1, 2)),
        ("channel", tuple[str, ...], ("channel",)),
    ],
)
def test_words_become_values_of_the_fields_type(text, hint, value):
    found = parse.convert(text, hint)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "hint"), [("x", int), ("x", int | None), ("maybe", bool), ("c", Literal["a", "b"]), ("x", tenfold.Budget)]
)
def test_words_of_another_type_are_refused(text, hint):
    with pytest.raises(ValueError, match=r".*"):
        parse.convert(text, hint)


def test_methods_are_made_from_words_and_from_their_record():
    made = parse.method("alds", ["measure=fro", "slices=1,2"])
    assert made == tenfold.ALDS(measure="fro", slices=(1, 2))
    assert parse.recorded_method(made.to_dict()) == made


def test_a_selection_is_a_list_of_names_or_one_pattern():
    assert parse.selection([]) is None
    assert parse.selection(["conv1", "layer1.0.conv2"]) == ["conv1", "layer1.0.conv2"]
    net = tenfold.build_model("resnet20")
    chosen = tenfold.plan(
        net, tenfold.SVD(), tenfold.Budget(params=0.999), target_modules=parse.selection([r"layer1\..*", "0.conv2"])
    )
    left = {name for name, layer in chosen.layers.items() if layer.reason == "not in target_modules"}
    assert {name for name in chosen.layers if name.startswith("layer1.") or name.endswith(".0.conv2")} == (
        set(chosen.layers) - left
    )


def test_help_texts_come_from_the_docstring():
    assert set(arguments(Recipe)) == set(Recipe.__dataclass_fields__)
    assert [f.name for f in field_docs(tenfold.SVDEnergy)] == ["fold", "negligible", "ends"]


def test_arguments_are_called_by_their_options():
    assert options_for("`lr` must be > 0, `rank` not.", {"lr": "--lr"}) == "`--lr` must be > 0, `rank` not."


def test_counts_are_shown_with_three_digits():
    assert [short(n) for n in (7, 999, 1000, 73_728, 589_824, 1_789_184)] == [
        "7",
        "999",
        "1.00k",
        "73.7k",
        "590k",
        "1.79M",
    ]
