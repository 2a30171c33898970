"""The page behind `warmfree report`: what happened in a training run, from the record that its monitor left.

`load_run` reads a record, `run_summary` says in sentences what it shows, `write_run_report` writes a page for one
run or several. None of it needs an extra.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from warmfree.report.page import save
from warmfree.report.runs.load import load_run
from warmfree.report.runs.page import write_page
from warmfree.report.runs.run import Run
from warmfree.report.runs.summary import run_summary

__all__ = ["Run", "load_run", "run_summary", "write_run_report"]


def write_run_report(folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Path:
    """Write one self-contained HTML page about one or several monitored runs.

    The page loads nothing and works from a file; the same records give the same bytes. It appears whole or not
    at all.

    Args:
        folders: the runs' folders, each with a `monitor.jsonl`; they are overlaid in this order.
        out: the page to write, if it ends in `.html`; otherwise the folder to write `report.html` into, made
            when missing.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: a folder is missing, or holds no record.
        ValueError: a file is not a monitor's record, or `folders` is empty.
        OSError: the page cannot be written.

    Example:
        >>> page = write_run_report(["runs/no-warmup"], "runs/no-warmup")  # doctest: +SKIP
    """
    if not folders:
        raise ValueError("folders is empty: give the folder of at least one monitored run")
    runs = [load_run(folder) for folder in folders]
    names = _distinct([Path(folder) for folder in folders], [run.name for run in runs])
    path = Path(out)
    path = path if path.suffix == ".html" else path / "report.html"
    save(write_page([replace(run, name=name) for run, name in zip(runs, names, strict=True)]), path)
    return path


def _distinct(folders: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Tell runs of the same name apart: by the folders above them, and by number if that does not do."""
    paths = [(folder if folder.is_dir() else folder.parent).resolve().parts for folder in folders]
    for depth in (1, 2, 3, 4):
        if len(set(names)) == len(names):
            return list(names)
        names = ["/".join(parts[-depth:]) for parts in paths]
    return [f"{name} ({place})" for place, name in enumerate(names, start=1)]
