"""The page in a real browser: the enhanced view builds itself, answers keys and clicks, and throws nothing."""

import re
import shutil
import subprocess

import pytest
from synthetic_runs import crash, healthy, write

from warmfree.report.runs import load_run, write_run_report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
DRIVE = """
const told = [];
addEventListener("error", (event) => told.push(`error: ${event.message}`));
const tell = (name, value) => told.push(`${name}: ${value}`);
const key = (cells, name) => cells.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
addEventListener("load", () => {
  const isShown = (one) => one.offsetHeight > 0;
  const seen = (what) => [...document.querySelectorAll(what)].filter(isShown).map((one) => one.id);
  const shown = () => seen(".quantity");
  const rows = () => [...document.querySelectorAll("#curves tbody th")].map((one) => one.textContent).join(" & ");
  tell("shown first", shown());
  tell("rows first", rows());
  const pick = document.getElementById("pick");
  pick.value = "quantity-0";
  pick.dispatchEvent(new Event("change"));
  tell("shown then", shown());
  const cells = document.querySelectorAll(".picked .cells")[1];
  key(cells, "ArrowDown");
  key(cells, "End");
  tell("readout", document.querySelector(".picked .readout").textContent);
  key(cells, "Enter");
  tell("rows then", rows());
  const box = cells.getBoundingClientRect();
  const at = { clientX: box.left + 1, clientY: box.bottom - 1, bubbles: true };
  cells.dispatchEvent(new MouseEvent("click", { ...at, shiftKey: true }));
  tell("rows after a click", rows());
  document.getElementById("x-log").click();
  tell("timelines", seen(".timeline .chart"));
  tell("curve axis", document.querySelector("#curves .chart").dataset.kind);
  const plot = document.querySelector("#loss-log .plot");
  key(plot, "End");
  tell("loss", document.querySelector("#loss-log .readout").textContent);
  tell("fits", document.documentElement.scrollWidth <= innerWidth);
  const result = document.createElement("pre");
  result.id = "told";
  result.textContent = told.join("\\n");
  document.body.append(result);
});
"""


def dump(page, tmp_path):
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += ["--window-size=1280,1000", "--virtual-time-budget=4000", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_the_enhanced_view_builds_itself_and_answers(tmp_path):
    folders = [write(tmp_path / "healthy", healthy(100)), write(tmp_path / "crash", crash(100, 60))]
    page = write_run_report(folders, tmp_path)
    loss = load_run(folders[0]).losses[99]
    dom = dump(page, tmp_path)
    assert re.search(r'<html[^>]* class="js"[^>]* data-ready="yes"', dom)
    assert "data-error" not in dom
    driven = tmp_path / "driven.html"
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    driven.write_text(html.replace("<script>", f"<script>{DRIVE}</script><script>", 1), encoding="utf-8")
    told = re.search(r'<pre id="told">(.*?)</pre>', dump(driven, tmp_path), re.DOTALL)[1].replace(
        "&amp;", "&"
    )
    assert told.splitlines() == [
        "shown first: quantity-4",
        "rows first: blocks.3.attention, head 1 (healthy) & blocks.3.attention, head 1 (crash)",
        "shown then: quantity-0",
        "readout: crash, positions.weight, step 95: NaN",
        "rows then: positions.weight (healthy) & positions.weight (crash)",
        "rows after a click: positions.weight (healthy) & head.weight (healthy) & positions.weight (crash) & "
        "head.weight (crash)",
        "timelines: loss-log",
        "curve axis: steps",
        f"loss: Step 99: healthy {loss:.4g}, crash not finite, lr healthy 6.67e-5, lr crash 0.002",
        "fits: true",
    ]
