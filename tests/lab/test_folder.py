import json
import os
from pathlib import Path
from typing import Any

import pytest

from warmfree.lab.folder import Grid, ResultsFolder
from warmfree.lab.lock import exclusive

CONFIG: dict[str, Any] = {
    "task": {"steps": 10, "betas": [0.9, 0.95], "corpus": {"name": "text", "sha256": "ab"}},
    "versions": {"torch": "2.13.0"},
    "methods": {"adamw": {"eps": 1e-8}},
}
GRID = Grid(lrs={"adamw": (1e-3, 2e-3)}, seeds=(0,))


def make(path: Path, **changes: Any) -> ResultsFolder:
    return ResultsFolder(path, config={**CONFIG, **changes})


def test_a_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    with make(tmp_path / "a" / "b").opened(GRID) as grid:
        assert grid == GRID
    assert (tmp_path / "a" / "b" / "cells").is_dir()
    assert make(tmp_path / "a" / "b").read_grid() == GRID


def test_more_methods_lrs_and_seeds_are_added_and_none_forgotten(tmp_path: Path) -> None:
    with make(tmp_path).opened(GRID):
        pass
    more = Grid(lrs={"radam": (1e-2,), "adamw": (5e-4, 2e-3)}, seeds=(1,))
    with make(tmp_path, methods={**CONFIG["methods"], "radam": {}}).opened(more) as grid:
        assert grid == Grid(lrs={"adamw": (5e-4, 1e-3, 2e-3), "radam": (1e-2,)}, seeds=(0, 1))
    with make(tmp_path).opened(GRID) as again:  # asking for less keeps the rest
        assert again == grid
    assert set(json.loads((tmp_path / "sweep.json").read_text())["config"]["methods"]) == {"adamw", "radam"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {**CONFIG["task"], "steps": 20}}, "task.steps is 10 there, 20 asked"),
        (
            {"task": {**CONFIG["task"], "corpus": {"name": "text", "sha256": "cd"}}},
            "task.corpus.sha256 is 'ab' there",
        ),
        ({"versions": {"torch": "2.14.0"}}, "versions.torch is '2.13.0' there, '2.14.0' asked"),
        ({"methods": {"adamw": {"eps": 1e-6}}}, "methods.adamw.eps is 1e-08 there, 1e-06 asked"),
        ({"task": {"steps": 10}}, r"task.betas is \[0.9, 0.95\] there, None asked"),
        ({"threads": 1}, "threads is None there, 1 asked"),
    ],
)
def test_another_configuration_is_refused_with_the_key_that_differs_and_nothing_is_changed(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with make(tmp_path).opened(GRID):
        pass
    before = (tmp_path / "sweep.json").read_bytes()
    with (
        pytest.raises(ValueError, match=f"{message}.*--out, or delete"),
        make(tmp_path, **changes).opened(GRID),
    ):
        pass
    assert (tmp_path / "sweep.json").read_bytes() == before


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with make(tmp_path).opened(GRID), pytest.raises(ValueError, match="another comparison is running in"):
        make(tmp_path).opened(GRID).__enter__()


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="not empty and holds no comparison"), make(tmp_path).opened(GRID):
        pass
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 99}'])
def test_a_broken_or_newer_sweep_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ValueError, match=r"sweep\.json"), make(tmp_path).opened(GRID):
        pass
    assert (tmp_path / "sweep.json").read_text() == content


def test_killed_before_its_first_word_a_folder_is_still_ours(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    with exclusive(tmp_path / ".lock"):
        pass
    with make(tmp_path).opened(GRID) as grid:
        assert grid == GRID


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for path in (file, file / "below"):
        with pytest.raises(ValueError, match=r"cannot write results to .*; choose another folder with --out"):
            make(path).opened(GRID).__enter__()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match=r"cannot write results to .* \(Permission denied\)"):
        make(tmp_path / "below").opened(GRID).__enter__()
