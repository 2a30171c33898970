import io
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from warmfree import report
from warmfree.lab.compare import RESULTS, compare, preview
from warmfree.lab.data import Corpus
from warmfree.lab.folder import Grid
from warmfree.lab.interrupt import Interrupted
from warmfree.lab.methods import METHODS
from warmfree.lab.plan import Plan
from warmfree.lab.tasks import ByteGPTConfig

TINY = ByteGPTConfig(layers=1, width=16, heads=2, context=8, batch_size=4, steps=12, validation_sequences=8)


def make_plan(
    methods: tuple[str, ...] = ("adamw",), lrs: tuple[float, ...] = (1e-3,), steps: int = 12
) -> Plan:
    corpus = Corpus.from_documents([b"the quick brown fox jumps over the lazy dog. " * 100], name="fox")
    grid = Grid(lrs=dict.fromkeys(methods, lrs), seeds=(0,))
    return Plan(
        task=TINY.with_steps(steps),
        corpus=corpus,
        methods=tuple(METHODS[name] for name in methods),
        grid=grid,
    )


@pytest.fixture(autouse=True)
def plain_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def write_report(results: dict[str, Any], out_dir: Path) -> Path:
        (out_dir / "report.html").write_text(str(len(results["cells"])))
        return out_dir / "report.html"

    monkeypatch.setattr(report, "write_report", write_report)
    monkeypatch.setattr(report, "summary_table", lambda results: Table("THE SUMMARY"))
    monkeypatch.setattr(report, "verdict", lambda results: ["THE VERDICT"])


def run(plan: Plan, out: Path, *, terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=terminal)
    compare(plan, out, workers=1, command="warmfree compare", console=console)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_results_have_the_agreed_form_and_a_second_call_adds_only_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = run(make_plan(), out)
    assert "1/1 adamw-lr0.001-seed0: validation loss" in text
    assert "THE SUMMARY" in text
    assert "- THE VERDICT" in text
    assert f"Report: {out / 'report.html'}" in text
    results = json.loads((out / RESULTS).read_text())
    assert set(results) == {"format", "command", "created", "versions", "machine", "task", "methods", "cells"}
    assert results["format"] == 1
    assert results["command"] == "warmfree compare"
    assert set(results["versions"]) == {"python", "torch", "warmfree", "numpy"}
    assert set(results["machine"]) == {"cpu", "cores"}
    assert results["task"]["steps"] == 12
    assert results["methods"] == [
        {
            "name": "adamw",
            "label": "AdamW",
            "kind": "baseline",
            "warmup_fraction": 0.0,
            "description": METHODS["adamw"].description,
            "lrs": [1e-3],
        }
    ]
    (cell,) = results["cells"]
    assert set(cell) == {
        *(
            "method",
            "lr",
            "seed",
            "status",
            "final_val_loss",
            "seconds",
            "divergence",
            "skipped_steps",
            "curve",
        ),
        "evals",
    }
    report.results.parse(results)

    modified = (out / "cells" / "adamw-lr0.001-seed0" / "result.json").stat().st_mtime_ns
    text = run(make_plan(("adamw", "adamw-warmup"), (1e-3, 2e-3)), out, terminal=True)
    assert "of 4 runs done" in text  # the live table
    results = json.loads((out / RESULTS).read_text())
    assert [method["name"] for method in results["methods"]] == ["adamw", "adamw-warmup"]
    assert len(results["cells"]) == 4
    assert results["cells"][0] == cell
    assert (out / "cells" / "adamw-lr0.001-seed0" / "result.json").stat().st_mtime_ns == modified

    # Asking for less again trains nothing and keeps everything.
    assert "validation loss" not in run(make_plan(), out)
    assert len(json.loads((out / RESULTS).read_text())["cells"]) == 4


def test_another_task_is_refused_before_any_work(tmp_path: Path) -> None:
    run(make_plan(), tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"holds another comparison \(task.steps is 12 there, 13 asked"):
        run(make_plan(steps=13), tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_preview_writes_nothing_and_knows_what_is_done(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=100)
    out = tmp_path / "out"
    preview(make_plan(lrs=(1e-3, 2e-3)), out, workers=2, console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "AdamW (adamw): lr 0.001, 0.002" in text
    assert "2 runs of 12 steps with 1 seed, 0 of them done" in text
    assert "2 left: about" in text
    assert not out.exists()
    (out / "cells" / "adamw-lr0.001-seed0").mkdir(parents=True)
    (out / "cells" / "adamw-lr0.001-seed0" / "result.json").write_text("{}")
    preview(make_plan(lrs=(1e-3, 2e-3)), out, workers=2, console=console)
    assert "1 of them done" in console.file.getvalue()  # type: ignore[attr-defined]


def test_ctrl_c_saves_and_the_same_call_resumes(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    plan = make_plan(steps=300)
    run(plan, whole)
    record = parts / "cells" / "adamw-lr0.001-seed0" / "record.jsonl"

    def interrupt_once_it_trains() -> None:
        while not record.exists() or record.read_bytes().count(b"\n") < 5:
            waiting.wait(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    waiting = threading.Event()
    threading.Thread(target=interrupt_once_it_trains, daemon=True).start()
    with pytest.raises(Interrupted, match=r"0 of 1 runs are done.*run the same command again to resume"):
        run(plan, parts)
    assert (record.parent / "checkpoint.pt").exists()
    assert not (record.parent / "result.json").exists()
    run(plan, parts)

    def numbers(out: Path) -> Any:
        cells = json.loads((out / RESULTS).read_text())["cells"]
        return [{key: value for key, value in cell.items() if key != "seconds"} for cell in cells]

    assert numbers(parts) == numbers(whole)
