"""A network that one already has, on the command line: a factory, weights, inputs and a score, by reference."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import tenfold as library
from tenfold.methods import get_method, list_methods
from tenfold.own_code import load_own

CODE = '''
import torch
from torch import nn

class Net(nn.Module):
    """Images of one channel, 24 x 17; no logits."""
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 24, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(24)
        self.fc = nn.Linear(24, 12)
    def forward(self, x):
        x = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return self.fc(x.mean((2, 3)))

class TwoIn(nn.Module):
    """Two inputs, a tuple and a dict out."""
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(20, 64), nn.Linear(30, 64), nn.Linear(64, 10)
    def forward(self, a, b):
        hidden = (self.a(a) + self.b(b)).relu()
        return self.c(hidden), {"hidden": hidden}

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.l1, self.l2 = nn.Embedding(50, 32), nn.Linear(32, 64), nn.Linear(64, 32)
    def forward(self, ids, mask=None):
        hidden = self.emb(ids) if mask is None else self.emb(ids) * mask.unsqueeze(-1)
        return {"out": self.l2(self.l1(hidden).relu()).mean(1)}

def batches():
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        yield torch.randn(8, 1, 24, 17, generator=generator), torch.zeros(8)

def score(model):
    assert not model.training
    return -float(sum(p.detach().abs().mean() for p in model.parameters()))

def kept(model):
    return sum(p.numel() for p in model.parameters()) / 2200

two_in = [(torch.ones(4, 20), torch.ones(4, 30))] * 2
named = [{"ids": torch.zeros(4, 9, dtype=torch.long), "mask": torch.ones(4, 9)}] * 2
unclear = [(torch.zeros(4, 9, dtype=torch.long), torch.zeros(4, 9))]
once = iter(two_in)
one = torch.ones(8, 1, 24, 17)
nothing = []

def fails(*_): raise KeyError("no such thing")
def words(model): return "good"
def nan(model): return float("nan")
def needy(depth): return Net()
def number(): return 3
'''


def refused(result, *words):
    assert result.exit_code == 1, result.output
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """A file of a user's, and weights of its ``Net``."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_nets.py").write_text(CODE)
    torch.manual_seed(3)
    state = load_own(f"{folder / 'own_nets.py'}:Net", "model")().state_dict()
    state |= {name: torch.rand_like(t) + 0.5 for name, t in state.items() if "bn" in name and t.is_floating_point()}
    torch.save(state, folder / "w.pt")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, folder / "parallel.pt")
    save_file(state, folder / "w.safetensors")
    return folder / "own_nets.py"


@pytest.fixture
def net(code):
    """The words that name ``Net`` with its weights."""
    return ("--model", f"{code}:Net", "--weights", code.with_name("w.pt"))


def trained(code):
    made = load_own(f"{code}:Net", "model")()
    made.load_state_dict(torch.load(code.with_name("w.pt"), weights_only=True))
    return made.eval()


@pytest.mark.filterwarnings("ignore:.*tell enough")
@pytest.mark.parametrize("name", sorted(list_methods()))
def test_the_command_line_gives_the_librarys_weights_bit_for_bit(tenfold, code, net, tmp_path, name):
    batches = list(load_own(f"{code}:batches", "inputs")())
    method, budget = get_method(name), library.Budget(params=0.6)
    words = ("--inputs", f"{code}:batches", "--method", name, "--budget", "params=0.6", "--out", tmp_path / "b")
    done = tenfold("compress", *net, *words, "--json")
    try:
        expected = library.compress(trained(code), method, budget, example_inputs=batches[0][0], data=batches)
    except library.TenfoldError as error:
        return refused(done, str(error).replace("`budget`", "`--budget`"))
    assert done.exit_code == 0, done.stderr
    saved, own = load_file(tmp_path / "b" / "model" / "model.safetensors"), expected.model.state_dict()
    assert set(saved) == set(own)
    assert all(torch.equal(saved[key], own[key]) for key in own)
    assert json.loads(done.stdout)["cost"]["kept"]["macs"] == expected.report.small.macs
    return None


def test_a_compressed_network_is_a_run_that_later_verbs_read(tenfold, code, net, tmp_path):
    words = ("--inputs", f"{code}:batches", "--score", f"{code}:score", "--method", "svd", "--budget", "macs=0.6")
    words += ("--norms", "reestimate")
    made = json.loads(tenfold("compress", *net, *words, "--out", tmp_path / "b", "--json").stdout)
    assert made["norms"]["examples"] == 24
    assert [s["stage"] for s in made["stages"]] == ["before", "right after compression", "batch norm re-estimated"]
    assert made["cost"]["share"]["macs"] <= 0.6
    record = json.loads((tmp_path / "b" / "run.json").read_text())
    assert (record["network"], record["inputs"], record["score"]) == tuple(
        f"{code}:{name}" for name in ("Net", "batches", "score")
    )
    assert record["weights"]["file"] == str(code.with_name("w.pt"))
    assert len(record["weights"]["checksum"]) == 64
    found = json.loads(tenfold("eval", tmp_path / "b", "--trust", "--json").stdout)
    assert found["score"] == made["stages"][-1]["score"]
    assert found["cost"] == made["cost"]
    bench = tenfold("bench", tmp_path / "b", "--trust", "--runtime", "eager", "--rounds", 3, "--json")
    assert [row["batch"] for row in json.loads(bench.stdout)["latency"]] == [8]
    again = tenfold("compress", tmp_path / "b", "--trust", "--budget", "params=0.5", "--out", tmp_path / "c", "--json")
    assert json.loads(again.stdout)["cost"]["share"]["params"] <= 0.5
    assert json.loads((tmp_path / "c" / "run.json").read_text())["weights"] == record["weights"]


OPENING = [
    ("eval",),
    ("bench",),
    ("doctor",),
    ("plan", "--budget", "params=0.5"),
    ("export", "--out", "OUT"),
    ("compress", "--budget", "params=0.5", "--out", "OUT"),
]


@pytest.mark.parametrize("verb", OPENING, ids=lambda words: words[0])
def test_code_that_only_a_folder_names_never_runs(tenfold, code, net, tmp_path, verb):
    assert tenfold("compress", *net, "--budget", "params=0.6", "--out", tmp_path / "b").exit_code == 0
    trap, sprung = tmp_path / "trap.py", tmp_path / "sprung"
    trap.write_text(f"open({str(sprung)!r}, 'w')\ndef f(*_): pass\n")
    file = tmp_path / "b" / "run.json"
    plain = json.loads(file.read_text())
    words = [tmp_path / "out" if word == "OUT" else word for word in verb]
    for key, option in (("network", "--model"), ("inputs", "--inputs"), ("score", "--score"), ("data", "--data")):
        value = f"{trap}:f" if key != "data" else {"name": f"{trap}:f", "root": None, "checksum": ""}
        file.write_text(json.dumps(plain | {key: value}))
        vouched = () if key == "network" else ("--model", f"{code}:Net")  # its word goes no further than its file
        refused(tenfold(words[0], tmp_path / "b", *words[1:], *vouched), "your word", "trap.py:f", "--trust", option)
    assert not sprung.exists()
    file.write_text(json.dumps(plain | {"score": f"{trap}:f"}))
    refused(tenfold("eval", tmp_path / "b", "--trust"), "`--score`", "returned None")
    assert sprung.exists()


def test_naming_the_file_again_is_the_users_word(tenfold, code, net, tmp_path):
    words = ("--inputs", f"{code}:batches", "--score", f"{code}:score", "--budget", "params=0.6", "--out")
    assert tenfold("compress", *net, *words, tmp_path / "b").exit_code == 0
    refused(tenfold("eval", tmp_path / "b"), "your word", "--model and --inputs and --score")
    assert tenfold("eval", tmp_path / "b", "--model", f"{code}:Net").exit_code == 0
    moved = tmp_path / "moved.py"
    moved.write_text(CODE)
    refused(tenfold("eval", tmp_path / "b", "--model", f"{moved}:Net"), "your word", "own_nets.py:score")
    given = ("--model", f"{moved}:Net", "--inputs", f"{moved}:batches", "--score", f"{moved}:score")
    assert tenfold("eval", tmp_path / "b", *given).exit_code == 0
    refused(tenfold("eval", tmp_path / "b", "--model", f"{code}:TwoIn", "--trust"), "plan is for another model")


@pytest.mark.parametrize(("model", "inputs"), [("TwoIn", "two_in"), ("Named", "named")])
def test_inputs_may_be_several_or_named(tenfold, code, tmp_path, model, inputs):
    words = ("--model", f"{code}:{model}", "--inputs", f"{code}:{inputs}")
    cut = ("--method", "pca", "--budget", "macs=0.7")
    planned = json.loads(tenfold("plan", *words, *cut, "--json").stdout)
    assert planned["cost"]["share"]["macs"] <= 0.7
    made = tenfold("compress", *words, *cut, "--out", tmp_path / "b")
    assert made.exit_code == 0, made.stderr
    assert "was not measured" in made.stdout
    timed = tenfold(
        "bench",
        tmp_path / "b",
        "--trust",
        "--runtime",
        "eager",
        "--rounds",
        3,
        "--batch-size",
        2,
        "--batch-size",
        8,
        "--json",
    )
    assert [row["batch"] for row in json.loads(timed.stdout)["latency"]] == [2, 8]
    doctor = json.loads(tenfold("doctor", *words, "--rungs", 2, "--rounds", 3, "--json").stdout)
    assert doctor["batch"] == 4
    file = tmp_path / "b.pt2"
    done = tenfold("export", tmp_path / "b", "--trust", "--format", "torch-export", "--out", file, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["input"].keys() == {"shape"}


@pytest.mark.parametrize("file", ["w.pt", "w.safetensors", "parallel.pt"])
def test_every_form_of_weights_is_the_same_network(tenfold, code, file):
    words = ("--model", f"{code}:Net", "--weights", code.with_name(file), "--score", f"{code}:score")
    found = json.loads(tenfold("eval", *words, "--json").stdout)
    assert found["score"] == load_own(f"{code}:score", "score")(trained(code))
    assert found["cost"]["dense"] == found["cost"]["kept"]


def test_the_guard_keeps_a_score_of_the_users_own(tenfold, code, net, tmp_path):
    words = ("--inputs", f"{code}:batches", "--score", f"{code}:kept", "--method", "svd", "--guard", -30)
    made = json.loads(tenfold("compress", *net, *words, "--resolution", 0.1, "--out", tmp_path / "b", "--json").stdout)
    before, *_, last = made["stages"]
    assert made["guard"]["least"] == pytest.approx(before["score"] - 0.3)
    assert made["guard"]["least"] <= last["score"] < before["score"]


def test_norms_that_keep_their_statistics_are_said(tenfold, net, tmp_path):
    made = tenfold("compress", *net, "--budget", "params=0.6", "--out", tmp_path / "b")
    assert "Batch norm keeps" in made.stdout


REFUSED = [
    (("compress", "--model", "CODE:Net", "--budget", "macs=0.5"), "`--inputs` must be given", "a budget on macs"),
    (("compress", "--model", "CODE:Net", "--budget", "params=0.5", "--method", "pca"), "`--inputs` must be", "pca"),
    (("compress", "--model", "CODE:Net", "--guard", "-1"), "`--score` must be given", "--guard"),
    (("compress", "--model", "CODE:Net", "--budget", "params=0.5", "--finetune", "2"), "`--finetune`", "--data"),
    (("compress", "--model", "CODE:Net", "--budget", "params=0.5", "--batch-size", "2"), "`--batch-size`", "--data"),
    (("plan", "--model", "CODE:Named", "--inputs", "CODE:unclear", "--budget", "macs=0.5"), "`--inputs`", "ambiguous"),
    (("plan", "--model", "CODE:Net", "--inputs", "CODE:once", "--budget", "macs=0.5"), "`--inputs`", "more than once"),
    (("plan", "--model", "CODE:Net", "--inputs", "CODE:one", "--budget", "macs=0.5"), "`--inputs`", "[x]"),
    (("plan", "--model", "CODE:Net", "--inputs", "CODE:nothing", "--budget", "macs=0.5"), "`--inputs`", "one batch"),
    (("plan", "--model", "CODE:Net", "--inputs", "CODE:fails", "--budget", "macs=0.5"), "`--inputs`", "KeyError"),
    (("plan", "--model", "CODE:Net", "--inputs", "CODE:two_in", "--budget", "macs=0.5"), "`--inputs`", "accepts"),
    (("eval", "--model", "CODE:Net"), "`--score` must be given", "--score FILE.py:FUNCTION"),
    (("eval", "--model", "CODE:Net", "--score", "CODE:words"), "`--score`", "'good'"),
    (("eval", "--model", "CODE:Net", "--score", "CODE:nan"), "`--score`", "finite"),
    (("eval", "--model", "CODE:Net", "--score", "CODE:fails"), "`--score`", "no such thing"),
    (("eval", "--model", "CODE:Net", "--score", "CODE:two_in"), "`--score`", "function"),
    (("eval", "--model", "CODE:Nett", "--score", "CODE:score"), "`--model`", "Net"),
    (("eval", "--model", "CODE:needy", "--score", "CODE:score"), "`--model`", "depth"),
    (("eval", "--model", "CODE:number", "--score", "CODE:score"), "`--model`", "returned int"),
    (("eval", "--model", "CODE:fails", "--score", "CODE:score"), "`--model`", "no such thing"),
    (("eval", "--model", "nowhere.py:f", "--score", "CODE:score"), "`--model`", "no file"),
    (("eval", "--model", "no_such_module:f", "--score", "CODE:score"), "`--model`", "no_such_module"),
    (("eval", "--model", "resnet20", "--score", "CODE:score"), "`--data` must be given", "resnet20"),
    (("eval", "--model", "CODE:Net", "--weights", "no.pt", "--score", "CODE:score"), "`--weights`", "no.pt"),
    (("eval", "--model", "CODE:TwoIn", "--weights", "w.pt", "--score", "CODE:score"), "`--weights`", "'a.weight'"),
    (("bench", "--model", "CODE:Net"), "`--inputs` must be given", "timed"),
    (("bench", "--model", "CODE:Net", "--inputs", "CODE:batches"), "no compressed layer", "tenfold compress"),
    (("doctor", "--model", "CODE:Net"), "`--inputs` must be given", "--inputs FILE.py:NAME"),
    (("export", "--model", "CODE:Net", "--out", "x.onnx"), "`--inputs` must be given", "--data"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "first", "second"), REFUSED, ids=lambda x: " ".join(x) if type(x) is tuple else "")
def test_what_is_missing_or_wrong_is_one_sentence(tenfold, code, tmp_path, monkeypatch, words, first, second):
    monkeypatch.chdir(code.parent)
    out = ("--out", tmp_path / "b") if words[0] == "compress" else ()
    refused(tenfold(*(word.replace("CODE", str(code)) for word in words), *out), first, second)
    assert list(tmp_path.iterdir()) == []


def test_weights_never_run_code(tenfold, code, tmp_path):
    torch.save(trained(code), tmp_path / "whole.pt")
    words = ("--model", f"{code}:Net", "--score", f"{code}:score", "--weights")
    refused(tenfold("eval", *words, tmp_path / "whole.pt"), "`--weights`", "Python objects")
    torch.save({"epoch": 3}, tmp_path / "odd.pt")
    refused(tenfold("eval", *words, tmp_path / "odd.pt"), "`--weights`", "state dict", "epoch")


def test_a_run_has_its_own_weights(tenfold, runs, code):
    refused(tenfold("eval", runs / "b", "--weights", code.with_name("w.pt")), "`--weights`", "its own")


def test_a_file_may_import_what_lies_beside_it(tmp_path):
    (tmp_path / "beside.py").write_text("WIDTH = 30\n")
    (tmp_path / "own.py").write_text(
        "from torch import nn\nfrom beside import WIDTH\ndef make():\n    return nn.Linear(WIDTH, 40)\n"
        "def score(model):\n    return model.in_features\n"
    )
    words = ["eval", "--model", "own.py:make", "--score", "own.py:score", "--json"]
    call = [sys.executable, "-m", "tenfold", *words]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["score"] == 30


def test_refit_and_steps_without_labels_are_the_librarys_and_their_figures_are_shown(tenfold, code, net, tmp_path):
    batches = list(load_own(f"{code}:batches", "inputs")())
    words = ("--inputs", f"{code}:batches", "--method", "svd", "--budget", "params=0.6", "--out", tmp_path / "b")
    done = tenfold("compress", *net, *words, "--refit", "both", "--distill-steps", 3, "--json")
    assert done.exit_code == 0, done.stderr
    dense = trained(code)
    expected = library.compress(dense, library.SVD(), library.Budget(params=0.6), data=batches, refit="both")
    library.distill(expected.model, dense, batches, steps=3)
    saved, own = load_file(tmp_path / "b" / "model" / "model.safetensors"), expected.model.state_dict()
    assert all(torch.equal(saved[key], own[key]) for key in own)
    body = json.loads(done.stdout)
    assert (body["refit"], body["distill_steps"]) == ("both", 3)
    error = body["output_error"]
    assert error["refitted"] < error["built"]
    assert {"refit", "distill"} <= set(body["seconds"])
    record = json.loads((tmp_path / "b" / "run.json").read_text())
    assert (record["refit"], record["distill_steps"]) == ("both", 3)
    table = tenfold("compress", *net, *words, "--refit", "last", "--score", f"{code}:score", "--force").stdout
    for word in ("Error of the outputs: built", "refitted (last factors)"):
        assert word in table
    assert "re-estimated" not in table


def test_refit_and_steps_without_data_are_refused(tenfold, net, tmp_path):
    for words in (("--refit", "both"), ("--distill-steps", 5)):
        done = tenfold("compress", *net, "--budget", "params=0.6", *words, "--out", tmp_path / "b")
        refused(done, "`--inputs` must be given for", *map(str, words), "looks at data")
    done = tenfold("compress", *net, "--budget", "params=0.6", "--refit", "all", "--out", tmp_path / "b")
    refused(done, "`--refit` must be 'last', 'both' or None; got 'all'")


@pytest.mark.filterwarnings("ignore:.*tell enough")
@pytest.mark.parametrize("verb", ["plan", "compress"])
def test_where_no_method_is_named_data_are_looked_at_if_there_are_any(tenfold, code, net, runs, tmp_path, verb):
    """A data set, or inputs; by weights alone where there is neither."""
    inputs, limit = ("--inputs", f"{code}:batches"), ("--budget", "params=0.6", "--json")
    for number, (named, method) in enumerate(
        {(*net, *inputs): "calibrated", net: "alds", (runs / "a",): "calibrated"}.items()
    ):
        out = ("--out", tmp_path / str(number)) if verb == "compress" else ()
        done = tenfold(verb, *named, *limit, *out)
        assert done.exit_code == 0, done.stderr
        assert json.loads(done.stdout)["method"]["method"] == method
