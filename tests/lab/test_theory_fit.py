import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from theory_pages import as_json, call, called, sound_page

from warmfree.lab.data import Batches, Corpus
from warmfree.lab.methods import METHODS
from warmfree.lab.tasks import ByteGPTConfig, prepare_run
from warmfree.lab.theory import commands
from warmfree.lab.theory.implied import compare_warmups
from warmfree.lab.theory.measured import measured_points
from warmfree.monitor import Monitor, Smoothness
from warmfree.record import RecordWriter
from warmfree.report.runs import load_run
from warmfree.report.wording import number
from warmfree.schedule import LossDriven, SmoothnessRule
from warmfree.theory.fit import fit_smoothness

PAGE = "warmfree-theory-fit.html"
STEPS = 60


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "110")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT, trained for 60 steps of AdamW with warmup, with its smoothness measured at every step."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    corpus = Corpus.from_documents([b"the quick brown fox jumps over the lazy dog. " * 100], name="fox")
    task = ByteGPTConfig(
        layers=1, width=16, heads=2, context=16, batch_size=4, steps=STEPS, validation_sequences=8
    )
    run = prepare_run(task, corpus, METHODS["adamw-warmup"], lr=1e-2, seed=0)
    batch = Batches(corpus, context=16, batch_size=4, seed=1, validation_sequences=8).train(0)
    with Monitor(
        run.model,
        run.optimizer,
        folder,
        probes=[Smoothness(every=1)],
        batch=batch,
        loss_fn=lambda model, batch: model.loss(*batch),
        budget=math.inf,
    ) as monitor:
        for step in range(STEPS):
            run.optimizer.zero_grad()
            loss = run.loss(step)
            loss.backward()
            run.optimizer.step()
            run.schedule.step()
            monitor.log(loss)
    return folder


def write_points(path: Path, losses: np.ndarray, curvatures: np.ndarray, **columns: np.ndarray) -> Path:
    table = {"loss": losses, "curvature": curvatures, **columns}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*(values.tolist() for values in table.values()), strict=True))
    return path


def write_record(
    folder: Path, values: dict[str, list[float]], *, optimizer: str = "AdamW", every: int = 1
) -> Path:
    """A record of a run with these quantities, of 40 steps."""
    folder.mkdir()
    with RecordWriter(folder / "monitor.jsonl") as record:
        record.write({"kind": "start", "model": "Net", "optimizer": optimizer})
        for step in range(40):
            record.write(
                {"kind": "step", "step": step, "lr": min(1e-3, 1e-4 * (step + 1)), "loss": 9.0 * 0.9**step}
            )
            if step % every == 0:
                at = {
                    name: {"": found[step]} for name, found in values.items() if not math.isnan(found[step])
                }
                record.write({"kind": "values", "step": step, "values": at})
    return folder


def cosh_points(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    losses = np.geomspace(30.0, 0.05, count)
    return losses, 2.0 + losses


def test_a_watched_run_from_end_to_end(watched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "fit", str(watched))
    grid = load_run(watched).grids["preconditioned_local_smoothness"]
    losses = load_run(watched).grids["probe_loss"].values[0]
    assert found["curvature"] == "preconditioned_local_smoothness"
    assert "AdamW is divided by a preconditioner" in found["why"]
    assert found["points"]["curvatures"] == grid.values[0].tolist()
    assert found["points"]["losses"] == losses.tolist()
    assert len(found["points"]["steps"]) >= STEPS - 1
    fit = fit_smoothness(losses, grid.values[0], steps=grid.steps)
    assert (found["verdict"], found["model"]) == (fit.verdict, fit.model)
    assert (found["exponent"], found["floor"], found["growth"]) == (
        fit.smoothness.exponent,
        fit.smoothness.floor,
        fit.smoothness.growth,
    )
    assert [each["curvature"] for each in found["others"]] == ["local_smoothness"]
    out, _ = called(capsys, "fit", str(watched))
    assert f"page: {watched / PAGE}" in out
    text = sound_page(watched / PAGE).text
    for told in (number(fit.smoothness.floor), f"{fit.correlation:.2f}", fit.verdict):
        assert told in text
        assert told in out
    flat = " ".join(out.split())
    assert all(
        reason in text and " ".join(reason.split()) in flat.replace(" - ", " ") for reason in fit.reasons
    )
    assert found["implied"]["used_steps"] > 0, "the run had a warmup"


def test_the_printed_lines_run_and_do_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    losses, curvatures = cosh_points()
    points = write_points(Path("points.csv"), losses, curvatures, lr=np.full(60, 0.1), step=np.arange(60))
    out, _ = called(capsys, "fit", str(points))
    found = as_json(capsys, "fit", str(points))
    lines = [line[4:] for line in out.splitlines() if line.startswith("    ")]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    space: dict[str, object] = {"optimizer": optimizer}
    exec("\n".join(lines), space)
    scheduler = space["scheduler"]
    assert isinstance(scheduler, LossDriven)
    assert isinstance(scheduler.rule, SmoothnessRule)
    rates = []
    for loss in losses:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(float(loss))
    measured = measured_points(points, kind=None)
    compared = compare_warmups(fit_smoothness(losses, curvatures), measured, peak=None, safety=0.5)
    np.testing.assert_allclose(0.1 * compared.found.fractions, rates, rtol=1e-4)
    assert found["implied"]["steps"] == int(np.argmax(np.array(rates) >= 0.095))
    assert found["implied"]["used_steps"] == 0
    assert "<code>from warmfree.schedule import LossDriven, SmoothnessRule" in Path(PAGE).read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("shape", ["sum", "power"])
def test_own_rates_are_what_the_curvature_allows_at_the_losses_so_far(shape: str) -> None:
    losses, curvatures = cosh_points()
    if shape == "power":
        curvatures = 3.0 * losses**0.5
    points = write_points(Path("points.csv"), losses, curvatures, lr=np.full(60, 1e-3))
    fit = fit_smoothness(losses, curvatures)
    compared = compare_warmups(fit, measured_points(points, kind=None), peak=None, safety=0.5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1e9)
    scheduler = LossDriven(optimizer, fit.rule(), initial_loss=float(losses[0]))
    for loss, rate in zip(losses, compared.own_rates, strict=True):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step(float(loss))
    assert fit.model == shape
    assert (compared.own_peak is None) == (shape == "power")
    assert compared.rule.peak == pytest.approx(1e-3)


def test_a_training_loss_below_the_infimum_at_first_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    curvatures = [2.0 + 9.0 * 0.9**step for step in range(40)]
    probe = [10.0 + 8.0 * 0.9**step for step in range(40)]
    run = write_record(Path("run"), {"sharpness": curvatures, "probe_loss": probe})
    found = as_json(capsys, "fit", str(run), "--f-star", "8")
    assert found["implied"]["start"] > 0.0
    assert as_json(capsys, "fit", str(run), "--f-star", "9.5")["f_star"] == 9.5, (
        "no training loss is above it"
    )
    sound_page(run / PAGE)


def test_the_constants_of_a_known_law_are_found_and_the_estimate_of_the_infimum_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    losses, curvatures = cosh_points()
    points = write_points(Path("points.csv"), losses + 3.0, curvatures)
    found = as_json(capsys, "fit", str(points), "--f-star", "3", "--quantile", "0.9")
    assert found["verdict"] == "describes"
    assert [found["exponent"], found["floor"], found["growth"]] == pytest.approx([1.0, 2.0, 1.0], rel=1e-3)
    assert (found["quantile"], found["f_star"]) == (0.9, 3.0)
    assert found["implied"]["own_peak"] == pytest.approx(0.25, rel=1e-3)
    safe = as_json(capsys, "fit", str(points), "--f-star", "3", "--safety", "0.25", "--peak", "0.01")
    assert safe["implied"]["own_peak"] == pytest.approx(0.125, rel=1e-3)
    assert safe["rule"]["floor"] == pytest.approx(25.0)
    estimated = as_json(capsys, "fit", str(points), "--f-star", "estimate")
    assert estimated["f_star"] != 3.0
    assert "f_star" in estimated["intervals"]
    text = sound_page(Path(PAGE)).text
    assert "(estimated)" in text
    assert "f_star was estimated as" in text


@pytest.mark.parametrize(
    ("optimizer", "values", "kind", "says"),
    [
        ("AdamW", ("sharpness", "local_smoothness"), "local_smoothness", "No curvature as AdamW sees it"),
        (
            "AdamW",
            ("sharpness", "preconditioned_sharpness"),
            "preconditioned_sharpness",
            "AdamW is divided by",
        ),
        ("SGD", ("preconditioned_sharpness", "sharpness"), "sharpness", "SGD has no preconditioner"),
        ("SGD", ("sharpness", "local_smoothness"), "local_smoothness", "rather than the largest eigenvalue"),
    ],
)
def test_the_kind_is_chosen_for_the_optimizer_and_the_reason_told(
    optimizer: str, values: tuple[str, ...], kind: str, says: str
) -> None:
    curvatures = [2.0 + 9.0 * 0.9**step for step in range(40)]
    run = write_record(Path("run"), dict.fromkeys(values, curvatures), optimizer=optimizer)
    measured = measured_points(run, kind=None)
    assert measured.kind == kind
    assert says in measured.why
    assert measured.loss_of.startswith("the training batch of the same step")
    np.testing.assert_allclose(measured.losses, 9.0 * 0.9 ** np.arange(40))
    asked = next(name for name in values if name != kind)
    assert measured_points(run, kind=asked).kind == asked  # type: ignore[arg-type]


def test_points_that_say_nothing_are_left_out_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    curvatures = [2.0 + 9.0 * 0.9**step for step in range(40)]
    curvatures[3], curvatures[7] = -1.0, math.inf
    rounding = [0.9 if step == 11 else 1e-6 for step in range(40)]
    probe = [math.nan if step == 20 else 8.0 * 0.9**step for step in range(40)]
    values = {"local_smoothness": curvatures, "smoothness_rounding": rounding, "probe_loss": probe}
    found = as_json(capsys, "fit", str(write_record(Path("run"), values)))
    assert set(range(40)) - set(found["points"]["steps"]) == {3, 7, 11}
    assert found["points"]["losses"][0] == 8.0
    assert found["points"]["losses"][17] == pytest.approx(9.0 * 0.9**20), "where the probe's is missing"
    assert "where it was recorded, else" in found["loss_of"]
    notes = " ".join(found["notes"])
    assert all(word in notes for word in ("rounding", "not finite", "not positive"))
    text = sound_page(Path("run") / PAGE).text
    assert all(note in text for note in found["notes"])


@pytest.mark.parametrize("ending", ["jsonl", "tsv"])
def test_files_of_points_in_other_formats(ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    losses, curvatures = cosh_points(20)
    path = Path(f"points.{ending}")
    if ending == "jsonl":
        rows = [{"loss": loss, "curvature": curve} for loss, curve in zip(losses, curvatures, strict=True)]
        rows.append({"loss": {"$float": "nan"}, "curvature": 3.0})  # type: ignore[dict-item]
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        rows_ = [
            "loss\tcurvature",
            *(f"{loss}\t{curve}" for loss, curve in zip(losses, curvatures, strict=True)),
            "\t3",
        ]
        path.write_text("\n".join(rows_), encoding="utf-8")
    found = as_json(capsys, "fit", str(path))
    assert found["number_of_points"] == 20
    assert "1 point of 21 left out" in found["notes"][0]
    assert found["implied"]["peak"] is None
    sound_page(Path(PAGE))


@pytest.mark.parametrize(
    ("shape", "verdict"),
    [("flat", "flat"), ("reversed", "reversed"), ("power", "describes"), ("narrow", "inconclusive")],
)
def test_every_verdict_gives_a_sound_page(
    shape: str, verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = np.geomspace(8.0, 6.0 if shape == "narrow" else 0.2, 80)
    noise = np.exp(0.05 * np.random.default_rng(0).standard_normal(80))
    curves = {"flat": 5.0 + 0.0 * losses, "reversed": 5.0 / losses, "power": 3.0 * losses**0.5}
    curvatures = curves.get(shape, curves["power"]) * noise
    lr = np.minimum(np.arange(80) / 10, 1.0)
    path = write_points(Path("points.csv"), losses, curvatures, lr=lr)
    out, _ = called(capsys, "fit", str(path))
    found = as_json(capsys, "fit", str(path))
    assert found["verdict"] == verdict
    assert found["implied"]["used_steps"] == 10
    text = sound_page(Path(PAGE)).text
    assert all(reason in text for reason in found["reasons"])
    assert ("leave open" in out) == (verdict == "inconclusive")
    assert ("To follow it" in out) == (found["model"] != "floor")
    assert ("all the same" in out) == (found["model"] != "floor" and verdict != "describes")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "there is no folder missing: give the folder of a monitored run"),
        (["here"], "here holds no monitor.jsonl"),
        (["bare"], "bare has no curvature to fit (it measured update_rms): watch a run with `Monitor("),
        (["bare"], 'probes=["smoothness", ...])`, or with the probe "curvature", and give its folder'),
        (["few"], "a fit needs at least 12 points, got 5"),
        (["full", "--curvature", "sharpness"], "full has no sharpness: it has local_smoothness"),
        (["points.csv", "--curvature", "sharpness"], "--curvature chooses between the quantities of a run"),
        (["full", "--f-star", "3"], "losses are not above f_star=3"),
        (["full", "--f-star", "none"], "--f-star must be a finite number or estimate, got 'none'"),
        (["full", "--f-star", "nan"], "--f-star must be a finite number or estimate, got 'nan'"),
        (["full", "--quantile", "1.5"], "quantile must be in [0.5, 1), got 1.5"),
        (["full", "--peak", "0"], "--peak must be finite and > 0, got 0.0"),
        (["full", "--safety", "-1"], "--safety must be finite and > 0, got -1.0"),
        (["full", "--out", "nowhere/x.html"], "there is no folder nowhere for the page x.html"),
        (["other.csv"], "other.csv has no column 'curvature' (it has loss and sharpness)"),
        (["words.csv"], "words.csv, point 2: loss is not a number, got 'low'"),
        (["wide.csv"], "wide.csv is not a text file in UTF-8"),
        (["empty.csv"], "empty.csv holds no points"),
        (["torn.jsonl"], "torn.jsonl, line 2: not JSON"),
        (["list.jsonl"], "list.jsonl, line 1: expected an object with loss and curvature, got [1, 2]"),
        (["halves.csv"], "halves.csv: steps must be whole numbers"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    curvatures = [2.0 + 9.0 * 0.9**step for step in range(40)]
    Path("here").mkdir()
    write_record(Path("bare"), {"update_rms": curvatures})
    write_record(Path("few"), {"sharpness": curvatures}, every=8)
    write_record(Path("full"), {"local_smoothness": curvatures})
    write_points(Path("points.csv"), *cosh_points())
    Path("other.csv").write_text("loss,sharpness\n1,2\n", encoding="utf-8")
    Path("words.csv").write_text("loss,curvature\n1,2\nlow,2\n", encoding="utf-8")
    Path("wide.csv").write_text("loss,curvature\n1,2\n", encoding="utf-16")
    Path("empty.csv").write_text("loss,curvature\n", encoding="utf-8")
    Path("torn.jsonl").write_text('{"loss": 1, "curvature": 2}\n{"loss"', encoding="utf-8")
    Path("list.jsonl").write_text("[1, 2]\n", encoding="utf-8")
    Path("halves.csv").write_text("loss,curvature,step\n1,2,0.5\n", encoding="utf-8")
    before = sorted(Path().rglob("*"))
    status, out, err = call(capsys, "fit", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert sorted(Path().rglob("*")) == before


def test_an_interrupt_is_status_130_and_leaves_no_page(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_record(Path("run"), {"sharpness": [2.0 + 9.0 * 0.9**step for step in range(40)]})

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "find_fit", interrupt)
    status, out, err = call(capsys, "fit", str(run))
    assert (status, out) == (130, "")
    assert "nothing was written" in err
    assert [path.name for path in run.iterdir()] == ["monitor.jsonl"]


def test_a_failed_write_leaves_the_old_page(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    points = write_points(Path("points.csv"), *cosh_points(20))
    Path(PAGE).write_text("old", encoding="utf-8")
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    status, _, err = call(capsys, "fit", str(points))
    assert status == 1
    assert "disk full" in err
    assert Path(PAGE).read_text(encoding="utf-8") == "old"
    assert sorted(path.name for path in Path().iterdir()) == ["points.csv", PAGE]


def test_what_a_record_says_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    run = write_record(
        Path("run"),
        {"sharpness": [2.0 + 9.0 * 0.9**step for step in range(40)]},
        optimizer='<script>alert("x")</script>',
    )
    called(capsys, "fit", str(run))
    assert "script" not in sound_page(run / PAGE).tags
