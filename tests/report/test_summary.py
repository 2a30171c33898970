"""The summary table, in the terminal and as text."""

import io
import sys

import pytest
from rich.console import Console
from synthetic_results import make_exact, make_results

from warmfree.report import summary_table
from warmfree.report.analysis import analyze
from warmfree.report.summary import notes, summarize

GRID = {
    "adamw": {1e-3: [2.1, 2.1], 2e-3: [2.2, 2.2], 4e-3: [None, 2.3]},
    "lionar": {3e-2: [2.05, 2.05], 1e-1: [1.98, 2.02], 3e-1: [2.3, 2.3]},
    "liona": {1e-3: [None, None]},
}


def render(results, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(summary_table(results))
    return console.file.getvalue()


def test_rows_say_what_the_analysis_found():
    rows = [row.texts for row in summarize(analyze(make_exact(GRID)))]
    assert rows == [
        ("LionAR", "0.1", "2.000 ± 0.028", "best", "0.03 … 0.1, ≥×3.3", "0 of 6"),
        ("AdamW, no warmup", "1e-3 †", "2.100 ± 0.000", "+5.0 %", "1e-3 … 2e-3, ≥×2", "1 of 6"),
        ("LionA", "–", "–", "–", "–", "2 of 2"),
    ]


def test_extent_over_seeds():
    rows = {row.label: row.extent for row in summarize(analyze(make_exact(GRID)))}
    assert rows["LionAR"] == "1.980 … 2.020"


def test_notes_explain_just_the_marks_in_use():
    everything = " ".join(notes(analyze(make_exact(GRID))))
    assert all(mark in everything for mark in "±†≥")
    plain = make_exact({"lionar": {3e-2: [2.5], 1e-1: [2.0], 3e-1: [2.5]}})
    assert not any(mark in " ".join(notes(analyze(plain))) for mark in "±†≥")


def test_terminal_table_fits_eighty_columns_without_cutting_numbers():
    text = render(make_results())
    assert max(map(len, text.splitlines())) <= 80
    for row in summarize(analyze(make_results())):
        assert all(value in text for value in row.texts[1:])


def test_label_with_brackets_is_not_read_as_markup():
    results = make_exact(GRID)
    results["methods"][0]["label"] = "[red]x[/red]"
    assert "[red]x[/red]" in render(results, width=120)


def test_without_rich_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs rich: pip install 'warmfree\[report\]'"):
        summary_table(make_exact(GRID))
