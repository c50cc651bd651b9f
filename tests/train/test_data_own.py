"""Data of one's own: arrays in an .npz file, and images in folders that are streamed."""

import struct
import threading
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from train_stubs import Plain

from helpers import same_state
from nets import norm_dropout
from tenfold.errors import DataError, TenfoldWarning
from tenfold.train import Recipe, batches, evaluate, fit, load_data, make_data
from tenfold.train.data import Images
from tenfold.train.data import images as streaming
from tenfold.train.data.augment import crop_flip


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- npz


def arrays(n=30, shape=(3, 6, 6), dtype=np.uint8, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, *shape)).astype(dtype), np.arange(n) % 3


def test_npz_with_published_parts(tmp_path):
    (x, y), (test_x, test_y), (val_x, val_y) = arrays(), arrays(9, seed=1), arrays(6, seed=2)
    np.savez(tmp_path / "a.npz", train_x=x, train_y=y, test_x=test_x, test_y=test_y)
    data = load_data(f"npz:{tmp_path}/a.npz", validation=0.2)
    assert torch.equal(data.test.x, torch.from_numpy(test_x))
    assert [len(p) for p in (data.train, data.validation, data.test)] == [24, 6, 9]
    assert (data.classes, data.channels, data.size, data.train.x.dtype) == (3, 3, 6, torch.uint8)
    np.savez_compressed(
        tmp_path / "b.npz", train_x=x, train_y=y, test_x=test_x, test_y=test_y, validation_x=val_x, validation_y=val_y
    )
    data = load_data("npz:elsewhere.npz", tmp_path / "b.npz")  # the root goes before the path in the name
    assert torch.equal(data.train.x, torch.from_numpy(x))
    assert torch.equal(data.validation.x, torch.from_numpy(val_x))


def test_npz_of_one_set_gives_a_fixed_stratified_fifth_for_the_test(tmp_path):
    x, y = arrays(60, shape=(5, 5), dtype=np.float64)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    data, again = (load_data(f"npz:{tmp_path}/a.npz") for _ in range(2))
    assert data.test.y.bincount().tolist() == [4, 4, 4]
    assert data.checksum == again.checksum
    assert (data.channels, data.train.x.dtype) == (1, torch.float32)
    seen = torch.cat([p.x for p in (data.train, data.validation, data.test)]).flatten(1)
    assert sorted(seen.tolist()) == sorted(x.reshape(60, 25).tolist())


def test_npz_takes_channels_last(tmp_path):
    x, y = arrays(20, shape=(6, 6, 3))
    np.savez(tmp_path / "a.npz", train_x=x, train_y=y, test_x=x, test_y=y)
    assert torch.equal(load_data(f"npz:{tmp_path}/a.npz").test.x, torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))


X, Y = arrays()
PAIR = {"train": (X, Y), "test": (X[:9], Y[:9]), "validation": (X[:6], Y[:6])}
NAMES = {
    "keras": ("x_train", "y_train", "x_test", "y_test"),
    "medmnist": ("train_images", "train_labels", "test_images", "test_labels", "val_images", "val_labels"),
    "scikit-learn": ("X_train", "y_train", "X_test", "y_test"),
    "written out": ("train-data", "train-targets", "test-data", "test-targets"),
    "no test": ("train_x", "train_y", "val_x", "val_y"),
    "one": ("images", "labels"),
    "scikit-learn, one": ("data", "target"),
    "numpy's own": ("arr_0", "arr_1"),
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_npz_understands_the_usual_names(tmp_path, names):
    parts = [part for part in PAIR for _ in "xy"]
    content = {name: PAIR[part][i % 2] for i, (name, part) in enumerate(zip(names, parts, strict=False))}
    np.savez(tmp_path / "a.npz", **content, classes=np.array(["a", "b", "c"]))
    data = load_data(f"npz:{tmp_path}/a.npz", validation=0.2)
    whole = len(data.train) + len(data.validation) + len(data.test)
    assert whole == (30 if len(names) == 2 else 30 + 9 + 6 * (len(names) == 6))
    assert torch.equal(data.test.x[0], torch.from_numpy(X[0])) or len(names) == 2


def test_npz_takes_labels_in_a_column(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y[:, None])
    assert load_data(f"npz:{tmp_path}/a.npz").classes == 3


@pytest.mark.parametrize("name", ["npz:~/small.npz", "npz:elsewhere.npz"])
def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "small.npz", x=X, y=Y)
    root = None if "~" in name else "~/small.npz"
    assert load_data(name, root).classes == 3
    with pytest.raises(DataError, match=r"'~nobody-of-this-name/x.npz' cannot be used"):
        load_data("npz:~nobody-of-this-name/x.npz")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"x": X}, r"it lacks y, and holds x\. Name them train_x, .* or x, y"),
        ({"train_x": X, "train_y": Y}, r"it lacks test_x, test_y, and holds train_x, train_y"),
        ({"left": X, "right": Y}, r"lacks .*, and holds left, right"),
        ({"x": X, "images": X, "y": Y}, r"'x' and 'images' may be the same"),
        ({"x": X, "y": Y / 2}, r"labels in .* must be integers"),
        ({"x": X, "y": Y - 1}, r"got the label -1"),
        ({"x": X, "y": Y[:-1]}, r"with one label each"),
        ({"x": X[:, :, :5], "y": Y}, r"square images"),
        ({"x": np.where(X > 9, np.nan, X), "y": Y}, r"finite"),
        ({"x": X.astype(str), "y": Y}, r"real numbers"),
        ({"x": np.array([{}] * 30), "y": Y}, r"Python objects"),
    ],
)
def test_npz_of_another_content_says_what_is_wrong(tmp_path, content, says):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(DataError, match=says):
        load_data(f"npz:{tmp_path}/a.npz")


def test_npz_missing_or_damaged(tmp_path):
    with pytest.raises(DataError, match=r"no file .*none.npz"):
        load_data(f"npz:{tmp_path}/none.npz")
    for bad in ("npz:", f"npz:{tmp_path}"):
        with pytest.raises(DataError, match=r"no .npz file"):
            load_data(bad)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=X, y=Y)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 255
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"a.npz is damaged"):
        load_data(f"npz:{path}")
    path.write_bytes(whole[:100])
    with pytest.raises(DataError, match=r"damaged or no .npz file"):
        load_data(f"npz:{path}")


# ---- image folders

CLASSES = ("cat", "dog", "eel")


def picture(label, seed, size=(12, 10), mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 60, (size[1], size[0], 3)) + 80 * label
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def write_part(folder, part, each, suffix="png", **options):
    for label, name in enumerate(CLASSES):
        (folder / part / name).mkdir(parents=True)
        for index in range(each):
            picture(label, 100 * label + index, **options).save(folder / part / name / f"{index:02}.{suffix}")


@pytest.fixture
def photos(tmp_path):
    write_part(tmp_path, "train", 10)
    write_part(tmp_path, "test", 3, suffix="jpg")
    return tmp_path


def test_a_folder_is_read_in_the_order_of_its_names(photos):
    data = load_data(f"imagefolder:{photos}")
    assert (data.classes, data.channels, data.size) == (3, 3, 10)
    assert [len(p) for p in (data.train, data.validation, data.test)] == [27, 3, 9]
    assert data.test.y.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert isinstance(data.train.x, Images)
    assert data.test.x.names[0] == "test/cat/00.jpg"
    assert data.train.x.shape == (27, 3, 10, 10)
    assert not set(data.train.x.names) & set(data.validation.x.names)


def test_images_are_cut_about_their_centre_and_resized(photos):
    square = load_data(f"imagefolder:{photos}").validation
    for index, name in enumerate(square.x.names):
        expected = np.array(Image.open(photos / name))[:, 1:11]
        assert np.array_equal(square.x[torch.tensor([index])][0].permute(1, 2, 0), expected)
    small = load_data(f"imagefolder:{photos}@4").validation
    image = Image.open(photos / small.x.names[1]).resize((4, 4), Image.Resampling.BILINEAR, (1, 0, 11, 10))
    assert np.array_equal(small.x[torch.tensor([1])][0].permute(1, 2, 0), np.array(image))


def test_the_root_goes_before_the_path_and_keeps_the_size(photos):
    data = load_data("imagefolder:elsewhere@6", photos)
    assert (data.size, data.name) == (6, "imagefolder:elsewhere@6")
    assert data.checksum != load_data(f"imagefolder:{photos}").checksum


def test_val_is_the_validation_set_beside_test_and_the_test_set_without(photos):
    write_part(photos, "val", 2)
    data = load_data(f"imagefolder:{photos}")
    assert [len(p) for p in (data.train, data.validation, data.test)] == [30, 6, 9]
    assert all(name.startswith("val/") for name in data.validation.x.names)
    for file in photos.glob("test/*/*"):
        file.unlink()
    for folder in photos.glob("test/*"):
        folder.rmdir()
    (photos / "test").rmdir()
    data = load_data(f"imagefolder:{photos}")
    assert [len(p) for p in (data.train, data.validation, data.test)] == [27, 3, 6]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("P", 3), ("RGBA", 3), ("I;16", 1)])
def test_grey_sets_stay_grey_and_the_rest_becomes_rgb(tmp_path, mode, channels):
    for part in ("train", "test"):
        write_part(tmp_path, part, 4, mode="L" if mode == "I;16" else mode)
    if mode == "I;16":
        for file in tmp_path.rglob("*.png"):
            Image.fromarray(np.array(Image.open(file)).astype(np.uint16) * 256 + 7).save(file)
    data = load_data(f"imagefolder:{tmp_path}", validation=0.25)
    assert data.channels == channels
    means = data.test.x[torch.arange(12)].float().mean((1, 2, 3)).view(3, 4)
    assert (means.diff(dim=0) > (0 if mode == "1" else 60)).all()


def rewrite(folder, change, suffix="png"):
    """Every image of a set, as ``change`` makes it of the array that it was."""
    for file in sorted(folder.rglob("*.png")):
        made = change(np.array(Image.open(file)))
        file.unlink()
        made.save(file.with_suffix(f".{suffix}"))


@pytest.mark.parametrize("least", [0, 1000])
@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32], ids=["16 bits", "32 bits", "float"])
def test_deep_grey_images_keep_their_values(tmp_path, kind, least):
    """Scanners write 12 bits of 16, cameras a part of that: nothing is cut."""
    for part in ("train", "test"):
        write_part(tmp_path, part, 4, mode="L", size=(8, 8))
    suffix = "png" if kind is np.uint16 else "tif"
    rewrite(tmp_path, lambda pixels: Image.fromarray((pixels.astype(kind) * 3 + least).astype(kind)), suffix)
    data = load_data(f"imagefolder:{tmp_path}", validation=0.25)
    assert (data.channels, data.size) == (1, 8)
    for index, name in enumerate(data.test.x.names):
        stored = np.array(Image.open(tmp_path / name)).astype(np.float64)
        assert np.array_equal(data.test.x[torch.tensor([index])][0, 0], stored)
    assert data.train.std[0] > 10
    assert data.test.x[torch.tensor([], dtype=torch.int64)].dtype == torch.float32
    small = load_data(f"imagefolder:{tmp_path}@4", validation=0.25).test.x[torch.arange(12)]
    assert small.unique().numel() > 64


def png_of_16_bits(side=8):
    """In colour, which Pillow does not write."""
    rows = b"".join(b"\0" + bytes(6 * side) for _ in range(side))

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_depths_are_not_mixed_and_colours_are_not_cut(photos, tmp_path_factory):
    deep = photos / "test" / "cat" / "00.jpg"
    Image.fromarray(np.full((10, 10), 4000, np.uint16)).save(deep.with_suffix(".png"))
    data = load_data(f"imagefolder:{photos}")
    with pytest.raises(DataError, match=r"00.png has more than 8 bits, where the first image of the set has 8"):
        list(batches(data.test, 100))
    colour = tmp_path_factory.mktemp("colour")
    for part in ("train", "test"):
        write_part(colour, part, 2)
    (colour / "test" / "cat" / "00.png").write_bytes(png_of_16_bits())
    with pytest.raises(DataError, match=r"00.png has 16 bits in several channels, of which 8 would be read"):
        list(batches(load_data(f"imagefolder:{colour}", validation=0.5).test, 100))


@pytest.mark.parametrize("turn", range(1, 9))
def test_images_are_turned_upright(tmp_path, turn):
    """As every viewer shows them; `turn` is what the EXIF of a camera says."""
    for part in ("train", "test"):
        write_part(tmp_path, part, 2, size=(8, 8))
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4, :6] = 200
    turned = upright
    if turn > 1:  # what the sensor saw, from what is upright: the inverse of each
        turned = {
            2: lambda a: a[:, ::-1],
            3: lambda a: a[::-1, ::-1],
            4: lambda a: a[::-1],
            5: lambda a: a.transpose(1, 0, 2),
            6: lambda a: np.rot90(a),
            7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
            8: lambda a: np.rot90(a, -1),
        }[turn](upright)
    exif = Image.Exif()
    exif[0x0112] = turn
    file = tmp_path / "test" / "cat" / "00.png"
    Image.fromarray(np.ascontiguousarray(turned)).save(file, exif=exif)
    data = load_data(f"imagefolder:{tmp_path}", validation=0.5)
    assert np.array_equal(data.test.x[torch.tensor([0])][0].permute(1, 2, 0), upright)


@pytest.mark.parametrize("suffix", ["bmp", "webp", "tif", "TIFF", "gif", "ppm", "JPG"])
def test_images_of_other_kinds_are_read(tmp_path, suffix):
    for part in ("train", "val"):
        write_part(tmp_path, part, 3)
        write_part(tmp_path / "more", part, 3, suffix=suffix)
        for file in sorted((tmp_path / "more" / part).rglob("*.*")):
            file.rename(tmp_path / part / file.parent.name / f"more-{file.name}")
    data = load_data(f"imagefolder:{tmp_path}", validation=0.5)
    assert (data.classes, len(data.test)) == (3, 18)
    assert len(list(batches(data.test, 18))) == 1


LEFT = (".ipynb_checkpoints", "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", ".git", "System Volume Information")


@pytest.mark.parametrize("left", LEFT)
def test_what_tools_leave_behind_is_no_class_and_adds_no_image(photos, left):
    whole = load_data(f"imagefolder:{photos}")
    for place in ("train", "test", "train/cat", "test/dog"):
        folder = photos / place / left
        folder.mkdir()
        picture(0, 1).save(folder / "00.png")
        (photos / place / "Thumbs.db").write_bytes(b"")
        (photos / place / ".DS_Store").write_bytes(b"")
        (photos / place / "._00.png").write_bytes(b"")
    assert load_data(f"imagefolder:{photos}").checksum == whole.checksum


def test_files_that_are_not_read_are_spoken_of(photos):
    (photos / "train" / "cat" / "notes.txt").write_text("")
    (photos / "train" / "dog" / "README").write_text("")
    with pytest.warns(TenfoldWarning, match=r"no images, left out: 1 of .txt, 1 of README"):
        load_data(f"imagefolder:{photos}")
    (photos / "train" / "dog" / "00.HEIC").write_bytes(b"")
    with pytest.raises(DataError, match=r"00.HEIC is an image that cannot be read here. Convert it"):
        load_data(f"imagefolder:{photos}")


def test_a_class_without_images_is_refused_in_training_and_spoken_of_in_the_test(photos):
    for file in (photos / "test" / "dog").iterdir():
        file.unlink()
    with pytest.warns(TenfoldWarning, match=r"test holds no image of 1 of the 3 classes of train: dog"):
        assert load_data(f"imagefolder:{photos}").classes == 3
    for file in (photos / "train" / "eel").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"train holds no image of eel. Add some, or remove the folder"):
        load_data(f"imagefolder:{photos}")


def test_streaming_is_the_same_training_as_the_tensors(photos):
    data = load_data(f"imagefolder:{photos}")
    loaded = [(p.x[torch.arange(len(p))], p.y) for p in (data.train, data.test, data.validation)]
    memory = make_data(data.name, *loaded)
    assert data.train.mean == memory.train.mean
    for options in ({}, {"shuffle": True, "augment": crop_flip, "drop_last": True}):
        pairs = zip(
            batches(data.train, 4, generator=seeded(3), **options),
            batches(memory.train, 4, generator=seeded(3), **options),
            strict=True,
        )
        for (x, y), (expected_x, expected_y) in pairs:
            assert torch.equal(x, expected_x)
            assert torch.equal(y, expected_y)
    recipe = Recipe(epochs=2, batch_size=8, lr=0.05, augment="crop-flip")
    streamed, held = (
        fit(norm_dropout(channels=3), Plain(), source, recipe, progress=False) for source in (data, memory)
    )
    assert same_state(streamed.model, held.model)
    assert evaluate(streamed.model, data.test) == evaluate(held.model, memory.test)


def test_the_statistics_of_a_large_set_are_measured_on_a_sample(photos, monkeypatch):
    from tenfold.train.data import split

    monkeypatch.setattr(split, "SAMPLE", 6)
    data = load_data(f"imagefolder:{photos}")
    some = data.train.x[torch.tensor([0, 5, 10, 15, 20, 26])].double()
    np.testing.assert_allclose(data.train.mean, some.mean((0, 2, 3)), rtol=1e-12)


def test_the_checksum_sees_names_and_bytes_and_reads_each_file_once(photos, monkeypatch):
    reads = []
    read = Images._read
    monkeypatch.setattr(Images, "_read", lambda self, name: reads.append(name) or read(self, name))
    monkeypatch.setattr(Images, "_decode", lambda self, index: np.zeros((3, 10, 10), np.uint8))
    first = load_data(f"imagefolder:{photos}").checksum
    assert sorted(reads) == sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.*"))
    assert load_data(f"imagefolder:{photos}").checksum == first
    file = photos / "train" / "cat" / "03.png"
    whole = file.read_bytes()
    file.write_bytes(whole + b"\0")
    assert load_data(f"imagefolder:{photos}").checksum != first
    file.write_bytes(whole)
    assert load_data(f"imagefolder:{photos}").checksum == first
    file.rename(file.with_name("99.png"))
    assert load_data(f"imagefolder:{photos}").checksum != first


def test_memory_is_bounded_by_the_batches_and_not_by_the_set(photos):
    names = tuple(f"train/{CLASSES[i % 3]}/{i % 10:02}.png" for i in range(1200))
    images = Images(photos, names, 3, 64)
    list(images.stream([torch.arange(4)]))
    tracemalloc.start()
    for _ in images.stream(torch.arange(1200).split(10)):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    held = (streaming.AHEAD + 4) * 10 + 16  # batches, and what the decoders have in hand
    assert peak < held * 3 * 64 * 64 < 1200 * 3 * 64 * 64 / 9


def test_a_stream_that_is_left_early_leaves_no_thread(photos):
    images = load_data(f"imagefolder:{photos}").train.x
    stream = images.stream(torch.arange(len(images)).split(2))
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
    assert images[torch.tensor([], dtype=torch.int64)].shape == (0, 3, 10, 10)


def test_a_damaged_image_is_named_when_its_batch_comes(photos):
    data = load_data(f"imagefolder:{photos}")
    path = photos / data.test.x.names[4]
    path.write_bytes(path.read_bytes()[:100])
    loader = iter(batches(data.test, 3))
    next(loader)
    with pytest.raises(DataError, match=rf"{path} is damaged or no image.*Remove it"):
        next(loader)
    path.unlink()
    with pytest.raises(DataError, match=rf"{path} cannot be read"):
        list(batches(data.test, 3))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\nbroken"])
def test_a_first_file_that_is_no_image_is_named(photos, content):
    (photos / "train" / "cat" / "00.png").write_bytes(content)
    with pytest.raises(DataError, match=r"00.png is damaged or no image"):
        load_data(f"imagefolder:{photos}")


def test_folders_that_are_no_data_set_say_what_is_missing(photos, tmp_path_factory):
    with pytest.raises(DataError, match=r"must hold the folders train, and test or val.*Put images into"):
        load_data("imagefolder:no/such/folder")
    with pytest.raises(DataError, match=r"size >= 1 behind the @"):
        load_data(f"imagefolder:{photos}@0")
    (photos / "test" / "fox").mkdir()
    with pytest.raises(DataError, match=r"holds classes that train lacks: fox"):
        load_data(f"imagefolder:{photos}")
    empty = tmp_path_factory.mktemp("empty")
    for part in ("train", "test"):
        (empty / part / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"train holds no image"):
        load_data(f"imagefolder:{empty}")


def test_without_pillow_the_remedy_is_said(photos, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(DataError, match=r"Pillow, which is missing: pip install 'tenfold\[train\]'"):
        load_data(f"imagefolder:{photos}")
