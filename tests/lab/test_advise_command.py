"""``warmfree advise`` from what is typed to what is printed, also as a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from warmfree import cli

GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16, "vocab_size": 256}
VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 8,
    "patch_size": 4,
}
MINE = """
import time
import torch
from torch import nn

def make(lr=1e-3):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    batches = [torch.randn(16, 4) for _ in range(30)]
    loss = lambda model, x: (model(x) - x.sum(1, keepdim=True)).square().mean()
    return model, loss, batches, torch.optim.AdamW(model.parameters(), lr=lr)

def slow():
    model, loss, batches, optimizer = make()
    def slow_loss(model, x):
        time.sleep(0.05)
        return loss(model, x)
    return model, slow_loss, batches, optimizer

def wrong():
    return make()[:3]
"""
PARTS = ["Verdict: ", "What was measured", "critical learning rate", "loss after the step", "Because"]


@pytest.fixture(autouse=True)
def _in_a_folder_with_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "110")
    path = list(sys.path)
    Path("mine.py").write_text(MINE)
    for name, config in (("gpt2", GPT2), ("vit", VIT), ("strange", {"model_type": "gpt22"})):
        Path(name).mkdir()
        Path(name, "config.json").write_text(json.dumps(config))
    Path("text").mkdir()
    Path("text", "fox.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    random = np.random.default_rng(0)
    for label in ("dark", "light"):
        Path("images", label).mkdir(parents=True)
        for index in range(6):
            low = 0 if label == "dark" else 128
            pixels = random.integers(low, low + 128, size=(10, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path("images", label, f"{index}.png"))
    yield
    sys.path[:] = path
    sys.modules.pop("mine", None)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        status = cli.main(["advise", *arguments])
    except SystemExit as leaving:  # the parser's own way out
        status = int(leaving.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


HF_TEXT = ["hf", "--config", "gpt2", "--text", "text", "--steps", "40", "--batch-size", "4"]
HF_IMAGES = ["hf", "--config", "vit/config.json", "--images", "images", "--steps", "40", "--batch-size", "4"]


@pytest.mark.parametrize(
    ("arguments", "title"),
    [
        (
            ["mine.py:make", "--steps", "60"],
            "Sequential of mine.py:make: 49 parameters, AdamW at lr 1e-3, 60 steps of",
        ),
        ([*HF_TEXT, "--optimizer", "sgd", "--lr", "0.3"], "GPT2LMHeadModel on text"),
        ([*HF_IMAGES, "--lr", "1e-2", "--max-grad-norm", "1"], "ViTForImageClassification on images"),
        (["gpt", "--no-rehearsal", "--batch-size", "2", "--lr", "1.6e-2"], "byte GPT on Shakespeare's plays"),
        (["vit", "--no-rehearsal", "--batch-size", "4", "--accumulate", "2"], "ViT on MNIST (5000 digits)"),
    ],
)
def test_every_source_gets_advice(
    capsys: pytest.CaptureFixture[str], arguments: list[str], title: str
) -> None:
    status, out, err = call(capsys, *arguments)
    assert status == 0, err
    assert out.startswith(title)
    for part in PARTS:
        assert part in out
    assert "looking for the critical learning rate" in err
    assert "\x1b" not in out + err


def test_json_and_a_figure(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, *HF_TEXT, "--no-rehearsal", "--json", "--plot", "new/search.png")
    assert status == 0, err
    advice = json.loads(out)
    assert advice["verdict"] in ("no warmup", "warmup", "replace", "unknown")
    assert (advice["steps"], advice["batch_size"], advice["optimizer"]) == (40, 4, "AdamW")
    assert advice["evidence"]["critical"]["target"] == 1e-3
    assert advice["evidence"]["critical"]["searches"][0]["trials"]
    assert Path("new/search.png").read_bytes().startswith(b"\x89PNG")
    assert "plot: new/search.png" in err


def test_the_same_command_gives_the_same_advice(capsys: pytest.CaptureFixture[str]) -> None:
    def numbers() -> Any:
        advice = json.loads(call(capsys, *HF_IMAGES, "--no-rehearsal", "--json", "--seed", "3")[1])
        del advice["seconds"], advice["evidence"]["critical"]["seconds"]
        return advice

    assert numbers() == numbers()


def test_a_dry_run_says_what_it_takes_and_computes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch import nn

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a pass was made")

    monkeypatch.setattr(nn.Linear, "forward", refuse)
    status, out, err = call(capsys, "mine.py:make", "--steps", "900", "--dry-run")
    assert (status, err) == (0, "")
    for part in (
        "49 parameters",
        "critical learning rate, along 3 steps",
        "up to 60",
        "rehearsed",
        "In all up to",
    ):
        assert part in out
    assert "rehearsed" not in call(capsys, "mine.py:make", "--steps", "900", "--dry-run", "--no-rehearsal")[1]


def test_a_dry_run_promises_no_less_than_is_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from warmfree.lab.advise import user_function

    calls = 0
    explained = user_function._first_explained

    def counting(name: str, loss_fn: Any) -> Any:
        inner = explained(name, loss_fn)

        def loss(model: Any, batch: Any) -> Any:
            nonlocal calls
            calls += 1
            return inner(model, batch)

        return loss

    monkeypatch.setattr(user_function, "_first_explained", counting)
    promised = call(capsys, "mine.py:make", "--steps", "200", "--dry-run")[1]
    most = int(promised.split("In all up to ")[1].split()[0].replace(",", ""))
    assert call(capsys, "mine.py:make", "--steps", "200")[0] == 0
    assert most / 10 < calls <= most


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gtp"], "unknown source 'gtp'; did you mean 'gpt'?"),
        (["gpt", "--optimizer", "lionra"], "unknown optimizer 'lionra'; did you mean 'liona' or 'lionar'?"),
        (["gpt", "--lr", "nan"], "lr must be finite and > 0, got nan"),
        (["gpt", "--steps", "0"], "steps must be >= 1, got 0"),
        (["gpt", "--config", "gpt2"], "--config is for the source hf, and has no effect on gpt"),
        (["gpt", "--accumulate", "0"], "accumulate must be >= 1, got 0"),
        (["gpt", "--accumulate", "0", "--dry-run"], "accumulate must be >= 1, got 0"),
        (["gpt", "--max-grad-norm", "-1"], "max_grad_norm must be > 0, got -1.0"),
        (["gpt", "--plot", "search.gif"], "must end in .svg, .png, .pdf, got 'search.gif'"),
        (["gpt", "--json", "--dry-run"], "--dry-run gives no advice to print as JSON"),
        (["mine.py:make", "--steps", "0", "--dry-run"], "steps must be >= 1, got 0"),
        (["mine.py:make", "--steps", "9", "--batch-size", "0"], "batch_size must be >= 1, got 0"),
        (["mine.py:make"], "needs the length of the run: --steps N"),
        (
            ["mine.py:make", "--steps", "9", "--lr", "1"],
            "--lr has no effect: your function returns its own model",
        ),
        (["hf", "--steps", "9"], "hf needs a model: --config FILE"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    status, out, err = call(capsys, *arguments)
    assert (status, out) == (2, "")
    *progress, last = err.splitlines()
    assert last.startswith("warmfree: ")
    assert message in last
    assert "Traceback" not in err
    assert not progress or "looking at" in progress[0]


def test_help_names_every_option_and_the_four_sources(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "--help")
    assert (status, err) == (0, "")
    words = " ".join(out.replace("│", " ").split())
    for option in (
        *(
            "optimizer",
            "lr",
            "weight-decay",
            "beta1",
            "beta2",
            "steps",
            "batch-size",
            "accumulate",
            "max-grad-norm",
        ),
        *("config", "text", "images", "context", "seed", "device", "no-rehearsal", "json", "plot", "dry-run"),
    ):
        assert f"--{option}" in out
    for part in (
        "gpt or vit",
        "hf (a model of",
        "(model, loss_fn, batches, optimizer)",
        "path/to/file.py:function",
    ):
        assert part in words
    assert "None" not in out


def process(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


# One process for all, since torch takes seconds to import; its streams are real ones.
SEVERAL = """
import sys
from warmfree.cli import main

for arguments in ARGUMENTS:
    try:
        status = main(["advise", *arguments])
    except SystemExit as leaving:
        status = leaving.code
    print(f"<{status}>", flush=True)
    print(f"<{status}>", file=sys.stderr, flush=True)
"""


def test_in_a_process_of_its_own() -> None:
    bad = {
        "text file not found: nowhere.txt": ("gpt", "--text", "nowhere.txt"),
        "mine.py:wrong must return (model, loss_fn, batches, optimizer), it returned a tuple of 3": (
            *("mine.py:wrong", "--steps", "9"),
        ),
        "unknown optimizer 'adamm'; did you mean 'adam' or 'radam'": ("gpt", "--optimizer", "adamm"),
        "model_type 'gpt22' is not one of transformers": (
            *("hf", "--config", "strange", "--text", "text", "--steps", "9"),
        ),
    }
    commands = [*bad.values(), ("--help",), ("mine:make", "--steps", "50", "--no-rehearsal")]
    started = process(
        *("-c", SEVERAL.replace("ARGUMENTS", repr(commands))), PYTHONIOENCODING="ascii", COLUMNS="60"
    )
    out, err = started.communicate(timeout=120)
    assert started.returncode == 0, err
    *failed, helped, advised, rest = re.split(r"<(?:2|0)>\n", out)
    assert ("".join(failed), rest) == ("", "")
    assert "--no-rehearsal" in helped
    assert "Verdict: " in advised
    assert "|" in advised
    assert out.isascii()
    assert re.findall("<.*>", out) == ["<2>"] * 4 + ["<0>"] * 2
    for message, said in zip(bad, re.split(r"<(?:2|0)>\n", err), strict=False):
        assert said.startswith("warmfree: ")
        assert message in said
        assert said.count("\n") == 1


def test_ctrl_c_is_one_line_and_status_130() -> None:
    started = process("-m", "warmfree.cli", "advise", "mine.py:slow", "--steps", "5000")
    assert started.stderr is not None
    for line in started.stderr:
        if "rehearsing" in line:
            break
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=60)
    assert (started.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "warmfree: interrupted before a verdict; nothing was kept"
    assert "Traceback" not in err
