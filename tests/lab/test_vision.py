import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from warmfree.lab.images import ImageSet, load_mnist
from warmfree.lab.methods import METHODS
from warmfree.lab.models.vit import ViT
from warmfree.lab.train import train
from warmfree.lab.vision import ImageTaskConfig, prepare_run

TINY = ImageTaskConfig(layers=1, width=16, heads=2, patch=4, batch_size=8, steps=40, validation_images=20)


@pytest.fixture
def squares() -> ImageSet:
    """A bright square in one of four corners; the corner is the label."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, size=200).astype(np.uint8)
    images = random.integers(0, 60, size=(200, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[row : row + 4, column : column + 4] += 150
    return ImageSet.from_arrays(images, labels, name="squares")


def test_description_is_json_and_counts_the_parameters(squares: ImageSet) -> None:
    described = json.loads(json.dumps(TINY.describe(squares)))
    model = ViT(TINY.model_config(squares))
    assert described["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert described["corpus"] == {"name": "squares", "sha256": squares.sha256()}
    assert described["useless_loss"] == squares.label_entropy()
    assert described["images"] == 40 * 8
    assert (described["name"], described["betas"], described["patch"]) == ("ViT", [0.9, 0.95], 4)
    assert (model.config.image_size, model.config.classes) == (8, 4)
    assert TINY.with_steps(7).steps == 7


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_it(method: str, squares: ImageSet, tmp_path: Path) -> None:
    # LionAR reads an angle off the learning rate, and needs a larger one to turn as far in 40 steps.
    run = prepare_run(TINY, squares, METHODS[method], lr=6e-2 if method == "lionar" else 5e-3, seed=0)
    outcome = train(run, tmp_path)
    assert outcome.status == "finished"
    assert outcome.final_val_loss is not None
    assert outcome.final_val_loss < 0.9 * run.useless_loss
    assert outcome.skipped_steps == 0
    assert run.optimizer.param_groups[0]["lr"] == 0  # cooled down to the end


def test_same_seed_same_numbers_and_methods_share_weights_and_batches(squares: ImageSet) -> None:
    runs = {
        name: prepare_run(TINY, squares, METHODS[method], lr=1e-2, seed=seed)
        for name, method, seed in (("first", "adamw", 0), ("other", "adamw2", 0), ("seed", "adamw", 1))
    }
    torch.manual_seed(9)
    losses = {name: [run.loss(step).item() for step in (3, 0)] for name, run in runs.items()}
    assert losses["first"] == losses["other"]
    assert losses["first"] != losses["seed"]
    assert runs["first"].loss(3).item() == losses["first"][0]


def test_validation_is_the_mean_over_its_images(squares: ImageSet) -> None:
    run = prepare_run(TINY, squares, METHODS["adamw"], lr=1e-2, seed=0)
    chosen = np.linspace(0, 39, 20).astype(int)  # in batches of 8, 8 and 4
    pixels = (squares.validation_images[chosen] - squares.train_images.mean()) / squares.train_images.std()
    labels = torch.from_numpy(squares.validation_labels[chosen].astype(np.int64))
    expected = run.model.loss(torch.from_numpy(pixels.astype(np.float32)), labels)  # type: ignore[operator]
    assert run.validate() == pytest.approx(expected.item(), rel=1e-6)


def test_a_run_that_learns_nothing_counts_as_diverged(squares: ImageSet, tmp_path: Path) -> None:
    run = prepare_run(TINY, squares, METHODS["adamw"], lr=30.0, seed=0)
    outcome = train(run, tmp_path)
    assert outcome.status == "diverged"
    assert run.useless_loss == pytest.approx(math.log(4), abs=0.02)


def test_a_small_vit_reads_digits(tmp_path: Path) -> None:
    config = ImageTaskConfig(layers=2, width=32, patch=7, steps=120)
    outcome = train(prepare_run(config, load_mnist(), METHODS["adamw-warmup"], lr=8e-3, seed=0), tmp_path)
    assert outcome.status == "finished"
    assert outcome.final_val_loss is not None
    assert outcome.final_val_loss < 1.1


def test_bad_config(squares: ImageSet) -> None:
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        ImageTaskConfig(steps=0)
    with pytest.raises(ValueError, match="patch must divide image_size=8, got 3"):
        prepare_run(ImageTaskConfig(patch=3), squares, METHODS["adamw"], lr=1e-3, seed=0)
