"""The picture of the spectra is whole and shows what the plans chose."""

import matplotlib.figure
import torch
from matplotlib import image

import tenfold
from tenfold.bench.picture import draw_spectra


def test_every_layer_has_a_panel_and_every_plan_a_mark(tmp_path, monkeypatch):
    seen = []
    init = matplotlib.figure.Figure.__init__

    def recording(self, *args, **kwargs):
        seen.append(self)
        init(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "__init__", recording)
    problem = tenfold.survey(tenfold.build_model("cnn", 10, 1, 8))
    plans = {
        "A": tenfold.ALDS().plan(problem, tenfold.Budget(params=0.3)),
        "B": tenfold.SVD().plan(problem, tenfold.Budget(params=0.3)),
    }
    draw_spectra(problem, plans, tmp_path / "sub" / "spectra.png")

    assert min(image.imread(tmp_path / "sub" / "spectra.png").shape[:2]) > 500
    panels = seen[0].axes
    assert [p.get_title().split()[0] for p in panels] == [site.name for site in problem.sites]
    for panel, site in zip(panels, problem.sites, strict=True):
        assert panel.get_yscale() == "log"
        labels = [text.get_text() for text in panel.get_legend().get_texts()]
        for label, (name, plan) in zip(labels, plans.items(), strict=True):
            layer = plan.layers[site.name]
            assert label.startswith(f"{name}: " + ("dense" if layer.rank is None else f"rank {layer.rank}"))


def test_a_layer_of_zeros_can_be_drawn(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    torch.nn.init.zeros_(net[0].weight)
    problem = tenfold.survey(net)
    plan = tenfold.SVD().plan(problem, tenfold.Budget(params=0.8))
    draw_spectra(problem, {"SVD": plan}, tmp_path / "spectra.png")
    assert (tmp_path / "spectra.png").stat().st_size > 0
