"""Readers, splits, batches and augmentation."""

import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch

from helpers import blobs
from tenfold.errors import ArgumentError, DataError
from tenfold.train import batches, data_names, load_data, make_data
from tenfold.train.data import fashion_mnist as fashion
from tenfold.train.data.augment import crop, crop_flip, random_crop, random_flip
from tenfold.train.data.split import stratified


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- splits


def test_stratified_takes_the_same_share_of_each_class_and_loses_nobody():
    y = torch.tensor([0] * 50 + [1] * 20 + [2] * 30)[torch.randperm(100, generator=seeded())]
    kept, held = stratified(y, 0.2, seed=1)
    assert sorted(kept.tolist() + held.tolist()) == list(range(100))
    assert y[held].bincount().tolist() == [10, 4, 6]
    assert torch.equal(held, stratified(y, 0.2, seed=1)[1])
    assert not torch.equal(held, stratified(y, 0.2, seed=2)[1])


def test_validation_comes_out_of_the_training_set_alone():
    x = torch.arange(40, dtype=torch.uint8).reshape(40, 1, 1, 1)
    y = torch.arange(40) % 2
    data = make_data("numbers", (x[:30], y[:30]), (x[30:], y[30:]), validation=0.2)
    assert len(data.train) + len(data.validation) == 30
    assert sorted([*data.train.x.flatten().tolist(), *data.validation.x.flatten().tolist()]) == list(range(30))
    assert data.test.x.flatten().tolist() == list(range(30, 40))


def test_statistics_are_those_of_the_training_images_per_channel():
    data = blobs()
    x = data.train.x.double().numpy()
    np.testing.assert_allclose(data.train.mean, x.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.train.std, x.std((0, 2, 3)), rtol=1e-12)
    assert data.test.mean == data.validation.mean == data.train.mean
    assert (data.classes, data.channels, data.size) == (3, 2, 6)


def test_the_checksum_sees_every_pixel_and_label():
    x, y = torch.zeros(20, 1, 2, 2), torch.arange(20) % 2
    first = make_data("a", (x, y), (x, y)).checksum
    other = x.clone()
    other[3, 0, 1, 1] = 1
    assert make_data("a", (x, y), (x, y)).checksum == first
    assert make_data("a", (x, y), (other, y)).checksum != first
    assert make_data("a", (x, y), (x, y.flip(0))).checksum != first


def test_wrong_shapes_are_refused():
    x, y = torch.zeros(20, 1, 2, 2), torch.arange(20) % 2
    for bad in ((x[0], y), (x, y[:5]), (torch.zeros(20, 1, 2, 3), y), (torch.zeros(20, 3, 2, 2), y)):
        with pytest.raises(DataError, match="square images"):
            make_data("bad", (x, y), bad)


def test_a_published_validation_set_is_used_as_it_is():
    x, y = torch.arange(24.0).reshape(24, 1, 1, 1), torch.arange(24) % 2
    data = make_data("a", (x[:12], y[:12]), (x[12:16], y[12:16]), (x[16:], y[16:]), validation=0.5)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [12, 8, 4]
    assert torch.equal(data.validation.x, x[16:])
    assert data.validation.mean == data.train.mean == (5.5,)


def test_empty_sets_and_negative_labels_are_refused():
    x, y = torch.zeros(20, 1, 2, 2), torch.arange(20) % 2
    with pytest.raises(DataError, match=r"test set of 'bad' must hold examples.*got no example"):
        make_data("bad", (x, y), (x[:0], y[:0]))
    with pytest.raises(DataError, match=r"train set of 'bad' must hold examples with labels from 0; got the label -1"):
        make_data("bad", (x, y - 1), (x, y))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda y: y + 1, r"the largest is 2, 2 occur in the train set, and 0 not. Subtract 1"),
        (
            lambda y: torch.where(torch.arange(20) == 3, 200_000, y),
            r"the largest is 200000, 3 occur .*2, 3, 4, 5, 6 \.\.\. not",
        ),
        (lambda y: y * 10**12, r"the largest is 1000000000000, 2 occur"),
        (lambda y: y * 2, r"and 1 not. Number them anew"),
    ],
    ids=["from 1", "one large", "huge", "with a gap"],
)
def test_labels_number_the_classes_and_each_has_an_example_to_train_on(change, says):
    x, y = torch.zeros(20, 1, 2, 2), torch.arange(20) % 2
    with pytest.raises(DataError, match=f"The labels of 'bad' must be 0 ... classes - 1.*{says}"):
        make_data("bad", (x, change(y)), (x, change(y)))
    with pytest.raises(DataError, match="the largest is 2, 2 occur in the train set, and 2 not"):
        make_data("bad", (x, y), (x, y + 1))
    assert make_data("good", (x, y), (x, y * 0)).classes == 2


# ---- batches


def test_batches_cover_the_split_once_in_order_and_normalised():
    split = blobs().train
    loader = batches(split, 7)
    seen = list(loader)
    assert len(seen) == len(loader) == -(-len(split) // 7)
    assert torch.equal(torch.cat([y for _, y in seen]), split.y)
    x = torch.cat([x for x, _ in seen])
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.double().mean((0, 2, 3)), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        x.double().std((0, 2, 3), correction=0), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-5
    )


def test_dropping_the_last_batch():
    split = blobs().train
    assert len(split) % 7
    loader = batches(split, 7, drop_last=True)
    assert [len(y) for _, y in loader] == [7] * (len(split) // 7) == [7] * len(loader)
    assert [len(y) for _, y in batches(split, 1000, drop_last=True)] == []


def test_shuffling_is_a_permutation_new_at_each_pass_and_fixed_by_the_generator():
    split = blobs().train
    loader = batches(split, 7, shuffle=True, generator=seeded(1))
    first, second = (torch.cat([x for x, _ in loader]) for _ in range(2))
    again = torch.cat([x for x, _ in batches(split, 7, shuffle=True, generator=seeded(1))])
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert sorted(first.sum((1, 2, 3)).tolist()) == pytest.approx(sorted(second.sum((1, 2, 3)).tolist()))


def test_labels_follow_their_images_through_shuffling():
    x = torch.arange(30.0).reshape(30, 1, 1, 1)
    data = make_data("numbers", (x, torch.arange(30) % 3), (x, torch.arange(30) % 3))
    split = data.train
    for x, y in batches(split, 8, shuffle=True, generator=seeded()):
        values = x.flatten() * split.std[0] + split.mean[0]
        assert torch.equal(values.round().long() % 3, y)


def test_randomness_needs_a_generator():
    split = blobs().train
    for bad in ({"shuffle": True}, {"augment": crop}):
        with pytest.raises(ArgumentError, match="`generator`"):
            batches(split, 4, **bad)
    with pytest.raises(ArgumentError, match="`batch_size`"):
        batches(split, 0)


# ---- augmentation


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_equals_a_slow_loop(dtype):
    x = torch.randint(1, 255, (9, 3, 7, 5), generator=seeded()).to(dtype)
    fast = random_crop(x, 2, seeded(5))
    offsets = torch.randint(0, 5, (2, 9), generator=seeded(5))
    for i in range(9):
        frame = torch.zeros(3, 11, 9, dtype=dtype)
        frame[:, 2:9, 2:7] = x[i]
        top, left = int(offsets[0, i]), int(offsets[1, i])
        assert torch.equal(fast[i], frame[:, top : top + 7, left : left + 5])
    assert fast.dtype == dtype
    assert fast.is_contiguous()


def test_every_offset_occurs_and_equally_often():
    x = torch.zeros(4500, 1, 3, 3)
    x[:, :, 1, 1] = 1
    where = random_crop(x, 1, seeded()).flatten(1).argmax(1).bincount(minlength=9)
    assert where.tolist() == pytest.approx([500] * 9, abs=100)


def test_flip_equals_a_slow_loop():
    x = torch.randn(40, 2, 4, 5, generator=seeded())
    fast = random_flip(x, seeded(5))
    flips = torch.rand(40, generator=seeded(5)) < 0.5
    for i in range(40):
        assert torch.equal(fast[i], torch.from_numpy(x[i].numpy()[:, :, ::-1].copy()) if flips[i] else x[i])
    assert 10 < int(flips.sum()) < 30


def test_augmentation_leaves_its_input_alone_and_padding_follows_the_size():
    x = torch.randint(1, 255, (64, 1, 8, 8), generator=seeded())
    before = x.clone()
    y = crop_flip(x, seeded())
    assert torch.equal(x, before)
    assert not torch.equal(y, x)


@pytest.mark.parametrize(("size", "padding"), [(4, 1), (8, 1), (28, 4), (32, 4), (64, 8)])
def test_a_crop_pads_by_an_eighth(size, padding):
    x = torch.randint(1, 255, (16, 1, size, size), generator=seeded())
    assert torch.equal(crop(x, seeded(3)), random_crop(x, padding, seeded(3)))


def test_batches_augment_before_they_normalise():
    split = blobs().train
    black = -torch.tensor(split.mean) / torch.tensor(split.std)
    x, _ = next(iter(batches(split, len(split), augment=crop, generator=seeded())))
    moved = crop(split.x, seeded())
    expected = (moved.float() - torch.tensor(split.mean)[:, None, None]) / torch.tensor(split.std)[:, None, None]
    torch.testing.assert_close(x, expected)
    assert torch.isclose(x[:, 0], black[0]).any()


# ---- readers


def test_digits_are_all_there_and_the_split_never_moves():
    from sklearn.datasets import load_digits

    data = load_data("digits")
    raw = load_digits()
    parts = (data.train, data.validation, data.test)
    assert sum(len(p) for p in parts) == 1797
    together = torch.cat([p.x for p in parts]).flatten(1).double().numpy()
    labelled = np.c_[together, torch.cat([p.y for p in parts]).numpy()]
    expected = np.c_[raw.data, raw.target]
    assert np.array_equal(labelled[np.lexsort(labelled.T)], expected[np.lexsort(expected.T)])
    assert (data.classes, data.channels, data.size) == (10, 1, 8)
    assert data.checksum == "61af3987d3ad8694fdd7275234e446a364660ed756e089876ee4d1d8accbbf34"


def test_unknown_data_lists_the_nearest():
    names = ["cifar10", "cifar10-jpeg", "digits", "fashion-mnist", "imagefolder:PATH", "npz:PATH"]
    assert data_names() == names
    with pytest.raises(DataError, match=r"'fashionmnist'.*fashion-mnist"):
        load_data("fashionmnist")
    for bad in ("npz", "digits:8"):
        with pytest.raises(DataError, match=rf"'{bad}'.*Nearest: {bad[:3]}"):
            load_data(bad)


@pytest.fixture
def tiny_fashion(tmp_path, monkeypatch):
    """Four small files in the published format, their checksums in place of the published ones; all places empty."""
    images = np.arange(40 * 4, dtype=np.uint8).reshape(40, 2, 2)
    labels = (np.arange(40) % 10).astype(np.uint8)
    content = {
        "train-images-idx3-ubyte": struct.pack(">IIII", 0x803, 40, 2, 2) + images.tobytes(),
        "train-labels-idx1-ubyte": struct.pack(">II", 0x801, 40) + labels.tobytes(),
        "t10k-images-idx3-ubyte": struct.pack(">IIII", 0x803, 10, 2, 2) + images[:10].tobytes(),
        "t10k-labels-idx1-ubyte": struct.pack(">II", 0x801, 10) + labels[:10].tobytes(),
    }
    source = tmp_path / "source"
    source.mkdir()
    for name, value in content.items():
        (source / f"{name}.gz").write_bytes(gzip.compress(value))
    monkeypatch.setattr(fashion, "MD5", {name: hashlib.md5(value).hexdigest() for name, value in content.items()})
    monkeypatch.setattr(fashion, "SYSTEM", tmp_path / "none")
    monkeypatch.setattr(fashion, "ADDRESS", (tmp_path / "nowhere").as_uri() + "/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TENFOLD_DATA", raising=False)
    return source, images, labels


def assert_tiny(data, images, labels):
    assert torch.equal(data.test.x, torch.from_numpy(images[:10]).unsqueeze(1))
    assert data.test.y.tolist() == labels[:10].tolist()
    assert len(data.train) + len(data.validation) == 40


def test_fashion_is_read_from_a_folder_zipped_or_not(tiny_fashion):
    source, images, labels = tiny_fashion
    assert_tiny(load_data("fashion-mnist", source, validation=0.3), images, labels)
    path = source / "t10k-labels-idx1-ubyte.gz"
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()
    assert_tiny(load_data("fashion-mnist", str(source), validation=0.3), images, labels)


def test_fashion_is_found_by_the_variable_and_in_the_system_folder(tiny_fashion, monkeypatch, tmp_path):
    source, images, labels = tiny_fashion
    monkeypatch.setattr(fashion, "SYSTEM", source)
    assert_tiny(load_data("fashion-mnist", validation=0.3), images, labels)
    monkeypatch.setattr(fashion, "SYSTEM", tmp_path / "none")
    source.rename(tmp_path / "fashion-mnist")
    monkeypatch.setenv("TENFOLD_DATA", str(tmp_path))
    assert_tiny(load_data("fashion-mnist", validation=0.3), images, labels)


def test_fashion_is_downloaded_once_into_the_cache(tiny_fashion, monkeypatch, tmp_path):
    source, images, labels = tiny_fashion
    monkeypatch.setattr(fashion, "ADDRESS", source.as_uri() + "/")
    assert_tiny(load_data("fashion-mnist", validation=0.3), images, labels)
    monkeypatch.setattr(fashion, "ADDRESS", (tmp_path / "nowhere").as_uri() + "/")
    assert_tiny(load_data("fashion-mnist", validation=0.3), images, labels)


def test_fashion_missing_everywhere_says_where_it_was_looked_for(tiny_fashion, tmp_path):
    with pytest.raises(DataError, match=r"found in none of .*none.*cache.*nowhere.*Give the folder"):
        load_data("fashion-mnist")
    with pytest.raises(DataError, match=r"`root` must hold train-images-idx3-ubyte.gz.*Give the folder"):
        load_data("fashion-mnist", tmp_path)
    assert not (tmp_path / "cache").exists()


def test_damage_is_found_in_the_archive_and_behind_it(tiny_fashion, monkeypatch, tmp_path):
    source, _, _ = tiny_fashion
    path = source / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz is damaged"):
        load_data("fashion-mnist", source)
    changed = bytearray(gzip.decompress(whole))
    changed[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(changed)))
    with pytest.raises(DataError, match=r"is damaged: the md5 of its unzipped bytes must be"):
        load_data("fashion-mnist", source)
    monkeypatch.setattr(fashion, "ADDRESS", source.as_uri() + "/")
    with pytest.raises(DataError, match="md5"):
        load_data("fashion-mnist")
    assert not (tmp_path / "cache").exists()  # nothing damaged is kept


@pytest.mark.skipif(not fashion.SYSTEM.is_dir(), reason="the system's Fashion-MNIST package is not installed")
def test_the_real_fashion_mnist():
    data = load_data("fashion-mnist", fashion.SYSTEM)
    assert data.test.y.bincount().tolist() == [1000] * 10
    assert data.train.y.bincount().tolist() == [5400] * 10
    x = torch.cat([data.train.x, data.validation.x]).double() / 255
    assert (float(x.mean()), float(x.std())) == pytest.approx((0.2860, 0.3530), abs=5e-5)  # as usually quoted


def test_a_part_is_the_same_every_time_and_a_smaller_one_lies_within_it():
    data = load_data("digits")
    small, large = data.part(100).train, data.part(300, validation=20).train
    assert torch.equal(small.x, large.x[:100])
    assert torch.equal(small.y, large.y[:100])
    assert len({tuple(x.flatten().tolist()) for x in large.x}) > 290  # drawn, not repeated
    assert len(small.y.unique()) == data.classes
    assert (data.part(100).validation, len(data.part(validation=20).validation)) == (data.validation, 20)
    assert (small.mean, small.std, data.part(100).checksum) == (data.train.mean, data.train.std, data.checksum)
    for examples in (0, len(data.train) + 1):
        with pytest.raises(ArgumentError, match="`examples` must be in"):
            data.part(examples)
