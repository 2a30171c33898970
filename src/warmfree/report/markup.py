"""HTML as nested calls: tags always close, and text from outside is always escaped."""

from __future__ import annotations

import html
import re

_VOID = frozenset({"br", "col", "hr", "img", "input", "meta"})


def text(value: object) -> str:
    r"""Escape `value` for use between tags or in an attribute; `± 5 %` stays on one line.

    Example:
        >>> text('<b> & "± 5 %"')
        '&lt;b&gt; &amp; &quot;±\xa05\xa0%&quot;'
    """
    return re.sub(r"(?<=±) | (?=%)", "\u00a0", html.escape(str(value)))


def prose(value: object) -> str:
    """Escape a sentence and keep numbers like 3e-4 on one line, still plain to copy.

    Example:
        >>> prose("at lr 3e-4 < 1")
        'at lr <span class="number">3e-4</span> &lt; 1'
    """
    return re.sub(r"\b\d[\d.]*e-\d+\b", lambda match: tag("span", match[0], class_="number"), text(value))


def tag(name: str, /, *children: str, **attributes: str) -> str:
    """Write an element.

    Args:
        name: the tag.
        children: finished markup, or text that went through `text`.
        attributes: plain text; a trailing underscore is dropped and others become hyphens (`class_`,
            `aria_label`).

    Example:
        >>> tag("th", text("a < b"), scope="col")
        '<th scope="col">a &lt; b</th>'
    """
    pairs = (
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items()
    )
    opening = f"<{name}{''.join(pairs)}>"
    return opening if name in _VOID else f"{opening}{''.join(children)}</{name}>"
