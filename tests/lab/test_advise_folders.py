"""Models of transformers from a config, and folders of text and images."""

import builtins
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F  # noqa: N812 (its usual name)

from warmfree.lab.advise.hugging_face import hugging_face_source
from warmfree.lab.advise.pictures import ImageFolder, Pictures
from warmfree.lab.advise.recipes import Recipe
from warmfree.lab.advise.source import Source
from warmfree.lab.advise.texts import TokenWindows, as_bytes, read_documents

GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 24, "vocab_size": 256}
VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 12,
    "patch_size": 4,
    "num_channels": 3,
}
FOX = "the quick brown fox jumps over the lazy dog. "


def write_config(folder: Path, config: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


def write_text(folder: Path) -> Path:
    (folder / "more" / ".hidden").mkdir(parents=True, exist_ok=True)
    (folder / "fox.txt").write_text(FOX * 20)
    (folder / "more" / "é.md").write_text("été " * 50)
    (folder / "picture.png").write_bytes(b"\x89PNG\xff\xfe\0")
    (folder / "empty.txt").touch()
    (folder / "more" / ".hidden" / "secret.txt").write_text("secret " * 100)
    return folder


def write_images(folder: Path, *, classes: int = 3, mode: str = "RGB") -> Path:
    random = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class{label}" / "deeper").mkdir(parents=True)
        for index in range(4):
            height, width = random.integers(8, 30, size=2)
            shape = (height, width, 3) if mode == "RGB" else (height, width)
            pixels = random.integers(60 * label, 60 * label + 90, size=shape).astype(np.uint8)
            place = folder / f"class{label}" / ("deeper" if index % 2 else "")
            Image.fromarray(pixels, mode=None).save(place / f"{index}.{'PNG' if index else 'jpg'}")
    (folder / "class0" / "notes.txt").write_text("no image")
    (folder / "no-images").mkdir()
    return folder


def hf(config: Path | None, **options: Any) -> Source:
    defaults: dict[str, Any] = dict.fromkeys(("text", "images", "batch_size", "context", "device"))
    return hugging_face_source(Recipe(), **(defaults | {"config": config, "steps": 5, "seed": 0} | options))


def test_a_language_model_reads_bytes(tmp_path: Path) -> None:
    config, text = write_config(tmp_path / "tiny", GPT2), write_text(tmp_path / "text")
    source = hf(config, text=text)
    assert source.title == "GPT2LMHeadModel on text"
    assert source.model.training
    assert source.batch_size == 16
    batch = next(iter(source.batches))
    assert batch["input_ids"].shape == (16, 24)
    source.model.eval()
    logits = source.model(input_ids=batch["input_ids"]).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())
    torch.testing.assert_close(source.loss_fn(source.model, batch), expected)
    everything = " ".join(bytes(row.tolist()).decode(errors="ignore") for row in batch["input_ids"])
    assert "secret" not in everything
    assert {"fox", "été"} & set(everything.split())
    # By its file it is the same, and everything is made of the seed.
    again, other = hf(config / "config.json", text=text), hf(config, text=text, seed=1)
    for same, one in ((True, again), (False, other)):
        assert torch.equal(source.model.transformer.wte.weight, one.model.transformer.wte.weight) is same
        assert torch.equal(next(iter(one.batches))["input_ids"], batch["input_ids"]) is same


def test_context_and_batch_size(tmp_path: Path) -> None:
    config, text = write_config(tmp_path / "tiny", GPT2), write_text(tmp_path / "text") / "fox.txt"
    assert next(iter(hf(config, text=text, context=7, batch_size=3).batches))["input_ids"].shape == (3, 7)
    long = write_config(tmp_path / "long", GPT2 | {"n_positions": 512})
    assert next(iter(hf(long, text=text).batches))["input_ids"].shape == (16, 128)
    for options, message in (
        ({"context": 25}, "context must be at most 24, what the model can take, got 25"),
        ({"context": 1}, "context must be >= 2, got 1"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            hf(config, text=text, **options)


def test_a_tokenizer_beside_the_config_is_used(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {
        word: index for index, word in enumerate(["<end>", "?", *sorted(set(FOX.replace(".", " .").split()))])
    }
    made = Tokenizer(models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    config, text = write_config(tmp_path / "tiny", GPT2 | {"vocab_size": len(words)}), tmp_path / "fox.txt"
    text.write_text(FOX * 20)
    with pytest.raises(ValueError, match=r"text is read as bytes, which takes vocab_size >= 256, got 11"):
        hf(config, text=text)
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", unk_token="?").save_pretrained(
        str(config)
    )
    write_config(config, GPT2 | {"vocab_size": len(words)})
    names = list(words)
    row = next(iter(hf(config, text=text).batches))["input_ids"][0]
    assert " ".join(names[token] for token in row.tolist()) in (FOX.replace(".", " .") * 20 + "<end>")
    write_config(config, GPT2 | {"vocab_size": len(words) - 1})
    with pytest.raises(ValueError, match=r"makes token 10, the config's vocab_size is 10: .* at least 11"):
        hf(config, text=text)
    (config / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"the tokenizer in .* cannot be loaded: .*remove it to read bytes"):
        hf(config, text=text)


def test_an_image_classifier_gets_the_folders_classes(tmp_path: Path) -> None:
    config, images = write_config(tmp_path / "vit", VIT), write_images(tmp_path / "images")
    source = hf(config, images=images, batch_size=64)
    assert source.title == "ViTForImageClassification on images"
    assert source.model.classifier.out_features == 3
    batch = next(iter(source.batches))
    assert batch["pixel_values"].shape == (64, 3, 12, 12)
    assert batch["pixel_values"].dtype == torch.float32
    means = [batch["pixel_values"][batch["labels"] == label].mean().item() for label in range(3)]
    assert means == sorted(means)  # brighter from class to class: the labels are those of the images
    assert abs(batch["pixel_values"].mean()) < 0.3
    source.model.eval()
    expected = F.cross_entropy(source.model(batch["pixel_values"]).logits, batch["labels"])
    torch.testing.assert_close(source.loss_fn(source.model, batch), expected)
    assert torch.equal(
        next(iter(hf(config, images=images, batch_size=64).batches))["labels"], batch["labels"]
    )


def test_grey_images_and_the_normalisation_of_a_preprocessor(tmp_path: Path) -> None:
    config = write_config(tmp_path / "vit", VIT | {"num_channels": 1, "image_size": [8, 12]})
    (config / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.25]}')
    images = write_images(tmp_path / "images", mode="L")
    (images / "class0" / "extra").mkdir()
    pixels = next(iter(hf(config, images=images, batch_size=8).batches))["pixel_values"]
    assert pixels.shape == (8, 1, 8, 12)
    raw = (pixels * 0.25 + 0.5) * 255
    torch.testing.assert_close(raw, raw.round(), atol=1e-3, rtol=0)
    (config / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 1]}'
    )
    with pytest.raises(ValueError, match="image_mean and image_std must have 1 numbers"):
        hf(config, images=images)
    (config / "preprocessor_config.json").write_text("[")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json is not a preprocessor's config"):
        hf(config, images=images)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", r"config cannot be read: .*config\.json is not JSON"),
        ("[1]", "config has no model_type"),
        ({"hidden_size": 3}, 'config has no model_type: .*"model_type": "gpt2"'),
        ({"model_type": "gtp2"}, r"model_type 'gtp2' is not one of transformers [\d.]+; did you mean 'gpt2'"),
        (
            {"model_type": "¿"},
            r"model_type '¿' is not one of transformers [\d.]+; For a model of your own pass",
        ),
        ({"model_type": "t5"}, r"t5 is not a causal language model in transformers .* or --images FOLDER"),
        (GPT2 | {"n_embd": 15}, r"transformers cannot build the model of .*15"),
        (GPT2 | {"n_embd": "wide"}, r"transformers cannot build the model of .*n_embd"),
    ],
)
def test_configs_that_cannot_be_used(tmp_path: Path, config: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        hf(write_config(tmp_path / "bad", config), text=write_text(tmp_path / "text"))
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, text = write_config(tmp_path / "tiny", GPT2), write_text(tmp_path / "text")
    for options, message in (
        ({"config": None, "text": text}, "hf needs a model: --config FILE"),
        ({"config": config}, "hf needs data: either --text FOLDER or --images FOLDER"),
        ({"config": config, "text": text, "images": text}, "either --text FOLDER or --images FOLDER"),
        ({"config": config, "text": text, "steps": None}, "needs the length of the run: --steps N"),
        ({"config": config, "images": text, "context": 3}, "--context is for text"),
    ):
        with pytest.raises(ValueError, match=message):
            hf(**options)
    for options, message in (
        ({"config": tmp_path / "none.json", "text": text}, r"config not found: .*none\.json"),
        ({"config": text, "text": text}, r"config not found: .*text/config\.json"),
        ({"config": config, "text": tmp_path / "none"}, "text file not found: .*none"),
        ({"config": config, "images": tmp_path / "none"}, "folder of images not found: .*none"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            hf(**options)
    found = builtins.__import__

    def without_transformers(name: str, *rest: Any) -> Any:
        if name == "transformers":
            raise ModuleNotFoundError("no", name="transformers")
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_transformers)
    with pytest.raises(
        ModuleNotFoundError, match=r"hf needs transformers, .* run: pip install 'warmfree\[hf\]'"
    ):
        hf(config, text=text)


def test_text_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "a.bin").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"no UTF-8 text in the folder .*binary, among 1 file;"):
        read_documents(tmp_path / "binary", seed=0)
    with pytest.raises(ValueError, match="text file is not UTF-8 text"):
        read_documents(tmp_path / "binary" / "a.bin", seed=0)
    with pytest.raises(ValueError, match="text too short: it has 3 tokens, one sequence has 4"):
        TokenWindows(["abc"], as_bytes, context=4, batch_size=1, seed=0, vocabulary=256)


@given(limit=st.integers(min_value=1, max_value=60))
def test_a_limit_cuts_no_character(tmp_path_factory: pytest.TempPathFactory, limit: int) -> None:
    folder = tmp_path_factory.mktemp("text")
    for name in ("a", "b", "c"):
        (folder / name).write_text(f"{name}é€😀" * 2)
    documents = read_documents(folder, seed=0, limit=limit)
    whole = {name: f"{name}é€😀" * 2 for name in "abc"}
    assert all(whole[text[0]].startswith(text) for text in documents)
    assert sum(len(text.encode()) for text in documents) <= limit
    assert [text[0] for text in documents] == [text[0] for text in read_documents(folder, seed=0)][
        : len(documents)
    ]


def test_images_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_images(tmp_path / "images")
    for folder, got in ((images / "class1", 1), (images / "no-images", 0)):
        with pytest.raises(
            ValueError, match=f"must have a subfolder with images for each class, .* got {got};"
        ):
            ImageFolder.find(folder)
    folder = ImageFolder.find(images)
    assert folder.classes == ("class0", "class1", "class2")
    assert [path.suffix for path in folder.files].count(".jpg") == 3
    options: dict[str, Any] = {"size": (8, 8), "channels": 3, "batch_size": 2, "seed": 0}
    with pytest.raises(ValueError, match="images have 1 or 3 channels, the model takes 4"):
        Pictures(folder, **(options | {"channels": 4}))
    (images / "class2" / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"image cannot be read: .*broken\.png .*remove it, or get it again"):
        Pictures(ImageFolder.find(images), **options)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "PIL" else found(name))
    with pytest.raises(ModuleNotFoundError, match=r"needs pillow.*pip install 'warmfree\[lab\]'"):
        Pictures(folder, **options)


def test_nothing_is_asked_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert hf(write_config(tmp_path / "tiny", GPT2), text=write_text(tmp_path / "text")).steps == 5
