"""Bad input, as a new user would give it: one sentence that helps, a status that is not 0, nothing written."""

import json
import shutil

import pytest

TRAIN = [
    (("--data", "digit"), "`--data`", "digits"),
    (("--model", "resnet21"), "`--model`", "resnet20"),
    (("--model", "nowhere:make"), "`--model`", "nowhere"),
    (("--model", "lenet5"), "`size`", ">= 16"),
    (("--method", "ald", "--budget", "params=0.5"), "`--method`", "alds"),
    (("--method", "alds"), "`--budget`", "params=0.25"),
    (("--method", "alds", "--budget", "params=0.0001"), "`--budget`", "reachable"),
    (("--lr", "-1"), "`--lr`", "> 0"),
    (("--schedule", "step"), "`--schedule`", "multistep"),
    (("--schedule", "multistep", "--milestones", "a,b"), "`--milestones`", "30,45"),
    (("--precision", "fp17"), "`--precision`", "bf16"),
    (("--augment", "yes"), "`--augment`", "crop-flip"),
    (("--data", "fashion-mnist", "--data-root", "/nowhere"), "`--data-root`", "/nowhere"),
    (("--resume",), "no run at", "no such folder"),
]
COMPRESS = [
    ((), "`--budget`", "params=0.25"),
    (("--budget", "0.25"), "`--budget`", "params=VALUE"),
    (("--budget", "size=0.25"), "`--budget`", "size=0.25"),
    (("--budget", "params=few"), "`--budget params`", "few"),
    (("--budget", "params=1.5"), "`--budget params`", "(0, 1]"),
    (("--budget", "params=0.5", "--budget", "params=0.6"), "`--budget`", "once"),
    (("--budget", "params=0.0001"), "`--budget`", "reachable"),
    (("--budget", "params=0.5", "--method", "svdd"), "`--method`", "Did you mean 'svd'?"),
    (("--budget", "params=0.5", "--set", "measure=fro"), "`--set`", "--method"),
    (("--budget", "params=0.5", "--method", "alds", "--set", "mesure=fro"), "`mesure`", "measure"),
    (("--budget", "params=0.5", "--method", "alds", "--set", "measure=frob"), "`--set measure`", "fro"),
    (("--budget", "params=0.5", "--method", "alds", "--set", "slices=two"), "`--set slices`", "an integer"),
    (("--budget", "params=0.5", "--method", "alds", "--set", "measure"), "`--set`", "FIELD=VALUE"),
    (("--budget", "params=0.5", "--method", "alds", "--set", "slices=0"), "`slices`", ">= 1"),
    (("--budget", "params=0.5", "--target", "conv9"), "`--target`", "conv9"),
    (("--budget", "params=0.5", "--exclude", "("), "`--exclude`", "("),
    (("--budget", "params=0.5", "--finetune", "3"), "`--finetune`", "at most 2"),
    (("--budget", "params=0.5", "--finetune", "1", "--lr", "0"), "`--lr`", "> 0"),
    (("--budget", "params=0.5", "--finetune", "1", "--precision", "auto"), "`--precision`", "as the training was"),
]


def refused(result, *words):
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(("options", "first", "second"), TRAIN, ids=lambda x: " ".join(x) if type(x) is tuple else "")
def test_train_refuses(tenfold, tmp_path, options, first, second):
    refused(tenfold("train", "--epochs", 1, "--out", tmp_path / "run", *options), first, second)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "first", "second"), COMPRESS, ids=lambda x: " ".join(x) if type(x) is tuple else ""
)
def test_compress_refuses(tenfold, runs, files, options, first, second):
    before = files(runs)
    refused(tenfold("compress", runs / "a", "--out", runs / "c", *options), first, second)
    assert files(runs) == before
    assert not (runs / "c").exists()


def test_the_smallest_reachable_budget_is_reachable(tenfold, runs):
    sentence = tenfold("plan", runs / "a", "--budget", "params=0.0001").stderr
    reachable = sentence.partition("asked, ")[2].partition(" reachable")[0]
    assert tenfold("plan", runs / "a", "--budget", f"params={reachable}").exit_code == 0


@pytest.mark.parametrize("verb", ["eval", "bench", "doctor"])
def test_without_a_run_or_a_network_both_are_named(tenfold, verb):
    refused(tenfold(verb), "`RUN` must be given", "--model FILE.py:FACTORY")


@pytest.mark.parametrize("verb", [("eval",), ("bench",), ("plan", "--budget", "params=0.5")])
def test_a_missing_run_is_said_to_be_missing(tenfold, tmp_path, verb):
    refused(tenfold(verb[0], tmp_path / "nothing", *verb[1:]), "no run at", "no such folder")
    refused(tenfold(verb[0], tmp_path, *verb[1:]), "no run at", "no run.json")


def test_a_checkpoint_is_no_run(tenfold, runs):
    refused(tenfold("eval", runs / "a" / "checkpoint"), "format", "the folder of the whole run")


@pytest.mark.parametrize("text", ['{"format": "tenf', "[]", '{"format": "tenfold-run/1"}', '{"format": "x/9"}'])
def test_a_damaged_record_is_named(tenfold, runs, text):
    (runs / "b" / "run.json").write_text(text)
    refused(tenfold("eval", runs / "b"), "run.json")


def test_a_record_of_other_types_is_named(tenfold, runs):
    record = json.loads((runs / "b" / "run.json").read_text())
    (runs / "b" / "run.json").write_text(json.dumps(record | {"data": "digits"}))
    refused(tenfold("eval", runs / "b"), "run.json", "damaged")


def test_truncated_weights_are_named(tenfold, runs):
    weights = runs / "b" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    refused(tenfold("eval", runs / "b"), "model.safetensors", "truncated")


def test_missing_weights_are_named(tenfold, runs):
    (runs / "b" / "model" / "model.safetensors").unlink()
    refused(tenfold("eval", runs / "b"), "no weights")


def test_the_plan_of_another_model_is_refused(tenfold, runs):
    record = json.loads((runs / "b" / "run.json").read_text())
    (runs / "b" / "run.json").write_text(json.dumps(record | {"network": "resnet20"}))
    refused(tenfold("eval", runs / "b"), "for another model")


def test_other_data_than_then_is_refused(tenfold, runs):
    record = json.loads((runs / "b" / "run.json").read_text())
    record["data"]["checksum"] = "0" * 64
    (runs / "b" / "run.json").write_text(json.dumps(record))
    refused(tenfold("eval", runs / "b"), "digits", "other contents")


def test_a_run_is_not_overwritten_unless_told_to(tenfold, runs, files):
    before = files(runs)
    words = ("compress", runs / "a", "--method", "svd", "--budget", "params=0.5", "--out")
    refused(tenfold(*words, runs / "b"), "`--out`", "--force")
    refused(tenfold("train", "--out", runs / "b"), "`--out`", "--force")
    refused(tenfold(*words, runs / "a", "--force"), "`--out`", "another folder")
    refused(tenfold(*words, runs, "--force"), "`--out`", "another folder")
    assert files(runs) == before
    assert tenfold(*words, runs / "b", "--force").exit_code == 0
    assert files(runs / "a") == {k[2:]: v for k, v in before.items() if k.startswith("a/")}
    assert files(runs / "b") != {k[2:]: v for k, v in before.items() if k.startswith("b/")}


def test_other_peoples_files_are_never_replaced(tenfold, runs, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("...")
    (tmp_path / "file").write_text("...")
    words = ("compress", runs / "a", "--budget", "params=0.5", "--force", "--out")
    refused(tenfold(*words, tmp_path / "thesis"), "`--out`", "no run")
    refused(tenfold(*words, tmp_path / "file"), "`--out`")
    refused(tenfold(*words, tmp_path / "file" / "below"), "`--out`")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "..."


def test_an_empty_folder_may_be_used(tenfold, runs):
    (runs / "c").mkdir()
    words = ("--method", "svd", "--budget", "params=0.5", "--out", runs / "c")
    assert tenfold("compress", runs / "a", *words).exit_code == 0


def test_bench_needs_something_compressed(tenfold, runs):
    refused(tenfold("bench", runs / "a"), "no compressed layer", "tenfold compress")


def test_bench_refuses_a_device_that_is_not_there(tenfold, runs):
    refused(tenfold("bench", runs / "b", "--device", "toaster"), "`--device`", "toaster")


def test_debug_shows_the_traceback(tenfold, runs):
    shutil.rmtree(runs / "b" / "model")
    result = tenfold("eval", runs / "b", "--debug")
    assert result.exception is not None
    assert "not finished" in str(result.exception)


@pytest.mark.parametrize("words", [("evla",), ("train",), ("train", "--lr", "fast", "--out", "x")])
def test_what_cannot_be_parsed_exits_with_2(tenfold, words):
    result = tenfold(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
