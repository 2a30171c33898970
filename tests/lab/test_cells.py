import json
import math
import os
from pathlib import Path

import pytest
import torch

from warmfree.lab.cells import Cell, read_cell, run_cell
from warmfree.lab.data import Corpus
from warmfree.lab.methods import METHODS
from warmfree.lab.tasks import ByteGPTConfig, prepare_run
from warmfree.lab.train import CHECKPOINT
from warmfree.record import RecordWriter, write_json

TINY = ByteGPTConfig(layers=1, width=16, heads=2, context=8, batch_size=4, steps=30, validation_sequences=8)


@pytest.fixture
def corpus() -> Corpus:
    return Corpus.from_documents([b"the quick brown fox jumps over the lazy dog. " * 100], name="fox")


def test_names_keep_every_digit() -> None:
    assert Cell("adamw", 0.1 + 0.2, 0).name != Cell("adamw", 0.3, 0).name
    assert Cell("adamw", 1e-5, 3).name == "adamw-lr1e-05-seed3"


def test_a_cell_is_trained_once_and_leaves_a_result(corpus: Corpus, tmp_path: Path) -> None:
    cell, folder = Cell("adamw-warmup", 1e-2, 0), tmp_path / "cell"
    steps: list[int] = []
    run_cell(cell, TINY, corpus, folder, on_step=lambda step, loss, lr: steps.append(step))
    assert cell.is_done(folder)
    assert not (folder / CHECKPOINT).exists()
    result = read_cell(folder, steps=30)
    assert (result["method"], result["lr"], result["seed"]) == ("adamw-warmup", 1e-2, 0)
    assert result["status"] == "finished"
    assert result["divergence"] is None
    assert result["skipped_steps"] == 0
    assert result["seconds"] > 0
    assert result["final_val_loss"] == result["evals"]["val_loss"][-1] < 3.3
    assert result["evals"]["step"] == [15, 30]
    curve = result["curve"]
    assert set(curve) == {"step", "loss", "lr", "update_rms", "angle", "factor"}
    assert {len(values) for values in curve.values()} == {30}
    assert curve["lr"][:7] == pytest.approx([1e-2 * min((step + 1) / 6, 1) for step in range(7)])
    assert curve["factor"] == [None] * 30
    assert all(value > 0 for value in curve["update_rms"])
    json.dumps(result, allow_nan=False)
    run_cell(cell, TINY, corpus, folder, on_step=lambda step, loss, lr: steps.append(step))
    assert steps == list(range(1, 31))


def test_the_same_cell_gives_the_same_numbers_and_methods_share_weights_and_batches(
    corpus: Corpus, tmp_path: Path
) -> None:
    names = {
        "first": Cell("adamw", 1e-2, 0),
        "again": Cell("adamw", 1e-2, 0),
        "radam": Cell("radam", 1e-2, 0),
    }
    names["seed"] = Cell("adamw", 1e-2, 1)
    curves = {}
    for name, cell in names.items():
        torch.manual_seed(hash(name) % 1000)
        run_cell(cell, TINY, corpus, tmp_path / name)
        curves[name] = read_cell(tmp_path / name, steps=30)["curve"]
    assert curves["again"] == curves["first"]
    assert curves["radam"]["loss"][0] == curves["first"]["loss"][0]
    assert curves["radam"]["loss"][5] != curves["first"]["loss"][5]
    assert curves["seed"]["loss"][0] != curves["first"]["loss"][0]


def test_divergence_is_a_result(corpus: Corpus, tmp_path: Path) -> None:
    run_cell(Cell("adamw", 1e3, 0), TINY, corpus, tmp_path / "cell")
    result = read_cell(tmp_path / "cell", steps=30)
    assert result["status"] == "diverged"
    assert result["divergence"]["reason"]
    json.dumps(result, allow_nan=False)


def test_a_resumed_record_is_read_once_thinned_and_without_infinities(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "record.jsonl") as record:
        for step in [*range(1000), *range(900, 1001)]:
            measured = {"update_rms": 1.0, "angle": math.nan} if step in (3, 501) else {}
            loss = math.inf if step == 5 else float(step) + (0.5 if step == 900 else 0.0)
            record.write({"step": step, "loss": loss, "lr": 0.1, **measured})
            if step == 900:
                record.write({"step": 901, "val_loss": math.nan})
    whole = {"method": "adamw", "lr": 0.1, "seed": 0, "final_val_loss": 2.0, "seconds": 1.0}
    rest = {"status": "finished", "divergence": None, "skipped_steps": 0}
    write_json(tmp_path / "result.json", whole | rest)
    result = read_cell(tmp_path, steps=1000)
    curve = result["curve"]
    assert curve["step"] == sorted({*range(0, 1001, 5), 3, 501})
    assert curve["loss"][curve["step"].index(5)] is None
    assert curve["update_rms"][curve["step"].index(3)] == 1.0
    assert curve["update_rms"][0] is None
    assert curve["angle"][curve["step"].index(3)] is None
    assert result["evals"] == {"step": [901], "val_loss": [None]}


def test_the_useless_loss_is_that_of_a_model_without_context(corpus: Corpus) -> None:
    run = prepare_run(TINY, corpus, METHODS["adamw"], lr=1e-3, seed=0)
    assert run.useless_loss == corpus.unigram_loss()
    assert run.validate() == pytest.approx(math.log(256), abs=0.1)


def test_validation_weighs_every_token_the_same(corpus: Corpus) -> None:
    import dataclasses

    whole = dataclasses.replace(TINY, batch_size=7, validation_sequences=7)
    split = dataclasses.replace(whole, batch_size=3)
    runs = [prepare_run(config, corpus, METHODS["adamw"], lr=1e-3, seed=0) for config in (whole, split)]
    assert runs[0].validate() == pytest.approx(runs[1].validate(), rel=1e-6)


def test_another_process_in_the_cell_is_waited_for(corpus: Corpus, tmp_path: Path) -> None:
    assert os.name == "posix"
    run_cell(Cell("adamw", 1e-2, 0), TINY, corpus, tmp_path / "cell")
    assert int((tmp_path / "cell" / ".lock").read_text()) == os.getpid()


@pytest.mark.parametrize("file", ["result.json", "record.jsonl"])
@pytest.mark.parametrize("content", [b"", b"{}", b'{"method": "adamw", "lr'])
def test_a_damaged_finished_cell_is_named(corpus: Corpus, tmp_path: Path, file: str, content: bytes) -> None:
    folder = tmp_path / "cell"
    run_cell(Cell("adamw", 1e-3, 0), TINY, corpus, folder)
    assert read_cell(folder, steps=TINY.steps)["evals"]["step"]
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=r"cell is damaged .* delete that folder and run the same command"):
        read_cell(folder, steps=TINY.steps)
