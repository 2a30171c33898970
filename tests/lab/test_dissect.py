import io
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from warmfree import cli
from warmfree.lab import commands
from warmfree.lab.cells import run_cell
from warmfree.lab.data import Corpus
from warmfree.lab.dissect import watch
from warmfree.lab.dissect.cases import Case, GPTCase, ViTCase, find_case, grid_of
from warmfree.lab.dissect.command import PAGE, RESULTS, dissect, preview
from warmfree.lab.dissect.history import read_history
from warmfree.lab.dissect.watch import DENSE_STEPS, PACES, Watcher, watch_cell
from warmfree.lab.images import ImageSet
from warmfree.lab.interrupt import Interrupted
from warmfree.lab.methods import METHODS
from warmfree.lab.tasks import ByteGPTConfig
from warmfree.lab.train import train
from warmfree.lab.vision import ImageTaskConfig
from warmfree.record import read_records
from warmfree.report.runs import load_run

TINY = ByteGPTConfig(layers=1, width=16, heads=2, context=8, batch_size=4, steps=12, validation_sequences=8)


def make_case(steps: int = 12) -> GPTCase:
    corpus = Corpus.from_documents([b"the quick brown fox jumps over the lazy dog. " * 100], name="fox")
    return GPTCase(
        task=TINY.with_steps(steps), corpus=corpus, lrs={"adamw": (30.0,), "adamw-warmup": (1e-2,)}
    )


def run(case: Case, out: Path) -> str:
    console = Console(file=io.StringIO(), width=200)
    dissect([case], out, seeds=1, workers=1, command="warmfree dissect", console=console)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_a_crash_from_end_to_end_and_a_second_call_that_trains_nothing(tmp_path: Path) -> None:
    case = make_case(steps=40)
    text = run(case, tmp_path)
    folder = tmp_path / "gpt"
    assert "1/2 adamw-lr30.0-seed0: diverged" in text
    results = json.loads((folder / RESULTS).read_text())
    assert {each["name"]: each["outcome"] for each in results["runs"]} == {
        "adamw-lr30.0-seed0": "failed",
        "adamw-warmup-lr0.01-seed0": "healthy",
    }
    events = results["events"]["adamw-lr30.0-seed0"]
    assert events["jump"] == events["first"] == 1
    cause = results["first"]["adamw-lr30.0-seed0"]["by_construction"]
    assert (cause["step"], cause["lead"]) == (0, 1)
    assert cause["value"] > cause["high"]
    sizes = next(each for each in results["quantities"] if each["name"] == "update_rms")
    assert sizes["kind"] == "cause by construction"
    assert sizes["false_alarm_rate"] is None  # there is no other healthy run to hold the only one against
    assert any("Only 1 of the runs went well" in problem for problem in results["problems"])
    assert results["rules"]["log_margin_factor"] == 1.5
    assert (folder / PAGE).read_text().startswith("# A crash, dissected: byte GPT on fox")
    assert "| adamw-lr30.0-seed0 |" in (folder / PAGE).read_text()
    assert "adamw-warmup-lr0.01-seed0" in (folder / "seed0.html").read_text()

    records = {path: path.read_bytes() for path in folder.rglob("*.jsonl")}
    assert len(records) == 4
    again = run(case, tmp_path)
    assert "1/2" not in again
    assert {path: path.read_bytes() for path in folder.rglob("*.jsonl")} == records
    second = json.loads((folder / RESULTS).read_text())
    assert [second[key] for key in ("runs", "events", "quantities")] == [
        results[key] for key in ("runs", "events", "quantities")
    ]

    with pytest.raises(ValueError, match=r"task\.steps is 40 there, 12 asked"):
        run(make_case(steps=12), tmp_path)


def test_watching_changes_no_number_and_everything_is_measured(tmp_path: Path) -> None:
    case = make_case()
    cell = next(cell for cell in grid_of(case, seeds=1).cells() if cell.method == "adamw-warmup")
    run_cell(cell, case.task, case.corpus, tmp_path / "alone")
    steps: list[int] = []
    watch_cell(cell, steps.append, case=case, cells=tmp_path)
    watched = tmp_path / cell.name
    assert (watched / "record.jsonl").read_bytes() == (tmp_path / "alone" / "record.jsonl").read_bytes()
    assert steps == list(range(1, 13))
    history = read_history(cell, watched)
    assert sorted(history.losses) == list(range(12))
    assert history.notices == ()
    assert history.overhead is not None
    for quantity in (
        "update_rms",
        "rrc",
        "attention_entropy_ratio",
        "qk_energy",
        "stable_rank",
        "grad_norm",
        "snr",
    ):
        expected = list(range(1, 12)) if quantity == "snr" else list(range(12))
        assert history.grids[quantity].steps.tolist() == expected, quantity
    assert history.grids["sigma_down_up"].steps.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 10]
    assert history.grids["preconditioned_sharpness"].steps.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 10]


def test_the_pace_changes_after_the_first_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "DENSE_STEPS", 30)
    monkeypatch.setattr(watch, "PACES", {"gradients": watch.Pace(1, 4)})
    case = make_case(steps=50)
    cell = grid_of(case, seeds=1).cells()[1]
    watch_cell(cell, lambda step: None, case=case, cells=tmp_path)
    measured = load_run(tmp_path / cell.name).grids["grad_norm"].steps.tolist()
    assert measured == [*range(30), 32, 34, 36, 40, 44, 48]  # 34 is one of the monitor's own early steps


def test_a_run_that_was_interrupted_goes_on_in_the_same_record(tmp_path: Path) -> None:
    case = make_case()
    folders = [tmp_path / name for name in ("whole", "parts")]
    for folder in folders:
        folder.mkdir()

    def train_in(folder: Path, *, stop_at: int | None = None) -> None:
        watcher = Watcher(case, folder)

        def on_step(step: int, loss: float, lr: float) -> None:
            watcher.pace(step)
            if step == stop_at:
                signal.raise_signal(signal.SIGINT)

        made = case.prepare(METHODS["adamw-warmup"], lr=1e-2, seed=0)
        train(made, folder, on_step=on_step, watch=watcher.monitor)

    train_in(folders[0])
    with pytest.raises(Interrupted):
        train_in(folders[1], stop_at=7)
    train_in(folders[1])
    whole, parts = (load_run(folder) for folder in folders)
    assert parts.resumes == (7,)
    assert parts.steps.tolist() == whole.steps.tolist() == list(range(12))
    assert parts.losses.tolist() == whole.losses.tolist()
    for quantity in ("update_rms", "attention_logit"):
        assert parts.grids[quantity].values.tolist() == whole.grids[quantity].values.tolist()
    losses = [
        {row["step"]: row["loss"] for row in read_records(folder / "record.jsonl") if "loss" in row}
        for folder in folders
    ]
    assert losses[0] == losses[1]


def test_the_probe_batch_is_held_out_and_the_same_for_every_run() -> None:
    case = make_case()
    tokens, targets = case.probe_batch()
    assert tokens.shape == targets.shape == (4, 8)
    assert all(bytes(row.tolist()) in case.corpus.validation.tobytes() for row in tokens)
    assert all(
        bool((one == two).all()) for one, two in zip(case.probe_batch(), (tokens, targets), strict=True)
    )


def test_a_vit_is_prepared_and_watched_alike(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = ImageSet.from_arrays(
        random.integers(0, 255, (100, 8, 8), dtype=np.uint8), np.arange(100, dtype=np.uint8) % 4, name="noise"
    )
    task = ImageTaskConfig(layers=1, width=16, heads=2, batch_size=8, steps=3, validation_images=20)
    case = ViTCase(task=task, images=images, lrs={"lionar": (8e-3,)})
    (cell,) = grid_of(case, seeds=1).cells()
    watch_cell(cell, lambda step: None, case=case, cells=tmp_path)
    history = read_history(cell, tmp_path / cell.name)
    assert history.notices == ()
    assert {"sharpness", "factor", "sigma_query_key", "dead_units"} <= history.grids.keys()
    assert case.probe_batch()[0].shape == (16, 8, 8)
    assert case.title == "ViT on noise"


def test_the_cases_hold_failing_run_and_control_at_one_learning_rate() -> None:
    for name in ("gpt", "vit"):
        case = find_case(name, steps=5)
        assert (case.name, case.steps) == (name, 5)
        assert len({lrs[0] for lrs in case.lrs.values()}) == 1
        assert {"adamw", "adamw-warmup", "adamw2", "lionar"} == set(case.lrs)
        assert case.describe()["steps"] == 5
    assert find_case("gpt").steps == 300
    with pytest.raises(ValueError, match="unknown model 'bert'; known: gpt, vit"):
        find_case("bert")
    assert all(pace.early <= pace.late for pace in PACES.values())
    assert DENSE_STEPS == 60


def test_a_preview_writes_nothing(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=100)
    preview([make_case()], tmp_path / "out", seeds=2, workers=2, console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "byte GPT on fox, 4 runs of 12 steps with 2 seeds" in text
    assert "AdamW + 20 % warmup (adamw-warmup): lr 0.01" in text
    assert "0 of them done in" in text
    assert "4 left: about" in text
    assert not (tmp_path / "out").exists()


def test_what_is_asked_for_reaches_the_dissection(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        commands, "dissect", lambda cases, out, **rest: seen.update(cases=cases, out=out, **rest)
    )
    arguments = [
        "dissect",
        "--model",
        "vit",
        "--steps",
        "9",
        "--seeds",
        "2",
        "--workers",
        "1",
        "--out",
        "a b",
    ]
    assert cli.main(arguments) == 0
    assert [(case.name, case.steps) for case in seen["cases"]] == [("vit", 9)]
    assert (seen["out"], seen["seeds"], seen["workers"]) == (Path("a b"), 2, 1)
    assert seen["command"] == "warmfree dissect --model vit --steps 9 --seeds 2 --workers 1 --out 'a b'"
    assert cli.main(["dissect", "--seeds", "0"]) == 2
    assert cli.main(["dissect", "--workers", "0"]) == 2
    assert cli.main(["dissect", "--model", "vit", "--steps", "0"]) == 2
    error = capsys.readouterr().err
    assert "seeds must be >= 1, got 0" in error
    assert "workers must be >= 1, got 0" in error
    assert "steps must be >= 1, got 0" in error
    assert not list(tmp_path.iterdir())


def test_help_names_every_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    with pytest.raises(SystemExit):
        cli.main(["dissect", "--help"])
    text = capsys.readouterr().out
    for option in ("model", "seeds", "steps", "workers", "out", "dry-run"):
        assert f"--{option}" in text
    assert "default: 300 for the GPT, 200 for the ViT" in text
    assert "None" not in text
