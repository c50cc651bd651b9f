"""Further ways to compress a run: by a guard, by a plan that was edited, with a teacher."""

import json

import pytest

from tenfold.plans.plan import Plan


def refused(result, *words):
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def test_the_guard_takes_the_smallest_probe_that_is_enough(tenfold, runs):
    words = ("compress", runs / "a", "--method", "svd", "--guard", "-30", "--resolution", "0.2", "--out", runs / "c")
    made = json.loads(tenfold(*words, "--json").stdout)
    guard, stages = made["guard"], {s["stage"]: s["validation"]["accuracy"] for s in made["stages"]}
    assert guard["least"] == pytest.approx(stages["before"] - 0.3)
    enough = [p for p in guard["probes"] if p["enough"]]
    assert all((p["score"] >= guard["least"]) == p["enough"] for p in guard["probes"])
    taken = min(enough, key=lambda p: p["budget"])
    assert made["cost"]["share"]["params"] == pytest.approx(taken["kept"])
    assert stages["batch norm re-estimated"] == taken["score"]  # what was measured is what is saved
    assert json.loads((runs / "c" / "run.json").read_text())["guard"] == -30
    table = tenfold(*words, "--force").stdout
    for word in ("Guard -30 points", "Budget", "Enough"):
        assert word in table


def test_an_edited_plan_is_built_as_written(tenfold, runs, tmp_path):
    file = tmp_path / "plan.json"
    words = ("plan", runs / "a", "--method", "svd", "--budget", "params=0.4", "--out", file)
    assert json.loads(tenfold(*words, "--json").stdout)["file"] == str(file)
    refused(tenfold(*words), "`--out`", "--force")
    edited = Plan.from_json(file.read_text()).edit("conv3", rank=9).edit("linear", decomposition="dense")
    file.write_text(edited.to_json())
    words = ("compress", runs / "a", "--plan", file, "--out", runs / "c", "--json")
    made = json.loads(tenfold(*words).stdout)
    assert made["cost"]["kept"] == {"params": edited.params, "macs": edited.macs}
    assert made["plan"]["layers"]["conv3"]["rank"] == 9
    assert made["method"] == {"method": "svd"}
    assert tenfold("eval", runs / "c").exit_code == 0
    assert tenfold("plan", runs / "c", "--budget", "params=0.5").exit_code == 0


def test_a_rank_that_saves_nothing_warns(tenfold, runs, tmp_path):
    file = tmp_path / "plan.json"
    tenfold("plan", runs / "a", "--method", "svd", "--budget", "params=0.4", "--out", file)
    file.write_text(Plan.from_json(file.read_text()).edit("conv3", rank=64).to_json())
    made = tenfold("compress", runs / "a", "--plan", file, "--out", runs / "c")
    assert made.exit_code == 0
    assert "warning: 'conv3' at rank 64" in made.stderr


def test_the_run_teaches_its_recovery(tenfold, runs):
    words = ("compress", runs / "a", "--method", "svd", "--budget", "params=0.4", "--finetune", 1, "--json", "--out")
    taught = json.loads(tenfold(*words, runs / "c", "--distill", 0.5, "--temperature", 2).stdout)
    assert (taught["recovery"]["distill"], taught["recovery"]["temperature"]) == (0.5, 2.0)
    assert taught["recovery"]["epochs"] == 1
    alone = json.loads((runs / "b" / "results.json").read_text())
    assert taught["stages"][:3] == alone["stages"][:3]
    assert taught["history"][0]["loss"] != alone["history"][0]["loss"]
    record = json.loads((runs / "c" / "run.json").read_text())
    assert record["recovery"] == taught["recovery"]
    assert record["recipe"]["distill"] == 0  # of the training


def test_data_aware_methods_get_training_data(tenfold, runs):
    words = (runs / "a", "--method", "pca", "--budget", "params=0.5")
    assert tenfold("plan", *words).exit_code == 0
    made = tenfold("compress", *words, "--out", runs / "c")
    assert made.exit_code == 0
    held = json.loads((runs / "c" / "results.json").read_text())["plan"]["calibration_bytes"]
    assert f"Calibration took up to {held / 1e6:.1f} MB of memory." in made.stdout
    assert held > 0
    assert tenfold("eval", runs / "c").exit_code == 0
    refused(tenfold("plan", *words, "--out", runs / "plan.json"), "`--out`", "pca", "data")


REFUSED = [
    (("--guard", "1"), "`--guard`", "-1.0"),
    (("--guard", "-100"), "`--guard`", "(-100, 0]"),
    (("--guard", "-1", "--budget", "params=0.5"), "`--guard`", "without --budget"),
    (("--guard", "-1", "--resolution", "0"), "`--resolution`", "0.0001"),
    (("--guard", "0", "--method", "dense"), "no budget below 100 %", "dense"),
    (("--plan", "nowhere.json"), "`--plan`", "nowhere.json"),
    (("--plan", "RUNS/b"), "`--plan`", "model/plan.json"),
    (("--plan", "RUNS/b/run.json"), "`--plan`", "`format`"),
    (("--plan", "RUNS/b/model/plan.json", "--method", "svd"), "`--plan`", "--method"),
    (("--plan", "RUNS/b/model/plan.json", "--target", "conv1"), "`--plan`", "--target"),
    (("--plan", "RUNS/b/model/plan.json", "--guard", "-1"), "`--plan`", "--guard"),
    (("--budget", "params=0.5", "--distill", "0.5"), "`--distill`", "--finetune"),
    (("--budget", "params=0.5", "--finetune", "1", "--distill", "2"), "`--distill`", "[0, 1]"),
    (("--budget", "params=0.5", "--finetune", "1", "--temperature", "2"), "`--temperature`", "--distill"),
    (("--budget", "params=0.5", "--finetune", "1", "--distill", "1", "--temperature", "0"), "`--temperature`", "> 0"),
]


@pytest.mark.parametrize(("options", "first", "second"), REFUSED, ids=lambda x: " ".join(x) if type(x) is tuple else "")
def test_what_does_not_go_together_is_refused(tenfold, runs, options, first, second):
    words = [option.replace("RUNS", str(runs)) for option in options]
    refused(tenfold("compress", runs / "a", "--out", runs / "c", *words), first, second)
    assert not (runs / "c").exists()


def test_the_plan_of_another_network_is_refused(tenfold, runs, tmp_path):
    text = (runs / "b" / "model" / "plan.json").read_text().replace('"conv3"', '"conv9"')
    (tmp_path / "plan.json").write_text(text)
    words = ("--plan", tmp_path / "plan.json", "--out", runs / "c")
    refused(tenfold("compress", runs / "a", *words), "for another model", "conv9")


def test_training_offers_no_teacher(tenfold, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert "--distill" not in tenfold("train", "--help").stdout
    assert "--distill" in tenfold("compress", "--help").stdout


def test_the_guard_measures_what_is_refitted(tenfold, runs):
    words = ("--method", "svd", "--guard", "-30", "--resolution", "0.4", "--refit", "last", "--out", runs / "c")
    made = json.loads(tenfold("compress", runs / "a", *words, "--json").stdout)
    stages = {s["stage"]: s["validation"]["accuracy"] for s in made["stages"]}
    taken = min((p for p in made["guard"]["probes"] if p["enough"]), key=lambda p: p["budget"])
    assert stages["refitted (last factors)"] == pytest.approx(taken["score"], abs=0.02)
