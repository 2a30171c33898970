"""A model of transformers from its config alone, with text or images from a folder: nothing is downloaded."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from warmfree.lab.advise.pictures import ImageFolder, Pictures
from warmfree.lab.advise.recipes import Recipe
from warmfree.lab.advise.source import Source, Stream, choose_device
from warmfree.lab.advise.texts import TokenWindows, as_bytes, read_documents

__all__ = ["BATCH_SIZE", "hugging_face_source"]

BATCH_SIZE = 16
CONTEXT = 128
IMAGE_SIZE = 224  # of models whose config says nothing of it: convolutions take any
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model"),
    *("vocab.json", "vocab.txt"),
)


def hugging_face_source(
    recipe: Recipe,
    *,
    config: Path | None,
    text: Path | None,
    images: Path | None,
    steps: int | None,
    batch_size: int | None,
    context: int | None,
    seed: int,
    device: str | None,
) -> Source:
    """Return a model of transformers with random weights, and the batches of a folder.

    Args:
        recipe: the optimizer.
        config: ``config.json``, or the folder that it is in. A tokenizer beside it is used; else tokens are bytes.
        text: a file or folder of text, for a causal language model.
        images: a folder with a subfolder a class, for an image classifier, which gets as many labels.
        steps: of the run, >= 1.
        batch_size: sequences or images per step; None for 16.
        context: tokens per sequence; None for 128, or all that the model can take if those are fewer.
        seed: of weights and batches.
        device: by name; None for CUDA's if there is one.

    Raises:
        ValueError: something is missing, out of range, or cannot be used.
        FileNotFoundError: there is no such file or folder.
        ModuleNotFoundError: transformers is not installed.
    """
    if config is None:
        raise ValueError("hf needs a model: --config FILE, a config.json or the folder that it is in")
    if (text is None) == (images is None):
        raise ValueError("hf needs data: either --text FOLDER or --images FOLDER")
    if steps is None:
        raise ValueError("hf needs the length of the run: --steps N")
    place = choose_device(device)
    batch_size = BATCH_SIZE if batch_size is None else batch_size
    file = config / "config.json" if config.is_dir() else config
    settings = _load_config(file)
    stream: Callable[[int], Any]
    if text is not None:
        stream = _windows(
            settings, file.parent, text, context=context, batch_size=batch_size, seed=seed
        ).batch
    else:
        assert images is not None
        if context is not None:
            raise ValueError("--context is for text, and has no effect on images; leave it out")
        folder = ImageFolder.find(images)
        settings.num_labels = len(folder.classes)
        stream = _pictures(settings, file.parent, folder, batch_size=batch_size, seed=seed).batch
    torch.manual_seed(seed)
    model = _build(settings, file, causal=text is not None).to(place)
    return Source(
        title=f"{type(model).__name__} on {(text or images or config).resolve().name}",
        model=model,
        loss_fn=_loss,
        batches=Stream(stream, device=place),
        optimizer=recipe.build(model),
        steps=steps,
        batch_size=batch_size,
    )


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = model(**batch).loss
    return loss


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ModuleNotFoundError(
            "hf needs transformers, which is not installed; run: pip install 'warmfree[hf]'",
            name="transformers",
        ) from None
    # It remarks at length on configs that it takes nevertheless, in the middle of what is shown here.
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    return transformers


def _load_config(file: Path) -> Any:
    """Return the config in a file, after a look at what transformers would explain at length."""
    if not file.is_file():
        raise FileNotFoundError(f"config not found: {file}")
    transformers = _transformers()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"config cannot be read: {file} is not JSON ({error})") from None
    kind = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(kind, str):
        raise ValueError(
            f'config has no model_type: {file}; it should hold, for instance, "model_type": "gpt2"'
        )
    if kind not in transformers.CONFIG_MAPPING:
        close = get_close_matches(kind, list(transformers.CONFIG_MAPPING.keys()), n=2)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise ValueError(
            f"unknown architecture in {file}: model_type {kind!r} is not one of transformers "
            f"{transformers.__version__}; {hint}For a model of your own pass module:function"
        )
    with _explained(file):
        return transformers.AutoConfig.from_pretrained(
            str(file), local_files_only=True, trust_remote_code=False
        )


def _build(settings: Any, file: Path, *, causal: bool) -> nn.Module:
    transformers = _transformers()
    known, auto, what = (
        (
            transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
            transformers.AutoModelForCausalLM,
            "a causal language model",
        )
        if causal
        else (
            transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
            transformers.AutoModelForImageClassification,
            "an image classifier",
        )
    )
    if type(settings) not in known:
        other = "--images FOLDER" if causal else "--text FOLDER"
        raise ValueError(
            f"{settings.model_type} is not {what} in transformers ({file}); use another config, or {other} if that is "
            f"what it is for"
        )
    settings.use_cache = False  # of no use in training
    with _explained(file):
        model: nn.Module = auto.from_config(settings)
    return model.train()


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"transformers cannot build the model of {file}: {said[:300]}") from error


def _windows(
    settings: Any, folder: Path, text: Path, *, context: int | None, batch_size: int, seed: int
) -> TokenWindows:
    shape = settings.get_text_config()
    longest = getattr(shape, "max_position_embeddings", None)
    if context is None:
        context = min(longest or CONTEXT, CONTEXT)
    elif longest is not None and context > longest:
        raise ValueError(f"context must be at most {longest}, what the model can take, got {context}")
    vocabulary = getattr(shape, "vocab_size", None)
    if vocabulary is None:
        raise ValueError(f"{settings.model_type} has no vocab_size, so it takes no text; use --images FOLDER")
    if any((folder / name).is_file() for name in _TOKENIZER_FILES):
        encode = _tokenizer(folder)
    elif vocabulary < 256:
        raise ValueError(
            f"without a tokenizer beside the config text is read as bytes, which takes vocab_size >= 256, got "
            f"{vocabulary}; set vocab_size, or put the tokenizer's files into {folder}"
        )
    else:
        encode = as_bytes
    return TokenWindows(
        read_documents(text, seed=seed),
        encode,
        context=context,
        batch_size=batch_size,
        seed=seed,
        vocabulary=vocabulary,
    )


def _tokenizer(folder: Path) -> Callable[[str], list[int]]:
    """Return what encodes a document, with the end of text after it if there is such a token."""
    try:
        tokenizer = _transformers().AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"the tokenizer in {folder} cannot be loaded: {said[:300]}; repair it, or remove it to read bytes"
        ) from error
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def encode(text: str) -> list[int]:
        tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return tokens + end

    return encode


def _pictures(settings: Any, beside: Path, folder: ImageFolder, *, batch_size: int, seed: int) -> Pictures:
    size = getattr(settings, "image_size", IMAGE_SIZE)
    height, width = (size, size) if isinstance(size, int) else size
    mean, std = _normalisation(beside / "preprocessor_config.json")
    return Pictures(
        folder,
        size=(height, width),
        channels=getattr(settings, "num_channels", 3),
        batch_size=batch_size,
        seed=seed,
        mean=mean,
        std=std,
    )


def _normalisation(file: Path) -> tuple[list[float] | None, list[float] | None]:
    """Return mean and standard deviation of a preprocessor's config; None for both without one."""
    if not file.is_file():
        return None, None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return content.get("image_mean"), content.get("image_std")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} is not a preprocessor's config ({error}); repair or remove it") from None
