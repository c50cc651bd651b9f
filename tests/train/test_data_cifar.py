"""CIFAR-10, binary, pickled and as JPEG: small files in the published formats, whole and damaged."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from tenfold.errors import DataError
from tenfold.train import load_data
from tenfold.train.data import cifar10 as cifar
from tenfold.train.data import cifar10_jpeg

N = 10  # images in a batch, for RECORDS


def pickled(pixels, labels):
    """A batch as Python 2 wrote it, opcode by opcode: byte strings without a type, numpy's old module names."""

    def string(value):
        return b"T" + struct.pack("<i", len(value)) + value

    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    state = b"(K\x01(K" + bytes([N]) + b"M\x00\x0ct" + dtype + b"\x89" + string(pixels.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + state + b"U\x06labels" + numbers + b"u."


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Both versions, unpacked and packed, with their own checksums for the published ones; every place empty."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (6, N, 3072), dtype=np.uint8)
    labels = np.arange(6 * N, dtype=np.uint8).reshape(6, N) % 10
    md5 = {}
    for kind, name in cifar.FOLDERS.items():
        folder = tmp_path / "unpacked" / name
        folder.mkdir(parents=True)
        for file, x, y in zip(cifar.NAMES, pixels, labels, strict=True):
            if kind == cifar.BINARY:
                (folder / f"{file}.bin").write_bytes(np.c_[y, x].tobytes())
            else:
                (folder / file).write_bytes(pickled(x, y))
                md5[file] = hashlib.md5((folder / file).read_bytes()).hexdigest()
        (tmp_path / "packed").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "packed" / kind, "w:gz") as archive:
            archive.add(folder, name)
        md5[kind] = hashlib.md5((tmp_path / "packed" / kind).read_bytes()).hexdigest()
    monkeypatch.setattr(cifar, "MD5", md5)
    monkeypatch.setattr(cifar, "RECORDS", N)
    monkeypatch.setattr(cifar, "ADDRESS", (tmp_path / "nowhere").as_uri() + "/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TENFOLD_DATA", raising=False)
    return tmp_path, pixels.reshape(60, 3, 32, 32), labels.flatten()


def assert_whole(data, pixels, labels):
    assert torch.equal(data.test.x, torch.from_numpy(pixels[50:]))
    assert data.test.y.tolist() == labels[50:].tolist()
    together = {bytes(x) for x in torch.cat([data.train.x, data.validation.x]).numpy().reshape(50, -1)}
    assert together == {bytes(x) for x in pixels[:50].reshape(50, -1)}
    assert (data.classes, data.channels, data.size) == (10, 3, 32)


@pytest.mark.parametrize("kind", [cifar.BINARY, cifar.PYTHON])
def test_both_versions_packed_and_unpacked_are_the_same_images(tiny, kind):
    folder, pixels, labels = tiny
    unpacked = folder / "unpacked" / cifar.FOLDERS[kind]
    assert_whole(load_data("cifar10", unpacked, validation=0.2), pixels, labels)
    assert_whole(load_data("cifar10", folder / "packed" / kind, validation=0.2), pixels, labels)
    (folder / "only").mkdir()
    unpacked.rename(folder / "only" / unpacked.name)
    from_above = load_data("cifar10", folder / "only", validation=0.2)
    assert_whole(from_above, pixels, labels)
    assert from_above.checksum == load_data("cifar10", folder / "packed", validation=0.2).checksum


def test_the_hand_written_pickle_is_what_pickle_reads(tiny):
    folder, pixels, labels = tiny
    content = (folder / "unpacked" / "cifar-10-batches-py" / "test_batch").read_bytes()
    batch = pickle.loads(content, encoding="bytes")
    assert np.array_equal(batch[b"data"], pixels[50:].reshape(N, 3072))
    assert batch[b"labels"] == labels[50:].tolist()


def test_cifar_is_found_by_the_variable_and_downloaded_once_into_the_cache(tiny, monkeypatch):
    folder, pixels, labels = tiny
    with pytest.raises(DataError, match=r"found in none of .*cache.*nowhere.*cifar-10-binary.tar.gz.*Give the folder"):
        load_data("cifar10")
    assert not list((folder / "cache").rglob("*.gz"))
    monkeypatch.setattr(cifar, "ADDRESS", (folder / "packed").as_uri() + "/")
    assert_whole(load_data("cifar10", validation=0.2), pixels, labels)
    monkeypatch.setattr(cifar, "ADDRESS", (folder / "nowhere").as_uri() + "/")
    assert_whole(load_data("cifar10", validation=0.2), pixels, labels)
    (folder / "unpacked").rename(folder / "cifar10")
    monkeypatch.setenv("TENFOLD_DATA", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "none"))
    assert_whole(load_data("cifar10", validation=0.2), pixels, labels)


def test_a_folder_without_cifar_says_what_it_must_hold(tiny):
    with pytest.raises(DataError, match=r"`root` must hold CIFAR-10.*six batches.*TENFOLD_DATA"):
        load_data("cifar10", tiny[0])


def test_damaged_batches_are_refused(tiny, monkeypatch):
    folder = tiny[0]
    binary = folder / "unpacked" / "cifar-10-batches-bin"
    whole = (binary / "data_batch_2.bin").read_bytes()
    (binary / "data_batch_2.bin").write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"data_batch_2.bin is damaged: it must hold 30730 bytes"):
        load_data("cifar10", binary)
    (binary / "data_batch_2.bin").write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(DataError, match=r"data_batch_2.bin is damaged.*labels 0 to 9"):
        load_data("cifar10", binary)
    python = folder / "unpacked" / "cifar-10-batches-py"
    whole = (python / "test_batch").read_bytes()
    (python / "test_batch").write_bytes(whole[:-9])
    with pytest.raises(DataError, match=r"test_batch is damaged: its md5 must be"):
        load_data("cifar10", python)
    monkeypatch.setitem(cifar.MD5, "test_batch", hashlib.md5(whole[:-9]).hexdigest())
    with pytest.raises(DataError, match="test_batch is damaged"):
        load_data("cifar10", python)


def test_damaged_archives_are_refused_and_never_kept(tiny, monkeypatch):
    folder = tiny[0]
    archive = folder / "packed" / cifar.BINARY
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cifar-10-binary.tar.gz is damaged: its md5"):
        load_data("cifar10", archive)
    monkeypatch.setattr(cifar, "ADDRESS", (folder / "packed").as_uri() + "/")
    with pytest.raises(DataError, match=r"file:.*cifar-10-binary.tar.gz is damaged: its md5"):
        load_data("cifar10")
    assert not [kept for kept in (folder / "cache").rglob("*") if kept.is_file()]
    for content in (b"no archive", gzip.compress(b"no archive"), archive.read_bytes()):
        archive.write_bytes(content)
        monkeypatch.setitem(cifar.MD5, cifar.BINARY, hashlib.md5(content).hexdigest())
        with pytest.raises(DataError, match=r"cifar-10-binary.tar.gz is damaged"):
            load_data("cifar10", archive)


class Evil:
    def __reduce__(self):
        return print, ("pwned",)


def test_a_pickle_runs_no_code(tiny, monkeypatch, capsys):
    python = tiny[0] / "unpacked" / "cifar-10-batches-py"
    content = pickle.dumps({b"data": Evil(), b"labels": []})
    (python / "data_batch_1").write_bytes(content)
    monkeypatch.setitem(cifar.MD5, "data_batch_1", hashlib.md5(content).hexdigest())
    with pytest.raises(DataError, match=r"data_batch_1 is damaged: it asks for .*print"):
        load_data("cifar10", python)
    assert capsys.readouterr().out == ""


# ---- JPEG


def jpegs(n, size=32, seed=0):
    """Smooth random images, as files."""
    generator = np.random.default_rng(seed)
    files = []
    for _ in range(n):
        small = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        out = io.BytesIO()
        small.resize((size, size), Image.Resampling.BILINEAR).save(out, "JPEG", quality=90)
        files.append(out.getvalue())
    return files


def write_jpegs(path, train, test, **changed):
    arrays = {"classes": np.array(["a", "b"])}
    for part, files in (("train", train), ("test", test)):
        arrays[f"{part}_jpeg"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"{part}_offsets"] = np.cumsum([0, *map(len, files)])
        arrays[f"{part}_labels"] = (np.arange(len(files)) % 2).astype(np.uint8)
    arrays |= changed
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


def test_jpegs_are_decoded_as_pillow_does(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10_jpeg, "BLOCK", 3)
    train, test = jpegs(20), jpegs(7, seed=1)
    path = tmp_path / "cifar10-jpeg.npz"
    write_jpegs(path, train, test)
    data = load_data("cifar10-jpeg", path)
    expected = np.stack([np.array(Image.open(io.BytesIO(file))) for file in test]).transpose(0, 3, 1, 2)
    assert torch.equal(data.test.x, torch.from_numpy(expected.copy()))
    assert data.test.y.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert len(data.train) + len(data.validation) == 20
    assert load_data("cifar10-jpeg", tmp_path).checksum == data.checksum
    monkeypatch.setenv("TENFOLD_DATA", str(tmp_path))
    assert load_data("cifar10-jpeg").checksum == data.checksum


def test_a_missing_jpeg_set_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("TENFOLD_DATA", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"none of .*own/cifar10-jpeg.npz, .*cache/tenfold/cifar10-jpeg.npz\. Give"):
        load_data("cifar10-jpeg")
    with pytest.raises(DataError, match=r"none of .*cifar10-jpeg.npz"):
        load_data("cifar10-jpeg", tmp_path)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"train_offsets": None}, "lacks train_offsets"),
        ({"train_offsets": np.array([0, 5])}, "shapes and types"),
        ({"train_offsets": np.zeros(9, np.int64)}, "offsets must rise from 0"),
        ({"train_offsets": np.arange(9.0)}, "shapes and types"),
        ({"test_labels": np.array([0, 1, 2], np.uint8)}, r"labels must be in 0 \.\.\. 1"),
        ({"classes": np.array([object()])}, "Python objects"),
    ],
)
def test_a_jpeg_set_that_breaks_its_layout_says_how(tmp_path, changed, says):
    write_jpegs(tmp_path / "set.npz", jpegs(8), jpegs(3), **changed)
    with pytest.raises(DataError, match=says):
        load_data("cifar10-jpeg", tmp_path / "set.npz")


def test_a_damaged_or_large_image_is_named(tmp_path):
    path = tmp_path / "set.npz"
    files = jpegs(8)
    write_jpegs(path, [*files[:6], files[6][:200], files[7]], jpegs(3))
    with pytest.raises(DataError, match=r"Image 6 of .*set.npz is damaged"):
        load_data("cifar10-jpeg", path)
    write_jpegs(path, files, [*jpegs(2), *jpegs(1, size=16)])
    with pytest.raises(DataError, match=r"Image 2 of .*must be 32x32 pixels; got \(16, 16\)"):
        load_data("cifar10-jpeg", path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"damaged or no .npz file"):
        load_data("cifar10-jpeg", path)
