"""The page: well-formed, self-contained, escaped, the same every time, and whole or not at all."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from parsed_page import Page
from synthetic_results import RECIPES, make_exact, make_results

from warmfree.report import summary_table, verdict, write_report
from warmfree.report.page import save


def without(results, *quantities):
    for cell in results["cells"]:
        for name in quantities:
            cell["curve"][name] = None
    return results


def partial():
    results = make_results(seeds=(0,))
    results["cells"] = results["cells"][:7]
    return results


def empty():
    return make_results(seeds=(0,)) | {"cells": []}


SITUATIONS = {
    "everything": lambda: make_results(),
    "one seed": lambda: make_results(seeds=(0,)),
    "one learning rate": lambda: make_results(tuple(replace(r, lrs=r.lrs[1:2]) for r in RECIPES)),
    "one method": lambda: make_results(RECIPES[7:8], seeds=(0,)),
    "one cell": lambda: make_exact({"lionar": {0.1: [2.0]}}),
    "baselines": lambda: make_results(RECIPES[:2], seeds=(0,)),
    "no reference": lambda: make_results(RECIPES[2:], seeds=(0,)),
    "all diverged": lambda: make_results(tuple(replace(r, limit=0.0) for r in RECIPES), seeds=(0,)),
    "partial": partial,
    "no cells": empty,
    "nothing measured": lambda: without(
        make_results(seeds=(0,)), "update_rms", "angle", "factor", "lr", "loss"
    ),
    "off scale": lambda: make_exact({"adamw": {1e-3: [2.0], 2e-3: [2.1], 4e-3: [50.0]}}),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_situation_gives_a_sound_page(situation, tmp_path):
    results = SITUATIONS[situation]()
    path = write_report(results, tmp_path)
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert path == tmp_path / "report.html"
    assert len(page.ids) == len(set(page.ids)), "ids are unique"
    assert set(page.references) <= set(page.ids), "every reference has a target"
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert all(sentence in page.text for sentence in verdict(results))
    assert not re.search(r"\bnan\b|\binf\b|None", page.text)
    assert not re.search(r'\bd="[^"]*nan', html), "no path runs through a missing value"


def test_page_loads_nothing(full_html, full_page):
    assert "http" not in re.sub(r"http-equiv", "", full_html)
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(full_page.tags)
    assert "@import" not in full_html
    assert "xlink" not in full_html
    assert "default-src &#x27;none&#x27;" in full_html


def test_page_is_small(full_html):
    assert len(full_html.encode()) < 300_000
    assert not re.search(r'\bd="[^"]*\.\d{3}', full_html), "a hundredth of a pixel is fine enough"


def test_long_runs_are_thinned(tmp_path):
    results = make_results(RECIPES[7:8], seeds=(0,))
    short = write_report(results, tmp_path).stat().st_size
    for cell in results["cells"]:
        curve = cell["curve"]
        cell["curve"] = {name: values * 20 for name, values in curve.items()}
        cell["curve"]["step"] = list(range(1, 20 * len(curve["step"]) + 1))
    assert write_report(results, tmp_path).stat().st_size < 1.5 * short


def test_tables_have_captions_and_scroll_by_keyboard(full_html):
    assert full_html.count("<table") == full_html.count("<caption>") == 2
    assert (
        len(
            re.findall(r'<div class="scroll" tabindex="0" role="region" aria-label="[^"]+"><table', full_html)
        )
        == 2
    )


def test_every_cell_is_listed_with_its_outcome(full_html):
    results = make_results()
    cells = full_html[full_html.index("Every training run") :]
    assert cells.count("<tr") == 1 + len(results["cells"])
    diverged = sum(cell["status"] == "diverged" for cell in results["cells"])
    assert diverged > 0
    assert (
        cells.count("the loss is not finite at step 40") == cells.count('<tr class="diverged">') == diverged
    )


def test_provenance(full_page):
    results = make_results()
    footer = full_page.text[full_page.text.index("Where this comes from") :]
    for fact in (
        results["command"],
        results["created"],
        results["task"]["corpus"]["sha256"],
        "torch 2.13.0",
        "Synthetic CPU",
        "842,496",
        "0, 1, 2",
        "standard deviation over seeds",
    ):
        assert fact in footer


def test_header_says_what_was_trained_as_far_as_it_is_known(full_page, tmp_path):
    assert (
        "byte GPT on Synthetic plays · 842,496 parameters · 300 steps · 9 methods · 3 seeds · 126 runs"
        in full_page.text
    )
    bare = make_exact({"lionar": {0.1: [2.0]}}) | {"task": {"corpus": "a text"}}
    html = write_report(bare, tmp_path).read_text(encoding="utf-8")
    assert ">a text · 1 method · 1 seed · 1 run<" in html


def test_everything_from_the_results_is_escaped(tmp_path):
    hostile = '<script>alert("x")</script>&$x^2$'
    results = make_exact({"adamw": {1e-3: [2.0, None]}, "adamw-warmup": {1e-3: [2.0, 2.0]}})
    results["methods"][0] |= {"label": hostile, "description": hostile}
    results["methods"][1] |= {"label": hostile}
    results["cells"][1]["divergence"] = {"step": 3, "reason": hostile, "where": hostile}
    results |= {
        "command": hostile,
        "created": hostile,
        "versions": {hostile: hostile},
        "machine": {hostile: hostile},
    }
    results["task"] |= {hostile: hostile, "corpus": {"name": hostile}}
    html = write_report(results, tmp_path).read_text(encoding="utf-8")
    assert "script" not in Page(html).tags
    assert '<script>alert("' not in html
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;$x^2$" in html


def test_same_results_same_bytes_in_another_process(full_html, tmp_path):
    code = (
        "import pathlib, sys; sys.path.insert(0, sys.argv[1]);"
        "from synthetic_results import make_results; from warmfree.report import write_report;"
        "write_report(make_results(), pathlib.Path(sys.argv[2]))"
    )
    folder = __file__.rpartition("/")[0]
    environment = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-c", code, folder, str(tmp_path)], check=True, env=environment, timeout=120
    )
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == full_html


def test_users_matplotlib_settings_neither_matter_nor_change(full_html, tmp_path):
    import matplotlib

    with matplotlib.rc_context({"axes.spines.left": False, "xtick.direction": "in", "font.size": 40}):
        before = dict(matplotlib.rcParams)
        assert write_report(make_results(), tmp_path).read_text(encoding="utf-8") == full_html
        assert dict(matplotlib.rcParams) == before


def test_input_is_left_alone(tmp_path):
    results = make_results(seeds=(0,))
    write_report(results, tmp_path)
    summary_table(results)
    assert results == make_results(seeds=(0,))


def test_without_matplotlib_the_error_names_the_extra_and_nothing_is_written(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs matplotlib: pip install 'warmfree\[report\]'"):
        write_report(make_results(seeds=(0,)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert verdict(make_results(seeds=(0,))), "sentences need no extra"


def test_a_broken_matplotlib_is_not_called_missing(monkeypatch, tmp_path):
    (tmp_path / "matplotlib.py").write_text("import a_dependency_of_matplotlib")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "matplotlib")
    with pytest.raises(ModuleNotFoundError, match="No module named 'a_dependency_of_matplotlib'"):
        write_report(make_results(seeds=(0,)), tmp_path)


def test_importing_the_report_imports_nothing_heavy():
    code = "import sys, warmfree.report; print(*{'matplotlib', 'rich'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == []


def test_bad_results_leave_the_old_page(tmp_path):
    old = write_report(make_exact({"lionar": {0.1: [2.0]}}), tmp_path).read_bytes()
    with pytest.raises(ValueError, match="format is 2"):
        write_report({"format": 2}, tmp_path)
    assert (tmp_path / "report.html").read_bytes() == old


def test_a_failed_write_leaves_the_old_page_and_no_draft(monkeypatch, tmp_path):
    path = tmp_path / "report.html"
    save("old", path)
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save("new", path)
    assert path.read_text(encoding="utf-8") == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
