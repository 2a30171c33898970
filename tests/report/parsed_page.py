"""A page as the tests ask about it: an HTML parser that fails on tags that do not nest."""

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "col"}
HEADINGS = ("h1", "h2", "h3")


class Page(HTMLParser):
    """Collects what the tests ask about; fails on tags that do not nest."""

    def __init__(self, html):
        super().__init__()
        self.open, self.ids, self.references, self.links = [], [], [], []
        self.headings, self.texts, self.tags, self.svgs = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        if tag != "span":
            self.texts.append(" ")
        if tag not in VOID:
            self.open.append(tag)
        if tag in HEADINGS:
            self.headings.append(int(tag[1]))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "svg":
            self.svgs.append(attributes)
        self.references += (attributes.get("aria-labelledby") or "").split()
        for key, value in attributes.items():
            self.references += re.findall(r"url\(#([^)]+)\)", value or "")
            if key in ("href", "src", "xlink:href", "srcset", "action", "data"):
                self.links.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join("".join(self.texts).replace("\u00a0", " ").split())
