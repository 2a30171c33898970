import io

import pytest
from rich.console import Console

from warmfree.lab import live
from warmfree.lab.cells import Cell
from warmfree.lab.folder import Grid
from warmfree.lab.live import LiveTable, known_loss
from warmfree.lab.progress import TrainingBar


def show(drawable: object) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(drawable)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def make(seeds: tuple[int, ...] = (0,)) -> LiveTable:
    grid = Grid(lrs={"adamw": (1e-3, 2e-3, 4e-3), "lionar": (1e-1,)}, seeds=seeds)
    return LiveTable(grid=grid, labels={"adamw": "AdamW", "lionar": "LionAR"}, steps=200)


def test_every_state_of_a_cell_is_shown_in_its_place() -> None:
    table = make()
    table.done = {Cell("adamw", 1e-3, 0): 2.5, Cell("adamw", 2e-3, 0): None}
    table.running = {Cell("adamw", 4e-3, 0): 50}
    text = show(table)
    assert "2 of 4 runs done" in text
    row = next(line for line in text.splitlines() if "AdamW" in line)
    assert [part.strip() for part in row.split("│")[1:-1]] == [
        "AdamW",
        "0.001: 2.500",
        "0.002: diverged",
        "0.004: 25 %",
    ]
    assert "0.1: ·" in text


def test_seeds_are_averaged_and_counted() -> None:
    table = make(seeds=(0, 1, 2))
    table.done = {Cell("adamw", 1e-3, 0): 2.0, Cell("adamw", 1e-3, 1): 3.0, Cell("adamw", 2e-3, 0): None}
    text = show(table)
    assert "0.001: 2.500 (2/3)" in text
    assert "0.002:  1 diverged (1/3)" in text


def test_time_left_counts_only_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0])
    monkeypatch.setattr(live.time, "monotonic", lambda: next(clock))
    table = make()
    table.done = {Cell("adamw", 1e-3, 0): 2.0}  # from an earlier process
    assert "time left unknown" in show(table)
    table.running = {Cell("adamw", 2e-3, 0): 100}
    assert "about 50 s left" in show(table)  # 100 steps in 10 s, 500 to go


def test_a_line_for_logs() -> None:
    table = make()
    table.done = {Cell("adamw", 1e-3, 0): 2.0, Cell("lionar", 1e-1, 0): None}
    assert table.line(Cell("adamw", 1e-3, 0)) == "2/4 adamw-lr0.001-seed0: validation loss 2.0000"
    assert table.line(Cell("lionar", 1e-1, 0)) == "2/4 lionar-lr0.1-seed0: diverged"


def test_a_diverged_run_has_no_loss_in_the_table_even_when_it_ended() -> None:
    assert known_loss({"status": "finished", "final_val_loss": 2.0}) == 2.0
    assert known_loss({"status": "diverged", "final_val_loss": 9.0}) is None


def test_the_bar_shows_loss_lr_and_speed() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with TrainingBar(steps=5, tokens_per_step=1000, console=console) as bar:
        for step in range(1, 6):
            bar(step, 3.25, 2e-3)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "5/5" in text
    assert "loss 3.2500  lr 2.00e-03" in text
    assert "- tokens/s" not in text.splitlines()[-1]
