"""Networks of other libraries: built with our sizes where the library is there, one sentence where it is not."""

import logging
import sys
import types

import pytest
import torch
from torch import nn

from tenfold.errors import TenfoldError
from tenfold.train import build_model

# ---- transformers: the real library, tiny networks


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny trained classifier of 8x8 RGB images with five classes, as transformers saves one; in half precision."""
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**shape, image_size=8, patch_size=4, num_labels=5)
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config).half()
    folder = tmp_path_factory.mktemp("vit")
    model.save_pretrained(folder)
    return folder, model.float().eval()


def test_a_saved_classifier_gives_its_logits_in_float32(checkpoint):
    folder, saved = checkpoint
    model = build_model(f"hf:{folder}", 5, 3, 8)
    assert model.training
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model.eval()(x), saved(pixel_values=x).logits)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_another_number_of_classes_replaces_the_head_alone(checkpoint):
    folder, saved = checkpoint
    model = build_model(f"hf:{folder}", 7, 3, 8)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 7)
    old = saved.state_dict()
    new = {key.removeprefix("model."): value for key, value in model.state_dict().items()}
    assert {key for key in old if not torch.equal(old[key], new[key])} == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(("channels", "size", "says"), [(1, 8, "`channels` must be 3"), (3, 32, "`size` must be 8")])
def test_trained_weights_keep_their_image_size(checkpoint, channels, size, says):
    with pytest.raises(TenfoldError, match=says):
        build_model(f"hf:{checkpoint[0]}", 5, channels, size)


def test_a_configuration_without_weights_is_built_in_the_sizes_asked_for(checkpoint, tmp_path):
    (tmp_path / "config.json").write_bytes((checkpoint[0] / "config.json").read_bytes())
    model = build_model(f"hf:{tmp_path}", 4, 1, 12)
    assert model(torch.randn(2, 1, 12, 12)).shape == (2, 4)


def test_what_is_no_classifier_of_transformers_says_why(checkpoint, tmp_path):
    with pytest.raises(TenfoldError, match=r"image classifier of transformers.*nowhere.*hf download"):
        build_model(f"hf:{tmp_path}/nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(TenfoldError, match="image classifier"):
        build_model(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_bytes((checkpoint[0] / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(TenfoldError, match="deserializing"):
        build_model(f"hf:{tmp_path}", 5, 3, 8)


# ---- timm and torchvision: stand-ins with their interface


class Built(nn.Linear):
    """Remembers how it was asked for."""

    def __init__(self, name, **options):
        super().__init__(1, 1)
        self.name, self.options = name, options


@pytest.fixture
def timm(monkeypatch):
    def create_model(name, *, pretrained, num_classes, in_chans, **options):
        if options and not name.startswith("vit"):
            raise TypeError("__init__() got an unexpected keyword argument 'img_size'")
        if options.get("img_size", 32) % 16:
            raise AssertionError("Image height doesn't match")
        return Built(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans, **options)

    names = ["vit_tiny_patch16_224", "resnet18"]
    stub = types.ModuleType("timm")
    stub.create_model, stub.is_model, stub.list_models = create_model, names.__contains__, lambda: names
    monkeypatch.setitem(sys.modules, "timm", stub)


def test_timm_gets_our_sizes(timm):
    sizes = {"pretrained": False, "num_classes": 7, "in_chans": 2}
    assert build_model("timm:resnet18", 7, 2, 48).options == sizes
    assert build_model("timm:vit_tiny_patch16_224", 7, 2, 48).options == {**sizes, "img_size": 48}


def test_timm_refusals_name_the_network(timm):
    with pytest.raises(TenfoldError, match=r"'timm:resnet17'.*Nearest: resnet18"):
        build_model("timm:resnet17")
    with pytest.raises(TenfoldError, match=r"cannot build 'vit_tiny_patch16_224'.*Image height"):
        build_model("timm:vit_tiny_patch16_224", size=40)


@pytest.fixture
def torchvision(monkeypatch):
    stub = types.ModuleType("torchvision.models")
    stub.list_models = lambda module: ["resnet18", "vit_b_16", "googlenet"] if module is stub else ["fcn_resnet50"]
    stub.get_model = Built
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", stub)


def test_torchvision_gets_our_sizes_and_no_auxiliary_heads(torchvision):
    plain = {"weights": None, "num_classes": 7}
    assert build_model("torchvision:resnet18", 7, 3, 64).options == plain
    assert build_model("torchvision:vit_b_16", 7, 3, 64).options == {**plain, "image_size": 64}
    assert build_model("torchvision:googlenet", 7, 3, 64).options["aux_logits"] is False


def test_torchvision_refusals(torchvision):
    with pytest.raises(TenfoldError, match=r"'torchvision:fcn_resnet50'"):
        build_model("torchvision:fcn_resnet50")
    with pytest.raises(TenfoldError, match=r"`channels` must be 3 for torchvision:resnet18; got 1"):
        build_model("torchvision:resnet18", channels=1)


# ---- missing and broken libraries


@pytest.mark.parametrize(
    ("library", "install"), [("timm", "timm"), ("torchvision", "torchvision"), ("hf", "tenfold.hf")]
)
def test_a_missing_library_says_what_to_install(library, install, monkeypatch):
    package = "transformers" if library == "hf" else library
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.models", None)
    with pytest.raises(TenfoldError, match=rf"{package}.*pip install .?{install}"):
        build_model(f"{library}:resnet18")


def broken_package(folder, name, line):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(line)
    (folder / name / "models.py").write_text("")


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_torchvision_that_does_not_fit_torch_says_so(library, tmp_path, monkeypatch):
    broken_package(tmp_path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    broken_package(tmp_path, "timm", "import torchvision")
    for name in ("timm", "torchvision", "torchvision.models"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TenfoldError, match=rf"{library}, which is installed.*nms does not exist.*another torch"):
        build_model(f"{library}:resnet18")


def test_a_library_that_lacks_a_part_of_its_own_says_which(tmp_path, monkeypatch):
    broken_package(tmp_path, "timm", "import a_part_of_timm")
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TenfoldError, match=r"cannot be imported \(No module named 'a_part_of_timm'"):
        build_model("timm:resnet18")
