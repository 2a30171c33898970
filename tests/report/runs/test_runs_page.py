"""The page of runs: sound, self-contained, escaped, small, and the same every time."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from parsed_page import Page
from synthetic_runs import SHAPES, alert, crash, healthy, layers, modules, start, step, values, write
from test_runs_drawing import decode_png

from warmfree.report.runs import load_run, run_summary, write_run_report
from warmfree.report.runs.colour import INFINITE, NAN
from warmfree.report.runs.payload import decode_codes


class RunPage(Page):
    """The page without its scripts and its style sheet."""

    def __init__(self, html):
        super().__init__(re.sub(r"<(script|style)[^>]*>.*?</\1>", "", html, flags=re.DOTALL))

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        if tag in ("img", "input"):
            self.open.pop()


def html_of(folder, *shapes):
    folders = [write(folder / f"{place}-{shape}", SHAPES[shape]()) for place, shape in enumerate(shapes)]
    return write_run_report(folders, folder).read_text(encoding="utf-8")


def data_of(html):
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1]
    )


@pytest.fixture(scope="module")
def crash_html(tmp_path_factory):
    return html_of(tmp_path_factory.mktemp("crash"), "crash")


@pytest.mark.parametrize(
    "shapes", [*((shape,) for shape in SHAPES), ("healthy", "crash"), tuple(SHAPES)], ids=str
)
def test_every_shape_gives_a_sound_page(shapes, tmp_path):
    html = html_of(tmp_path, *shapes)
    page = RunPage(html)
    assert len(page.ids) == len(set(page.ids)), "ids are unique"
    assert set(page.references) <= set(page.ids), "every reference has a target"
    links = [link for link in page.links if not link.startswith("data:image/png;base64,")]
    assert all(link.startswith("#") and link[1:] in page.ids for link in links)
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert not re.search(r"\bnan\b|\binf\b|None", page.text)
    assert not re.search(r'\bd="[^"]*nan', html)
    assert len(data_of(html)["runs"]) == len(set(data_of(html)["runs"])) == len(shapes)
    for place, shape in enumerate(shapes):
        sentences = run_summary(load_run(tmp_path / f"{place}-{shape}"))
        assert all(" ".join(sentence.split()) in page.text for sentence in sentences)


def test_page_loads_nothing_and_runs_only_its_own_scripts(crash_html):
    addresses = re.findall(r"https?:[^\s\"']*", crash_html)
    assert set(addresses) <= {"http://www.w3.org/2000/svg"}, "the name of SVG, which is not fetched"
    assert not re.search(
        r"@import|url\(|\bfetch\(|XMLHttpRequest|<link|<iframe|innerHTML|\beval\(", crash_html
    )
    assert not re.search(r"<[^>]*\son\w+=", re.sub(r"<script.*?</script>", "", crash_html, flags=re.DOTALL))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', crash_html)[1].replace(
        "&#x27;", "'"
    )
    scripts = re.findall(r"<script>(.*?)</script>", crash_html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}'"
    )


def test_everything_from_the_record_is_escaped(tmp_path):
    html = html_of(tmp_path, "hostile")
    evil = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'
    assert html.count("<script") == html.count("</script>") == 3
    assert "<img src=x" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert evil in data_of(html)["names"]
    hostile = write(tmp_path / "<b onclick=alert(1)>&amp;", crash(60, 40))
    html = write_run_report([hostile, hostile], tmp_path).read_text(encoding="utf-8")
    assert "<b onclick" not in html
    assert "&lt;b onclick=alert(1)&gt;&amp;amp;" in html


def test_same_records_same_bytes_in_another_process_without_any_extra(tmp_path):
    first = html_of(tmp_path, "crash", "healthy")
    code = (
        "import sys; from warmfree.report.runs import write_run_report; write_run_report(sys.argv[1:3], sys.argv[3]);"
        "print(*{'matplotlib', 'rich'} & set(sys.modules))"
    )
    arguments = [str(tmp_path / name) for name in ("0-crash", "1-healthy", "again.html")]
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == []
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == first


def big_run(folder, *, steps, every):
    """As many rows as a GPT-2 with 12 layers has, and 25 quantities."""
    noise = np.random.default_rng(0)
    parameters = [f"h.{block}.{part}" for block in range(12) for part in "abcdefghijkl"] + [
        "wte",
        "wpe",
        "w",
        "b",
    ]
    within = [f"h.{block}.{part}" for block in range(12) for part in "abcd"]
    lines = [start(12, layers=parameters, modules=within)]
    for number in range(steps):
        lines.append(step(number, 3 + 8 * np.exp(-number / 500) + 0.1 * noise.standard_normal()))
        if number % every == 0:
            found = {
                f"p{q}": dict(zip(parameters, np.exp(noise.standard_normal(148)).tolist(), strict=True))
                for q in range(13)
            }
            found |= {f"m{q}": dict(zip(within, noise.random(48).tolist(), strict=True)) for q in range(3)}
            found |= {
                f"h{q}": {f"h.{b}.attn": noise.random(12).tolist() for b in range(12)} for q in range(6)
            }
            found |= {name: {"": float(noise.random())} for name in ("sharpness", "instability", "residual")}
            lines.append(values(number, found))
    return write(folder, lines)


def test_a_long_run_of_many_layers_stays_below_three_megabytes(tmp_path):
    page = write_run_report([big_run(tmp_path, steps=5000, every=16)], tmp_path)
    assert 1e6 < page.stat().st_size < 3e6
    data = data_of(page.read_text(encoding="utf-8"))
    assert len(data["maps"]) == 22
    assert sum(len(lines[0]["steps"]) for lines in data["series"].values()) < 12_000


def test_pictures_and_codes_show_the_record(tmp_path):
    run = load_run(write(tmp_path, crash()))
    html = write_run_report([tmp_path], tmp_path).read_text(encoding="utf-8")
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)" alt="Heat map of ([^"]+) in', html)
    maps = data_of(html)["maps"].values()
    with_rows = [grid for grid in run.grids.values() if not grid.is_global]
    assert (
        [title for _, title in pictures]
        == [grid.quantity.title for grid in with_rows]
        == [one["title"] for one in maps]
    )
    for (picture, _), entry, grid in zip(pictures, maps, with_rows, strict=True):
        pixels, _ = decode_png(base64.b64decode(picture))
        assert pixels.shape == grid.values.shape
        assert np.array_equal(pixels == NAN, np.isnan(grid.values))
        assert np.array_equal(pixels == INFINITE, np.isinf(grid.values))
        np.testing.assert_allclose(decode_codes(entry["runs"]["0"])[:, :, 0], grid.values, rtol=1e-3)
        finite = np.isfinite(grid.values)
        order = np.argsort(grid.values[finite])
        assert (np.diff(pixels[finite][order].astype(int)) >= 0).all(), "a larger value is never darker"


def test_without_a_script_everything_is_there(crash_html):
    page = RunPage(crash_html)
    assert page.tags.count("details") == len(data_of(crash_html)["maps"]) + 4, "four are of the whole model"
    assert page.tags.count("img") == len(data_of(crash_html)["maps"])
    for fact in (
        "blocks.3.attention, head 1",
        "0.09",
        "steps overshoot along the sharpest direction",
        "cleared at",
    ):
        assert fact.lower() in page.text.lower()
    assert "Early steps may be unstable well below 1" in page.text
    assert "probe curvature was made rarer" in page.text


def test_alerts_are_marked_by_shape_and_lead_to_their_table(crash_html):
    marks = re.findall(r'<a class="mark (\w+) tip-\w+" href="#alerts-0" style="left:([\d.]+)%"', crash_html)
    assert [kind for kind, _ in marks] == ["warning", "critical", "warning"] * 2, (
        "over linear and over log steps"
    )
    assert float(marks[0][1]) == pytest.approx(100 * 140 / 299, abs=0.01)
    assert crash_html.count('<svg class="shape critical"') == 3
    assert crash_html.count("M8 1 15 8 8 15 1 8Z") == 3
    assert len(re.findall(r'<i class="hit warning"', crash_html)) == 2
    assert '<option value="quantity-4" selected="selected">attention entropy' in crash_html


def test_many_alerts_do_not_swamp_the_page(tmp_path):
    lines = [start(), *(step(at, 1.0) for at in range(1000))]
    lines += [
        alert(at, name, None, 1.0, quantity="update_rms") for at in range(1000) for name in layers(1)[:5]
    ]
    lines.append(alert(999, "x", None, 1.0, severity="critical", message="the one that counts"))
    page = write_run_report([write(tmp_path, lines)], tmp_path)
    html = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 300_000
    assert "5,001 alerts; 4,801 warnings left out here" in html
    assert html.count("the one that counts") > 1


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [write(tmp_path / side / "run", healthy(30)) for side in ("left", "right")]
    names = data_of(write_run_report(folders, tmp_path).read_text(encoding="utf-8"))["runs"]
    assert names == ["left/run", "right/run"]
    names = data_of(write_run_report([folders[0], folders[0] / "monitor.jsonl"], tmp_path).read_text())[
        "runs"
    ]
    assert len(set(names)) == 2


def test_several_runs_share_a_colour_scale(tmp_path):
    for place, size in enumerate((1.0, 100.0)):
        write(tmp_path / str(place), [start(1), values(0, {"rrc": dict.fromkeys(modules(1)[1:], size)})])
    html = write_run_report([tmp_path / "0", tmp_path / "1"], tmp_path).read_text(encoding="utf-8")
    pixels = [
        decode_png(base64.b64decode(one))[0] for one in re.findall(r"data:image/png;base64,([^\"]+)", html)
    ]
    assert {*pixels[0].ravel().tolist()} == {0}
    assert {*pixels[1].ravel().tolist()} == {63}


def test_where_the_page_goes(tmp_path):
    folder = write(tmp_path / "run", healthy(20))
    assert write_run_report([folder], tmp_path / "new") == tmp_path / "new" / "report.html"
    assert write_run_report([folder], tmp_path / "a.html") == tmp_path / "a.html"
    with pytest.raises(ValueError, match="folders is empty"):
        write_run_report([], tmp_path)
    old = (tmp_path / "a.html").read_bytes()
    with pytest.raises(FileNotFoundError):
        write_run_report([folder, tmp_path / "gone"], tmp_path / "a.html")
    assert (tmp_path / "a.html").read_bytes() == old


def test_files_are_short():
    for path in Path(str(files("warmfree.report.runs"))).iterdir():
        if path.suffix in (".py", ".css", ".js"):
            assert len(path.read_text().splitlines()) < (350 if path.suffix == ".js" else 300), path.name
