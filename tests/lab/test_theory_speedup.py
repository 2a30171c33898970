import json
from dataclasses import replace
from pathlib import Path

import pytest
from theory_pages import as_json, call, called, sound_page
from theory_samples import GAPS, make_speedup

from warmfree.lab.theory import commands
from warmfree.lab.theory.speedup import find_speedup
from warmfree.lab.theory.speedup_preview import expected_seconds
from warmfree.report.wording import number
from warmfree.theory.speedup import Errors, Speedup, run_speedup, steps_by_gap

PAGE = "warmfree-theory-speedup.html"
SMALL = ("speedup", "--largest-gap", "100", "--longest-run", "64", "--seeds", "1")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "110")


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Speedup:
    sample = make_speedup()
    monkeypatch.setattr(commands, "run_speedup", lambda **_: sample)
    return sample


def flat(text: str) -> str:
    return " ".join(text.split())


def test_real_experiments_from_end_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, *SMALL, "--seed", "5")
    assert found["seed"] == 5
    real = steps_by_gap(largest=100.0, seed=5)
    assert found["steps"]["rows"] == [json.loads(json.dumps(vars(row))) for row in real.rows]
    assert [errors["noise"] for errors in found["errors"]] == ["none", "additive", "affine", "ABC"]
    assert {row["steps"] for errors in found["errors"] for row in errors["rows"]} == {64}
    text = sound_page(Path(PAGE)).text
    best = real.best("non-increasing")[-1]
    assert f"{best.steps} steps, the warmup with c = 1/2 in" in text
    for errors in found["errors"]:
        for row in errors["rows"]:
            assert number(row["error"]) in text


def test_every_number_is_on_the_page_and_in_the_json(
    made_up: Speedup, capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(capsys, "speedup")
    assert found.pop("seconds") >= 0.0
    assert found == json.loads(json.dumps(made_up.as_json()))
    out, _ = called(capsys, "speedup")
    text = sound_page(Path(PAGE)).text
    for row in made_up.steps.rows:
        assert row.steps is None or f"{row.steps:,}" in text
    for law in made_up.steps.laws:
        assert f"{law.slope:.3f} {law.low:.3f} to {law.high:.3f}" in text
        assert f"{law.slope:.3f}" in out
    for errors in made_up.errors:
        for error in errors.rows:
            assert number(error.error) in text
    for population in made_up.population.rows:
        assert f"{number(population.low or 0)} to {number(population.high or 0)}" in text
    for line in (
        "From an initial gap of 10,000 the best schedule that never rises (constant, of 100 tried) came to a "
        "gap of 1e-6 in 10,000 steps, the warmup with c = 1/2 in 92: 109 times fewer.",
        "No schedule that stays below the edge of stability can need fewer than 9,000.",
        "the linear warmup took 500 steps",
        "the best of the adaptive rules there, Polyak, took 7 steps.",
        "the ratio grows as T^1.00 (95 % interval 0.90 to 1.10); theory says T^1.",
        "the ratio grows as T^0.50 (95 % interval 0.40 to 0.60); theory says T^0.5.",
        "Wrong constants, learning rate of the warmup times: with 0.5 and 1 it comes to the target from every "
        "gap that was tried, with 8 not from all.",
        "Of 4 slopes that theory gives, 3 lie in the measured 95 % interval; of the others the farthest is "
        "that of steps, linear warmup, 0.42 where theory says 0.5.",
    ):
        assert line in text
        assert line in flat(out).replace(" - ", " ")
    assert "Liu et al. 2025" in text
    assert "The tuning: all families" in text


def test_figures_say_in_words_what_they_draw(made_up: Speedup) -> None:
    finding = find_speedup(made_up, seconds=1.0)
    plots = {
        plot.title: plot.description
        for part in finding.parts
        if hasattr(part, "plots")
        for plot in part.plots
    }
    steps = plots["Steps to the target (log axis)"]
    assert "best that never rises from 10 at 10 to 10,000 at 10,000" in steps
    assert "warmup, c = 0.5 from 23 at 10 to 92 at 10,000" in steps
    ratio = plots["Times fewer steps than the best that never rises (log axis)"]
    assert f"warmup, c = 0.5 from {number(10 / 23)} at 10 to {number(10_000 / 92)} at 10,000" in ratio
    errors = plots["Error of the best that never rises over that of the warmup (log axis)"]
    assert "from 10 at 100 to 40 at 1,600" in errors
    factors = plots["Steps to the target, learning rate times a factor (log axes)"]
    assert "gap 1,000 from 90 at 0.5 to 50 at 1" in factors


def without(errors: Errors) -> Errors:
    return replace(errors, ratios=(), laws=())


SITUATIONS = {
    "nothing reached": lambda found: replace(
        found,
        steps=replace(found.steps, rows=tuple(replace(row, steps=None) for row in found.steps.rows), laws=()),
    ),
    "one gap": lambda found: replace(
        found,
        steps=replace(
            found.steps,
            rows=tuple(row for row in found.steps.rows if row.gap == GAPS[0]),
            bounds=found.steps.bounds[:1],
        ),
    ),
    "no population": lambda found: replace(found, population=replace(found.population, rows=())),
    "no errors": lambda found: replace(found, errors=()),
    "no ratios": lambda found: replace(found, errors=tuple(map(without, found.errors))),
    "no powers": lambda found: replace(found, power=()),
    "no mistakes": lambda found: replace(found, mistakes=replace(found.mistakes, rows=())),
    "all mistakes fatal": lambda found: replace(
        found,
        mistakes=replace(
            found.mistakes, rows=tuple(replace(row, steps=None, diverged=True) for row in found.mistakes.rows)
        ),
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_situation_gives_a_sound_page(
    situation: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SITUATIONS[situation](make_speedup())
    monkeypatch.setattr(commands, "run_speedup", lambda **_: found)
    called(capsys, "speedup")
    sound_page(Path(PAGE))


def test_a_warmup_that_is_slower_is_called_slower(made_up: Speedup) -> None:
    rows = tuple(
        replace(row, steps=4 * int(row.gap)) if row.family == "warmup, c = 0.5" else row
        for row in made_up.steps.rows
    )
    found = find_speedup(replace(made_up, steps=replace(made_up.steps, rows=rows)), seconds=1.0)
    assert "in 40,000: 4 times as many" in found.sentences[0]


def test_what_is_asked_for_reaches_the_experiments(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, object] = {}

    def record(**asked: object) -> Speedup:
        seen.update(asked)
        return make_speedup()

    monkeypatch.setattr(commands, "run_speedup", record)
    called(capsys, "speedup", "--largest-gap", "1e4", "--longest-run", "128", "--seeds", "3", "--seed", "7")
    assert callable(seen.pop("progress"))
    assert seen == {"largest_gap": 1e4, "longest": 128, "seeds": 3, "seed": 7}


def test_dry_run_says_the_work_and_the_time_and_does_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "run_speedup", lambda **_: pytest.fail("it ran"))
    out, _ = called(capsys, "speedup", "--dry-run", "--longest-run", "1024", "--seeds", "3")
    for told in (
        "gaps 10 to 1e6",
        "up to 1,024",
        "additive, affine and ABC noise",
        "3 seeds",
        "In all about",
    ):
        assert told in out
    assert not list(Path().iterdir())
    small, large = (expected_seconds(largest_gap=1e3, longest=64, seeds=n) for n in (1, 64))
    assert 5.0 < small < large


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--largest-gap", "5"], "--largest-gap must be 10 to 1e+08, got 5"),
        (["--largest-gap", "nan"], "--largest-gap must be 10 to 1e+08, got nan"),
        (["--longest-run", "32"], "--longest-run must be 64 to 100,000 steps, got 32"),
        (["--seeds", "0"], "--seeds must be >= 1, got 0"),
        (["--seed", "-1"], "--seed must be >= 0, got -1"),
        (["--json", "--dry-run"], "--dry-run finds nothing to print as JSON"),
        (["--out", "nowhere/page.html"], "there is no folder nowhere for the page page.html"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "run_speedup", lambda **_: pytest.fail("it ran"))
    status, out, err = call(capsys, "speedup", *arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert not list(Path().iterdir())


def test_an_interrupt_is_status_130_and_leaves_no_page(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "run_speedup", interrupt)
    status, out, err = call(capsys, "speedup")
    assert (status, out) == (130, "")
    assert "interrupted before it was done; nothing was written" in err
    assert not list(Path().iterdir())


def test_help_at_every_level(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "--help")
    assert (status, err) == (0, "")
    assert all(name in out for name in ("speedup", "fit", "descend"))
    for name, options in {
        "speedup": ("largest-gap", "longest-run", "seeds", "seed", "out", "json", "dry-run"),
        "fit": ("curvature", "f-star", "quantile", "peak", "safety", "out", "json"),
        "descend": ("start", "rule", "lr", "steps", "noise", "seed", "out", "json"),
    }.items():
        status, out, err = call(capsys, name, "--help")
        assert (status, err) == (0, "")
        assert all(f"--{option} " in out for option in options)
        assert f"warmfree-theory-{name}.html" in out
        assert "None" not in out
    assert all(name in out for name in ("cosh", "river-valley", "logistic", "warmup", "backtracking"))
    status, _, err = call(capsys)
    assert status == 2
    assert "speedup, fit, descend" in err
    status, _, err = call(capsys, "speed")
    assert status == 2
    assert "speedup" in err


def test_the_defaults_are_those_of_the_experiments() -> None:
    defaults = commands.Speedup()
    known = run_speedup.__kwdefaults__
    assert (defaults.longest_run, defaults.seeds, defaults.seed) == (
        known["longest"],
        known["seeds"],
        known["seed"],
    )
