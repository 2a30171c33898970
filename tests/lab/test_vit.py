import math
from typing import Any

import pytest
import torch

from warmfree.lab.models.vit import ViT, ViTConfig
from warmfree.optim import parameter_groups

SMALL = ViTConfig(image_size=12, patch=4, classes=7, layers=2, width=24, heads=3)


def plain_forward(model: ViT, images: torch.Tensor) -> torch.Tensor:
    """The model again from its weights alone: one image, patch and head at a time, explicit softmax attention."""
    config, weights = model.config, dict(model.named_parameters())
    width, heads, patch = config.width, config.heads, config.patch
    size, side = width // heads, config.image_size // patch

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[name + ".weight"] + weights.get(name + ".bias", 0)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[name + ".weight"].T + weights.get(name + ".bias", 0)

    logits = []
    for image in images:
        tokens: list[torch.Tensor] = [weights["class_token"]]
        for row in range(side):
            for column in range(side):
                pixels = image[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
                place = weights["positions.weight"][row * side + column]
                tokens.append(linear(pixels.flatten(), "patches") + place)
        x = torch.stack(tokens)
        for index in range(config.layers):
            block = f"blocks.{index}."
            qkv = linear(norm(x, block + "attention_norm"), block + "attention.qkv")
            query, key, value = qkv.chunk(3, dim=-1)
            mixed = torch.zeros_like(x)
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                scores = query[:, part] @ key[:, part].T / math.sqrt(size)
                mixed[:, part] = scores.softmax(-1) @ value[:, part]
            x = x + linear(mixed, block + "attention.out")
            inner = linear(norm(x, block + "mlp_norm"), block + "mlp.up")
            inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
            x = x + linear(inner, block + "mlp.out")
        logits.append(linear(norm(x[0], "norm"), "head"))
    return torch.stack(logits)


@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_model_written_out(bias: bool) -> None:
    config = ViTConfig(image_size=12, patch=4, classes=7, layers=2, width=24, heads=3, bias=bias)
    model = ViT(config).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
    images = torch.randn(3, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(model(images), plain_forward(model, images), rtol=1e-10, atol=1e-10)


def test_every_pixel_counts_and_so_does_its_place() -> None:
    model = ViT(SMALL).double()
    images = torch.randn(1, 12, 12, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(images).square().sum(), images)
    assert (gradient != 0).all()
    assert not torch.allclose(model(images.flip(-1)), model(images), rtol=1e-6)


def test_patches_are_a_set_once_they_are_placed() -> None:
    model, images = ViT(SMALL).double(), torch.randn(2, 12, 12, dtype=torch.float64)
    moved = images.roll(4, dims=-1)  # by one patch
    expected = model(images)
    with torch.no_grad():
        places = model.positions.weight.view(3, 3, -1)
        places.copy_(places.roll(1, dims=1))
    torch.testing.assert_close(model(moved), expected, rtol=1e-10, atol=1e-12)


def test_initial_weights_shrink_with_width_and_depth() -> None:
    model = ViT(ViTConfig(layers=8, width=250, heads=5, bias=True))
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            assert not weight.any()
        elif name == "class_token":
            assert weight.std().item() == pytest.approx(0.04, rel=0.15)
        elif weight.ndim == 1:
            assert (weight == 1).all()
        else:
            expected = 0.04 / 4 if name.endswith("out.weight") else 0.04
            assert weight.std().item() == pytest.approx(expected, rel=0.05), name


def test_roles_of_the_parameters() -> None:
    groups = parameter_groups(ViT(SMALL), weight_decay=0.1, split_qkv=True)
    names = {(group["role"], group["split"]): [name for name, _ in group["params"]] for group in groups}
    assert names.pop(("embedding", None)) == ["positions.weight"]
    assert names.pop(("head", None)) == ["head.weight"]
    assert names.pop(("matrix", 3)) == [f"blocks.{index}.attention.qkv.weight" for index in range(2)]
    assert names[("matrix", None)][0] == "patches.weight"
    assert names.pop(("vector", None))[0] == "class_token"
    assert len(names.pop(("matrix", None))) == 1 + 3 * SMALL.layers
    assert not names
    assert {group["weight_decay"] for group in groups if group["role"] == "vector"} == {0.0}


def test_loss_is_the_mean_cross_entropy_and_float32_under_bfloat16() -> None:
    model, images, labels = ViT(SMALL).double(), torch.randn(4, 12, 12).double(), torch.tensor([0, 6, 3, 3])
    log_probabilities = model(images).log_softmax(-1)
    expected = -torch.stack([log_probabilities[image, label] for image, label in enumerate(labels)]).mean()
    torch.testing.assert_close(model.loss(images, labels), expected)
    assert model.bfloat16().loss(images.bfloat16(), labels).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch": 5}, "patch must divide image_size=28, got 5"),
        ({"patch": 0}, "patch must be an int >= 1, got 0"),
        ({"classes": 2.5}, "classes must be an int >= 1, got 2.5"),
        ({"image_size": True}, "image_size must be an int >= 1, got True"),
        ({"width": 10, "heads": 3}, "width must be a multiple of heads=3, got 10"),
    ],
)
def test_bad_config(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViTConfig(**settings)


@pytest.mark.parametrize("shape", [(2, 12, 13), (2, 1, 12, 12), (12, 12), (2, 4, 36)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images must have the shape \(batch, 12, 12\), got"):
        ViT(SMALL)(torch.zeros(shape))
