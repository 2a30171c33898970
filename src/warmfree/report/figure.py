"""A figure of the page: panels, the methods in its legend, the sentences below."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from warmfree.report.results import Method
from warmfree.report.style import Style
from warmfree.report.svg import Panel

Styles = Mapping[str, Style]


@dataclass(frozen=True, slots=True)
class Figure:
    """Panels under one heading.

    `sentences` say what to look at, `remarks` list computed readings, `level` names the dotted line if there is one.
    """

    ident: str
    title: str
    methods: tuple[Method, ...]
    panels: tuple[Panel, ...]
    sentences: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    level: str | None = None
