"""How the tests of theory's commands call them, and read their pages."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from warmfree import cli

sys.path.append(str(Path(__file__).parents[1] / "report"))
from parsed_page import Page  # it lives with the tests of the report


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Call ``warmfree theory``: exit status, standard output, standard error."""
    try:
        status = cli.main(["theory", *arguments])
    except SystemExit as leaving:  # the parser's own way out
        status = int(leaving.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """Call it, and expect it to succeed: standard output and error."""
    status, out, err = call(capsys, *arguments)
    assert status == 0, err
    return out, err


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Call it with --json, and read what it prints."""
    out, _ = called(capsys, *arguments, "--json")
    found: dict[str, Any] = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    return found


def sound_page(path: Path) -> Page:
    """Read a page, and check what every page has to keep."""
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert len(page.ids) == len(set(page.ids)), "ids are unique"
    assert set(page.references) <= set(page.ids), "every reference has a target"
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert "http" not in html.replace("http-equiv", ""), "nothing is loaded"
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
    assert "@import" not in html
    assert "xlink" not in html
    assert "default-src &#x27;none&#x27;; style-src &#x27;unsafe-inline&#x27;" in html
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", page.text)
    assert not re.search(r'\bd="[^"]*nan', html), "no path runs through a missing value"
    assert not re.search("#fedb|#fedc", html), "every colour is one of the page's"
    named = [svg for svg in page.svgs if svg.get("role") == "img"]
    assert named
    assert all(len(svg["aria-labelledby"].split()) == 2 for svg in named), (
        "every plot has a title and a description"
    )
    assert (
        html.count("<table")
        == html.count("<caption>")
        == html.count('class="scroll" tabindex="0" role="region"')
    )
    assert len(html.encode()) < 600_000
    return page
