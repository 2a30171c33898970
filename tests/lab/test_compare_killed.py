"""The command in processes of its own, killed at moments it cannot choose."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from warmfree.lab.cells import Cell, read_cell, run_cell
from warmfree.lab.data import load_shakespeare
from warmfree.lab.plan import QUICK_TASK

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "warmfree.cli", "compare", "--quick", "--steps", "120", "--workers", "1"]
GRID = ["--optimizers", "adamw", "adamw-warmup", "--lrs", "2e-3"]
CELLS = ("adamw-lr0.002-seed0", "adamw-warmup-lr0.002-seed0")


def start(out: Path) -> subprocess.Popen[str]:
    # A session of its own, so that a signal to its group is the Ctrl-C of a terminal.
    return subprocess.Popen(
        [*COMMAND, *GRID, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(out: Path) -> dict[str, Any]:
    process = start(out)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    return json.loads((out / "results.json").read_text())  # type: ignore[no-any-return]


def wait_for_steps(out: Path, number: int) -> None:
    records = [out / "cells" / cell / "record.jsonl" for cell in CELLS]
    deadline = time.monotonic() + 60
    while not any(record.exists() and record.read_bytes().count(b"\n") >= number for record in records):
        assert time.monotonic() < deadline, "the command does not train"
        time.sleep(0.02)


def numbers(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Everything a cell holds but the time it took."""
    return [{key: value for key, value in cell.items() if key != "seconds"} for cell in results["cells"]]


@pytest.fixture
def undisturbed(tmp_path: Path) -> list[dict[str, Any]]:
    """The same cells trained here, without processes, folders or interruptions."""
    corpus, cells = load_shakespeare(), [Cell("adamw", 2e-3, 0), Cell("adamw-warmup", 2e-3, 0)]
    for cell in cells:
        run_cell(cell, QUICK_TASK.with_steps(120), corpus, tmp_path / cell.name)
    return numbers({"cells": [read_cell(tmp_path / cell.name, steps=120) for cell in cells]})


def test_killed_again_and_again_it_ends_with_the_same_numbers(
    tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    out = tmp_path / "out"
    for steps in (10, 115):  # before the first checkpoint, and after it
        process = start(out)
        wait_for_steps(out, steps)
        process.kill()
        process.communicate()
        assert not (out / "results.json").exists()
    # What a kill in the middle of a write leaves behind.
    torn = next(out.glob("cells/*/record.jsonl"))
    with open(torn, "ab") as file:
        file.write(b'{"step":11,"lo')
    assert numbers(finish(out)) == undisturbed
    assert not list(out.rglob("checkpoint.pt"))


def test_ctrl_c_in_a_terminal_ends_quickly_and_says_how_to_resume(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(out)
    wait_for_steps(out, 10)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.startswith("warmfree: interrupted; 0 of 2 runs are done")
    assert "run the same command again to resume" in errors
    assert errors.count("\n") == 1  # no traceback, of no process
    assert time.monotonic() - began < 8
    assert len(list(out.rglob("checkpoint.pt"))) == 1
