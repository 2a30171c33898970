"""The colours of runs: the same in every chart, one for a light and one for a dark background.

The hues are Okabe and Ito's, moved in lightness until each has a contrast of at least 3:1 to its background.
"""

from __future__ import annotations

_COLOURS = (
    ("#0068a8", "#5ab4f0"),
    ("#c04a00", "#ff8f4f"),
    ("#007a5a", "#35d0a2"),
    ("#a8437f", "#ea8fc6"),
    ("#8a6500", "#f0c14b"),
    ("#6a51b8", "#b3a1ff"),
    ("#006f7f", "#5ed3e0"),
    ("#4b5563", "#c3cad5"),
)
_DASHES = ("none", "7 3", "2 3", "9 3 2 3")
COUNT = len(_COLOURS)


def write_rules(count: int) -> str:
    """Write the CSS for `count` runs; after the colours are used up they come again, dashed."""
    light = "".join(f"--run-{look}:{_COLOURS[look % COUNT][0]};" for look in range(max(count, COUNT)))
    dark = "".join(f"--run-{look}:{_COLOURS[look % COUNT][1]};" for look in range(max(count, COUNT)))
    rules = [f":root{{{light}}}", f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"]
    for look in range(max(count, COUNT)):
        dashes = _DASHES[look // COUNT % len(_DASHES)]
        rules.append(f".run-{look}{{--colour:var(--run-{look});stroke-dasharray:{dashes}}}")
    return "\n".join(rules)
