import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from theory_pages import as_json, call, called, sound_page

from warmfree.lab.theory import commands, tuning
from warmfree.lab.theory.bounds_table import worst_ratio
from warmfree.lab.theory.descend import find_descent, prepare_descent
from warmfree.lab.theory.rules import RULES, Descent, choose_rule
from warmfree.lab.theory.tuning import largest_stable, tune
from warmfree.report.wording import number
from warmfree.theory.bounds import check_bounds
from warmfree.theory.descent import descend
from warmfree.theory.functions import FUNCTIONS, CoshBowl, Exponential, make_function
from warmfree.theory.steps import Constant, InverseSqrt, Warmup

PAGE = "warmfree-theory-descend.html"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "110")


def test_numbers_on_page_terminal_and_json_are_those_of_the_paths(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(
        capsys,
        "descend",
        "cosh",
        "--start",
        "4",
        "1",
        "--steps",
        "60",
        "--rule",
        "warmup",
        "constant",
        "--lr",
        "0.05",
    )
    bowl = CoshBowl()
    for run, rule in zip(found["runs"], (Warmup(bowl.smoothness), Constant(0.05)), strict=True):
        path = descend(bowl, [4.0, 1.0], rule, steps=60)
        np.testing.assert_array_equal(run["gaps"], path.gaps[:, 0])
        np.testing.assert_array_equal(run["points"], path.points[:, 0])
        np.testing.assert_array_equal(run["learning_rates"], path.learning_rates[:, 0])
        for told, each in zip(run["bounds"], check_bounds(path), strict=True):
            assert (told["name"], told["worst_ratio"]) == (each.bound.name, worst_ratio(each))
    out, _ = called(
        capsys,
        "descend",
        "cosh",
        "--start",
        "4",
        "1",
        "--steps",
        "60",
        "--rule",
        "warmup",
        "constant",
        "--lr",
        "0.05",
    )
    text = sound_page(Path(PAGE)).text
    for run in found["runs"]:
        for place in (number(run["gaps"][-1]), number(run["gaps"][0])):
            assert place in text
            assert place in out
        ratios = [bound["worst_ratio"] for bound in run["bounds"] if bound["worst_ratio"] is not None]
        assert all(f"{number(ratio)} (" in text for ratio in ratios)
    assert f"page: {PAGE}" in out
    assert "warmfree theory descend cosh --start 4 1 --steps 60" in text


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_a_start_and_gives_a_sound_page(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    called(capsys, "descend", name, "--steps", "30", "--rule", "warmup", "stable")
    page = sound_page(Path(PAGE))
    has_map = make_function(name).dimension <= 2
    assert sum(svg.get("role") == "img" for svg in page.svgs) == 3 + has_map
    assert f"Gradient descent: {make_function(name).name}" in page.text
    assert "VIOLATED" not in page.text


def test_every_rule_runs_beside_all_others(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "descend", "cosh", "--steps", "40", "--rule", *RULES)
    assert [run["rule"] for run in found["runs"]] == list(RULES)
    assert not any(run["diverged"] for run in found["runs"])
    page = sound_page(Path(PAGE))
    assert all(run["label"] in page.text for run in found["runs"])


def test_tuning_beats_every_neighbour_and_stable_never_climbs() -> None:
    bowl, start = CoshBowl(), np.array([5.0, 1.0])
    tuned = tune(bowl, start, Constant, steps=80, noise=None, seed=0)
    lrs = tuned.lr * np.geomspace(0.2, 5.0, 300)
    others = descend(bowl, np.tile(start, (300, 1)), Constant(lrs), steps=80)
    gaps = np.where(others.diverged, np.inf, others.gaps[-1])
    assert tuned.gap == descend(bowl, start, Constant(tuned.lr), steps=80).gaps[-1, 0]
    assert tuned.gap <= np.quantile(gaps, 0.01), "hardly one of 300 around it is better"
    stable = largest_stable(bowl, start, steps=80)
    falls = np.diff(descend(bowl, start, Constant(stable.lr), steps=80).gaps[:, 0])
    assert (falls <= 0.0).all()
    assert (np.diff(descend(bowl, start, Constant(1.05 * stable.lr), steps=80).gaps[:, 0]) > 0.0).any()
    edge = 5.0 / np.sinh(5.0)
    assert stable.lr == pytest.approx(edge, rel=0.01)


def test_learning_rates_beyond_the_constants_of_a_loose_smoothness_are_tried() -> None:
    loss, start = make_function("logistic-overlapping"), np.array([4.0, -5.0])
    edge = 2.0 / float(loss.curvature(loss.minimiser))  # above 4 over the smoothness's floor
    stable = largest_stable(loss, start, steps=400)
    assert not stable.at_edge
    assert stable.lr == pytest.approx(edge, rel=0.05)
    for make in (Constant, InverseSqrt):
        tuned = tune(loss, start, make, steps=200, noise=None, seed=0)
        assert not tuned.at_edge
        lrs = tuned.lr * np.geomspace(0.1, 10.0, 300)
        others = descend(loss, np.tile(start, (300, 1)), make(lrs), steps=200)
        assert tuned.gap <= np.quantile(others.gaps[-1], 0.01)


def test_noise_is_tuned_on_other_draws_and_the_seed_decides(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("descend", "cosh", "--steps", "30", "--noise", "0.5", "--rule", "constant", "warmup")
    one, same = (as_json(capsys, *arguments, "--seed", "1") for _ in range(2))
    other = as_json(capsys, *arguments, "--seed", "2")
    assert one == same
    assert one["runs"][1]["gaps"] != other["runs"][1]["gaps"]
    bounds = {bound["name"]: bound for bound in one["runs"][1]["bounds"]}
    assert bounds["expected descent"]["checked"] == 30
    assert bounds["half descent"]["missing"]


def test_learning_rates_are_tuned_on_other_noise_than_they_are_shown_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds = []

    def record(*arguments: object, seed: int = 0, **rest: object) -> object:
        seeds.append(seed)
        return descend(*arguments, seed=seed, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tuning, "descend", record)
    descent = prepare_descent("cosh", None, steps=10, noise=0.5, seed=4)
    find_descent(descent, ["constant"], lr=None)
    assert seeds
    assert 4 not in seeds


def test_a_landing_by_luck_is_called_one() -> None:
    descent = prepare_descent("power4", None, steps=50, noise=0.0, seed=0)
    said = " ".join(find_descent(descent, ["constant", "warmup"], lr=None).sentences)
    assert "by luck" in said
    careful = " ".join(find_descent(descent, ["constant", "warmup"], lr=1e-3).sentences)
    assert "by luck" not in careful


def test_a_run_that_leaves_the_finite_numbers_is_told_and_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = called(capsys, "descend", "cosh", "--rule", "constant", "--lr", "3", "--steps", "20")
    assert "no rule" not in out
    assert "left the finite numbers" in out
    assert "diverged" in sound_page(Path(PAGE)).text


def test_the_ratio_of_a_bound_that_does_not_hold_is_above_1() -> None:
    class Liar(CoshBowl):
        """Says that it is half as smooth as it is."""

        def __init__(self) -> None:
            super().__init__()
            self.smoothness = type(self.smoothness)(exponent=1.0, floor=1.0, growth=0.5)

    path = descend(Liar(), [3.0, 1.0], Constant(0.01), steps=10)
    found = {each.bound.name: each for each in check_bounds(path)}
    assert not found["smoothness"].holds
    curvature = 2.0 * np.cosh(path.points[:, 0, 0])
    assert worst_ratio(found["smoothness"]) == pytest.approx(
        (curvature / (1.0 + 0.5 * path.gaps[:, 0])).max()
    )
    assert worst_ratio(found["smoothness"]) > 1.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cash"], "no example function is called 'cash'; there are cosh, "),
        (["cosh", "--start", "1"], "cosh has 2 variables: --start needs as many numbers, got 1"),
        (["cosh", "--start", "0", "0"], "the gap at the start (0, 0) is 0.0"),
        (["cosh", "--start", "nan", "0"], "points of cosh bowl must be finite"),
        (
            ["two-layer", "--start", "1", "2"],
            "the constants of two layers do not hold at all of these points",
        ),
        (["cosh", "--rule", "warmup", "lucky"], "unknown rule 'lucky'; there are warmup, "),
        (["cosh", "--rule", "warmup", "warmup"], "rule 'warmup' is given twice"),
        (["cosh", "--rule", "warmup", "--lr", "0.1"], "--lr is for constant, "),
        (["cosh", "--lr", "-1"], "lr must be finite and > 0, got -1.0"),
        (["cosh", "--steps", "0"], "steps must be 1 to 10,000, got 0"),
        (["cosh", "--steps", "20000"], "steps must be 1 to 10,000, got 20,000"),
        (["cosh", "--noise", "-1"], "noise must be finite and >= 0, got -1.0"),
        (["cosh", "--noise", "1e200"], "noise must be below 1e154 for its variance to be finite, got 1e+200"),
        (["cosh", "--seed", "-1"], "seed must be >= 0, got -1"),
        (
            ["cosh", "--out", "nowhere/page.html"],
            "there is no folder nowhere for the page page.html: make it",
        ),
        (
            ["cosh", "--out", "nowhere"],
            "--out must be a file that ends in .html, or a folder that exists, got 'nowhere'",
        ),
        (["cosh", "--out", "page.pdf"], "--out must be a file that ends in .html"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = call(capsys, "descend", *arguments)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith("warmfree: ")
    assert message in err
    assert "Traceback" not in err
    assert not list(Path().iterdir())


def test_negative_coordinates_and_an_own_folder_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    Path("pages").mkdir()
    found = as_json(
        capsys, "descend", "cosh", "--start", "-4", "-1", "--steps", "5", "--out", "pages", "--rule", "warmup"
    )
    assert found["start"] == [-4.0, -1.0]
    assert [path.name for path in Path("pages").iterdir()] == [PAGE]


def test_json_is_alone_on_standard_output_and_the_page_is_named_on_the_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, err = called(
        capsys, "descend", "cosh", "--steps", "5", "--rule", "warmup", "--json", "--out", "x.html"
    )
    assert out.startswith("{")
    assert out.rstrip().endswith("}")
    assert "page: x.html" in err
    sound_page(Path("x.html"))


def test_the_same_command_gives_the_same_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    pages = []
    for _ in range(2):
        called(capsys, "descend", "river-valley", "--steps", "20", "--noise", "0.1")
        pages.append(Path(PAGE).read_bytes())
    assert pages[0] == pages[1]


def test_an_interrupt_is_status_130_and_leaves_the_old_page(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(PAGE).write_text("old", encoding="utf-8")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "find_descent", interrupt)
    status, out, err = call(capsys, "descend", "cosh")
    assert (status, out) == (130, "")
    assert "interrupted before it was done; nothing was written" in err
    assert [path.name for path in Path().iterdir()] == [PAGE]
    assert Path(PAGE).read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_is_stopped_leaves_no_half_page(asked: signal.Signals) -> None:
    command = [
        sys.executable,
        "-m",
        "warmfree.cli",
        "theory",
        "descend",
        "cosh",
        "--steps",
        "10000",
        "--rule",
        *RULES,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as running:
        assert running.stderr is not None
        assert "descending by" in running.stderr.readline()
        running.send_signal(asked)
        out, err = running.communicate(timeout=120)
    assert running.returncode == (130 if asked == signal.SIGINT else -signal.SIGKILL)
    assert out == ""
    assert ("nothing was written" in err) == (asked == signal.SIGINT)
    assert not list(Path().iterdir())


def test_choose_rule_says_where_its_learning_rate_is_from() -> None:
    descent = Descent(CoshBowl(), np.array([3.0, 1.0]), 30, None, 0)
    assert choose_rule("warmup", descent, lr=0.1).how == "the function's constants"
    assert choose_rule("constant", descent, lr=0.1).how == "as given"
    assert choose_rule("constant", descent, lr=None).how == "lowest gap at the end, of 162"
    endless = Descent(Exponential(), np.array([5.0]), 30, None, 0)
    assert choose_rule("stable", endless, lr=None).how.endswith("; at the edge of those")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_page_fits_a_phone_and_a_desk_in_a_browser(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    called(capsys, "descend", "cosh", "--steps", "30")
    driven = tmp_path / "driven.html"
    fits = "document.documentElement.scrollWidth <= innerWidth"
    tell = f"<script>addEventListener('load', () => document.title = `${{{fits}}}`)</script>"
    html = Path(PAGE).read_text(encoding="utf-8")
    start = html.index('<meta http-equiv="Content-Security-Policy"')
    html = html[:start] + html[html.index(">", start) + 1 :]
    driven.write_text(html.replace("</body>", f"{tell}</body>"), encoding="utf-8")
    for width in ("500", "1200"):
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / width}"]
        options += [f"--window-size={width},900", "--virtual-time-budget=2000", "--dump-dom", driven.as_uri()]
        dom = subprocess.run(
            ["chromium", *options], capture_output=True, text=True, timeout=120, check=True
        ).stdout
        assert "<title>true</title>" in dom
